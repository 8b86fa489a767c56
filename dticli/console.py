"""The only writer: results on stdout, progress and notices on stderr, no colour when not a terminal or NO_COLOR is set."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

DEBUG_VARIABLE = "DTI_DEBUG"


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
    if as_json:
        print(to_json(result))
        return
    for line in result.lines():
        _out().print(printable(line), markup=False, highlight=False, soft_wrap=True)


def to_json(result: Result) -> str:
    """A result as JSON; control characters are escaped, so that none reaches a terminal."""
    text = json.dumps(_plain(result), ensure_ascii=False, indent=2, allow_nan=False)
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def notice(text: str) -> None:
    """One line on stderr."""
    if _speaker:
        _err().print(printable(text), markup=False, highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """One line on stderr that should not be missed."""
    if _speaker:
        _err().print(
            f"warning: {printable(text)}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )


def error(text: str) -> None:
    """The one line an error gets."""
    _err().print(f"error: {printable(text)}", style="red", markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Text from files and prompts without line breaks and control characters, which could steer a terminal."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def show_tracebacks(wanted: bool) -> bool:
    """Callback of `--debug`: errors raise instead of shrinking to a line."""
    if wanted:
        os.environ[DEBUG_VARIABLE] = "1"
    return wanted


def tracebacks_shown() -> bool:
    return bool(os.environ.get(DEBUG_VARIABLE))


class Progress:
    """A live line on a terminal; a plain line now and then elsewhere."""

    def __init__(self, total: int, every: int) -> None:
        self.total, self.every = total, every
        self.live = _err().is_terminal
        self.status: Any = None

    def update(self, done: int, text: str) -> None:
        if self.live:
            self.status.update(text)
        elif done % self.every == 0 or done == self.total:
            notice(text)


@contextmanager
def progress(total: int, *, every: int = 50, quiet: bool = False) -> Iterator[Progress | None]:
    """Report on `total` pieces of work; yields None when quiet.

    Args:
        every: without a terminal, one line is printed for this many pieces.
    """
    if quiet:
        yield None
        return
    line = Progress(total, every)
    if not line.live:
        yield line
        return
    with _err().status("starting") as status:
        line.status = status
        yield line


@contextmanager
def counting(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields what hears how many pieces of work are done, of how many; short work says nothing.

    A terminal shows a live line; elsewhere a plain line is printed after a second, and then every ten.
    """
    if quiet or not _speaker:
        yield lambda done, total: None
        return
    with ExitStack() as shown:
        status: Any = shown.enter_context(_err().status(what)) if _err().is_terminal else None
        due = time.monotonic() + 1

        def told(done: int, total: int) -> None:
            nonlocal due
            text = f"{what} {done}/{total}"
            if status:
                status.update(text)
            elif time.monotonic() >= due:
                due = time.monotonic() + 10
                notice(text)

        yield told


def _plain(value: Any) -> Any:
    """A result as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return value


@cache
def _consoles() -> tuple["Console", "Console"]:
    from rich.console import Console

    return Console(file=_Current("stdout")), Console(file=_Current("stderr"))  # type: ignore[arg-type]


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
