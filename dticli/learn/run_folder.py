"""The folder of a run, `<stem>.run/`, with settings, machine, log and checkpoints; it has one writer at a time."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from filelock import FileLock, Timeout

from dticli import atomic, files, paths
from dticli.errors import EnvironmentProblem, InputError, UsageError
from dticli.learn import checkpoint
from dticli.learn.checkpoint import Checkpoint

SETTINGS, MACHINE, LOG, LOCK, FINISHED = (
    "run.toml",
    "machine.json",
    "log.jsonl",
    "lock",
    "finished.safetensors",
)
PREVIEWS = "previews"
CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")
TEMPORARY = re.compile(r"\.dti-[0-9a-f]{16}\..*")
"""What a killed process left of a file it was writing."""
ENTRY: Mapping[str, type | tuple[type, ...]] = {
    "step": int,
    "loss": (int, float),
    "smoothed": (int, float),
    "angle": (int, float),
    "norm": dict,
    "cosine_to_init": dict,
}
"""Fields of a log line, with their types, that its readers rely on."""
MAX_LOG = 2**30


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run."""

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
        """The folder of previews, whose names begin with the step."""
        return self.path / PREVIEWS

    def snapshot(self, step: int) -> Path:
        """The token file of a state that is kept."""
        return paths.snapshot(self.path, step)

    def checkpoints(self) -> list[Path]:
        """Checkpoints of an unfinished run, oldest first."""
        names = [path.name for path in self.path.glob("checkpoint-*")] if os.path.isdir(self.path) else []
        steps = {int(match[1]): match[0] for name in names if (match := CHECKPOINT.fullmatch(name))}
        return [self.path / steps[step] for step in sorted(steps)]

    def states(self) -> list[Path]:
        """What the run can be continued from, the newest first: its checkpoints, and its last state once it is finished."""
        finished = self.path / FINISHED
        return [*self.checkpoints()[::-1], *([finished] if os.path.isfile(finished) else [])]

    def taken(self) -> str | None:
        """What a new run would replace in this folder: a run, or files with the names that a run uses; None for nothing."""
        if self.checkpoints():
            return "an unfinished run"
        if os.path.lexists(self.path / FINISHED):
            return "a finished run"
        if any(os.path.lexists(self.path / name) for name in (SETTINGS, MACHINE, LOG)):
            return "a run that has no state yet"
        return None

    def newest(self) -> Checkpoint | None:
        """The state to continue from: of the unfinished run, else of the finished one, else none.

        Raises:
            InputError: there are checkpoints, and all of them are damaged.
            UsageError: written by a newer dti.
        """
        damage = None
        for path in self.states():
            try:
                return checkpoint.read(path)
            except InputError as error:
                damage = error
        if damage:
            raise damage
        return None

    def start(self, settings: str, machine: Mapping[str, str], step: int) -> None:
        """Prepare the folder for a run that continues after `step`; what other attempts left from later steps is removed.

        Raises:
            EnvironmentProblem: the disk refuses.
        """
        atomic.make_folder(self.path)
        with _explained(self.path):
            self._remove_leftovers(step)
        atomic.write_text(self.path / SETTINGS, settings)
        atomic.write_text(self.path / MACHINE, json.dumps(machine, indent=2))
        kept = [json.dumps(entry) + "\n" for entry in read_log(self.path) if entry["step"] <= step]
        atomic.write_text(self.log, "".join(kept))

    def _remove_leftovers(self, step: int) -> None:
        for leftover in self.path.iterdir():
            if TEMPORARY.fullmatch(leftover.name) and os.path.isfile(leftover):
                leftover.unlink(missing_ok=True)
        if step == 0:
            for path in [*self.checkpoints(), self.path / FINISHED]:
                path.unlink(missing_ok=True)
        for path in [*self.previews.glob("*.png"), *paths.snapshots(self.path).values()]:
            if _step(path) > step or step == 0:
                path.unlink(missing_ok=True)
        # Chosen from other states than those there will be.
        paths.best(self.path).unlink(missing_ok=True)

    def save(self, state: Checkpoint) -> None:
        """Add a checkpoint, and remove all but the last two.

        Raises:
            EnvironmentProblem: the disk refuses.
        """
        checkpoint.write(self.path / f"checkpoint-{state.step:08d}.safetensors", state)
        with _explained(self.path):
            for path in self.checkpoints()[: -checkpoint.KEPT]:
                path.unlink(missing_ok=True)

    def finish(self) -> None:
        """After the token file is written: keep only the last state, under another name, for further training.

        Raises:
            EnvironmentProblem: the disk refuses.
        """
        with _explained(self.path):
            states = self.checkpoints()
            for path in states[:-1]:
                path.unlink(missing_ok=True)
            for path in states[-1:]:
                os.replace(path, self.path / FINISHED)

    @contextmanager
    def appending(self) -> Iterator["Log"]:
        """The log, opened for appending."""
        atomic.require_replaceable(self.log)
        with _explained(self.log):
            descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            yield Log(self.log, descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock inside the context; a folder that is empty afterwards is removed.

        The system releases the lock when the process ends, in whatever way.

        Raises:
            UsageError: another process is writing.
            EnvironmentProblem: the disk refuses.
        """
        atomic.make_folder(self.path)
        path = self.path / LOCK
        atomic.require_replaceable(path)
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"{self.path} is being written by another process: expected one run at a time; "
                "wait for it, stop it, or choose another --out"
            ) from None
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {path}: {atomic.reason(error)}") from None
        try:
            yield
        finally:
            with suppress(OSError):
                # Removed while it is held: whoever opened it meanwhile sees that it is gone, and makes another.
                path.unlink(missing_ok=True)
                self.path.rmdir()
            lock.release()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of the disk into one that names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {atomic.reason(error)}") from None


def _step(path: Path) -> int:
    """The number a file's name begins with; 0 for none."""
    digits = re.match(r"\d*", path.name)
    return int(digits[0] or 0) if digits else 0


@dataclass(frozen=True)
class Log:
    """A file with one JSON line per step."""

    path: Path
    descriptor: int

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            EnvironmentProblem: the disk refuses.
        """
        with _explained(self.path):
            line = (json.dumps(entry) + "\n").encode()
            while line:
                line = line[os.write(self.descriptor, line) :]

    def sync(self) -> None:
        """Wait for the disk, so that no checkpoint is ahead of the log."""
        with _explained(self.path):
            os.fsync(self.descriptor)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The log's entries, up to the first damaged line.

    Raises:
        InputError: the log cannot be read.
    """
    path = folder / LOG
    if not os.path.lexists(path):
        return []
    data = files.read_bytes(
        path, InputError, "expected the log of a run; check its permissions", most=MAX_LOG
    )
    entries = []
    for line in data.splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            entry = None
        if not _is_entry(entry):
            break
        entries.append(entry)
    return entries


def _is_entry(entry: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a log line has all fields that its readers rely on, with the right types."""
    if not isinstance(entry, dict) or not all(
        isinstance(entry.get(key), kind) for key, kind in ENTRY.items()
    ):
        return False
    figures = [*entry["norm"].items(), *entry["cosine_to_init"].items()]
    same = entry["norm"].keys() == entry["cosine_to_init"].keys()
    return same and all(isinstance(value, int | float) for _, value in figures)
