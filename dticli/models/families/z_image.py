"""Z-Image: Qwen3 states as long as each prompt, in one stream with the picture's; predicts the negative velocity."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dticli.models.families.shape import Conditioning, FamilyCode, Frame, encode_prompt, rectified_flow


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, _ = encode_prompt(pipe, prompts)
    return {"cap_feats": embeds}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    # It takes a list of one-frame videos, and time that runs from noise to picture.
    output = pipe.transformer(list(noisy.unsqueeze(2)), 1 - level, **conditioning, return_dict=False)[0]
    return -torch.stack(output).squeeze(2)


CODE = FamilyCode(encode=encode, predict=predict, process=rectified_flow)
