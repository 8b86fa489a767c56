"""Wan 2.1, asked for one frame: UMT5 and flow matching."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.shape import TIMESTEPS, Conditioning, Frame, denoiser, encode_prompt
from dticli.models.families.shape import even_flow as process
from dticli.models.families.shape import height_width as call_options
from dticli.models.families.shape import no_architecture as architecture
from dticli.models.families.video import posterior, to_latents

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
    embeds, _ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    return pipe.transformer(noisy, timestep=level * TIMESTEPS, **conditioning, return_dict=False)[0]
