"""Lumina-Image 2: Gemma 2 and flow matching; predicts the negative velocity."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.shape import Conditioning, FamilyCode, Frame, encode_prompt, rectified_flow


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, mask, _, _ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    # Its time runs from noise to picture.
    return -pipe.transformer(noisy, timestep=1 - level, **conditioning, return_dict=False)[0]


CODE = FamilyCode(encode=encode, predict=predict, process=rectified_flow)
