"""Lumina-Image 2: Gemma 2 and flow matching; predicts the negative velocity."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.kl import posterior, to_latents
from dticli.models.families.shape import Conditioning, Frame, denoiser, encode_prompt
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
    embeds, mask, _, _ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    # Its time runs from noise to picture.
    return -pipe.transformer(noisy, timestep=1 - level, **conditioning, return_dict=False)[0]
