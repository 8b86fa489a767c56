"""Pictures of a word for judges: their shots, their files, and drawing them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from dticli.draw import pictures, pipeline, sampler
from dticli.draw.pipeline import ShowProgress
from dticli.draw.sampler import Picture, Shot
from dticli.errors import UsageError
from dticli.evaluation.prompt import Prompt
from dticli.learn import initial_rows
from dticli.settings import GenerateSettings
from dticli.words.base_model import Opened
from dticli.words.learned_word import Token


def noun(source: str, token: Token) -> str:
    """The phrase that a token was initialised from.

    Args:
        source: name of the token's file in the error message.

    Raises:
        UsageError: the token was initialised from something else, or does not record it.
    """
    init = token.metadata.get("dti.init", "")
    if not init or not initial_rows.is_phrase(init):
        raise UsageError(
            f"{source} does not say what {token.name} is: expected a noun for the judge; name it with --noun"
        )
    return init


def shots(name: str, asked: Sequence[Prompt], seed: int, count: int) -> tuple[Shot, ...]:
    """`count` shots of every prompt with the word in its place; seeds as in `sampler.shots`."""
    return sampler.shots([prompt.of(name) for prompt in asked], seed, count)


def files(folder: Path, asked: Sequence[Shot]) -> list[Path]:
    """The files for the pictures of a word, one per shot."""
    return [folder / pictures.file_name(place, shot) for place, shot in enumerate(asked)]


def draw(
    pipe: Any,
    opened: Opened,
    settings: GenerateSettings,
    token: Token,
    asked: Sequence[Shot],
    kept: Sequence[Path],
    *,
    what: str = "picture",
    progress: ShowProgress,
) -> list[Picture]:
    """Draw pictures of one word without other words, so that words of different pooling can be compared."""
    loaded = pipeline.with_words(pipe, opened, settings, [token])
    every = max(1, len(asked) // 10)
    return pipeline.draw(
        loaded, opened, asked, settings, files=kept, what=what, every=every, progress=progress
    )


def by_prompt(images: Sequence[Image], prompts: int) -> list[Sequence[Image]]:
    """Split pictures, which are in the order of prompts and equally many for each, by prompt."""
    each = len(images) // prompts
    return [images[at : at + each] for at in range(0, len(images), each)]
