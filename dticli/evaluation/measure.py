"""Figures of a word: for each prompt and in the mean, with the interval that chance alone leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL.Image import Image
from torch import Tensor

from dticli.evaluation.judges import Alignment, Likeness

RESAMPLES = 10_000


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class PromptScore:
    """What the judges say of the pictures of one prompt, in the mean.

    Attributes:
        likeness: cosine to the photos, mean over pictures and photos.
        alignment: how well the pictures fit the prompt, with the class noun in the word's place.
    """

    prompt: str
    likeness: float
    alignment: float


def mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Mean of independent values, with a percentile bootstrap interval.

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), (2.5, 97.5))
    return Mean(float(data.mean()), float(low), float(high))


def score(
    prompt: str, images: Sequence[Image], text: str, photos: Tensor, eyes: Likeness, reader: Alignment
) -> PromptScore:
    """Figures of one prompt.

    Args:
        images: what was drawn for it.
        text: what they should show, in words the judge knows.
        photos: unit features of the photos, (photos, width).
    """
    return PromptScore(
        prompt,
        likeness=(eyes.features(images) @ photos.T).mean().item(),
        alignment=reader.scores(images, text).mean().item(),
    )
