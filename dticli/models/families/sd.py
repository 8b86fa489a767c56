"""Stable Diffusion 1.x and 2.x, and every model in their layout: one CLIP encoder, epsilon or v prediction."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.shape import Conditioning, FamilyCode, Frame, diffusion, encode_prompt


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, _ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    return pipe.unet(noisy, level, **conditioning, return_dict=False)[0]


def architecture(pipe: Any) -> str | None:
    v_prediction = pipe.scheduler.config.prediction_type == "v_prediction"
    names = {
        768: "stable-diffusion-v1",
        1024: "stable-diffusion-v2-768-v" if v_prediction else "stable-diffusion-v2-512",
    }
    return names.get(pipe.text_encoder.config.hidden_size)


CODE = FamilyCode(encode=encode, predict=predict, process=diffusion, architecture=architecture)
