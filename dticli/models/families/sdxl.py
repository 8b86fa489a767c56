"""Stable Diffusion XL: two CLIP encoders, a pooled state, and sizes and crop as conditioning."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dticli.models.families import kl
from dticli.models.families.shape import (
    Conditioning,
    FamilyCode,
    Frame,
    diffusion,
    encode_prompt,
    size_and_crop,
)


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, _, pooled, _ = encode_prompt(pipe, prompts)
    times = [
        pipe._get_add_time_ids(frame.original, frame.crop, frame.target, embeds.dtype, pooled.shape[-1])
        for frame in frames
    ]
    added = {"text_embeds": pooled, "time_ids": torch.cat(times).to(embeds.device)}
    return {"encoder_hidden_states": embeds, "added_cond_kwargs": added}


def to_latents(pipe: Any, sample: Tensor) -> Tensor:
    config = pipe.vae.config
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return kl.to_latents(pipe, sample)
    # As the pipeline undoes it before it decodes; Playground v2.5's autoencoder has these.
    mean, std = (
        torch.tensor(each).to(sample).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std)
    )
    return (sample - mean) / std * config.scaling_factor


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    return pipe.unet(noisy, level, **conditioning, return_dict=False)[0]


def architecture(pipe: Any) -> str | None:
    widths = (pipe.text_encoder.config.hidden_size, pipe.text_encoder_2.config.hidden_size)
    return "stable-diffusion-xl-v1-base" if widths == (768, 1280) else None


CODE = FamilyCode(
    encode=encode,
    predict=predict,
    process=diffusion,
    to_latents=to_latents,
    architecture=architecture,
    call_options=size_and_crop,
)
