"""The video autoencoder of Wan and Qwen-Image, given one frame; latents are (batch, channels, 1, height, width)."""

from typing import Any

import torch
from torch import Tensor


def posterior(pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    distribution = pipe.vae.encode(pixels[:, :, None]).latent_dist
    return distribution.mean, distribution.std


def to_latents(pipe: Any, sample: Tensor) -> Tensor:
    config = pipe.vae.config
    mean, std = (
        torch.tensor(each).to(sample).view(1, -1, 1, 1, 1)
        for each in (config.latents_mean, config.latents_std)
    )
    return (sample - mean) / std
