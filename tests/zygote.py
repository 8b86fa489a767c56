"""A process with everything imported that forks a child for each `dti` command line, and breaks it where it is told to.

Run as a program, it takes lists of requests, whose children run side by side, and gives lists of answers, as lines of JSON
on stdin and stdout. A fault is (operation, phase,
number): at that operation on a file, counted from 0, `before` it, `after` it, or with `half` of its bytes written, the child
sends itself the signal of that number, or, where the number is negative, the operation fails with that errno. Forking spares
each run the import of torch; nothing else differs from the real command.
"""

import codecs
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Fault = tuple[int, str, int]


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` is negative for the signal that killed it; operations are (name, paths)."""

    code: int
    out: str
    err: str
    operations: tuple[tuple[str, tuple[str, ...]], ...]


class Zygote:
    """The parent's end."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def dti(
        self, *arguments: object, faults: Sequence[Fault] = (), uid: int = 0, largest_file: int = -1
    ) -> Ended:
        """Run `dti ARGUMENTS` in a fresh fork, as another user, or where files may not grow beyond some bytes."""
        request = {"faults": faults, "uid": uid, "largest_file": largest_file}
        return self._ask([_request("dticli.cli:run", arguments) | request])[0]

    def ranks(
        self, count: int, folder: Path, *arguments: object, function: str = "dticli.cli:run"
    ) -> list[Ended]:
        """Run `dti ARGUMENTS` in as many forks at once, in that folder and with the environment a launcher gives them.

        Args:
            function: MODULE:NAME of what takes the arguments, if it is not the command line.
        """
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            port = server.getsockname()[1]
        team = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        team |= {"GLOO_SOCKET_IFNAME": "lo"}
        request = _request(function, arguments) | {"folder": str(folder)}
        return self._ask(
            [
                request | {"environment": team | {"RANK": str(rank), "LOCAL_RANK": str(rank)}}
                for rank in range(count)
            ]
        )

    def _ask(self, requests: list[dict[str, Any]]) -> list[Ended]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(requests) + "\n")
        self.process.stdin.flush()
        answers = json.loads(self.process.stdout.readline())
        return [
            Ended(
                **answer | {"operations": tuple((name, tuple(paths)) for name, paths in answer["operations"])}
            )
            for answer in answers
        ]

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def _request(function: str, arguments: Sequence[object]) -> dict[str, Any]:
    return {
        "function": function,
        "arguments": [str(each) for each in arguments],
        "environment": {},
        "folder": ".",
        "faults": (),
        "uid": 0,
        "largest_file": -1,
    }


class Operations:
    """Counts what a process does to files, and sends signals at chosen points."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = {(index, phase): number for index, phase, number in faults}
        self.done: list[tuple[str, list[str]]] = []

    def watch(self) -> None:
        """Replace the functions through which dti changes files."""
        for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, self._watched(name, getattr(os, name)))
        write = os.write

        def whole_write(descriptor: int, data: bytes) -> int:
            index = self._begin("write", descriptor)
            if (index, "half") in self.faults:
                write(descriptor, data[: len(data) // 2])
            self._reach(index, "half")
            written = write(descriptor, data)
            self._reach(index, "after")
            return written

        def write_bytes(path: Path, data: bytes) -> int:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                # An empty file is written too: by a write of nothing.
                written = whole_write(descriptor, data)
                while written < len(data):
                    written += whole_write(descriptor, data[written:])
                return written
            finally:
                os.close(descriptor)

        os.write = whole_write
        Path.write_bytes = write_bytes  # type: ignore[method-assign, assignment]

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            index = self._begin(name, *arguments[: 2 if name in ("replace", "rename") else 1])
            try:
                return function(*arguments, **options)
            finally:
                # Failures count: a file that should be removed may be gone already.
                self._reach(index, "after")

        return call

    def _begin(self, name: str, *targets: Any) -> int:
        named = [os.readlink(f"/proc/self/fd/{t}") if isinstance(t, int) else str(t) for t in targets]
        self.done.append((name, named))
        self._reach(len(self.done) - 1, "before")
        return len(self.done) - 1

    def _reach(self, index: int, phase: str) -> None:
        number = self.faults.get((index, phase), 0)
        if number > 0:
            os.kill(os.getpid(), number)
        if number < 0:
            raise OSError(-number, os.strerror(-number))


def _child(request: dict[str, Any], folder: Path) -> int:
    module, name = request["function"].split(":")
    function = getattr(importlib.import_module(module), name)
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    # A write beyond the limit then fails instead of killing.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"], resource.RLIM_INFINITY))
    record = os.open(folder / "operations", os.O_WRONLY | os.O_CREAT)
    for descriptor, name in ((1, "out"), (2, "err")):
        target = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(target, descriptor)
    if request["uid"]:
        os.setuid(request["uid"])
    operations = Operations(request["faults"])
    save = os.write
    operations.watch()
    try:
        code = function(request["arguments"])
    except SystemExit as error:
        code = int(error.code or 0)
    sys.stdout.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(record, json.dumps(operations.done).encode())
    return code


def _serve(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fork a child for each request, and answer when all have ended."""
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in requests]
        children = [_forked(request, folder) for request, folder in zip(requests, folders, strict=True)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        return [
            {
                "code": code,
                "out": (folder / "out").read_text(),
                "err": (folder / "err").read_text(),
                "operations": json.loads((folder / "operations").read_text() or "[]"),
            }
            for code, folder in zip(codes, folders, strict=True)
        ]


def _forked(request: dict[str, Any], folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _child(request, folder)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return pid


def _preload() -> None:
    """Import what a training imports, by loading a model: the libraries import late. Nothing is trained."""
    import torch

    import dticli.commands.train
    import dticli.learn.run  # noqa: F401
    from dticli import bundled
    from dticli.models import choice, loading

    loading.load(choice.choose(bundled.MODEL_NAME), torch.device("cpu"), torch.float32)
    # Codecs are modules too, which another user may not be able to read.
    codecs.lookup("utf-8-sig")


if __name__ == "__main__":
    # A child's SIGINT is its own affair.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _preload()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_serve(json.loads(line))) + "\n")
        answers.flush()
