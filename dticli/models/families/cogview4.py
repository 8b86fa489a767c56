"""CogView4: GLM-4, sizes and crop as conditioning, and flow matching told the time before it is shifted for the size."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from torch import Tensor

from dticli.models.families.shape import (
    TIMESTEPS,
    Conditioning,
    FamilyCode,
    Frame,
    encode_prompt,
    height_width,
    rectified_flow,
)


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, _ = encode_prompt(pipe, prompts)
    sizes = {
        "original_size": [frame.original for frame in frames],
        "target_size": [frame.target for frame in frames],
        "crop_coords": [frame.crop for frame in frames],
    }
    told = torch.tensor(list(sizes.values()), dtype=embeds.dtype, device=embeds.device)
    return {"encoder_hidden_states": embeds} | dict(zip(sizes, told, strict=True))


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    timestep = TIMESTEPS * _unshifted(pipe, noisy, level)
    return pipe.transformer(noisy, timestep=timestep, **conditioning, return_dict=False)[0]


def _unshifted(pipe: Any, noisy: Tensor, level: Tensor) -> Tensor:
    """The time that the pipeline's schedule shifts to this noise level, in [0, 1]: pictures of more pixels get more noise."""
    config = pipe.scheduler.config
    if not config.get("use_dynamic_shifting"):
        shift = config.get("shift", 1.0)
    else:
        patches = noisy.shape[-2] * noisy.shape[-1] // pipe.transformer.config.patch_size**2
        names = {"base_seq_len": "base_image_seq_len", "base_shift": "base_shift", "max_shift": "max_shift"}
        own = {ours: config[theirs] for ours, theirs in names.items() if config.get(theirs) is not None}
        mu = calculate_shift(patches, **own)
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return level / (level + shift * (1 - level))


def call_options(frame: Frame) -> dict[str, Any]:
    return height_width(frame) | {"original_size": frame.original, "crops_coords_top_left": frame.crop}


CODE = FamilyCode(encode=encode, predict=predict, process=rectified_flow, call_options=call_options)
