"""Photos encoded once: every crop's posterior is kept, and a fresh sample of it is drawn at every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dticli import draws, photos
from dticli.draws import Key
from dticli.families import Family
from dticli.families.shape import Frame
from dticli.photos import Crop


@dataclass(frozen=True)
class Latents:
    """Posteriors of all crops on the training device.

    Attributes:
        mean, std: (crops, channels, ...) float32. The std is kept too: a frozen sample would train on one noise draw.
        frames: where each crop lies on its photo.
        paths: the photo of each crop.
    """

    mean: Tensor
    std: Tensor
    frames: tuple[Frame, ...]
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, picks: Sequence[int], keys: Sequence[Key]) -> Tensor:
        """One sample of the posterior of each picked crop, (batch, channels, ...), float32."""
        shape = tuple(self.mean.shape[1:])
        noise = torch.stack([draws.normal(key, shape) for key in keys]).to(self.mean.device)
        chosen = torch.tensor(picks, device=self.mean.device)
        return self.mean[chosen] + self.std[chosen] * noise


@torch.no_grad()
def encode(pipe: Any, family: Family, crops: Sequence[Crop], device: torch.device) -> Latents:
    """Run every crop through the autoencoder, in float32, then send the autoencoder off the device.

    Float32, because half precision overflows in the autoencoder of SDXL, and this happens only once.
    """
    pipe.vae.to(device, torch.float32)
    moments = [family.code.posterior(pipe, photos.pixels(crop)[None].to(device)) for crop in crops]
    pipe.vae.to("cpu")
    return Latents(
        mean=torch.cat([mean for mean, _ in moments]),
        std=torch.cat([std for _, std in moments]),
        frames=tuple(Frame(crop.photo.size, crop.corner, crop.size) for crop in crops),
        paths=tuple(crop.photo.path for crop in crops),
    )
