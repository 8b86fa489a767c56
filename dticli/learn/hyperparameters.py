"""The hyperparameters of each part of a training, made from the settings, so that no part depends on the settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dticli.photos.albums import Cropping
from dticli.photos.captions import TEMPLATES, Captioning
from dticli.settings import TrainSettings


@dataclass(frozen=True)
class Start:
    """The start of a word, and the direction of its prior.

    Attributes:
        init: as `initial_rows.rows` takes it.
        vectors: how many the word gets; None for as many as the init needs.
        magnitude: rule for the norm of its rows, as `initial_rows.magnitudes` takes it.
        prior: `init`, `none`, or what `init` may be.
        seed: of rows that are drawn.
    """

    init: str
    vectors: int | None
    magnitude: str
    prior: str
    seed: int

    @classmethod
    def of(cls, settings: TrainSettings) -> "Start":
        return cls(settings.init, settings.vectors, settings.magnitude_rule, settings.prior, settings.seed)


@dataclass(frozen=True)
class Optimisation:
    """How a word is optimized.

    Attributes:
        steps: optimizer steps in all.
        lr: step size of the first step, the tangent of its angle; for `ti`, AdamW's learning rate.
        schedule: of the step size, as `optim.step_length` takes it.
        method: `dti` trains directions, `ti` free rows.
        optimizer: of directions.
        kappa: concentration of the prior.
        beta: decay of the moving average of squared gradient norms.
        weight_decay: of free rows.
        train_magnitude: whether norms are trained as well.
        average: whether the word is the mean over the last half of the steps.
    """

    steps: int
    lr: float
    schedule: Literal["constant", "linear", "cosine"]
    method: Literal["dti", "ti"]
    optimizer: Literal["rsgd", "adamw"]
    kappa: float
    beta: float
    weight_decay: float
    train_magnitude: bool
    average: bool

    @classmethod
    def of(cls, settings: TrainSettings) -> "Optimisation":
        return cls(
            steps=settings.steps,
            lr=settings.lr,
            schedule=settings.schedule,
            method=settings.method,
            optimizer=settings.optimizer,
            kappa=settings.kappa,
            beta=settings.beta,
            weight_decay=settings.weight_decay,
            train_magnitude=settings.train_magnitude,
            average=settings.average,
        )


@dataclass(frozen=True)
class Batches:
    """The samples of a step.

    Attributes:
        word, seed: part of the keys of all random draws.
        size: batch size of one process.
        accumulate: batches accumulated for one step.
        pooling: where CLIP's pooled state is read, as `pooling.at_step` takes it.
        zero_pad: whether captions are prepended with up to `trainer.MOST_PADS` rows of zeros.
    """

    word: str
    seed: int
    size: int
    accumulate: int
    pooling: Literal["stock", "eos", "mixed"]
    zero_pad: bool

    @classmethod
    def of(cls, settings: TrainSettings) -> "Batches":
        return cls(
            settings.token,
            settings.seed,
            settings.batch_size,
            settings.accumulate,
            settings.pooling,
            settings.zero_pad,
        )


@dataclass(frozen=True)
class Previewing:
    """When and how previews are drawn along the run; their prompts are in the task.

    Attributes:
        every: steps between two previews.
        share: of the run's time, at most.
        count: pictures per prompt.
        precision, low_memory: as the model is loaded.
        drawing: settings of `generate` that take precedence over the model's own.
    """

    every: int
    share: float
    count: int
    precision: str
    low_memory: bool
    drawing: Mapping[str, Any]

    @classmethod
    def of(cls, settings: TrainSettings) -> "Previewing":
        drawing = {
            "size": str(settings.resolution),
            "seed": settings.seed,
            "negative": settings.preview_negative,
            "steps": settings.preview_steps,
        }
        return cls(
            settings.preview_every,
            settings.preview_share,
            settings.preview_count,
            settings.precision,
            settings.low_memory,
            drawing,
        )


def cropping(settings: TrainSettings, multiple: int) -> Cropping:
    """How photos are cropped, for a family whose picture sides are multiples of `multiple` pixels."""
    return Cropping(
        settings.resolution, settings.crop, settings.crops, settings.flip, multiple, settings.seed
    )


def captioning(settings: TrainSettings) -> Captioning:
    """Where captions come from."""
    return Captioning(
        word=settings.token,
        templates=settings.templates or TEMPLATES[settings.property],
        sidecar=settings.captions == "sidecar",
        list_file=settings.captions_file,
    )
