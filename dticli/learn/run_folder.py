"""The folder of a run, `<stem>.run/`: settings, machine, log and checkpoints, for one writer at a time."""

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dticli import atomic, paths
from dticli.errors import EnvironmentProblem, InputError, UsageError
from dticli.learn import checkpoint
from dticli.learn.checkpoint import Checkpoint

SETTINGS, MACHINE, LOG, LOCK, FINISHED = (
    "run.toml",
    "machine.json",
    "log.jsonl",
    "lock.json",
    "finished.safetensors",
)
PREVIEWS = "previews"
CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")
CLOCK_TOLERANCE = 2.0
"""Seconds by which the start time of one process may differ between two readings: the clock may be set meanwhile."""
TRIES = 8


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its books."""

    path: Path

    @classmethod
    def beside(cls, target: Path) -> "RunFolder":
        """The run folder of a token file."""
        return cls(target.with_suffix(paths.RUN))

    @property
    def log(self) -> Path:
        return self.path / LOG

    @property
    def previews(self) -> Path:
        """Pictures along the run, their names beginning with the step."""
        return self.path / PREVIEWS

    def snapshot(self, step: int) -> Path:
        """The token file of a state that is kept."""
        return paths.snapshot(self.path, step)

    def checkpoints(self) -> list[Path]:
        """Checkpoints of an unfinished run, oldest first."""
        names = [path.name for path in self.path.glob("checkpoint-*")] if self.path.is_dir() else []
        steps = {int(match[1]): match[0] for name in names if (match := CHECKPOINT.fullmatch(name))}
        return [self.path / steps[step] for step in sorted(steps)]

    def newest(self) -> Checkpoint | None:
        """The state to continue from: of the unfinished run, else of the finished one, else none.

        Raises:
            InputError: there are checkpoints, and all of them are damaged.
            UsageError: written by a newer dti.
        """
        finished = self.path / FINISHED
        damage = None
        for path in [*self.checkpoints()[::-1], *([finished] if finished.is_file() else [])]:
            try:
                return checkpoint.read(path)
            except InputError as error:
                damage = error
        if damage:
            raise damage
        return None

    def start(self, settings: str, machine: Mapping[str, str], step: int) -> None:
        """Open the books for a run that goes on from `step`: what other attempts left behind it is removed."""
        atomic.make_folder(self.path)
        for leftover in self.path.glob(".dti-*"):
            leftover.unlink(missing_ok=True)
        if step == 0:
            for path in [*self.checkpoints(), self.path / FINISHED]:
                path.unlink(missing_ok=True)
        for path in [*self.previews.glob("*.png"), *paths.snapshots(self.path).values()]:
            if _step(path) > step or step == 0:
                path.unlink(missing_ok=True)
        atomic.write_bytes(self.path / SETTINGS, settings.encode("utf-8", "replace"))
        atomic.write_bytes(self.path / MACHINE, json.dumps(machine, indent=2).encode())
        kept = [json.dumps(entry) + "\n" for entry in read_log(self.path) if entry["step"] <= step]
        atomic.write_bytes(self.log, "".join(kept).encode())

    def save(self, state: Checkpoint) -> None:
        """Add a checkpoint, and drop all but the last two."""
        checkpoint.write(self.path / f"checkpoint-{state.step:08d}.safetensors", state)
        for path in self.checkpoints()[: -checkpoint.KEPT]:
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """The token file is written: keep the last state alone, under another name, to train further from."""
        states = self.checkpoints()
        for path in states[:-1]:
            path.unlink(missing_ok=True)
        for path in states[-1:]:
            os.replace(path, self.path / FINISHED)

    @contextmanager
    def appending(self) -> Iterator["Log"]:
        """The log, opened for further lines."""
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {self.log}: {atomic.reason(error)}") from None
        try:
            yield Log(self.log, descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer while the context is open; a folder that stayed empty is removed afterwards.

        Raises:
            UsageError: another process is writing; says which.
            EnvironmentProblem: the disk refuses.
        """
        atomic.make_folder(self.path)
        lock = self.path / LOCK
        try:
            _take(lock)
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {lock}: {atomic.reason(error)}") from None
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()
                self.path.rmdir()


def _step(path: Path) -> int:
    """The number a file's name begins with; 0 for none."""
    digits = re.match(r"\d*", path.name)
    return int(digits[0] or 0) if digits else 0


@dataclass(frozen=True)
class Log:
    """A file of JSON lines, one a step; a line is written in one piece."""

    path: Path
    descriptor: int

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            EnvironmentProblem: the disk refuses.
        """
        with self._explained():
            line = (json.dumps(entry) + "\n").encode()
            while line:
                line = line[os.write(self.descriptor, line) :]

    def sync(self) -> None:
        """Wait for the disk, so that no checkpoint is ahead of the log."""
        with self._explained():
            os.fsync(self.descriptor)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {self.path}: {atomic.reason(error)}") from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The log's entries; a line that was cut off ends it.

    Raises:
        InputError: the log cannot be read.
    """
    path = folder / LOG
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    entries = []
    for line in lines:
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            break
        entries.append(entry)
    return entries


# One writer at a time. A lock names its process by host, number and start time: numbers alone come round again.


def _take(lock: Path) -> None:
    """Create the lock, after removing one whose process is gone."""
    for _ in range(TRIES):
        with suppress(FileExistsError):
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.write(descriptor, json.dumps(_ourselves()).encode())
            finally:
                os.close(descriptor)
            return
        with suppress(FileNotFoundError):
            held = lock.read_bytes()
            _require_gone(lock, held)
            _remove(lock, held)
    raise UsageError(f"{lock} keeps changing hands: expected one run at a time; try again later")


def _ourselves() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def _require_gone(lock: Path, held: bytes) -> None:
    try:
        holder = json.loads(held)
        host, pid, started = str(holder["host"]), int(holder["pid"]), float(holder["started"])
    except (ValueError, KeyError, TypeError):
        # Written in one piece just after it is created: unless it is that young, its writer was killed in between.
        time.sleep(0.1)
        if lock.read_bytes() == held:
            return
        raise FileNotFoundError from None
    if host != socket.gethostname():
        raise UsageError(
            f"{lock.parent} is being written by process {pid} on {host}: expected one run at a time; "
            f"if that one is gone, delete {lock}"
        )
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        if not dead and abs(process.create_time() - started) < CLOCK_TOLERANCE:
            raise UsageError(
                f"{lock.parent} is being written by process {pid}: expected one run at a time; "
                "wait for it, stop it, or choose another --out"
            )


def _remove(lock: Path, held: bytes) -> None:
    """Remove a stale lock, unless another process has replaced it meanwhile: then that one gets its lock back."""
    aside = lock.with_name(f".dti-{secrets.token_hex(8)}.json")
    os.rename(lock, aside)
    if aside.read_bytes() != held:
        os.rename(aside, lock)
    else:
        aside.unlink()
