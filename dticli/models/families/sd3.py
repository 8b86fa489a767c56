"""Stable Diffusion 3 and 3.5: two CLIP encoders, a T5 that may be missing, and flow matching."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.kl import posterior, to_latents
from dticli.models.families.shape import TIMESTEPS, Conditioning, Frame, denoiser, encode_prompt
from dticli.models.families.shape import height_width as call_options
from dticli.models.families.shape import no_architecture as architecture
from dticli.models.families.shape import rectified_flow as process

__all__ = [
    "architecture",
    "call_options",
    "denoiser",
    "encode",
    "posterior",
    "predict",
    "process",
    "to_latents",
]


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, _, pooled, _ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    return pipe.transformer(noisy, timestep=level * TIMESTEPS, **conditioning, return_dict=False)[0]
