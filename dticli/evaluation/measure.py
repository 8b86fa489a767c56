"""Figures of a word: for each prompt, and their means with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL.Image import Image
from torch import Tensor

from dticli.evaluation.prompt import Prompt, Reading

RESAMPLES = 10_000
SHIFTS = 3


class Eyes(Protocol):
    """A judge of likeness."""

    def features(self, images: Sequence[Image]) -> Tensor:
        """Unit rows, (pictures, width); the cosine of two is the likeness of their pictures."""
        ...


class Reader(Protocol):
    """A judge of fit to the prompt."""

    def require(self, prompts: Sequence[Prompt], noun: str) -> None:
        """Raise UsageError unless it can judge these prompts and this noun."""
        ...

    def read(self, images: Sequence[Image], prompt: Prompt, noun: str) -> Reading:
        """Judge how well pictures fit a prompt with the noun in place of the word."""
        ...


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % bootstrap interval; None for both ends if it is of one value."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class PromptScore:
    """Mean figures of the pictures of one prompt.

    Attributes:
        likeness: cosine to the photos, mean over pictures and photos.
        alignment: fit of the pictures to the prompt with the noun in place of the word, mean over pictures.
        elements, leakage: as in `Reading`.
    """

    prompt: str
    likeness: float
    alignment: float
    elements: Mapping[str, float]
    leakage: float | None


class Looked(Protocol):
    """Figures with elements and leakage: those of a prompt or of a trial."""

    @property
    def elements(self) -> Mapping[str, float]: ...

    @property
    def leakage(self) -> float | None: ...


def mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Mean of independent values, with a percentile bootstrap interval.

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) == 1:
        return Mean(float(data[0]), None, None)
    picks = np.random.default_rng(seed).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), (2.5, 97.5))
    return Mean(float(data.mean()), float(low), float(high))


def ratio(values: Sequence[float], references: Sequence[float], seed: int = 0) -> Mean | None:
    """Mean of `values` over mean of `references`, with a percentile bootstrap interval over pairs.

    None if the mean of `references` is not above 0 in every resample.
    """
    pairs = np.asarray([values, references], dtype=np.float64)
    if pairs.shape[1] == 1 and pairs[1, 0] > 0:
        return Mean(float(pairs[0, 0] / pairs[1, 0]), None, None)
    picks = np.random.default_rng(seed).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))
    above, below = pairs[:, picks].mean(axis=2)
    if not (below > 0).all():
        return None
    low, high = np.percentile(above / below, (2.5, 97.5))
    return Mean(float(pairs[0].mean() / pairs[1].mean()), float(low), float(high))


def score(
    prompt: Prompt, images: Sequence[Image], noun: str, photos: Tensor, eyes: Eyes, reader: Reader
) -> PromptScore:
    """Figures of one prompt.

    Args:
        images: pictures drawn for it.
        noun: replaces the word for the judge.
        photos: unit features of the photos, (photos, width).
    """
    reading = reader.read(images, prompt, noun)
    return PromptScore(
        prompt.template,
        likeness=(eyes.features(images) @ photos.T).mean().item(),
        alignment=float(np.mean(reading.scores)),
        elements=reading.elements,
        leakage=reading.leakage,
    )


def scores(
    prompts: Sequence[Prompt],
    images: Sequence[Sequence[Image]],
    noun: str,
    photos: Tensor,
    eyes: Eyes,
    reader: Reader,
) -> tuple[PromptScore, ...]:
    """Figures of every prompt, from the pictures of each; see `score`."""
    return tuple(
        score(prompt, drawn, noun, photos, eyes, reader)
        for prompt, drawn in zip(prompts, images, strict=True)
    )


def chance(
    prompts: Sequence[Prompt], images: Sequence[Sequence[Image]], noun: str, reader: Reader
) -> float | None:
    """Mean alignment of pictures with the next up to SHIFTS prompts of the set instead of their own; None for one prompt."""
    scores = [
        np.mean(reader.read(drawn, prompts[(place + shift) % len(prompts)], noun).scores)
        for shift in range(1, min(SHIFTS + 1, len(prompts)))
        for place, drawn in enumerate(images)
    ]
    return float(np.mean(scores)) if scores else None


def elements(parts: Sequence[Looked]) -> dict[str, float]:
    """For each element, the mean share of pictures that show it, over the parts that ask for it."""
    names = sorted({name for part in parts for name in part.elements})
    return {
        name: float(np.mean([part.elements[name] for part in parts if name in part.elements]))
        for name in names
    }


def leakage(parts: Sequence[Looked]) -> float | None:
    """Mean leakage over the parts that have one; None if none has."""
    known = [part.leakage for part in parts if part.leakage is not None]
    return float(np.mean(known)) if known else None
