"""Lengths of time as people read them."""

import time
from collections.abc import Callable


def clock(seconds: float) -> str:
    """A time as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Countdown:
    """Numbers pieces of work as they begin, and says how long the rest will take at the pace so far."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.total, self.now, self.begun, self.started = total, now, 0, now()

    def next(self) -> str:
        """The piece that begins now: `3 of 12, 10:20 left`."""
        done, self.begun = self.begun, self.begun + 1
        left = f", {clock((self.now() - self.started) / done * (self.total - done))} left" if done else ""
        return f"{self.begun} of {self.total}{left}"
