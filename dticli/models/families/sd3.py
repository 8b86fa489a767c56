"""Stable Diffusion 3 and 3.5: two CLIP encoders, a T5 that may be missing, and flow matching."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.shape import (
    TIMESTEPS,
    Conditioning,
    FamilyCode,
    Frame,
    encode_prompt,
    rectified_flow,
)


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, _, pooled, _ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    return pipe.transformer(noisy, timestep=level * TIMESTEPS, **conditioning, return_dict=False)[0]


CODE = FamilyCode(encode=encode, predict=predict, process=rectified_flow)
