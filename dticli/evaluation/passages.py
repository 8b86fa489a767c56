"""Figures of paths between two learned words: whether they are monotone, and whether frames in between show a subject."""

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
"""Largest change in likeness that can be due to rounding alone."""


@dataclass(frozen=True)
class Passage:
    """The likenesses of the frames between two words.

    Attributes:
        arm: method that learned both words.
        path: slerp or lerp.
        first, second: names of the subjects.
        degrees: angle between the words, mean over encoders and vectors.
        to_first, to_second: for each frame, likeness to the photos of each subject, mean over pictures and photos.
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
        """Share of all change that goes back towards the first; 0 is monotone, 0.5 makes no progress; None without change."""
        nearer = [second - first for first, second in zip(self.to_first, self.to_second, strict=True)]
        changes = [after - before for before, after in pairwise(nearer)]
        whole = sum(map(abs, changes))
        return sum(-change for change in changes if change < 0) / whole if whole > STILL else None

    @property
    def ends(self) -> float:
        """Likeness of the end frames to their own subjects, mean of both."""
        return (self.to_first[0] + self.to_second[-1]) / 2

    @property
    def inner(self) -> float:
        """Likeness of the frames in between to the more similar subject, mean over frames."""
        return float(np.mean([max(pair) for pair in zip(self.to_first, self.to_second, strict=True)][1:-1]))


@dataclass(frozen=True)
class PassageResult:
    """The figures of an arm on one path, over pairs of subjects.

    Attributes:
        degrees: mean over pairs.
        backward: mean over the pairs with any change; None if there are none.
        kept: `inner` as a multiple of `ends`; None if the mean of `ends` may not be above 0.
    """

    arm: str
    path: str
    pairs: int
    degrees: float
    backward: Mean | None
    kept: Mean | None


def likenesses(features: Tensor, photos: Tensor, frames: int) -> tuple[float, ...]:
    """Mean cosine of each frame's pictures to the photos.

    Args:
        features: unit rows of the pictures, (pictures, width), in the order of frames, equally many for each frame.
        photos: unit rows, (photos, width).
    """
    return tuple(float(part.mean()) for part in (features @ photos.T).chunk(frames))


def summarise(passages: Sequence[Passage]) -> tuple[PassageResult, ...]:
    """One result for each arm and path, in the order of their first passage."""
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
    """The kept passage with these names; None if it is absent or damaged, or has another number of frames."""
    kept = records.read(file, Passage, names)
    if kept is None or not len(kept.to_first) == len(kept.to_second) == frames:
        return None
    return kept if all(map(math.isfinite, (kept.degrees, *kept.to_first, *kept.to_second))) else None


def lines(results: Sequence[PassageResult]) -> Iterator[str]:
    """The results as a Markdown table."""
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
