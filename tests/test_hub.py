"""A hub that answers anything: one line, exit code 5 or that of what was asked for, in bounded time and memory."""

import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import close_session

from dticli import hub
from tests.conftest import Outcome
from tests.hub_server import Hub

Dti = Callable[..., Outcome]
# Of the hub's client among its own libraries.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
GOOD = {"id": "a/b", "sha": "0" * 40}


def listing(*siblings: Any) -> bytes:
    return json.dumps(GOOD | {"siblings": siblings}).encode()


ANSWERS: dict[str, bytes] = {
    "a web page": b"<html><body>Log in to the network</body></html>",
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "text": b'"yes"',
    "half": listing({"rfilename": "dog.safetensors", "size": 8})[:-4],
    "deep": b"[" * 100_000,
    "not UTF-8": b"\xff\xfe\x00",
    "names are numbers": listing({"rfilename": 3, "size": 8}),
    "names are null": listing({"rfilename": None, "size": 8}),
    "names with NUL": listing({"rfilename": "dog\0.safetensors", "size": 8}),
    "names that climb": listing({"rfilename": "../../dog.safetensors", "size": 8}),
    "no names": listing({"size": 8}),
    "sizes are text": listing({"rfilename": "dog.safetensors", "size": "big"}),
    "sizes are lists": listing({"rfilename": "dog.safetensors", "size": [8]}),
    "sizes are endless": listing({"rfilename": "dog.safetensors", "size": float("inf")}),
    "files are a number": json.dumps(GOOD | {"siblings": 5}).encode(),
    "files are text": json.dumps(GOOD | {"siblings": "dog.safetensors"}).encode(),
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "token": ("info", "a/b"),
    "model": ("models", "a/b"),
}


@pytest.fixture
def answering(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Any], None]], None]]:
    """The hub's address, at which every request is answered by a function of the handler."""
    given: list[Callable[[Any], None]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            try:
                given[-1](self)
            except OSError:
                # The client had enough.
                self.close_connection = True

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield given.append
    # The client remembers for a while that a hub was silent.
    close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def send(handler: Any, content: bytes, **headers: str) -> None:
    handler.send_response(200)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content)


@pytest.mark.parametrize("command", COMMANDS)
def test_answers_of_another_form_are_one_line(dti: Dti, answering: Any, command: str) -> None:
    """Whatever JSON, or none, stands where a list of files is expected."""
    for what, content in ANSWERS.items():
        answering(lambda handler, content=content: send(handler, content))
        outcome = dti(*COMMANDS[command], "--json")
        assert outcome.code in (3, 4, 5), (what, outcome.err)
        assert outcome.error, what


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_without_end_is_cut_off(
    dti: Dti, answering: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three gigabytes, said before or not, packed into little or not, are not read into memory."""
    monkeypatch.setattr(hub, "ANSWER_BYTES", 2**20)

    def endless(handler: Any, **headers: str) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        for _ in range(3 * 2**10 if handler.command != "HEAD" else 0):
            handler.wfile.write(b" " * 2**20)

    packed = gzip.compress(b" " * 2**27)
    for answer in (
        endless,
        lambda handler: endless(handler, Content_Length=str(3 * 2**30)),
        lambda handler: send(handler, packed, Content_Encoding="gzip"),
    ):
        answering(answer)
        tracemalloc.start()
        outcome = dti(*COMMANDS[command])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert outcome.code == 5, outcome.err
        assert outcome.error
        assert most < 2**26


@pytest.mark.parametrize("command", COMMANDS)
def test_a_hub_that_hangs_is_an_error(
    dti: Dti, answering: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing, or a letter a moment: after the time that an answer may take, that is an error."""
    assert hub.ANSWER_SECONDS == 30
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.5)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", 0.5)

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            time.sleep(0.1)

    for answer in (lambda handler: time.sleep(20), drip):
        answering(answer)
        started = time.monotonic()
        outcome = dti(*COMMANDS[command])
        assert outcome.code == 5, outcome.err
        assert outcome.error
        assert time.monotonic() - started < 15


def test_a_token_file_larger_than_was_said_is_not_fetched(
    dti: Dti, answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed with a kilobyte, sent without end: what is read is what a token file may have."""
    monkeypatch.setattr("dticli.words.token_reading.MAX_PICKLE", 2**20)
    sent = []

    def answer(handler: Any) -> None:
        if "/api/" in handler.path:
            send(handler, listing({"rfilename": "dog.safetensors", "size": 1000}))
        elif handler.command == "HEAD":
            send(handler, b" " * 1000, ETag='"x"', X_Repo_Commit="0" * 40)
        else:
            handler.send_response(200)
            handler.end_headers()
            for _ in range(2**10):
                handler.wfile.write(b" " * 2**20)
                sent.append(2**20)

    answering(answer)
    outcome = dti("info", "a/b")
    assert (outcome.code, "more than 1048576 bytes" in outcome.error) == (5, True), outcome.err
    assert sum(sent) < 2**26
