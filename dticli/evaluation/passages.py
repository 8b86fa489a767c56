"""The way from one learned word to another, judged: does it lead from thing to thing, and is there a thing in between?"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from dticli.evaluation import measure, records
from dticli.evaluation.markdown import table
from dticli.evaluation.measure import Mean

STILL = 1e-4
"""Change in likeness that rounding alone can make."""


@dataclass(frozen=True)
class Passage:
    """What the frames of one way are like.

    Attributes:
        arm, path: whose words lie at its ends, and how it was gone: slerp or lerp.
        first, second: the subjects.
        degrees: angle between the words, mean over encoders and vectors.
        to_first, to_second: likeness of each frame to the photos of either, mean over its pictures.
    """

    arm: str
    path: str
    first: str
    second: str
    degrees: float
    to_first: tuple[float, ...]
    to_second: tuple[float, ...]

    @property
    def backward(self) -> float | None:
        """Share of all change between the two that leads back: 0 is a monotone way, 0.5 leads nowhere; None without change."""
        nearer = [second - first for first, second in zip(self.to_first, self.to_second, strict=True)]
        changes = [after - before for before, after in pairwise(nearer)]
        whole = sum(map(abs, changes))
        return sum(-change for change in changes if change < 0) / whole if whole > STILL else None

    @property
    def ends(self) -> float:
        """Likeness of the ends to their own subjects, mean of both."""
        return (self.to_first[0] + self.to_second[-1]) / 2

    @property
    def inner(self) -> float:
        """Likeness of the frames in between to the nearer subject, mean over frames."""
        return float(np.mean([max(pair) for pair in zip(self.to_first, self.to_second, strict=True)][1:-1]))


@dataclass(frozen=True)
class PassageResult:
    """What all ways of an arm on one path say, over pairs of subjects.

    Attributes:
        backward: mean over the pairs between which anything changes; None if there is none.
        kept: `inner` as a multiple of `ends`; None where the ends may be like nothing.
    """

    arm: str
    path: str
    pairs: int
    degrees: float
    backward: Mean | None
    kept: Mean | None


def likenesses(features: Tensor, photos: Tensor, frames: int) -> tuple[float, ...]:
    """Likeness of each frame to the photos.

    Args:
        features: unit rows of the pictures, as many for each frame, frame by frame, (pictures, width).
        photos: unit rows, (photos, width).
    """
    return tuple(float(part.mean()) for part in (features @ photos.T).chunk(frames))


def summarise(passages: Sequence[Passage]) -> tuple[PassageResult, ...]:
    """One result for each arm and path, in the order they come."""
    groups: dict[tuple[str, str], list[Passage]] = {}
    for each in passages:
        groups.setdefault((each.arm, each.path), []).append(each)
    return tuple(_result(arm, path, own) for (arm, path), own in groups.items())


def _result(arm: str, path: str, own: Sequence[Passage]) -> PassageResult:
    backward = [each.backward for each in own if each.backward is not None]
    return PassageResult(
        arm=arm,
        path=path,
        pairs=len(own),
        degrees=float(np.mean([each.degrees for each in own])),
        backward=measure.mean(backward) if backward else None,
        kept=measure.ratio([each.inner for each in own], [each.ends for each in own]),
    )


def read(file: Path, names: Mapping[str, str], frames: int) -> Passage | None:
    """The kept passage, under the names it has now; None if there is none or it is damaged, and it is to be done again."""
    kept = records.read(file, Passage, names)
    if kept is None or not len(kept.to_first) == len(kept.to_second) == frames:
        return None
    return kept if all(map(math.isfinite, (kept.degrees, *kept.to_first, *kept.to_second))) else None


def lines(results: Sequence[PassageResult]) -> Iterator[str]:
    """The table, as Markdown."""
    yield from table(
        ["between words of", "path", "pairs", "degrees", "backward", "kept"],
        (
            [
                each.arm,
                each.path,
                str(each.pairs),
                f"{each.degrees:.1f}",
                str(each.backward or ""),
                str(each.kept or ""),
            ]
            for each in results
        ),
    )
