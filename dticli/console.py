"""The only writer: results on stdout, progress and notices on stderr, no colour when not a terminal or NO_COLOR is set."""

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
"""Set by Jupyter in its kernels and what they start: its cells call themselves terminals, and show each redrawn line anew."""
SHORTEST, LONGEST = 10, 40
"""Columns of a progress bar."""
PAUSE = 10.0
"""Seconds between two plain lines about the same work."""


class Result(Protocol):
    """What a command returns: a frozen dataclass that can say itself in lines of text."""

    def lines(self) -> Iterator[str]: ...


_speaker = True


def only_errors() -> None:
    """Print nothing but errors from now on: another process speaks for this one."""
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
                # A terminal breaks lines at words; what is read by programs keeps them whole.
                _out().print(line, markup=False, highlight=False, soft_wrap=not _out().is_terminal)


@contextmanager
def heard() -> Iterator[None]:
    """Write what is printed inside to stdout now, so that a refusal is known while it can be told.

    A reader that closed its end has read what it wanted: that is no error.

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
    """Let what is still to be written to a stream go nowhere: Python would try again at the end, and exit with 120."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _say(text: str, style: str | None = None) -> None:
    """One line on stderr; where that is closed or full, nobody listens, and the work goes on."""
    # A name of a megabyte is no less a name in an error, and no line of a terminal.
    text = re.sub(r"\S{400,}", lambda long: f"{long[0][:160]}...{long[0][-80:]}", printable(text))
    try:
        _err().print(text, style=style, markup=False, highlight=False, soft_wrap=True)
        sys.stderr.flush()
    except (OSError, ValueError):
        silence(sys.stderr)


def notice(text: str) -> None:
    """One line on stderr."""
    if _speaker:
        _say(text)


def warn(text: str) -> None:
    """One line on stderr that should not be missed."""
    if _speaker:
        _say(f"warning: {text}", "yellow")


def stopped(text: str) -> None:
    """The one line of a run that was asked to stop: nothing went wrong."""
    _say(text, "yellow")


def error(text: str) -> None:
    """The one line an error gets."""
    _say(f"error: {text}", "red")


class _Printed(logging.Handler):
    """What the other modules log, as lines on stderr."""

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
    """Print what dti's modules log from now on: information as notices, warnings and errors as such."""
    log = logging.getLogger("dticli")
    log.handlers = [_Printed()]
    log.setLevel(logging.INFO)
    log.propagate = False


def printable(text: str) -> str:
    """Text from files and prompts without line breaks and control characters, which could steer a terminal."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def raw(text: str) -> None:
    """Write control sequences of our own making to a terminal, above its live line."""
    _err().print(_Raw(f"{text}\n"), crop=False)


def width() -> int:
    """Columns of the terminal."""
    return _err().width


@dataclass(frozen=True)
class _Raw:
    """A text that is written as it is."""

    text: str

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.segment import ControlType, Segment

        yield Segment(self.text, None, [(ControlType.CARRIAGE_RETURN,)])


def show_tracebacks(wanted: bool) -> bool:
    """Callback of `--debug`: errors raise instead of shrinking to a line."""
    if wanted:
        os.environ[DEBUG_VARIABLE] = "1"
    return wanted


def tracebacks_shown() -> bool:
    return bool(os.environ.get(DEBUG_VARIABLE))


class ProgressBar:
    """A line that is drawn anew on a terminal; a plain line now and then elsewhere.

    On a terminal: a bar, per cent, the time left, and of what else is said as much as there is room for, so that the line
    never wraps, whatever the width is by then.
    """

    def __init__(self, total: int, every: int, first: int = 0) -> None:
        self.total, self.every, self.first = total, every, first
        self.done: float = first
        self.parts = ["starting"]
        self.started = self.updated = time.monotonic()
        self.due = self.started
        self.live = terminal()

    def update(self, done: float, *parts: str) -> None:
        """Say how many pieces are done, and what else there is to say, the most important first.

        Parts of a piece move the live line alone.
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

        # The last column stays free: a terminal may wrap as soon as it is written to.
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
        """The time that the rest will take at the pace so far, once there is a pace."""
        if self.done <= self.first or self.done >= self.total:
            return []
        pace = (self.updated - self.started) / (self.done - self.first)
        left = pace * (self.total - self.done) - (time.monotonic() - self.updated)
        return [f"{clock(max(0.0, left))} left"]


def terminal() -> bool:
    """Whether stderr is a terminal on which a line can be drawn over: a dumb one and the cell of a notebook cannot."""
    return _err().is_terminal and not _err().is_dumb_terminal and NOTEBOOK not in os.environ


@contextmanager
def progress(
    total: int, *, first: int = 0, every: int = 50, quiet: bool = False
) -> Iterator[ProgressBar | None]:
    """Report on `total` pieces of work; yields None when quiet.

    Args:
        first: pieces that were done before.
        every: without a terminal, a line is printed for this many pieces, at most every ten seconds, and one for the last.
    """
    if quiet or not _speaker:
        yield None
        return
    line = ProgressBar(total, every, first)
    with _drawn(line):
        yield line


@contextmanager
def _drawn(line: "RenderableType") -> Iterator[None]:
    """Keep a line up to date at the foot of the terminal, and take it away at the end."""
    if not terminal():
        yield
        return
    from rich.live import Live

    with Live(line, console=_err(), transient=True, refresh_per_second=8):
        yield


@contextmanager
def busy(what: str, *, quiet: bool = False) -> Iterator[None]:
    """Say at once what is under way while nothing else can be said: a live line on a terminal, elsewhere a plain one."""
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
    """Yields what hears how many pieces of work are done, of how many; short work says nothing.

    A terminal shows a live line; elsewhere a plain line is printed after a second, and then every ten.
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
    # In a notebook too, what is printed is text.
    return Console(file=out, force_jupyter=False), Console(file=err, force_jupyter=False)  # type: ignore[arg-type]


def _out() -> "Console":
    return _consoles()[0]


def _err() -> "Console":
    return _consoles()[1]


class _Current:
    """Whatever `sys.stdout` or `sys.stderr` is now: tests and pipes replace them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(sys, self.name), attribute)
