"""Chroma: T5 with all but one piece of its padding masked, and FLUX.1's packed latents; no pooled state."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dticli.models.families.shape import Conditioning, FamilyCode, Frame, encode_prompt, rectified_flow


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    embeds, text_ids, mask, *_ = encode_prompt(pipe, prompts)
    return {"encoder_hidden_states": embeds, "txt_ids": text_ids, "attention_mask": mask}


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    batch, channels, height, width = noisy.shape
    packed = pipe._pack_latents(noisy, batch, channels, height, width)
    # The mask is over prompt and picture.
    mask = pipe._prepare_attention_mask(batch, packed.shape[1], noisy.dtype, conditioning["attention_mask"])
    with _masked(pipe.transformer, mask):
        output = pipe.transformer(
            hidden_states=packed,
            timestep=level,
            img_ids=pipe._prepare_latent_image_ids(batch, height // 2, width // 2, noisy.device, noisy.dtype),
            **conditioning | {"attention_mask": mask},
            return_dict=False,
        )[0]
    scale = pipe.vae_scale_factor
    return pipe._unpack_latents(output, height * scale, width * scale, scale)


@contextlib.contextmanager
def _masked(network: Any, mask: Tensor) -> Iterator[None]:
    """Where activations are computed again, diffusers 0.42 hands the single blocks no mask: here they get it."""
    stock = getattr(network, "_gradient_checkpointing_func", None)
    if stock is None:
        yield
        return

    def again(block: torch.nn.Module, *args: Any) -> Any:
        single = any(block is each for each in network.single_transformer_blocks)
        return stock(functools.partial(block, attention_mask=mask) if single else block, *args)

    network._gradient_checkpointing_func = again
    try:
        yield
    finally:
        network._gradient_checkpointing_func = stock


CODE = FamilyCode(encode=encode, predict=predict, process=rectified_flow)
