"""Chooses the best kept state of a run, according to judges."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dticli import atomic, paths
from dticli.errors import UsageError
from dticli.evaluation import measure
from dticli.evaluation.measure import Mean, PromptScore


@dataclass(frozen=True)
class State:
    """The figures of a kept state.

    Attributes:
        likeness, alignment: means over prompts.
        score: mean over prompts of max(likeness, 0) x alignment.
        behind: score of the best state minus that of this one, mean over prompts; None for the best one.
    """

    step: int
    likeness: Mean
    alignment: Mean
    score: Mean
    behind: Mean | None

    @property
    def is_clearly_worse(self) -> bool:
        """Whether the 95 % interval of its difference to the best state is above 0."""
        return self.behind is not None and self.behind.low is not None and self.behind.low > 0


def ranked(scores: Mapping[int, Sequence[PromptScore]]) -> tuple[State, ...]:
    """All states, each compared with the one of the highest score; of equal scores, the first.

    Args:
        scores: step to the figures of its prompts, the same prompts for each step; at least one step.
    """
    products = {
        step: [max(0.0, each.likeness) * each.alignment for each in found] for step, found in scores.items()
    }
    best = max(products, key=lambda step: sum(products[step]))
    return tuple(
        State(
            step,
            measure.mean([each.likeness for each in found]),
            measure.mean([each.alignment for each in found]),
            measure.mean(products[step]),
            None
            if step == best
            else measure.mean([b - own for b, own in zip(products[best], products[step], strict=True)]),
        )
        for step, found in scores.items()
    )


def require_states(run: Path) -> dict[int, Path]:
    """The files of a run's kept states, by step.

    Raises:
        UsageError: there are none.
    """
    kept = paths.snapshots(run)
    if not kept:
        raise UsageError(f"{run} keeps no states: expected a run of dti train --keep; train again with it")
    return kept


def keep(run: Path, step: int, how: str) -> None:
    """Write the choice into the run's folder, for `dog.run@best`."""
    atomic.write_text(paths.best(run), json.dumps({"step": step, "how": how}, indent=1))
