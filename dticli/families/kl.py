"""Pieces of every family with an AutoencoderKL and a UNet."""

from typing import Any

import torch
from torch import Tensor

from dticli.families.shape import Diffusion, Process


def posterior(pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    distribution = pipe.vae.encode(pixels).latent_dist
    return distribution.mean, distribution.std


def to_latents(pipe: Any, sample: Tensor) -> Tensor:
    return sample * pipe.vae.config.scaling_factor


def process(pipe: Any) -> Process:
    return Diffusion.of(pipe.scheduler)


def denoiser(pipe: Any) -> torch.nn.Module:
    return pipe.unet
