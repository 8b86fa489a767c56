"""Krea 2: several layers of Qwen3-VL for each piece of the prompt; Qwen-Image's autoencoder, packed two by two."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dticli.models.families import video
from dticli.models.families.shape import Conditioning, FamilyCode, Frame, encode_prompt, rectified_flow


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, mask = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    batch, channels, _, height, width = noisy.shape
    length, side = conditioning["encoder_hidden_states"].shape[1], pipe.patch_size
    output = pipe.transformer(
        hidden_states=pipe._pack_latents(noisy, batch, channels, height, width),
        timestep=level,
        position_ids=pipe.prepare_position_ids(length, height // side, width // side, noisy.device),
        **conditioning,
        return_dict=False,
    )[0]
    scale = pipe.vae_scale_factor
    return pipe._unpack_latents(output, height * scale, width * scale)


CODE = FamilyCode(
    encode=encode,
    predict=predict,
    process=rectified_flow,
    posterior=video.posterior,
    to_latents=video.to_latents,
)
