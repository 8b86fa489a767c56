"""SANA and SANA-1.5: Gemma 2, a deep-compression autoencoder without noise of its own, and flow matching."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dticli.models.families.shape import TIMESTEPS, Conditioning, FamilyCode, Frame, encode_prompt, even_flow


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, mask, _, _ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


def posterior(pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    latent = pipe.vae.encode(pixels).latent
    return latent, torch.zeros_like(latent)


def to_latents(pipe: Any, sample: Tensor) -> Tensor:
    return sample * pipe.vae.config.scaling_factor


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    timestep = level * TIMESTEPS * pipe.transformer.config.timestep_scale
    output = pipe.transformer(noisy, timestep=timestep, **conditioning, return_dict=False)[0]
    return output[:, : noisy.shape[1]]


CODE = FamilyCode(
    encode=encode, predict=predict, process=even_flow, posterior=posterior, to_latents=to_latents
)
