"""PixArt-Sigma: T5 and diffusion; the denoiser predicts the noise and, in as many channels again, its variance."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families.shape import Conditioning, FamilyCode, Frame, diffusion, encode_prompt


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, mask, _, _ = encode_prompt(pipe, prompts)
    sizes = {"resolution": None, "aspect_ratio": None}
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask, "added_cond_kwargs": sizes}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    output = pipe.transformer(noisy, timestep=level, **conditioning, return_dict=False)[0]
    return output[:, : noisy.shape[1]]


CODE = FamilyCode(encode=encode, predict=predict, process=diffusion)
