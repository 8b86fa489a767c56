"""Draws pictures of words and judges them, compared with photos."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dticli.draw import pipeline
from dticli.draw.pipeline import ShowProgress
from dticli.draw.sampler import Shot
from dticli.evaluation import drawing, judges, measure
from dticli.evaluation.measure import Eyes, PromptScore, Reader
from dticli.evaluation.prompt import Prompt
from dticli.photos import albums
from dticli.photos.albums import Photo
from dticli.settings import GenerateSettings
from dticli.words.base_model import Opened
from dticli.words.learned_word import Token


@dataclass(frozen=True)
class Jury:
    """Two judges, the model that draws, and the prompts and photos to compare with.

    Attributes:
        asked: the prompts.
        wanted: unit features of the photos, (photos, width).
    """

    opened: Opened
    settings: GenerateSettings
    pipe: Any
    asked: Sequence[Prompt]
    eyes: Eyes
    reader: Reader
    wanted: Tensor

    @classmethod
    def load(
        cls,
        opened: Opened,
        settings: GenerateSettings,
        asked: Sequence[Prompt],
        photos: Iterable[Photo],
        nouns: Iterable[str],
        device: torch.device,
        *,
        image_judge: str,
        text_judge: str,
    ) -> "Jury":
        """Load both judges, then the model.

        Args:
            nouns: nouns that replace the words for judges.

        Raises:
            UsageError: a judge is unknown or cannot judge these prompts or nouns; as `pipeline.without_words`.
            InputError: a photo cannot be read.
            ModelError, EnvironmentProblem: as `judges.load` and `pipeline.without_words`.
        """
        eyes, reader = judges.load(image_judge, text_judge, device, offline=settings.offline)
        for noun in nouns:
            reader.require(asked, noun)
        wanted = eyes.features([albums.whole(photo) for photo in photos])
        pipe = pipeline.without_words(opened, settings, safety_checker=False)
        return cls(opened, settings, pipe, asked, eyes, reader, wanted)

    def scores(
        self,
        token: Token,
        noun: str,
        shots: Sequence[Shot],
        kept: Sequence[Path] = (),
        *,
        what: str = "picture",
        progress: ShowProgress,
    ) -> tuple[PromptScore, ...]:
        """Draw a word, and judge its pictures by prompt.

        Args:
            shots: from `drawing.shots`.
            kept: files for the pictures, one per shot; empty to write none.
        """
        drawn = drawing.draw(
            self.pipe, self.opened, self.settings, token, shots, kept, what=what, progress=progress
        )
        images = drawing.by_prompt([picture.image for picture in drawn], len(self.asked))
        return measure.scores(self.asked, images, noun, self.wanted, self.eyes, self.reader)
