"""FLUX.2: three layers of Mistral 3, or of Qwen3 in klein; latents patched two by two, whitened by a batch norm's statistics."""

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
    embeds, text_ids = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "txt_ids": text_ids}


def to_latents(pipe: Any, sample: Tensor) -> Tensor:
    norm, epsilon = pipe.vae.bn, pipe.vae.config.batch_norm_eps
    mean, variance = (each.to(sample).view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var))
    return (pipe._patchify_latents(sample) - mean) / (variance + epsilon).sqrt()


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    output = pipe.transformer(
        hidden_states=pipe._pack_latents(noisy),
        timestep=level,
        guidance=guidance(pipe, level),
        img_ids=pipe._prepare_latent_ids(noisy).to(noisy.device),
        **conditioning,
        return_dict=False,
    )[0]
    # Tokens are in reading order, as packed.
    return output.transpose(1, 2).reshape(noisy.shape)


CODE = FamilyCode(encode=encode, predict=predict, process=rectified_flow, to_latents=to_latents)
