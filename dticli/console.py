"""All output: results on stdout, progress and notices on stderr; no colour without a terminal or with NO_COLOR."""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from dticli.dataclass_json import to_json
from dticli.durations import clock
from dticli.errors import EnvironmentProblem

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

DEBUG_VARIABLE = "DTI_DEBUG"
NOTEBOOK = "JPY_PARENT_PID"
"""Set by Jupyter for its kernels and their subprocesses; cells claim to be terminals, but cannot redraw a line."""
SHORTEST, LONGEST = 10, 40
"""Width of a progress bar, in columns."""
PAUSE = 10.0
"""Least seconds between two plain lines about the same work."""


class Result(Protocol):
    """The result of a command: a frozen dataclass with a representation in lines of text."""

    def lines(self) -> Iterator[str]: ...


_speaker = True


def only_errors() -> None:
    """Print only errors from now on, because another process prints for this one."""
    global _speaker
    _speaker = False


def show(result: Result, *, as_json: bool) -> None:
    """Print a command's result on stdout."""
    if not _speaker:
        return
    lines = [to_json(result)] if as_json else [printable(line) for line in result.lines()]
    with heard():
        for line in lines:
            if as_json:
                print(line)
            else:
                # Lines are wrapped at words on a terminal only; other programs get whole lines.
                _out().print(line, markup=False, highlight=False, soft_wrap=not _out().is_terminal)


@contextmanager
def heard() -> Iterator[None]:
    """Flush stdout at the end of the context, so that a failure can still be reported.

    A closed pipe is not an error: its reader has read what it needs.

    Raises:
        EnvironmentProblem: stdout cannot be written.
    """
    try:
        yield
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            reason = getattr(error, "strerror", None) or error
            raise EnvironmentProblem(
                f"cannot write the result to standard output ({reason}): send it somewhere else"
            ) from None


def silence(stream: TextIO) -> None:
    """Redirect a stream to the null device; otherwise Python would flush it again at exit, and exit with 120."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _say(text: str, style: str | None = None) -> None:
    """Print one line on stderr; if that is closed or full, the work continues without output."""
    # Very long names are shortened.
    text = re.sub(r"\S{400,}", lambda long: f"{long[0][:160]}...{long[0][-80:]}", printable(text))
    try:
        _err().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        sys.stderr.flush()
    except (OSError, ValueError):
        silence(sys.stderr)


def notice(text: str) -> None:
    """Print one line on stderr."""
    if _speaker:
        _say(text)


def warn(text: str) -> None:
    """Print a warning of one line on stderr."""
    if _speaker:
        _say(f"warning: {text}", "yellow")


def stopped(text: str) -> None:
    """Print the line of a run that was stopped by a signal, which is not an error."""
    _say(text, "yellow")


def error(text: str) -> None:
    """Print an error of one line on stderr."""
    _say(f"error: {text}", "red")


class _Printed(logging.Handler):
    """Prints log records of other modules on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say = (
            error
            if record.levelno >= logging.ERROR
            else warn
            if record.levelno >= logging.WARNING
            else notice
        )
        say(record.getMessage())


def listen() -> None:
    """Print what dti's modules log from now on: information as notices, and warnings and errors as such."""
    log = logging.getLogger("dticli")
    log.handlers = [_Printed()]
    log.setLevel(logging.INFO)
    log.propagate = False


def printable(text: str) -> str:
    """A text with line breaks and control characters replaced, which could control a terminal."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def raw(text: str) -> None:
    """Write our own control sequences to the terminal, above its live line."""
    _err().print(_Raw(f"{text}\n"), crop=False)


def width() -> int:
    """Width of the terminal, in columns."""
    return _err().width


@dataclass(frozen=True)
class _Raw:
    """A text that rich writes unchanged."""

    text: str

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.segment import ControlType, Segment

        yield Segment(self.text, None, [(ControlType.CARRIAGE_RETURN,)])


def show_tracebacks(wanted: bool) -> bool:
    """Callback of `--debug`: errors are shown with their traceback."""
    if wanted:
        os.environ[DEBUG_VARIABLE] = "1"
    return wanted


def tracebacks_shown() -> bool:
    return bool(os.environ.get(DEBUG_VARIABLE))


class ProgressBar:
    """A progress line that is redrawn on a terminal; occasional plain lines elsewhere.

    On a terminal: a bar, per cent, the time left, and as many of the other parts as fit without wrapping at the current
    width.
    """

    def __init__(self, total: int, every: int, first: int = 0) -> None:
        self.total, self.every, self.first = total, every, first
        self.done: float = first
        self.parts = ["starting"]
        self.started = self.updated = time.monotonic()
        self.due = self.started
        self.live = terminal()

    def update(self, done: float, *parts: str) -> None:
        """Set the number of finished pieces, and further parts of the line in order of importance.

        A fractional number updates only the live line of a terminal.
        """
        self.done, self.parts = done, [printable(part) for part in parts]
        self.updated = time.monotonic()
        if self.live or not isinstance(done, int):
            return
        if done == self.total or (done % self.every == 0 and self.updated >= self.due):
            self.due = self.updated + PAUSE
            notice("  ".join([*parts, *self._left()]))

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.cells import cell_len
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        # The last column stays free, because some terminals wrap when it is written.
        room = options.max_width - 1
        percent = f"{int(100 * self.done / self.total):3d}%"
        texts = [percent, *self._left()]
        needed = SHORTEST + sum(2 + cell_len(text) for text in texts)
        for part in self.parts:
            needed += 2 + cell_len(part)
            if needed > room:
                break
            texts.append(part)
        tail = "".join(f"  {text}" for text in texts)
        yield ProgressBar(
            total=self.total,
            completed=self.done,
            width=max(0, min(LONGEST, room - cell_len(tail))),
        )
        yield Text(tail, no_wrap=True, overflow="crop", end="")

    def _left(self) -> list[str]:
        """The estimated time left, once a piece is done."""
        if self.done <= self.first or self.done >= self.total:
            return []
        pace = (self.updated - self.started) / (self.done - self.first)
        left = pace * (self.total - self.done) - (time.monotonic() - self.updated)
        return [f"{clock(max(0.0, left))} left"]


def terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line, unlike a dumb terminal or the cell of a notebook."""
    return _err().is_terminal and not _err().is_dumb_terminal and NOTEBOOK not in os.environ


@contextmanager
def progress(
    total: int, *, first: int = 0, every: int = 50, quiet: bool = False
) -> Iterator[ProgressBar | None]:
    """Show progress of `total` pieces of work; yields None if quiet.

    Args:
        first: number of pieces that were done before.
        every: without a terminal, a line is printed after every so many pieces, at most every ten seconds, and after the last.
    """
    if quiet or not _speaker:
        yield None
        return
    line = ProgressBar(total, every, first)
    with _drawn(line):
        yield line


@contextmanager
def _drawn(line: "RenderableType") -> Iterator[None]:
    """Show a line at the bottom of the terminal, and remove it at the end."""
    if not terminal():
        yield
        return
    from rich.live import Live

    with Live(line, console=_err(), transient=True, refresh_per_second=8):
        yield


@contextmanager
def busy(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Show that work without measurable progress has started: a live line on a terminal, a plain line elsewhere."""
    if quiet or not _speaker:
        yield
    elif terminal():
        with _err().status(printable(what)):
            yield
    else:
        notice(f"{what} ...")
        yield


@contextmanager
def counting(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that is called with the number of finished pieces and their total.

    A terminal shows a live line; elsewhere a plain line is printed after one second, and then at most every ten.
    """
    if quiet or not _speaker:
        yield lambda done, total: None
        return
    with ExitStack() as shown:
        status: Any = shown.enter_context(_err().status(what)) if terminal() else None
        due = time.monotonic() + 1

        def told(done: int, total: int) -> None:
            nonlocal due
            text = f"{what} {done}/{total}"
            if status:
                status.update(text)
            elif time.monotonic() >= due:
                due = time.monotonic() + PAUSE
                notice(text)

        yield told


@cache
def _consoles() -> tuple["Console", "Console"]:
    from rich.console import Console

    out, err = _Current("stdout"), _Current("stderr")
    # Plain text, in notebooks too.
    return Console(file=out, force_jupyter=False), Console(file=err, force_jupyter=False)  # type: ignore[arg-type]


def _out() -> "Console":
    return _consoles()[0]


def _err() -> "Console":
    return _consoles()[1]


class _Current:
    """The current `sys.stdout` or `sys.stderr`, which tests replace."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(sys, self.name), attribute)
