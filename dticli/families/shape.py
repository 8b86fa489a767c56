"""What every family file provides, and the pieces they share: noise processes and prompt encoding."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from torch import Tensor

Conditioning = dict[str, Any]


@dataclass(frozen=True)
class Frame:
    """Where a crop lies: sizes (height, width) in pixels, `crop` the top left corner after resizing."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


class Process(Protocol):
    """How a family adds noise, and what its denoiser predicts."""

    def levels(self, uniform: Tensor) -> Tensor:
        """Noise levels, (batch,), for uniform draws in [0, 1)."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Latents at that level, same shape as `latents`."""
        ...

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What a perfect denoiser returns, same shape as `latents`."""
        ...


class FamilyCode(Protocol):
    """The functions of a family file."""

    def encode(self, pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
        """Prompts to what `predict` conditions on, through the pipeline's own `encode_prompt`, with gradients."""
        ...

    def posterior(self, pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (batch, 3, height, width) in [-1, 1] to mean and std of the autoencoder's output."""
        ...

    def to_latents(self, pipe: Any, sample: Tensor) -> Tensor:
        """The autoencoder's output, scaled and shifted to what the denoiser works on."""
        ...

    def process(self, pipe: Any) -> Process:
        """The noise process the model was trained with."""
        ...

    def predict(self, pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction, to compare with `Process.target`."""
        ...

    def denoiser(self, pipe: Any) -> torch.nn.Module:
        """The network `predict` runs."""
        ...

    def architecture(self, pipe: Any) -> str | None:
        """The model's `modelspec.architecture`, or None where no program has a name for it."""
        ...

    def call_options(self, frame: Frame) -> dict[str, Any]:
        """Keywords that make `pipe(...)` draw a picture framed like `frame`."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """Variance-preserving diffusion over discrete timesteps, with epsilon, v or sample prediction."""

    scheduler: DDPMScheduler

    @classmethod
    def of(cls, scheduler: Any) -> "Diffusion":
        """The training process behind any sampler of the same model."""
        return cls(DDPMScheduler.from_config(scheduler.config))

    def levels(self, uniform: Tensor) -> Tensor:
        return (uniform * self.scheduler.config.num_train_timesteps).long()

    def add_noise(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return self.scheduler.add_noise(latents, noise, level)

    def target(self, latents: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        match self.scheduler.config.prediction_type:
            case "epsilon":
                return noise
            case "v_prediction":
                return self.scheduler.get_velocity(latents, noise, level)
            case _:
                return latents


def encode_prompt(pipe: Any, prompts: Sequence[str], **options: Any) -> Any:
    """`pipe.encode_prompt` as `pipe(...)` calls it: defaults are those of `__call__`, which differ from its own.

    The prompts are copied, because some pipelines write their chat template into the list they are given.
    """
    ours = inspect.signature(pipe.encode_prompt).parameters
    theirs = inspect.signature(type(pipe).__call__).parameters
    defaults = {
        name: theirs[name].default
        for name in ours
        if name in theirs and theirs[name].default is not inspect.Parameter.empty
    }
    fixed = {"device": pipe_device(pipe), "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    fixed = {name: value for name, value in fixed.items() if name in ours}
    return pipe.encode_prompt(**(defaults | fixed | options | {"prompt": list(prompts)}))


def pipe_device(pipe: Any) -> torch.device:
    """Where the first text encoder computes; the autoencoder may rest elsewhere."""
    return next(pipe.text_encoder.parameters()).device
