"""Handling of SIGINT (Ctrl-C) and SIGTERM: they end the program at once, or after the current step if work would be lost."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Request:
    """The number of the signal that was received; None so far."""

    number: int | None = None

    def receive(self, number: int, frame: object) -> None:
        """Handle a signal: store the first one; a SIGINT after it raises KeyboardInterrupt."""
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


def install() -> None:
    """Let SIGTERM raise SystemExit, so that open resources are closed, as they are after SIGINT."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)


@contextmanager
def postponed() -> Iterator[Request]:
    """While the context is open, signals are stored and do not end the program; a SIGINT after the first one does."""
    request = Request()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request.receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
