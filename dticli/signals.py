"""What SIGINT (Ctrl-C) and SIGTERM do: end at once where nothing is lost by it, after the current step where it would be."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Request:
    """Whether a signal has asked for an end, and which."""

    number: int | None = None

    def receive(self, number: int, frame: object) -> None:
        """Note the first signal; a second SIGINT is impatience."""
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


def install() -> None:
    """Let SIGTERM unwind the program, as SIGINT does by itself, so that what is open gets closed."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)


@contextmanager
def postponed() -> Iterator[Request]:
    """While open, signals are noted instead of ending the program; a second SIGINT ends it at once."""
    request = Request()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request.receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
