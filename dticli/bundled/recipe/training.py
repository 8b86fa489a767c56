"""Shared by the training steps: fast layers for CPUs, a resumable loop, and a log.

`accelerate` does not change the weights of a network, which can be used with unmodified diffusers and transformers.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dticli.ranks import ALONE, Ranks

from . import cache

CHECKPOINT_SECONDS = 180
LOG_SECONDS = 20
Network = TypeVar("Network", bound=nn.Module)


def fast() -> AbstractContextManager[object]:
    """Autocast to bfloat16 if the processor supports it; on others it would take ten times as long."""
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast("cpu", torch.bfloat16) if able else nullcontext()


class Stateful(Protocol):
    """An object with a state that can be saved and restored: a module, optimizer or average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


# ------------------------------------------------------------------- layers


class _GroupNorm(torch.autograd.Function):
    """Group normalisation for channels_last bfloat16; torch's own CPU kernel takes a fifth of a step.

    Statistics are float32; with x' = (x - mean) r, the backward pass is dx = r (w dy - mean(w dy) - x' mean(w dy x')).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        count = height * width * channels // groups
        total = rows.sum(1, dtype=torch.float32).view(batch, groups, -1).sum(-1, keepdim=True)
        squares = (rows * rows).sum(1, dtype=torch.float32).view(batch, groups, -1).sum(-1, keepdim=True)
        mean = total / count
        rate = torch.rsqrt((squares / count - mean * mean).clamp_min(0) + eps)
        mean, rate = (_by_channel(value, channels) for value in (mean, rate))
        ctx.save_for_backward(x, weight, mean, rate)
        ctx.groups = groups
        scale, shift = rate * weight, bias - mean * rate * weight
        return torch.addcmul(_plane(shift, x), x, _plane(scale, x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, mean, rate = ctx.saved_tensors
        batch, channels, height, width = x.shape
        count = height * width * channels // ctx.groups
        along = gradient.permute(0, 2, 3, 1).reshape(batch, -1, channels)
        rows = x.permute(0, 2, 3, 1).reshape(batch, -1, channels)
        plain = along.sum(1, dtype=torch.float32)
        crossed = ((along * rows).sum(1, dtype=torch.float32) - mean * plain) * rate
        grouped = [
            _by_channel((sums * weight).view(batch, ctx.groups, -1).sum(-1, keepdim=True) / count, channels)
            for sums in (plain, crossed)
        ]
        slope = -rate * rate * grouped[1]
        offset = -slope * mean - rate * grouped[0]
        inner = torch.addcmul(_plane(offset, x), x, _plane(slope, x))
        return (
            torch.addcmul(inner, gradient, _plane(rate * weight, x)),
            crossed.sum(0),
            plain.sum(0),
            None,
            None,
        )


def _by_channel(values: Tensor, channels: int) -> Tensor:
    """(batch, groups, 1) -> (batch, channels)."""
    batch, groups, _ = values.shape
    return values.expand(batch, groups, channels // groups).reshape(batch, channels)


def _plane(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype)[:, :, None, None]


def channels_last(network: Network) -> Network:
    """The network, with its convolution weights in channels_last layout."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def accelerate(network: Network) -> Network:
    """Convert weights to channels_last, and use `_GroupNorm` in every GroupNorm on pictures."""
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.forward = _fast_forward(layer)  # type: ignore[method-assign,assignment]
    return channels_last(network)


def _fast_forward(layer: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if x.ndim != 4:
            return nn.functional.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
        return _GroupNorm.apply(x, layer.weight, layer.bias, layer.num_groups, layer.eps)

    return forward


# --------------------------------------------------------------------- loop


class MovingAverage:
    """Exponential moving average of a module's parameters, kept in float32."""

    def __init__(self, module: nn.Module, decay: float = 0.999):
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in module.named_parameters()}

    def update(self, module: nn.Module, step: int) -> None:
        """Update the averages; the decay warms up, so that the first steps lose their weight soon."""
        decay = min(self.decay, (1 + step) / (10 + step))
        present = [value.detach() for value in module.parameters()]
        torch._foreach_lerp_(list(self.values.values()), present, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """The averages by parameter name."""
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the averages."""
        self.values = {name: value.clone() for name, value in state.items()}


def rate(progress: float, warmup: float = 0.02, decay_from: float = 0.6, floor: float = 0.02) -> float:
    """Learning-rate factor at `progress` in [0, 1] of the budget: warm-up, plateau, half-cosine down to `floor`."""
    if progress < warmup:
        return max(progress / warmup, 0.05)
    fall = min(max((progress - decay_from) / (1 - decay_from), 0.0), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall))


class RecipeLog:
    """Prints lines and appends them to a file, on the first rank only."""

    def __init__(self, file: Path, ranks: Ranks = ALONE):
        self.file = file
        self.ranks = ranks

    def __call__(self, line: str) -> None:
        if not self.ranks.first:
            return
        stamped = f"{time.strftime('%H:%M:%S')} {line}"
        print(stamped, flush=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(stamped + "\n")


def train(
    name: str,
    parts: Mapping[str, Stateful],
    step: Callable[[int, float], dict[str, float]],
    minutes: float,
    log: RecipeLog,
    publish: Callable[[], None],
    ranks: Ranks = ALONE,
) -> None:
    """Train for `minutes` in total, over any number of interrupted runs.

    Args:
        name: of the checkpoint's folder in the cache.
        parts: the state of the training, by name.
        step: (step index, progress in [0, 1]) -> figures to log; its random draws must depend on the index only.
        publish: called after every checkpoint, to write usable weights.
        ranks: the processes that train together, with the mean of their clocks; `step` synchronises their weights.
    """

    def save() -> None:
        if ranks.first:
            _save(file, parts, steps, spent)
            publish()

    file = cache.folder(name) / "checkpoint.pt"
    steps, spent = _resume(file, parts, log)
    figures: dict[str, list[float]] = {}
    saved = logged = time.monotonic()
    started = saved - spent
    while (spent := ranks.mean(time.monotonic() - started)) < minutes * 60:
        for key, value in step(steps, spent / (minutes * 60)).items():
            figures.setdefault(key, []).append(value)
        steps += 1
        now = time.monotonic()
        if now - logged > LOG_SECONDS:
            means = "  ".join(f"{key} {sum(values) / len(values):.4f}" for key, values in figures.items())
            pace = len(next(iter(figures.values()))) / (now - logged)
            log(f"{name} step {steps}  {spent / 60:.1f} of {minutes:g} min  {means}  {pace:.2f} steps/s")
            figures, logged = {}, now
        if now - saved > CHECKPOINT_SECONDS:
            save()
            saved = time.monotonic()
    save()
    log(f"{name} done: {steps} steps, {spent / 60:.1f} min")


def _resume(file: Path, parts: Mapping[str, Stateful], log: RecipeLog) -> tuple[int, float]:
    if not file.is_file():
        return 0, 0.0
    saved = torch.load(file, map_location="cpu", weights_only=True)
    for key, part in parts.items():
        part.load_state_dict(saved["parts"][key])
    log(f"resumed {file.parent.name} at step {saved['steps']}, {saved['spent'] / 60:.1f} min")
    return saved["steps"], saved["spent"]


def _save(file: Path, parts: Mapping[str, Stateful], steps: int, spent: float) -> None:
    state = {"steps": steps, "spent": spent, "parts": {key: part.state_dict() for key, part in parts.items()}}
    cache.write(file, lambda out: torch.save(state, out))
