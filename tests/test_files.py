"""What is there and is no regular file: never read, never replaced, never waited for; and names that no file can have."""

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import dticli
from dticli import atomic, files
from dticli.errors import EnvironmentProblem, InputError
from dticli.learn import run_folder
from dticli.learn.run_folder import RunFolder
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
KINDS = ("pipe", "device", "link to a device", "socket", "link that leads nowhere", "link to itself")


def place(folder: Path, kind: str, name: str) -> Path:
    """Something of that kind under a name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            return Path("/dev/zero")
        case "link to a device":
            path.symlink_to("/dev/zero")
        case "socket":
            # Its path may have 107 bytes, and folders of tests are deep.
            here = os.open(folder, os.O_RDONLY)
            try:
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.bind(f"/proc/self/fd/{here}/{name}")
            finally:
                os.close(here)
        case "link that leads nowhere":
            path.symlink_to(folder / "nothing")
        case "link to itself":
            path.symlink_to(path)
    return path


@contextmanager
def promptly(seconds: float = 60) -> Iterator[None]:
    """Fail instead of waiting for a pipe's other end."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"nothing after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


READERS: dict[str, tuple[str, list[object], int]] = {
    "settings": ("any.toml", ["train", "--config"], 2),
    "subjects": ("any.toml", ["train", "--subjects"], 2),
    "prompts": ("any.txt", ["generate", "--prompts"], 2),
    "a plan": ("any.toml", ["evaluate", "--plan"], 2),
    "a word": ("any.safetensors", ["info"], 3),
    "a pickled word": ("any.pt", ["info"], 3),
    "a word to draw with": ("any.safetensors", ["generate", "a photo of <any>", "-t"], 3),
    "a checkpoint": ("any.safetensors", ["generate", "a dog", "--model"], 4),
    "vocabulary": ("any.safetensors", ["inspect-norms"], 3),
    "a log": ("any.run/log.jsonl", ["inspect-norms"], 3),
    "a photo": ("any.png", ["train", "--token", "<dog>", "--init", "dog", "--model", "stickers"], 3),
    "a picture for a card": ("any.png", ["push", "{dog}", "user/name", "--picture"], 3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_not_read(dti: Dti, dog: Path, tmp_path: Path, kind: str) -> None:
    """Wherever a command reads a file it was told of, it says in one line that there is none, and does not wait."""
    for number, (what, (name, command, code)) in enumerate(READERS.items()):
        path = place(tmp_path / str(number), kind, name)
        if path.name == "log.jsonl":
            path = path.parent
        elif kind == "device" and path.suffix == "":
            continue
        arguments = [dog if each == "{dog}" else each for each in command]
        with promptly():
            outcome = dti(*arguments, path)
        assert (outcome.code, len(outcome.error) < 600) == (code, True), (what, outcome.err)


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "socket"])
def test_a_model_folder_with_one_is_refused(dti: Dti, tmp_path: Path, kind: str) -> None:
    """A library would open it."""
    import shutil

    from dticli import bundled

    for number, name in enumerate(["unet/config.json", "text_encoder/model.safetensors", "dti.toml"]):
        model = shutil.copytree(bundled.model_folder(), tmp_path / str(number))
        (model / name).unlink(missing_ok=True)
        if kind == "socket" and "/" in name:
            place(model / "unet", kind, "other.json")
        else:
            place(model, kind, name)
        with promptly():
            outcome = dti("generate", "a dog", "--model", model, "-o", tmp_path / "out", "--steps", 1)
        assert (outcome.code in (2, 4), "is" in outcome.error) == (True, True), outcome.err


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    """By no writer, forced or not; a link stays what it is, and so does what it points to."""
    run = RunFolder(tmp_path / "dog.run")
    path = place(tmp_path, kind, "out.png")
    for name in (run_folder.LOG, run_folder.LOCK):
        place(tmp_path / "dog.run", "link to a device" if kind == "device" else kind, name)
    before = os.lstat(path)
    attempts: list[Callable[[], object]] = [
        lambda: atomic.write_bytes(path, b"new"),
        lambda: atomic.require_writable([path], force=True),
        lambda: run.appending().__enter__(),
        lambda: run.locked().__enter__(),
    ]
    for attempt in attempts:
        with promptly(), pytest.raises(EnvironmentProblem, match="cannot write"):
            attempt()
    assert os.lstat(path) == before
    assert not list(tmp_path.glob(".dti-*"))


def test_a_regular_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    """Someone who links a result to another disk wants it there."""
    (tmp_path / "there.png").write_bytes(b"old")
    (tmp_path / "here.png").symlink_to(tmp_path / "there.png")
    atomic.write_bytes(tmp_path / "here.png", b"new")
    assert (tmp_path / "here.png").is_symlink()
    assert (tmp_path / "there.png").read_bytes() == b"new"


LONG = "a" * 300
NAMED: dict[str, tuple[list[object], int]] = {
    "a model": (["generate", "a dog", "--model", LONG], 4),
    "a model's path": (["generate", "a dog", "--model", f"./{LONG}"], 4),
    "a checkpoint": (["generate", "a dog", "--model", f"{LONG}.safetensors"], 4),
    "a base": (["generate", "a dog", "--model", "stickers", "--base", LONG], 2),
    "a word": (["info", f"{LONG}.safetensors"], 3),
    "a word's folder": (["info", LONG], 3),
    "settings": (["train", "--config", LONG], 2),
    "prompts": (["generate", "--prompts", LONG], 2),
    "a plan": (["evaluate", "--plan", LONG], 2),
    "photos": (["train", LONG, "--token", "<dog>", "--init", "dog", "--model", "stickers"], 3),
    "an output": (["generate", "a dog", "--model", "stickers", "--out", LONG], 5),
    "a grid": (["generate", "a dog", "--model", "stickers", "--grid", f"{LONG}.png"], 5),
    "a run": (["report", LONG], 5),
    "a run's word": (["report", f"{LONG}.safetensors"], 5),
    "a state of a run": (["info", f"{LONG}.run@200"], 3),
    "words beside each other": (["compare", f"{LONG}.run", "--model", "stickers"], 3),
    "a word by another name": (["compare", f"<dog>={LONG}", "--model", "stickers"], 3),
    "masks": (["train", ".", "--token", "<dog>", "--init", "dog", "--model", "stickers", "--masks", LONG], 3),
    "a home that is nobody's": (["info", "~nobody-of-that-name/dog.safetensors"], 3),
}


@pytest.mark.parametrize("length", [300, 100_000])
def test_names_that_no_file_can_have(
    dti: Dti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Wherever a name is taken, one that is too long is an error of what it should name, in one line."""
    monkeypatch.chdir(tmp_path)
    for what, (command, code) in NAMED.items():
        arguments = [str(each).replace(LONG, "a" * length) for each in command]
        outcome = dti(*arguments)
        assert outcome.code == code, (what, outcome.err[:600])
        assert outcome.error


def test_a_file_has_a_bound(tmp_path: Path) -> None:
    """What is larger than any text is not read into memory; what is not UTF-8 is said."""
    path = tmp_path / "a.toml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with promptly(), pytest.raises(InputError, match="more than"):
        files.read_text(path, InputError, "expected settings")
    path.write_bytes(b"\xff\xe4")
    with pytest.raises(InputError, match="UTF-8"):
        files.read_text(path, InputError, "expected settings")
    path.write_bytes(b"\xef\xbb\xbfa = 1")
    assert files.read_text(path, InputError, "expected settings") == "a = 1"


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_names_that_are_not_utf_8_are_names(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """A folder with photos, and pictures in it, from a system of another encoding: read, written and told of."""
    here = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9"))
    here.mkdir()
    for number, photo in enumerate(sorted(photos.iterdir())[:2]):
        (here / f"{number}\udcff.png").write_bytes(photo.read_bytes())
    word = tmp_path / "dog.safetensors"
    train = (
        *("train", here, "--token", "<dog>", "--init", "dog", "--model", "stickers", "--crop", "random"),
        *("--steps", 1, "--batch-size", 1, "--resolution", 16, "-o", word),
    )
    outcome = dti(*train)
    assert outcome.code == 0, outcome.err
    (tmp_path / "plain").symlink_to(here)
    settings = tmp_path / "dog.run" / "run.toml"
    settings.write_text(
        re.sub("photos = .*", f'photos = "{tmp_path}/plain"', settings.read_text("utf-8")), "utf-8"
    )
    outcome = dti("report", tmp_path / "dog.run")
    assert outcome.code == 0, outcome.err
    assert "0?.png" in (tmp_path / "dog.run" / "report.html").read_text("utf-8")
    other = here / "w\udcff.safetensors"
    other.write_bytes(word.read_bytes())
    outcome = dti("inspect-norms", other, "--plot", tmp_path / "norms.svg")
    assert (outcome.code, (tmp_path / "norms.svg").is_file()) == (0, True), outcome.err
    drawn = dti(
        "generate", "a <dog>", "-t", word, "-o", here / "p", "--steps", 1, "--model", "stickers", "--json"
    )
    assert drawn.code == 0, drawn.err
    assert len(list((here / "p").iterdir())) == 1
    outcome = dti("info", here / "cat.safetensors")
    assert (outcome.code, "cat.safetensors" in outcome.error) == (3, True)


def test_texts_are_written_where_names_may_be_in_another_encoding() -> None:
    """`write_text` takes half characters; a text that is encoded beside it would raise on them."""
    package = Path(atomic.__file__).parent
    for path in package.rglob("*.py"):
        if "recipe" not in path.parts and path.name != "atomic.py":
            assert not re.search(r"write_bytes\(.*\.encode\(", path.read_text(encoding="utf-8")), path


def test_nobody_asks_for_a_file_in_a_way_that_raises() -> None:
    """`Path.is_file` and its kin raise for names that no file can have; `os.path` answers."""
    asked = re.compile(r"\.(is_file|is_dir|exists|is_symlink)\(\)")
    package = Path(dticli.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if "bundled" not in path.parts
        for line in path.read_text(encoding="utf-8").splitlines()
        if asked.search(line)
    ]
    assert found == []
