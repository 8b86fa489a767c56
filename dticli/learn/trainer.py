"""Training steps: a generator of step reports over a frozen pipeline. It prints nothing and saves nothing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dticli import randomness, sphere
from dticli.errors import DtiError, InputError, ModelError, NumericalError, is_out_of_memory
from dticli.learn.hyperparameters import Batches, Optimisation
from dticli.learn.optim import AdamW, Average, Optimizer, RiemannianSGD, step_length
from dticli.models.families import Family
from dticli.models.families.shape import Process
from dticli.photos.latents import Latents
from dticli.randomness import Key
from dticli.ranks import ALONE, Ranks
from dticli.words import pooling
from dticli.words.placement import DirectionalWord, FreeWord, Placement, Word, place
from dticli.words.pooling import Pooling

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
    """A word and its optimizers.

    Attributes:
        keys: encoder keys, in the order of the first optimizer's leaves.
        start: unit rows of the word at its start; angles are measured from them.
        optimizers: the first one moves the rows or their directions.
        average: running mean of all trained tensors, if the mean is what will be written.
        loss_scale: 0-d; halved in place when gradients overflow in fp16; not used with other dtypes.
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
        """All trained tensors."""
        return [leaf for optimizer in self.optimizers for leaf in optimizer.leaves]

    def step(self, lr: float) -> dict[str, list[float]]:
        """Apply the accumulated gradients and clear them; returns gradient norms by encoder."""
        lengths, *_ = [optimizer.step(lr) for optimizer in self.optimizers]
        self.forget_gradients()
        return {key: each.tolist() for key, each in zip(self.keys, lengths, strict=True)}

    def forget_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Inside the context, `word` has the values that would be written; afterwards, bit for bit, those being trained."""
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
    name: str,
    how: Optimisation,
    rows: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
    prior: Mapping[str, Tensor] | None,
) -> Learner:
    """The word `name` at its start, with its optimizers.

    Args:
        rows: encoder key to initial rows, (vectors, width).
        magnitude: encoder key to the lengths the rows are given, (vectors, 1).
        prior: encoder key to unit rows mu, same shapes; None for no prior.
    """
    keys = tuple(rows)
    start = {key: sphere.normalize(_wide(each)) for key, each in rows.items()}
    mu = None if prior is None else [prior[key] for key in keys]
    if how.method == "ti":
        free = {key: (start[key] * magnitude[key]).requires_grad_() for key in keys}
        adam = AdamW(list(free.values()), weight_decay=how.weight_decay)
        average = Average(adam.leaves, unit=0) if how.average else None
        return Learner(FreeWord(name, free), keys, start, (adam,), average)
    direction = {key: start[key].clone().requires_grad_() for key in keys}
    log_magnitude = {key: magnitude[key].log().requires_grad_(how.train_magnitude) for key in keys}
    unit = list(direction.values())
    first: Optimizer
    if how.optimizer == "rsgd":
        first = RiemannianSGD(unit, prior=mu, kappa=how.kappa, beta=how.beta)
    else:
        first = AdamW(unit, retracting=True, prior=mu, kappa=how.kappa)
    # The logarithm is learned, so that one learning rate is one relative change at any magnitude.
    others = (AdamW(list(log_magnitude.values())),) if how.train_magnitude else ()
    word = DirectionalWord(name, direction, log_magnitude)
    leaves = [leaf for optimizer in (first, *others) for leaf in optimizer.leaves]
    average = Average(leaves, unit=len(unit)) if how.average else None
    return Learner(word, keys, start, (first, *others), average)


@dataclass(frozen=True)
class Task:
    """The training data: a frozen pipeline, encoded photos and their captions.

    Attributes:
        captions: each photo's captions; one is drawn for every sample.
        prompts: other texts with the word that must not be truncated either.
        ranks: this process's share of every step's samples.
    """

    pipe: Any
    family: Family
    latents: Latents
    captions: Captions
    batches: Batches
    optimisation: Optimisation
    prompts: Sequence[str] = ()
    ranks: Ranks = ALONE

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the denoiser."""
        return self.family.code.denoiser(self.pipe).dtype  # type: ignore[return-value]


@dataclass(eq=False)
class Lane:
    """One of the words that are trained together; it takes the same steps as when it is trained alone.

    Attributes:
        step: steps done.
        over: training has ended, because the word is finished or failed.
    """

    task: Task
    learner: Learner
    step: int = 0
    over: bool = False


Outcomes = Sequence[tuple[Lane, StepReport | DtiError]]
"""The outcome of a step for each lane: a report, or the error that ends the lane."""


@contextmanager
def placed(lanes: Sequence[Lane]) -> Iterator[Placement]:
    """Place the words in the pipeline, after the padding token, because CLIP pools at the highest id.

    Several words get numbers for names: two may have the same name, or the captions of one may contain the name of another.
    """
    first = lanes[0]
    pads = any(lane.task.batches.zero_pad for lane in lanes)
    pad = FreeWord(PAD, {key: torch.zeros_like(rows[:1]) for key, rows in first.learner.start.items()})
    words = [*([pad] if pads else []), *(lane.learner.word for lane in lanes)]
    numbers = [f"<dti-word-{number}>" for number in range(len(lanes))]
    aliases = [*([PAD] if pads else []), *numbers] if len(lanes) > 1 else None
    with place(first.task.pipe, first.task.family.encoders, words, aliases) as placement:
        yield placement


def fit(lanes: Sequence[Lane], placement: Placement) -> Iterator[Outcomes]:
    """Train the lanes' words in place, one step of each per iteration, until all are over.

    The model is frozen, and the loss of a sample depends on one word only. So samples of all words go through the model in one
    batch, and each word gets the gradient of its own loss.

    Args:
        lanes: of one pipeline; callers may set `over` between two steps.
        placement: of their words, as `placed` makes it.

    Yields:
        for each lane a report, or why it is over:
            InputError, UsageError: the word is truncated in a caption.
            ModelError: no gradient reaches a row.
            NumericalError: the loss or a gradient is not finite.
    """
    process = lanes[0].task.family.code.process(lanes[0].task.pipe.scheduler)
    begun = {lane: lane.step for lane in lanes}
    going = [lane for lane in lanes if not lane.over]
    if unread := [(lane, error) for lane in going if (error := _unread(lane, placement))]:
        yield unread
    while going := [lane for lane in lanes if not lane.over and lane.step < lane.task.optimisation.steps]:
        losses = _gather_gradients(placement, process, going)
        found: list[tuple[Lane, StepReport | DtiError]] = []
        for lane, loss in zip(going, losses, strict=True):
            try:
                found.append((lane, _take_step(lane, loss, first=lane.step == begun[lane])))
            except DtiError as error:
                lane.learner.forget_gradients()
                lane.over = True
                found.append((lane, error))
        yield found


def _unread(lane: Lane, placement: Placement) -> DtiError | None:
    """The error that ends a lane whose texts are truncated, or None."""
    task = lane.task
    most = PAD * MOST_PADS if task.batches.zero_pad else ""
    captions = [most + text for texts in task.captions.values() for text in texts]
    try:
        placement.require_read(task.family, [*captions, *task.prompts], [lane.learner.word])
    except DtiError as error:
        lane.over = True
        return error
    return None


def _take_step(lane: Lane, loss: float, *, first: bool) -> StepReport:
    """Apply a word's accumulated gradients."""
    task, learner, how = lane.task, lane.learner, lane.task.optimisation
    if not math.isfinite(loss):
        raise NumericalError(f"the loss of step {lane.step + 1} is {loss}: expected a number; {_cause(lane)}")
    if first:
        _require_gradient(task, learner)
    gradient = learner.step(step_length(how.schedule, how.lr, lane.step, how.steps))
    lane.step += 1
    if learner.average and 2 * lane.step > how.steps:
        learner.average.add()
    return StepReport(lane.step, loss, gradient, learner.angle(), learner.norm())


def _gather_gradients(placement: Placement, process: Process, lanes: Sequence[Lane]) -> list[float]:
    """Forward and backward over all samples of a step; returns each lane's loss, averaged over all ranks like the gradients.

    If gradients overflow in fp16, the step is repeated with the same draws and half the loss scale.
    """
    losses: dict[Lane, float] = {}
    again = list(lanes)
    while again:
        losses |= zip(again, _scaled_gradients(placement, process, again), strict=True)
        again = [lane for lane in again if math.isfinite(losses[lane]) and _overflowed(lane)]
        for lane in again:
            lane.learner.loss_scale.div_(2)
            lane.learner.forget_gradients()
    return [losses[lane] for lane in lanes]


def _overflowed(lane: Lane) -> bool:
    """Whether a smaller loss scale may help."""
    return _scale(lane) != 1 and not all(gradient.isfinite().all() for gradient in _gradients(lane))


def _scale(lane: Lane) -> float:
    """The factor of the lane's loss."""
    return lane.learner.loss_scale.item() if lane.task.dtype == torch.float16 else 1.0


def _gradients(lane: Lane) -> list[Tensor]:
    return [leaf.grad for leaf in lane.learner.leaves if leaf.grad is not None]


def _scaled_gradients(placement: Placement, process: Process, lanes: Sequence[Lane]) -> list[float]:
    """As `_gather_gradients`, once; the gradients are those of the loss without its scale."""
    totals = dict.fromkeys(lanes, 0.0)
    for part in range(max(lane.task.batches.accumulate for lane in lanes)):
        here = [lane for lane in lanes if part < lane.task.batches.accumulate]
        means = zip(here, _losses(placement, process, here, part), strict=True)
        losses = {lane: mean / lane.task.batches.accumulate for lane, mean in means}
        # The sum, not the mean: a word's gradient does not know how many others there are.
        torch.stack([loss * _scale(lane) for lane, loss in losses.items()]).sum().backward()
        for lane, loss in losses.items():
            totals[lane] += loss.item()
    for lane in lanes:
        totals[lane] = lane.task.ranks.mean(totals[lane])
        if not math.isfinite(totals[lane]):
            continue
        gradients = _gradients(lane)
        lane.task.ranks.mean_(gradients)
        for gradient in gradients:
            gradient /= _scale(lane)
    return list(totals.values())


def _cause(lane: Lane) -> str:
    """The most likely cause of an overflow, and a remedy."""
    if lane.task.dtype == torch.float16:
        return "half precision probably overflowed; try --precision bf16 or fp32"
    if isinstance(lane.learner.word, FreeWord):
        return "the rows probably grew without bound; try a smaller --lr"
    return "the model's weights are probably damaged, or its precision too low; try --precision fp32, or download it again"


def largest_batch(lane: Lane, placement: Placement) -> int:
    """The largest proper divisor of the batch size whose gradients fit in memory; 0 if none does."""
    whole = lane.task.batches.size
    smaller = [size for size in range(whole // 2, 0, -1) if whole % size == 0]
    return next((size for size in smaller if fits([lane], placement, size)), 0)


def most_together(lanes: Sequence[Lane], placement: Placement) -> int:
    """How many of the words fit in memory together, trying half, a quarter and so on; 0 if not even one does."""
    count = len(lanes)
    while count := count // 2:
        if fits(lanes[:count], placement):
            break
    return count


def fits(lanes: Sequence[Lane], placement: Placement, size: int | None = None) -> bool:
    """Whether the gradients of a batch fit in memory, found by trying.

    Args:
        size: batch size of each word; default: as in its settings.
    """
    code, pipe = lanes[0].task.family.code, lanes[0].task.pipe

    def once(lane: Lane) -> Lane:
        own = replace(lane.task.batches, size=size or lane.task.batches.size, accumulate=1)
        return Lane(replace(lane.task, batches=own, ranks=ALONE), lane.learner)

    try:
        _gather_gradients(placement, code.process(pipe.scheduler), [once(lane) for lane in lanes])
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    else:
        return True
    finally:
        for lane in lanes:
            lane.learner.forget_gradients()


def _losses(placement: Placement, process: Process, lanes: Sequence[Lane], part: int) -> list[Tensor]:
    """Each lane's mean squared error of the denoiser on one part of its samples, float32 scalars.

    Whole photos differ in shape, and words in their pooling: samples alike in both go through the model together.
    """
    alike: dict[tuple[Pooling, tuple[int, ...]], dict[Lane, list[_Draw]]] = {}
    for lane in lanes:
        batches, ranks = lane.task.batches, lane.task.ranks
        turn = (lane.step * batches.accumulate + part) * ranks.size + ranks.rank
        for sample in range(turn * batches.size, (turn + 1) * batches.size):
            one = _draw(lane.task, lane.step, sample)
            kind = pooling.at_step(batches.pooling, lane.step), tuple(lane.task.latents.mean[one.pick].shape)
            alike.setdefault(kind, {}).setdefault(lane, []).append(one)
    parts: dict[Lane, list[Tensor]] = {lane: [] for lane in lanes}
    for (pooled, _), batch in alike.items():
        # Whoever draws between two steps may choose another pooling.
        pooling.choose(placement.pipe, placement.encoders, pooled)
        for lane, error in zip(batch, _errors(placement, process, batch), strict=True):
            parts[lane].append(error * (len(batch[lane]) / lane.task.batches.size))
    return [torch.stack(each).sum() for each in parts.values()]


def _errors(
    placement: Placement, process: Process, batch: Mapping[Lane, Sequence["_Draw"]]
) -> Iterator[Tensor]:
    """Each lane's mean squared error on samples of one shape, weighted by their masks."""
    task, draws = next(iter(batch)).task, [one for own in batch.values() for one in own]
    code, pipe, device = task.family.code, task.pipe, task.latents.device
    picks = {lane: [one.pick for one in own] for lane, own in batch.items()}
    raw = torch.cat(
        [
            lane.task.latents.sample(picks[lane], [one.key("posterior") for one in own])
            for lane, own in batch.items()
        ]
    )
    clean = code.to_latents(pipe, raw)
    noise = torch.stack([randomness.normal(one.key("noise"), tuple(clean.shape[1:])) for one in draws]).to(
        device
    )
    level = process.levels(torch.tensor([randomness.uniform(one.key("level")) for one in draws])).to(device)
    prompts = [
        placement.addressed(one.caption, lane.learner.word) for lane, own in batch.items() for one in own
    ]
    frames = [lane.task.latents.frames[pick] for lane, own in picks.items() for pick in own]
    conditioning = code.encode(pipe, prompts, frames)
    noisy = process.add_noise(clean, noise, level).to(task.dtype)
    prediction = _wide(code.predict(pipe, noisy, level, conditioning))
    target, sizes = process.target(clean, noise, level), [len(own) for own in batch.values()]
    for lane, found, wanted in zip(batch, prediction.split(sizes), target.split(sizes), strict=True):
        yield _weighted(found, wanted, lane.task.latents.weight(picks[lane]))


def _weighted(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The mean squared error, weighted where there are masks."""
    if weight is None:
        return torch.nn.functional.mse_loss(prediction, target)
    # Some families patch the autoencoder's latents into coarser ones.
    weight = torch.nn.functional.adaptive_avg_pool2d(weight, (target.shape[-2], target.shape[-1]))
    # (batch, height, width) beside (batch, channels, ..., height, width)
    weight = weight.reshape(len(weight), *[1] * (target.ndim - 3), *weight.shape[1:])
    return (weight * (prediction - target).square()).mean()


def _wide(values: Tensor) -> Tensor:
    """At least float32: the denoiser may compute in half precision, but the loss and the rows do not."""
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
    """Every crop is used once per epoch, in a random order that depends on the epoch."""
    seed, word, count = task.batches.seed, task.batches.word, len(task.latents)
    epoch, position = divmod(sample, count)
    pick = randomness.shuffled(Key(seed, "photo", word, epoch), count)[position]
    texts = task.captions[task.latents.paths[pick]]
    caption = texts[randomness.integer(Key(seed, "caption", word, step, sample), len(texts))]
    if task.batches.zero_pad:
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
