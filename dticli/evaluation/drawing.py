"""Pictures of a word for judges: which are asked for, where they are kept, and drawn."""

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
    """The word a token was learned from.

    Args:
        source: what the message calls the token.

    Raises:
        UsageError: it was learned from something else.
    """
    init = token.metadata.get("dti.init", "")
    if not init or not initial_rows.is_phrase(init):
        raise UsageError(
            f"{source} does not say what {token.name} is: expected a noun for the judge; name it with --noun"
        )
    return init


def shots(name: str, asked: Sequence[Prompt], seed: int, count: int) -> tuple[Shot, ...]:
    """Every prompt with the word in its place, `count` times, on noises that follow from the seed."""
    return sampler.shots([prompt.of(name) for prompt in asked], seed, count)


def files(folder: Path, asked: Sequence[Shot]) -> list[Path]:
    """Where the pictures of a word are kept."""
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
    """Pictures of one word by itself: words of different pooling can be compared, and company changes no figure."""
    loaded = pipeline.with_words(pipe, opened, settings, [token])
    every = max(1, len(asked) // 10)
    return pipeline.draw(
        loaded, opened, asked, settings, files=kept, what=what, every=every, progress=progress
    )


def by_prompt(images: Sequence[Image], prompts: int) -> list[Sequence[Image]]:
    """Pictures in the order of prompts, as many for each, prompt by prompt."""
    each = len(images) // prompts
    return [images[at : at + each] for at in range(0, len(images), each)]
