"""SANA-Sprint: SANA distilled to few steps, told how strongly to follow the prompt.

Its pipeline mixes picture and noise on a circle, cos(t) x0 + sin(t) n, divides by cos(t) + sin(t), which makes a flow's
(1 - s) x0 + s n of it, and turns the denoiser's velocity back: so it is trained as the flow it was distilled from.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dticli.models.families import sana
from dticli.models.families.shape import (
    Conditioning,
    FamilyCode,
    Frame,
    call_defaults,
    encode_prompt,
    even_flow,
)


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, mask = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    guidance = torch.full_like(level, call_defaults(pipe)["guidance_scale"], dtype=noisy.dtype)
    guidance *= pipe.transformer.config.guidance_embeds_scale
    return pipe.transformer(noisy, timestep=level, guidance=guidance, **conditioning, return_dict=False)[0]


CODE = FamilyCode(
    encode=encode, predict=predict, process=even_flow, posterior=sana.posterior, to_latents=sana.to_latents
)
