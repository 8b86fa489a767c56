"""AuraFlow: a T5 trained on the Pile, whose states after the prompt are zeroed, and flow matching."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.shape import Conditioning, FamilyCode, Frame, encode_prompt, rectified_flow


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, *_ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    return pipe.transformer(noisy, timestep=level, **conditioning, return_dict=False)[0]


CODE = FamilyCode(encode=encode, predict=predict, process=rectified_flow)
