"""What each part of a training is told of its settings: values made here, so that no part knows the settings themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dticli.photos.albums import Cropping
from dticli.photos.captions import TEMPLATES, Captioning
from dticli.settings import TrainSettings


@dataclass(frozen=True)
class Start:
    """Where a word starts, and what its prior pulls towards.

    Attributes:
        init: as `initial_rows.rows` takes it.
        vectors: how many the word gets; None for as many as the init needs.
        magnitude: rule for the length of its rows, as `initial_rows.magnitudes` takes it.
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
    """How a word moves.

    Attributes:
        steps: optimizer steps in all.
        lr: length of the first step: the tangent of the angle it turns; for `ti`, AdamW's rate.
        schedule: of the step length, as `optim.step_length` takes it.
        method: `dti` moves directions, `ti` free rows.
        optimizer: of directions.
        kappa: concentration of the prior.
        beta: of the running mean of squared gradient lengths.
        weight_decay: of free rows.
        train_magnitude: whether lengths are learned beside directions.
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
    """Which samples a step sees.

    Attributes:
        word, seed: of the keys of every draw.
        size: samples that one process puts through the model at once.
        accumulate: batches gathered for one step.
        pooling: where CLIP's pooled state is read, as `pooling.at_step` takes it.
        zero_pad: captions begin with up to `trainer.MOST_PADS` rows of zeros.
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
    """When and how pictures of the word are drawn along the run; of which prompts, the task says.

    Attributes:
        every: steps between two of them.
        share: of the time, at most.
        count: of each prompt.
        precision, low_memory: as the model is loaded.
        drawing: settings of `generate` that go before the model's own.
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
    """Which windows of photos are learned from, on a family whose sides are multiples of this many pixels."""
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
