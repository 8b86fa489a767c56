"""Photos encoded once: the posterior of every crop is kept, and a new sample of it is drawn at every step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dticli import randomness
from dticli.errors import NumericalError, is_out_of_memory
from dticli.models import memory
from dticli.models.families import Family
from dticli.models.families.shape import Frame
from dticli.photos import albums
from dticli.photos.albums import Crop, Told
from dticli.randomness import Key


@dataclass(frozen=True)
class Latents:
    """Posteriors of all crops on the training device; lists, because whole photos differ in shape.

    Attributes:
        mean, std: (channels, ..., height, width) float32 per crop. The std is kept too: a frozen sample would train on
            one noise draw.
        weights: (height, width) float32 per crop, with mean one: weights of the squared errors; None without a mask.
        frames: position of each crop on its photo.
        paths: the photo of each crop.
        tiled: whether the photos were encoded in tiles.
    """

    mean: Sequence[Tensor]
    std: Sequence[Tensor]
    weights: Sequence[Tensor | None]
    frames: tuple[Frame, ...]
    paths: tuple[Path, ...]
    tiled: bool = False

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def device(self) -> torch.device:
        return self.mean[0].device

    def sample(self, picks: Sequence[int], keys: Sequence[Key]) -> Tensor:
        """One sample of the posterior of each picked crop, all of one shape, (batch, channels, ...), float32."""
        shape = tuple(self.mean[picks[0]].shape)
        noise = torch.stack([randomness.normal(key, shape) for key in keys]).to(self.device)
        mean, std = (torch.stack([each[pick] for pick in picks]) for each in (self.mean, self.std))
        return mean + std * noise

    def weight(self, picks: Sequence[int]) -> Tensor | None:
        """Weights of the picked crops, all of one shape, (batch, height, width); None if none has a mask."""
        found = [self.weights[pick] for pick in picks]
        if all(each is None for each in found):
            return None
        whole = torch.ones(self.mean[picks[0]].shape[-2:], device=self.device)
        return torch.stack([whole if each is None else each for each in found])


@torch.no_grad()
def encode(
    pipe: Any,
    family: Family,
    crops: Sequence[Crop],
    device: torch.device,
    told: Told = lambda done, total: None,
) -> Latents:
    """Encode every crop with the autoencoder in float32, then move the autoencoder to the CPU.

    Float32, because the autoencoder of SDXL overflows in half precision, and encoding is done only once.

    Args:
        told: called with the number of encoded crops after each one.

    Raises:
        InputError: a photo is no longer readable.
        NumericalError: the autoencoder returns NaN or inf; names the photo.
    """
    pipe.vae.to(device, torch.float32)
    means, stds, weights = [], [], []
    for crop, pixels, mask in albums.cut(crops):
        mean, std = _moments(pipe, family, crop, pixels.to(device))
        means.append(mean)
        stds.append(std)
        weights.append(None if mask is None else _on_grid(mask, mean))
        told(len(means), len(crops))
    pipe.vae.to("cpu")
    return Latents(
        mean=means,
        std=stds,
        weights=weights,
        frames=tuple(Frame(crop.photo.size, crop.shown_corner, crop.size) for crop in crops),
        paths=tuple(crop.photo.path for crop in crops),
    )


def encode_low_memory(
    pipe: Any,
    family: Family,
    crops: Sequence[Crop],
    device: torch.device,
    told: Told = lambda done, total: None,
) -> Latents:
    """As `encode`, but in tiles if whole pictures do not fit into memory; the result is nearly the same."""
    try:
        return encode(pipe, family, crops, device, told)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    memory.tile(pipe.vae)
    try:
        return replace(encode(pipe, family, crops, device, told), tiled=True)
    finally:
        memory.untile(pipe.vae)


def _moments(pipe: Any, family: Family, crop: Crop, pixels: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = family.code.posterior(pipe, pixels[None])
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise NumericalError(
            f"the autoencoder makes NaN or inf of {crop.photo.name}: expected numbers; "
            "leave the photo out, or choose another --model"
        )
    return mean[0], std[0]


def _on_grid(weights: Tensor, mean: Tensor) -> Tensor:
    """A crop's mask at the resolution of its latent, with mean one, so that every photo has the same weight."""
    small = torch.nn.functional.adaptive_avg_pool2d(weights[None], (mean.shape[-2], mean.shape[-1]))[0]
    return (small / small.mean()).to(mean.device)
