"""A training of two steps on a tiny pipeline, ready to go."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from dticli import bundled
from dticli.errors import DtiError
from dticli.learn import hyperparameters, initial_rows, trainer
from dticli.learn.hyperparameters import Batches, Optimisation, Start
from dticli.learn.trainer import Lane, Learner, Outcomes, StepReport, Task
from dticli.models import families, memory
from dticli.models.families import Family
from dticli.photos import albums, latents
from dticli.settings import TrainSettings, resolve
from dticli.words import norms, placement
from tests import tiny


def training(
    model: str | Any, device: torch.device, dtype: torch.dtype, *, low_memory: bool = False, **own: Any
) -> tuple[Task, Learner]:
    """A run of two steps, ready to go, as `learn.run` prepares it.

    Args:
        model: name of a tiny pipeline, or a pipeline.
        own: settings that differ.
    """
    pipe = tiny.build(model) if isinstance(model, str) else model
    family = families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, "tiny")
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).to(dtype)
    fixed = {
        "token": "<dog>",
        "init": "dog",
        "steps": 2,
        "batch_size": 2,
        "accumulate": 1,
        "lr": 0.02,
        "kappa": 1e-4,
    }
    side = {"resolution": tiny.FAMILIES[model].size} if isinstance(model, str) else {}
    settings = resolve(TrainSettings, fixed | side | own, {})
    if not low_memory:
        pipe.to(device)
    photos = albums.read(bundled.photos("dog")[0]).photos
    encoded = latents.encode(
        pipe, family, albums.crops(photos, hyperparameters.cropping(settings, family.multiple)), device
    )
    if low_memory:
        memory.economize(pipe, family, device)
    vocabulary = {key: norms.summary(each) for key, each in placement.tables(pipe, family.encoders).items()}
    start, how = Start("dog", 2, "mean", "init", 0), Optimisation.of(settings)
    learner = trainer.learner("<dog>", how, *initial_rows.begin(pipe, family, start, vocabulary))
    texts = {path: ["a photo of <dog>"] for path in encoded.paths}
    return Task(pipe, family, encoded, texts, Batches.of(settings), how), learner


def fit(task: Task, learner: Learner) -> Iterator[StepReport]:
    """The steps of one word, placed as `learn.run` places it."""
    for ((_, outcome),) in fit_together([Lane(task, learner)]):
        if isinstance(outcome, DtiError):
            raise outcome
        yield outcome


def fit_together(lanes: Sequence[Lane]) -> Iterator[Outcomes]:
    """The steps of words that learn together."""
    with trainer.placed(lanes) as placed:
        yield from trainer.fit(lanes, placed)


def recoded(patch: pytest.MonkeyPatch, family: Family, **functions: Callable[..., Any]) -> None:
    """Put functions in the place of a family's own."""
    code = dataclasses.replace(family.code, **functions)
    patch.setattr(f"dticli.models.families.{family.module}.CODE", code)
