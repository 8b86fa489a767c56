"""Learning a word: a generator of step reports over a frozen pipeline. It prints nothing and saves nothing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dticli import randomness, sphere
from dticli.errors import InputError, ModelError, NumericalError, is_out_of_memory
from dticli.learn.optim import AdamW, Average, Optimizer, RiemannianSGD, step_length
from dticli.models.families import Family
from dticli.models.families.shape import Process
from dticli.photos.latents import Latents
from dticli.randomness import Key
from dticli.ranks import ALONE, Ranks
from dticli.settings import TrainSettings
from dticli.words import pooling
from dticli.words.placement import DirectionalWord, FreeWord, Placement, Word, place

PAD, MOST_PADS = "<dti-pad>", 15
LOSS_SCALE = 1024.0
"""What a loss in fp16 is multiplied with at first, so that gradients do not underflow; undone before the optimizer sees them."""

Captions = Mapping[Path, Sequence[str]]


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: steps done so far, counting this one.
        loss: mean denoising loss of the step's samples.
        gradient: encoder key to the tangent lengths |g| (free rows: gradient lengths), one per vector.
        angle: mean angle between the word's rows and where they began, radians.
        norm: encoder key to the mean length of the word's rows.
    """

    step: int
    loss: float
    gradient: Mapping[str, Sequence[float]]
    angle: float
    norm: Mapping[str, float]


@dataclass(frozen=True)
class Learner:
    """A word and what changes it.

    Attributes:
        keys: encoder keys, in the order of the first optimizer's leaves.
        start: unit rows the word began with, to measure angles from.
        optimizers: the first one moves the rows or their directions.
        average: of everything that learns, where that is what will be written.
        loss_scale: a number, halved in place where gradients in fp16 overflow; without effect in other dtypes.
    """

    word: Word
    keys: tuple[str, ...]
    start: Mapping[str, Tensor]
    optimizers: tuple[Optimizer, ...]
    average: Average | None = None
    loss_scale: Tensor = field(default_factory=lambda: torch.tensor(LOSS_SCALE))

    @property
    def learned(self) -> Word:
        """The word to write: as it is now, or the average once there is one."""
        if self.average is None or not self.average.count:
            return self.word
        count = len(self.keys)
        rows = dict(zip(self.keys, self.average.means[:count], strict=True))
        if not isinstance(self.word, DirectionalWord):
            return FreeWord(self.word.name, rows)
        lengths = self.average.means[count:]
        magnitude = dict(zip(self.keys, lengths, strict=True)) if lengths else self.word.log_magnitude
        return DirectionalWord(self.word.name, rows, magnitude)

    @property
    def leaves(self) -> list[Tensor]:
        """Every tensor that learns."""
        return [leaf for optimizer in self.optimizers for leaf in optimizer.leaves]

    def step(self, lr: float) -> dict[str, list[float]]:
        """Apply the gathered gradients and clear them; returns gradient lengths by encoder."""
        lengths, *_ = [optimizer.step(lr) for optimizer in self.optimizers]
        self.forget_gradients()
        return {key: each.tolist() for key, each in zip(self.keys, lengths, strict=True)}

    def forget_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """`word` is the word to write while the context is open; afterwards it is, bit for bit, the one that learns."""
        means = self.average.means if self.average is not None and self.average.count else self.leaves
        own = [leaf.detach().clone() for leaf in self.leaves]
        try:
            with torch.no_grad():
                for leaf, mean in zip(self.leaves, means, strict=True):
                    leaf.copy_(mean)
            yield
        finally:
            with torch.no_grad():
                for leaf, before in zip(self.leaves, own, strict=True):
                    leaf.copy_(before)

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, besides the task."""
        rows = {f"leaf.{index}": leaf for index, leaf in enumerate(self.leaves)}
        return (
            rows
            | {"loss_scale": self.loss_scale}
            | {
                f"{part}.{name}": value
                for part, each in self._parts.items()
                for name, value in each.state().items()
            }
        )

    @property
    def _parts(self) -> "dict[str, Optimizer | Average]":
        """What has a state besides the leaves, by its name in a checkpoint."""
        optimizers = {f"optimizer.{index}": each for index, each in enumerate(self.optimizers)}
        return optimizers | ({"average": self.average} if self.average else {})

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            InputError: the state is not of this word and optimizer.
        """
        try:
            for index, leaf in enumerate(self.leaves):
                leaf.copy_(state[f"leaf.{index}"].expand_as(leaf))
            self.loss_scale.copy_(state["loss_scale"])
            for part, each in self._parts.items():
                start = f"{part}."
                each.restore(
                    {
                        name.removeprefix(start): value
                        for name, value in state.items()
                        if name.startswith(start)
                    }
                )
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint does not fit {self.word.name} ({type(error).__name__}): expected the state of the same "
                "optimizer; start again with --force"
            ) from None

    @torch.no_grad()
    def angle(self) -> float:
        """Mean angle in radians between the rows now and at the start."""
        rows = self.learned.rows
        angles = [sphere.angle(sphere.normalize(rows[key]), self.start[key]) for key in self.keys]
        return torch.cat(angles).mean().item()

    @torch.no_grad()
    def cosine_to_start(self) -> dict[str, float]:
        """Mean cosine between the rows now and at the start, by encoder."""
        rows = self.learned.rows
        cosines = {key: (sphere.normalize(rows[key]) * self.start[key]).sum(dim=-1) for key in self.keys}
        return {key: each.mean().item() for key, each in cosines.items()}

    @torch.no_grad()
    def norm(self) -> dict[str, float]:
        """Mean row length by encoder."""
        return {key: rows.norm(dim=-1).mean().item() for key, rows in self.learned.rows.items()}


def learner(
    settings: TrainSettings,
    rows: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
    prior: Mapping[str, Tensor] | None,
) -> Learner:
    """The word at its start, with the optimizer the settings ask for.

    Args:
        rows: encoder key to initial rows, (vectors, width).
        magnitude: encoder key to the lengths the rows are given, (vectors, 1).
        prior: encoder key to unit rows mu, same shapes; None for no prior.
    """
    keys = tuple(rows)
    start = {key: sphere.normalize(_wide(each)) for key, each in rows.items()}
    mu = None if prior is None else [prior[key] for key in keys]
    if settings.method == "ti":
        free = {key: (start[key] * magnitude[key]).requires_grad_() for key in keys}
        adam = AdamW(list(free.values()), weight_decay=settings.weight_decay)
        average = Average(adam.leaves, unit=0) if settings.average else None
        return Learner(FreeWord(settings.token, free), keys, start, (adam,), average)
    direction = {key: start[key].clone().requires_grad_() for key in keys}
    log_magnitude = {key: magnitude[key].log().requires_grad_(settings.train_magnitude) for key in keys}
    unit = list(direction.values())
    first: Optimizer
    if settings.optimizer == "rsgd":
        first = RiemannianSGD(unit, prior=mu, kappa=settings.kappa, beta=settings.beta)
    else:
        first = AdamW(unit, retracting=True, prior=mu, kappa=settings.kappa)
    # The logarithm is learned, so that one learning rate is one relative change at any magnitude.
    others = (AdamW(list(log_magnitude.values())),) if settings.train_magnitude else ()
    word = DirectionalWord(settings.token, direction, log_magnitude)
    leaves = [leaf for optimizer in (first, *others) for leaf in optimizer.leaves]
    average = Average(leaves, unit=len(unit)) if settings.average else None
    return Learner(word, keys, start, (first, *others), average)


@dataclass(frozen=True)
class Task:
    """What is learned from: a frozen pipeline, encoded photos and their captions.

    Attributes:
        captions: each photo's captions; one is drawn for every sample.
        ranks: which share of every step's samples is this process's.
    """

    pipe: Any
    family: Family
    latents: Latents
    captions: Captions
    settings: TrainSettings
    ranks: Ranks = ALONE

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return self.family.code.denoiser(self.pipe).dtype  # type: ignore[return-value]


def fit(task: Task, learner: Learner, placement: Placement, first_step: int = 0) -> Iterator[StepReport]:
    """Train `learner.word` in place, one report per step.

    Args:
        placement: of the word in the task's pipeline.
        first_step: steps already done by an earlier run.

    Raises:
        InputError: a caption's word is cut off.
        ModelError: no gradient reaches a row.
        NumericalError: the loss or a gradient is not finite.
    """
    process, settings = task.family.code.process(task.pipe.scheduler), task.settings
    most = PAD * MOST_PADS if settings.zero_pad else ""
    captions = (most + text for texts in task.captions.values() for text in texts)
    placement.require_read(task.family, [*captions, *settings.preview_prompts])
    for step in range(first_step, settings.steps):
        # Whoever draws between two steps may choose another pooling.
        pooling.choose(task.pipe, task.family.encoders, pooling.at_step(settings.pooling, step))
        loss = _gather_gradients(task, process, learner, step)
        if step == first_step:
            _require_gradient(task, learner)
        gradient = learner.step(step_length(settings.schedule, settings.lr, step, settings.steps))
        if learner.average and 2 * (step + 1) > settings.steps:
            learner.average.add()
        yield StepReport(step + 1, loss, gradient, learner.angle(), learner.norm())


def placed(task: Task, learner: Learner) -> AbstractContextManager[Placement]:
    """The word at work, and before it in the vocabulary what captions may begin with: CLIP pools at the last of them."""
    words: list[Word] = [learner.word]
    if task.settings.zero_pad:
        words.insert(
            0, FreeWord(PAD, {key: torch.zeros_like(rows[:1]) for key, rows in learner.start.items()})
        )
    return place(task.pipe, task.family.encoders, words)


def _gather_gradients(task: Task, process: Process, learner: Learner, step: int) -> float:
    """Forward and backward over all samples of a step; returns the mean loss, over all ranks as the gradients are.

    Where gradients in fp16 overflow, the step is computed again, with the same draws and half the loss scale.
    """
    while True:
        scale = learner.loss_scale.item() if task.dtype == torch.float16 else 1.0
        loss = _scaled_gradients(task, process, learner, step, scale)
        gradients = [leaf.grad for leaf in learner.leaves if leaf.grad is not None]
        if scale == 1 or all(gradient.isfinite().all() for gradient in gradients):
            return loss
        learner.loss_scale.div_(2)
        learner.forget_gradients()


def _scaled_gradients(task: Task, process: Process, learner: Learner, step: int, scale: float) -> float:
    parts, size, ranks = task.settings.accumulate, task.settings.batch_size, task.ranks
    total = 0.0
    for part in range(parts):
        first = ((step * parts + part) * ranks.size + ranks.rank) * size
        loss = _loss(task, process, step, range(first, first + size)) / parts
        (loss * scale).backward()
        total += loss.item()
    total = ranks.mean(total)
    if not math.isfinite(total):
        raise NumericalError(f"the loss of step {step + 1} is {total}: expected a number; {_cause(task)}")
    gradients = [leaf.grad for leaf in learner.leaves if leaf.grad is not None]
    ranks.mean_(gradients)
    for gradient in gradients:
        gradient /= scale
    return total


def _cause(task: Task) -> str:
    """What makes numbers overflow most likely, and what helps."""
    if task.dtype == torch.float16:
        return "half precision probably overflowed; try --precision bf16 or fp32"
    if task.settings.method == "ti":
        return "the rows probably grew without bound; try a smaller --lr"
    return "the model's weights are probably damaged, or its precision too low; try --precision fp32, or download it again"


def largest_batch(task: Task, learner: Learner) -> int:
    """The largest batch whose gradients fit in memory, of those that go into the one asked for; 0 if none does."""
    whole = task.settings.batch_size
    smaller = [size for size in range(whole // 2, 0, -1) if whole % size == 0]
    return next((size for size in smaller if fits(task, learner, size)), 0)


def fits(task: Task, learner: Learner, size: int) -> bool:
    """Whether the gradients of a batch fit in memory, found by trying, with the word placed."""
    settings = task.settings.model_copy(update={"batch_size": size, "accumulate": 1})
    process = task.family.code.process(task.pipe.scheduler)
    try:
        _gather_gradients(replace(task, settings=settings, ranks=ALONE), process, learner, 0)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    else:
        return True
    finally:
        learner.forget_gradients()


def _loss(task: Task, process: Process, step: int, samples: range) -> Tensor:
    """Mean squared error of the denoiser on the given samples, a float32 scalar.

    Whole photos differ in shape: those of one shape go through the denoiser together.
    """
    batch = [_draw(task, step, sample) for sample in samples]
    shapes: dict[tuple[int, ...], list[_Draw]] = {}
    for one in batch:
        shapes.setdefault(tuple(task.latents.mean[one.pick].shape), []).append(one)
    parts = [_error(task, process, same) * (len(same) / len(batch)) for same in shapes.values()]
    return torch.stack(parts).sum()


def _error(task: Task, process: Process, batch: Sequence["_Draw"]) -> Tensor:
    """Mean squared error on samples of one shape, weighted by their masks."""
    code, device = task.family.code, task.latents.device
    picks = [one.pick for one in batch]
    raw = task.latents.sample(picks, [one.key("posterior") for one in batch])
    clean = code.to_latents(task.pipe, raw)
    noise = torch.stack([randomness.normal(one.key("noise"), tuple(clean.shape[1:])) for one in batch]).to(
        device
    )
    level = process.levels(torch.tensor([randomness.uniform(one.key("level")) for one in batch])).to(device)
    prompts = [one.caption for one in batch]
    conditioning = code.encode(task.pipe, prompts, [task.latents.frames[pick] for pick in picks])
    noisy = process.add_noise(clean, noise, level).to(task.dtype)
    prediction = _wide(code.predict(task.pipe, noisy, level, conditioning))
    target, weight = process.target(clean, noise, level), task.latents.weight(picks)
    if weight is None:
        return torch.nn.functional.mse_loss(prediction, target)
    # Some families patch the autoencoder's latents into coarser ones.
    weight = torch.nn.functional.adaptive_avg_pool2d(weight, (clean.shape[-2], clean.shape[-1]))
    # (batch, height, width) beside (batch, channels, ..., height, width)
    weight = weight.reshape(len(weight), *[1] * (clean.ndim - 3), *weight.shape[1:])
    return (weight * (prediction - target).square()).mean()


def _wide(values: Tensor) -> Tensor:
    """At least float32: half precision is what a denoiser may compute in, not what is learned in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class _Draw:
    """One sample: which crop, which caption, and the keys of its other draws."""

    seed: int
    word: str
    step: int
    sample: int
    pick: int
    caption: str

    def key(self, purpose: str) -> Key:
        return Key(self.seed, purpose, self.word, self.step, self.sample)


def _draw(task: Task, step: int, sample: int) -> _Draw:
    """Every crop comes once an epoch, in an order drawn for that epoch."""
    seed, word, count = task.settings.seed, task.settings.token, len(task.latents)
    epoch, position = divmod(sample, count)
    pick = randomness.shuffled(Key(seed, "photo", word, epoch), count)[position]
    texts = task.captions[task.latents.paths[pick]]
    caption = texts[randomness.integer(Key(seed, "caption", word, step, sample), len(texts))]
    if task.settings.zero_pad:
        caption = PAD * _pads(randomness.uniform(Key(seed, "pads", word, step, sample))) + caption
    return _Draw(seed, word, step, sample, pick, caption)


def _pads(uniform: float) -> int:
    """How many rows of zeros a caption begins with: exponential with a mean of 2, whole and at most 15.

    Source: the code of arXiv:2512.13672, which trains SANA so.
    """
    return min(MOST_PADS, int(-2 * math.log1p(-uniform)))


def _require_gradient(task: Task, learner: Learner) -> None:
    """A row without a gradient would be moved by the prior alone, and look trained."""
    half = "" if task.dtype == torch.float32 else "try --precision fp32, or "
    for key, leaf in zip(learner.keys, learner.optimizers[0].leaves, strict=True):
        if leaf.grad is None or not leaf.grad.any(dim=-1).all():
            raise ModelError(
                f"no gradient reaches {learner.word.name} in encoder {key}: the model's text encoding cannot be "
                f"trained through; {half}choose another --model"
            )
