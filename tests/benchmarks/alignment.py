"""How well the gradient of a batch points where that of all samples does, along a run on the bundled model.

A pool of samples is differentiated one by one, and batches are put together from it afterwards: so every way to choose a batch is
measured on the same samples, and costs nothing.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dticli import bundled, sphere
from dticli.bundled.recipe.training import fast
from dticli.learn import trainer
from dticli.learn.trainer import Lane, Learner, Task
from tests.benchmarks import together

POOL = 512
CHUNK = 16
BATCH = 4
RESAMPLES = 4000
DECAY = 0.9


@dataclass(frozen=True)
class Pool:
    """Samples and their gradients: the second half are those of the first with the opposite noise.

    Attributes:
        level: uniform draws that became timesteps, (POOL,).
        gradient: tangent at the word's direction, (POOL, width).
    """

    level: Tensor
    gradient: Tensor


def along(name: str, places: tuple[int, ...], seed: int = 0) -> list[dict[str, float]]:
    """By way to choose a batch, the mean cosine between its tangent gradient and the pool's, after so many steps of a run.

    Args:
        name: of an example subject.
        places: numbers of steps, growing; the last is where the run ends.
    """
    task, learner = together.training(BATCH, name)
    taken: list[Tensor] = []
    _watch(learner, taken)
    generator = torch.Generator().manual_seed(seed)
    found = []
    with trainer.placed([lane := Lane(task, learner)]) as placed:
        reports = trainer.fit([lane], placed)
        for place in places:
            while lane.step < place:
                next(reports)
            (direction,) = learner.word.direction.values()  # type: ignore[union-attr]
            pool = _pool(task, learner, bundled.subject(name).class_word, generator)
            found.append(_cosines(pool, generator) | _of_mean(direction[0].detach(), pool, taken))
        reports.close()
    return found


def _watch(learner: Learner, taken: list[Tensor]) -> None:
    """Keep the gradient of every step."""
    optimizer: Any = learner.optimizers[0]
    step = optimizer.step

    def watched(lr: float) -> Any:
        taken.append(optimizer.leaves[0].grad[0].clone())
        return step(lr)

    optimizer.step = watched


def _pool(task: Task, learner: Learner, noun: str, generator: torch.Generator) -> Pool:
    half = POOL // 2
    level = torch.rand(half, generator=generator)
    # each photo and each caption as often as any other
    picks = torch.randperm(half, generator=generator) % len(task.latents)
    texts = [text.replace(learner.word.name, noun) for text in next(iter(task.captions.values()))]
    says = torch.randperm(half, generator=generator) % len(texts)
    mean, std = (torch.stack(list(each))[picks] for each in (task.latents.mean, task.latents.std))
    raw = mean + std * torch.randn(mean.shape, generator=generator)
    clean = task.family.code.to_latents(task.pipe, raw)
    noise = torch.randn(clean.shape, generator=generator)
    chunks = []
    for sign in (1, -1):
        for part in (slice(start, start + CHUNK) for start in range(0, half, CHUNK)):
            said = [texts[each] for each in says[part]]
            chunks.append(_gradients(task, learner, noun, clean[part], sign * noise[part], level[part], said))
    return Pool(level.repeat(2), torch.cat(chunks))


def _gradients(
    task: Task,
    learner: Learner,
    noun: str,
    clean: Tensor,
    noise: Tensor,
    level: Tensor,
    texts: list[str],
) -> Tensor:
    """Of each sample's own loss, tangent, (samples, width): every sample has a row of its own in the noun's place."""
    code, pipe = task.family.code, task.pipe
    process = code.process(pipe.scheduler)
    (direction,) = learner.word.direction.values()  # type: ignore[union-attr]
    (length,) = learner.word.log_magnitude.values()  # type: ignore[union-attr]
    rows = direction.detach().repeat(len(texts), 1).requires_grad_()
    ids = pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    (own,) = pipe.tokenizer(noun, add_special_tokens=False).input_ids

    def replaced(module: Any, args: Any, states: Tensor) -> Tensor:
        return states.masked_scatter((ids == own)[..., None], length.detach().exp() * rows)

    handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(replaced)
    steps = process.levels(level)
    # rounding is far below what samples differ by
    with fast():
        states = pipe.text_encoder(ids)[0]
        handle.remove()
        said = code.predict(
            pipe, process.add_noise(clean, noise, steps), steps, {"encoder_hidden_states": states}
        )
    error = (said.float() - process.target(clean, noise, steps)).square().flatten(1).mean(dim=1)
    error.sum().backward()
    assert rows.grad is not None
    return sphere.tangent(rows.detach(), rows.grad)


def _spread(level: Tensor, low: float, generator: torch.Generator) -> Tensor:
    """Batches with one timestep from each quarter of those above `low`, (RESAMPLES, BATCH)."""
    own = ((level - low) / (1 - low) * BATCH).floor()
    return torch.cat([_any(torch.nonzero(own == share)[:, 0], 1, generator) for share in range(BATCH)], dim=1)


def _any(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Batches of different samples, (RESAMPLES, count)."""
    return among[torch.rand(RESAMPLES, len(among), generator=generator).topk(count).indices]


def _pairs(generator: torch.Generator) -> Tensor:
    """Batches whose samples come with their opposites."""
    first = _any(torch.arange(POOL // 2), BATCH // 2, generator)
    return torch.cat([first, first + POOL // 2], dim=1)


def _cosines(pool: Pool, generator: torch.Generator) -> dict[str, float]:
    """By way to choose and weigh a batch, the mean cosine to the gradient of all other samples."""
    level, every = pool.level, torch.arange(POOL)
    ways: Mapping[str, Callable[[], Tensor]] = {
        "batch 4": lambda: _any(every, 4, generator),
        "one timestep from each quarter": lambda: _spread(level, 0, generator),
        "two pairs of opposite noise": lambda: _pairs(generator),
        "timesteps of the first half": lambda: _any(every[level < 0.5], 4, generator),
        "timesteps of the middle half": lambda: _any(every[(level - 0.5).abs() < 0.25], 4, generator),
        "timesteps of the last half": lambda: _any(every[level >= 0.5], 4, generator),
        "one from each quarter of the last half": lambda: _spread(level, 0.5, generator),
        "batch 8": lambda: _any(every, 8, generator),
        "batch 16": lambda: _any(every, 16, generator),
        "batch 64": lambda: _any(every, 64, generator),
    }
    found = {name: _cosine(pool.gradient, pool.gradient, way()) for name, way in ways.items()}
    lengths = pool.gradient.norm(dim=1, keepdim=True)
    tenths = (level * 10).long()
    usual = torch.stack([lengths[tenths == tenth].square().mean().sqrt() for tenth in range(10)])[tenths]
    weighed = {
        "each sample's gradient as long as any": (pool.gradient / lengths, ways["batch 4"]()),
        "each timestep's gradient as long as any": (pool.gradient / usual[:, None], ways["batch 4"]()),
        "timesteps as often as their gradients are long, weighed back": (
            pool.gradient / usual[:, None],
            usual.expand(RESAMPLES, -1).multinomial(BATCH, replacement=True, generator=generator),
        ),
    }
    found |= {name: _cosine(each, pool.gradient, batches) for name, (each, batches) in weighed.items()}
    halves = pool.gradient[torch.randperm(POOL, generator=generator)].view(2, -1, pool.gradient.shape[1])
    one, other = halves.mean(dim=1)
    found["two halves of the pool"] = torch.cosine_similarity(one, other, dim=0).item()
    return found


def _cosine(gradient: Tensor, whole: Tensor, batches: Tensor) -> float:
    """Mean cosine between batches of gradients, as they are weighed, and the whole of which they are no part."""
    rest = whole.sum(dim=0) - whole[batches].sum(dim=1)
    return torch.cosine_similarity(gradient[batches].sum(dim=1), rest, dim=1).mean().item()


def _of_mean(direction: Tensor, pool: Pool, taken: list[Tensor]) -> dict[str, float]:
    """Of the moving average of the run's own gradients, where it has taken steps."""
    if not taken:
        return {"moving average along the run": math.nan}
    mean = torch.zeros_like(direction)
    for gradient in taken:
        mean = DECAY * mean + (1 - DECAY) * gradient
    own = sphere.tangent(direction, mean)
    whole = pool.gradient.mean(dim=0)
    return {"moving average along the run": torch.cosine_similarity(own, whole, dim=0).item()}
