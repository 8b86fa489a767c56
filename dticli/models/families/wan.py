"""Wan 2.1, asked for one frame: UMT5 and flow matching."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families import video
from dticli.models.families.shape import TIMESTEPS, Conditioning, FamilyCode, Frame, encode_prompt, even_flow


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, _ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    return pipe.transformer(noisy, timestep=level * TIMESTEPS, **conditioning, return_dict=False)[0]


CODE = FamilyCode(
    encode=encode, predict=predict, process=even_flow, posterior=video.posterior, to_latents=video.to_latents
)
