"""Which of the states that a run kept is the best in the eyes of judges."""

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
    """A kept state, judged.

    Attributes:
        likeness, alignment: means over prompts.
        score: mean over prompts of likeness x alignment: what is lost on either side counts.
        behind: by how much the best state's score is higher, mean over prompts; None of the best one.
    """

    step: int
    likeness: Mean
    alignment: Mean
    score: Mean
    behind: Mean | None

    @property
    def is_clearly_worse(self) -> bool:
        """Whether it is more than chance, by the 95 % interval of the difference."""
        return self.behind is not None and self.behind.low is not None and self.behind.low > 0


def ranked(scores: Mapping[int, Sequence[PromptScore]]) -> tuple[State, ...]:
    """States by step, each compared with the one of the highest score; of equal ones, the earliest.

    Args:
        scores: step to the figures of its prompts, the same prompts for each.
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
    """The states to choose from.

    Raises:
        UsageError: the run keeps none.
    """
    kept = paths.snapshots(run)
    if not kept:
        raise UsageError(f"{run} keeps no states: expected a run of dti train --keep; train again with it")
    return kept


def keep(run: Path, step: int, how: str) -> None:
    """Remember the choice in the run's folder, for `dog.run@best`."""
    atomic.write_text(paths.best(run), json.dumps({"step": step, "how": how}, indent=1))
