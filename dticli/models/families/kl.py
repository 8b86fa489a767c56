"""The picture autoencoder most families share."""

from typing import Any

from torch import Tensor


def posterior(pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    distribution = pipe.vae.encode(pixels).latent_dist
    return distribution.mean, distribution.std


def to_latents(pipe: Any, sample: Tensor) -> Tensor:
    config = pipe.vae.config
    return (sample - (config.get("shift_factor") or 0.0)) * config.scaling_factor
