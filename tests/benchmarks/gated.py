"""Training programs measured beside each other: all alive at once, each stopped after every step until it is its turn."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some measurements."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __format__(self, form: str) -> str:
        return f"{self.middle:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass
class Seconds:
    """What something took, of the clock and of all cores together."""

    wall: float
    cpu: float


@dataclass
class Gated:
    """A program behind `gate`, from its start to its last step.

    Attributes:
        first: what it took to the end of the first step.
        rounds: what each step of a round took, on the average.
        cpu: seconds of CPU time so far.
    """

    name: str
    command: Sequence[str]
    first: Seconds = field(init=False)
    rounds: list[Seconds] = field(default_factory=list)
    cpu: float = field(init=False)

    def __enter__(self) -> "Gated":
        inner_read, self._write = os.pipe()
        self._read, inner_write = os.pipe()
        # a pipe that nobody reads would stop a program that says much
        self._said = tempfile.TemporaryFile()
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.gate", str(inner_read), str(inner_write), *self.command],
            pass_fds=(inner_read, inner_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
        )
        os.close(inner_read)
        os.close(inner_write)
        self.cpu = self._passed()
        self.first = Seconds(time.perf_counter() - started, self.cpu)
        return self

    def warm_up(self) -> None:
        """Take two steps that do not count."""
        self.steps(2)
        self.rounds.clear()

    def steps(self, count: int) -> None:
        """Take so many, a round of them."""
        started, before = time.perf_counter(), self.cpu
        for _ in range(count):
            os.write(self._write, b".")
            self.cpu = self._passed()
        self.rounds.append(Seconds((time.perf_counter() - started) / count, (self.cpu - before) / count))

    def _passed(self) -> float:
        """Wait for the end of a step: seconds of CPU time until there."""
        line = b""
        while not line.endswith(b"\n"):
            got = os.read(self._read, 64)
            if not got:
                self._said.seek(0)
                raise SystemExit(f"{self.name} ended before its step:\n{self._said.read().decode()[-2000:]}")
            line += got
        return float(line)

    def peak(self) -> float:
        """Megabytes of memory at most so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        (line,) = [each for each in status.splitlines() if each.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / MEGABYTE

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._write)
        self._process.wait()
        os.close(self._read)
        self._said.close()
