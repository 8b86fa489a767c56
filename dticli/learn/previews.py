"""Pictures of a word while it is learned: with the model as it is loaded, and the rows as they are.

Nothing that training uses is touched: the autoencoder and the scheduler that draw are copies, and training's draws are
keyed (see `randomness`), so that a run gives the same bytes with previews and without.
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

    The first and the last ones always are; those between, every so many steps while they keep within their share of the
    time. That what they took before an interruption is not counted makes no run slower than it says.

    Attributes:
        every: steps between two of them.
        last: steps of the run.
        share: of all time since the start, at most.
        spent, latest: seconds that all of them took, and the latest.
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
        """Whether it is time for previews after so many steps."""
        if step in (0, self.last):
            return True
        elapsed = self.now() - self.began
        return step % self.every == 0 and self.spent + self.latest <= self.share * (elapsed + self.latest)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what is done inside as drawing."""
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
        """Whether there are pictures to draw after so many steps."""
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
            token: the word, for what the pictures say about themselves.
            addressed: a text as the pipeline reads the word in it.
            stop: asked after each picture; the rest is left out then.

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
        """A pipeline that can draw: training has sent the autoencoder away, and wants its scheduler untouched."""
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
