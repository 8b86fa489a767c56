"""Draws pictures with a loaded pipeline and words, through the pipeline's own `__call__`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from dticli.draw.schedulers import SCHEDULERS
from dticli.errors import EnvironmentProblem, ModelError, UsageError, boundary, is_out_of_memory
from dticli.models import devices
from dticli.models.families import Family
from dticli.settings import GenerateSettings

if TYPE_CHECKING:
    import torch

    from dticli.words.placement import Word


@dataclass(frozen=True)
class Shot:
    """One picture to draw; `seed` is that of its noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Picture:
    """A picture and its shot.

    Attributes:
        filtered: whether the model's safety checker replaced it with black.
        file: where it was written; None if it was not.
    """

    shot: Shot
    image: Image
    filtered: bool = False
    file: Path | None = None


def shots(prompts: Sequence[str], seed: int, count: int) -> tuple[Shot, ...]:
    """`count` shots of every prompt; picture i of each prompt has seed + i, so that prompts share their noise."""
    return tuple(Shot(prompt, seed + index) for prompt in prompts for index in range(count))


Stepped = Callable[[int, int], None]
"""Called with the number of finished denoising steps of the current pictures and their total, after each but the last."""


def sample(
    pipe: Any,
    family: Family,
    words: "Sequence[Word]",
    shots: Sequence[Shot],
    settings: GenerateSettings,
    stepped: Stepped = lambda done, total: None,
) -> Iterator[Picture]:
    """Draw every shot, `settings.batch_size` at a time, and yield each picture when its batch is drawn.

    Raises:
        InputError: a word is truncated in a prompt; before anything is drawn.
        UsageError: the scheduler, negative prompt or guidance does not suit the model, or a word has more vectors than it reads.
        ModelError: the pipeline fails with these settings.
        EnvironmentProblem: out of memory; says what to lower.
    """
    from dticli.words.placement import place

    with place(pipe, family.encoders, words) as placement:
        texts = [shot.prompt for shot in shots]
        if settings.negative is not None:
            texts.append(settings.negative)
        placement.require_read(family, texts)
        yield from drawn(pipe, shots, settings, stepped)


def drawn(
    pipe: Any,
    shots: Sequence[Shot],
    settings: GenerateSettings,
    stepped: Stepped = lambda done, total: None,
) -> Iterator[Picture]:
    """As `sample`, for words that are already placed and known to be read."""
    with scheduler_of(pipe, settings.scheduler):
        for start in range(0, len(shots), settings.batch_size):
            batch = shots[start : start + settings.batch_size]
            prompts = [shot.prompt for shot in batch]
            images = _call(pipe, settings, prompts, [_generator(shot.seed) for shot in batch], stepped)
            yield from (Picture(shot, *each) for shot, each in zip(batch, images, strict=True))


def _call(
    pipe: Any,
    settings: GenerateSettings,
    prompts: list[str],
    generators: "list[torch.Generator]",
    stepped: Stepped,
) -> list[tuple[Image, bool]]:
    """Images, and whether each was filtered."""
    from dticli.models.families.shape import call_defaults

    options = _options(pipe, settings, len(prompts))
    if "callback_on_step_end" in call_defaults(pipe):
        options["callback_on_step_end"] = partial(_pass_on, stepped)
    try:
        with boundary(_undrawable), devices.explaining_determinism():
            output = pipe(prompt=prompts, generator=generators, **options)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EnvironmentProblem(
            f"out of memory drawing {len(prompts)} pictures at once: {_lighter(pipe, settings, len(prompts))}"
        ) from None
    # A video model draws one frame.
    images = output.images if "images" in output else [frames[0] for frames in output.frames]
    filtered = output.get("nsfw_content_detected") or [False] * len(images)
    return list(zip(images, filtered, strict=True))


def _pass_on(stepped: Stepped, pipe: Any, index: int, level: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's callback after a step; the pipeline continues with the returned state."""
    total = getattr(pipe, "num_timesteps", 0)
    if index + 1 < total:
        stepped(index + 1, total)
    return state


def _undrawable(reason: str) -> ModelError:
    return ModelError(
        f"the model cannot draw this ({reason}): expected other settings; try without --scheduler, --steps and --size"
    )


def _lighter(pipe: Any, settings: GenerateSettings, count: int) -> str:
    """Advice: settings that need less memory and are not in use yet."""
    import torch

    ways = {
        "lower --batch-size": count > 1,
        "lower --size": True,
        "add --low-memory": not settings.low_memory,
        "use --precision bf16": pipe.dtype == torch.float32,
    }
    return ", or ".join(way for way, helps in ways.items() if helps)


def _options(pipe: Any, settings: GenerateSettings, count: int) -> dict[str, Any]:
    """Keyword arguments of `pipe(...)` for `count` prompts: the settings, and replacements of unsuitable defaults."""
    from dticli.models.families.shape import FIXED, call_defaults

    known = call_defaults(pipe)
    options = {name: known[name] for name in FIXED if name in known}
    options |= {"num_inference_steps": settings.steps, "output_type": "pil"} | _guidance(
        known, settings, count
    )
    if settings.height_width:
        options |= dict(zip(("height", "width"), settings.height_width, strict=True))
        if "use_resolution_binning" in known:
            # The pipeline would draw the nearest of its own sizes, and resize.
            options["use_resolution_binning"] = False
    said = {name: value for name, value in options.items() if value is not None}
    if settings.steps not in (None, 2) and "intermediate_timesteps" in known:
        # SANA-Sprint's noise level between two steps; it accepts one for two steps only.
        said["intermediate_timesteps"] = None
    return said


def _guidance(known: Mapping[str, Any], settings: GenerateSettings, count: int) -> dict[str, Any]:
    """Guidance and negative prompts of `pipe(...)` for `count` prompts.

    If `pipe(...)` takes a `true_cfg_scale`, that is the classifier-free guidance, and `guidance_scale` is an input of distilled
    denoisers. If its default is above 1, the model needs guidance, and the negative prompt is blank by default.

    Args:
        known: parameters of `pipe(...)` with their defaults.

    Raises:
        UsageError: the model takes no negative prompt, or the guidance ignores it.
    """
    if settings.negative is not None and "negative_prompt" not in known:
        raise UsageError("this model takes no negative prompt: leave out --negative")
    strength = known.get("true_cfg_scale")
    blank = " " if strength and strength > 1 else None
    negative = blank if settings.negative is None else settings.negative
    negatives = None if negative is None else [negative] * count
    if strength is None or negatives is None:
        return {"guidance_scale": settings.guidance, "negative_prompt": negatives}
    strength = strength if settings.guidance is None else settings.guidance
    if settings.negative is not None and strength <= 1:
        raise UsageError(
            f"guidance {strength} ignores the negative prompt of this model: expected more than 1; set --guidance 4"
        )
    return {"true_cfg_scale": strength, "negative_prompt": negatives}


def _generator(seed: int) -> "torch.Generator":
    """On the CPU, so that a seed draws the same noise on every device."""
    import torch

    return torch.Generator().manual_seed(seed)


def require_scheduler(name: str) -> None:
    """Raise UsageError if there is no scheduler of this name."""
    if name not in SCHEDULERS:
        raise UsageError(f"unknown scheduler {name!r}: expected one of {', '.join(SCHEDULERS)}")


@contextlib.contextmanager
def scheduler_of(pipe: Any, name: str | None) -> Iterator[None]:
    """Let `pipe` sample with another scheduler while the context is open; None keeps its own.

    Raises:
        UsageError: the scheduler is unknown, or does not suit the model.
    """
    if name is None:
        yield
        return
    import diffusers

    from dticli.models.families.shape import is_flow

    require_scheduler(name)
    own = pipe.scheduler
    kind, options = SCHEDULERS[name]
    if is_flow(own):
        raise UsageError(f"--scheduler {name} does not suit a flow-matching model; leave it out")
    with boundary(
        lambda reason: UsageError(f"--scheduler {name} does not suit this model ({reason}); leave it out")
    ):
        pipe.scheduler = getattr(diffusers, kind).from_config(own.config, **options)
    try:
        yield
    finally:
        pipe.scheduler = own
