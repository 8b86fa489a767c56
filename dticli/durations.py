"""Durations for users."""

import time
from collections.abc import Callable


def clock(seconds: float) -> str:
    """A duration as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Countdown:
    """Numbers pieces of work as they start, and estimates the time left."""

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.total, self.now, self.begun, self.started = total, now, 0, now()

    def next(self, count: int = 1) -> str:
        """The pieces that start now: `3 of 12, 10:20 left`, or for two `3 to 4 of 12, 10:20 left`."""
        done, self.begun = self.begun, self.begun + count
        which = str(self.begun) if count == 1 else f"{done + 1} to {self.begun}"
        left = f", {clock((self.now() - self.started) / done * (self.total - done))} left" if done else ""
        return f"{which} of {self.total}{left}"
