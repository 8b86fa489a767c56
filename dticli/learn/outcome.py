"""Signs in a run's log that nothing was learned."""

import math
import statistics
from collections.abc import Iterator

from dticli.learn.run_folder import RunFolder, read_log

STILL = 0.5
"""Fewer step lengths than this in a whole run are no movement."""
STILL_DEGREES = 0.01
"""And less than this is no movement whatever the step length: what float32 rounds comes close."""
ENOUGH = 50
"""Losses of single steps scatter widely: averages of fewer say nothing."""
CLEAR = 3.0
"""Standard errors that a difference of averages must exceed to be one."""


def concerns(folder: RunFolder, word: str, lr: float) -> Iterator[str]:
    """Signs in the log that nothing of a word was learned, each with its likely cause."""
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
