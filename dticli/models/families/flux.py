"""FLUX.1: CLIP's pooled state and T5's states; latents packed two by two. dev takes its guidance as an input."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.shape import (
    Conditioning,
    FamilyCode,
    Frame,
    encode_prompt,
    guidance,
    rectified_flow,
)


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, pooled, text_ids = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled, "txt_ids": text_ids}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    batch, channels, height, width = noisy.shape
    output = pipe.transformer(
        hidden_states=pipe._pack_latents(noisy, batch, channels, height, width),
        timestep=level,
        guidance=guidance(pipe, level),
        img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, noisy.device, noisy.dtype),
        **conditioning,
        return_dict=False,
    )[0]
    scale = pipe.vae_scale_factor
    return pipe._unpack_latents(output, height * scale, width * scale, scale)


def architecture(pipe: Any) -> str | None:
    if pipe.text_encoder.config.hidden_size != 768:
        return None
    return "flux-1-dev" if pipe.transformer.config.guidance_embeds else "flux-1-schnell"


CODE = FamilyCode(encode=encode, predict=predict, process=rectified_flow, architecture=architecture)
