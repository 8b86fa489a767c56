"""Warnings from a run's log that nothing was learned."""

import math
import statistics
from collections.abc import Iterator

from dticli.learn.run_folder import RunFolder, read_log

STILL = 0.5
"""Less movement in a whole run than this many steps counts as none."""
STILL_DEGREES = 0.01
"""Less than this counts as none whatever the step size, because float32 rounding comes close."""
ENOUGH = 50
"""Losses of single steps scatter widely, so averages of fewer are meaningless."""
CLEAR = 3.0
"""A difference of averages must exceed this many standard errors."""


def concerns(folder: RunFolder, word: str, lr: float) -> Iterator[str]:
    """Warnings that nothing was learned, each with its likely cause."""
    entries = read_log(folder.path)
    if not entries:
        return
    if entries[-1]["angle"] < max(STILL_DEGREES, STILL * math.degrees(math.atan(lr))):
        yield (
            f"the direction did not move ({entries[-1]['angle']:.2g} degrees in {len(entries)} steps): "
            "--lr is too small, the steps cancel, or the prior holds it; try a larger --lr or --batch-size, or a smaller --kappa"
        )
    losses = [entry["loss"] for entry in entries]
    third = len(losses) // 3
    if third < ENOUGH:
        return
    first, last = losses[:third], losses[-third:]
    early, late = statistics.fmean(first), statistics.fmean(last)
    error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / third)
    # A word that is learned lowers a loss of mostly noise by less than its error: only a clear rise says something.
    if late - early > CLEAR * error:
        yield (
            f"the loss rose ({early:.4f} in the first third, {late:.4f} in the last): "
            f"look at a picture before you trust {word}; --init may be far off, or --lr too large"
        )
