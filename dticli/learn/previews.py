"""Pictures of a word during training, drawn with the loaded model and the current rows.

Previews do not affect training: they use copies of the autoencoder and the scheduler, and training's random draws are keyed
(see `randomness`). So a run gives the same bytes with and without previews.
"""

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dticli.draw import pictures, pipeline, sampler
from dticli.draw.sampler import Shot
from dticli.errors import EnvironmentProblem
from dticli.learn.hyperparameters import Previewing
from dticli.learn.run_folder import RunFolder
from dticli.learn.trainer import Task
from dticli.models import devices, memory
from dticli.models.choice import Model
from dticli.settings import GenerateSettings, model_layer, resolve
from dticli.words import pooling
from dticli.words.base_model import Opened
from dticli.words.learned_word import Token

LOG = logging.getLogger(__name__)


@dataclass
class Timetable:
    """When previews are due.

    The first and the last previews are always drawn; those in between every `every` steps, if they stay within their share of
    the time. Time spent before an interruption is not counted.

    Attributes:
        every: steps between two previews.
        last: steps of the run.
        share: largest share of the time since the start.
        spent, latest: seconds that all previews took, and the latest.
    """

    every: int
    last: int
    share: float
    now: Callable[[], float] = time.monotonic
    spent: float = 0.0
    latest: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.now()

    def due(self, step: int) -> bool:
        """Whether previews are due after `step` steps."""
        if step in (0, self.last):
            return True
        elapsed = self.now() - self.began
        return step % self.every == 0 and self.spent + self.latest <= self.share * (elapsed + self.latest)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside the context as drawing."""
        started = self.now()
        yield
        self.latest = self.now() - started
        self.spent += self.latest


@dataclass(frozen=True)
class Drawn:
    """Previews of one step."""

    step: int
    files: tuple[Path, ...]


@dataclass
class Previews:
    """The previews of a run, in its folder."""

    asked: Previewing
    task: Task
    model: Model
    folder: RunFolder
    how: GenerateSettings = field(init=False)
    timetable: Timetable = field(init=False)
    shots: tuple[Shot, ...] = field(init=False)

    def __post_init__(self) -> None:
        asked = self.asked
        self.how = resolve(GenerateSettings, asked.drawing, model_layer(self.model.folder, "generate"))
        self.timetable = Timetable(asked.every, self.task.optimisation.steps, asked.share)
        self.shots = sampler.shots(self.task.prompts, self.how.seed, asked.count)

    def due(self, step: int) -> bool:
        """Whether there are pictures to draw after `step` steps."""
        return (
            bool(self.shots)
            and self.timetable.due(step)
            and not all(os.path.isfile(file) for file in self._files(step))
        )

    def draw(
        self, step: int, token: Token, addressed: Callable[[str], str], stop: Callable[[], bool]
    ) -> Drawn:
        """Draw the word as it is now; it is placed in the pipeline.

        If memory runs out after the first step, a warning is logged and previews end; the run goes on.

        Args:
            token: the word, for the pictures' metadata.
            addressed: replaces the word in a text by the name that it has in the pipeline.
            stop: called after each picture; if true, the rest is left out.

        Raises:
            EnvironmentProblem: out of memory, or the disk refuses, before the first step.
            UsageError: the model takes no negative prompt.
        """
        try:
            return Drawn(step, self._drawn(step, token, addressed, stop))
        except EnvironmentProblem as error:
            if step == 0:
                raise
            LOG.warning(f"no more previews from step {step} on: {error}")
            self.shots = ()
            return Drawn(step, ())

    def _drawn(
        self, step: int, token: Token, addressed: Callable[[str], str], stop: Callable[[], bool]
    ) -> tuple[Path, ...]:
        task, files = self.task, self._files(step)
        opened = Opened(self.model, task.family)
        said = pipeline.description(opened, self.how, [token]) | {"step": str(step)}
        shots = [replace(shot, prompt=addressed(shot.prompt)) for shot in self.shots]
        negative = self.how.negative and addressed(self.how.negative)
        how = self.how.model_copy(update={"negative": negative})
        drawn: list[Path] = []
        with self.timetable.timed(), self._ready():
            pooling.choose(task.pipe, task.family.encoders, pooling.recorded([(token.name, token.metadata)]))
            for picture, shot in zip(sampler.drawn(task.pipe, shots, how), self.shots, strict=True):
                pictures.save(files[len(drawn)], replace(picture, shot=shot), said)
                drawn.append(files[len(drawn)])
                if stop():
                    break
        return tuple(drawn)

    def _files(self, step: int) -> Sequence[Path]:
        return [
            self.folder.previews / f"{step:08d}-{pictures.file_name(index, shot)}"
            for index, shot in enumerate(self.shots)
        ]

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Give the pipeline what it needs to draw: training has moved the autoencoder away, and its scheduler must not change."""
        pipe, device = self.task.pipe, self.task.latents.device
        own = {"vae": pipe.vae, "scheduler": pipe.scheduler}
        dtype = devices.pick_dtype(self.asked.precision, device)
        vae: Any = copy.deepcopy(pipe.vae).to(device, dtype)
        if self.asked.low_memory:
            memory.tile(vae)
        pipe.vae, pipe.scheduler = vae, copy.deepcopy(pipe.scheduler)
        try:
            yield
        finally:
            for name, component in own.items():
                setattr(pipe, name, component)
            del vae
            if device.type == "cuda":
                torch.cuda.empty_cache()
