"""HunyuanDiT: BERT and mT5 read one after the other, sizes and crop as conditioning, v prediction and a variance."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import Tensor

from dticli.models.families.shape import (
    Conditioning,
    FamilyCode,
    Frame,
    diffusion,
    encode_prompt,
    size_and_crop,
)

BERT_LENGTH, T5_LENGTH = 77, 256
# Side of the picture, in pixels, whose rotary positions all others are measured in.
BASE_SIDE = 512


def encode(pipe: Any, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
    dtype = pipe.transformer.dtype
    bert, _, bert_mask, _ = encode_prompt(
        pipe, prompts, dtype=dtype, max_sequence_length=BERT_LENGTH, text_encoder_index=0
    )
    t5, _, t5_mask, _ = encode_prompt(
        pipe, prompts, dtype=dtype, max_sequence_length=T5_LENGTH, text_encoder_index=1
    )
    sizes = [[*frame.original, *frame.target, *frame.crop] for frame in frames]
    return {
        "encoder_hidden_states": bert,
        "text_embedding_mask": bert_mask,
        "encoder_hidden_states_t5": t5,
        "text_embedding_mask_t5": t5_mask,
        "image_meta_size": torch.tensor(sizes, dtype=bert.dtype, device=bert.device),
        "style": torch.zeros(len(frames), dtype=torch.long, device=bert.device),
    }


def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
    output = pipe.transformer(
        noisy,
        level.to(noisy.dtype),
        image_rotary_emb=_positions(pipe, noisy),
        **conditioning,
        return_dict=False,
    )[0]
    return output[:, : noisy.shape[1]]


def _positions(pipe: Any, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embeddings of the grid of patches, as the pipeline computes them."""
    network, scale = pipe.transformer, pipe.vae_scale_factor
    patch = network.config.patch_size
    grid = (noisy.shape[-2] // patch, noisy.shape[-1] // patch)
    window = get_resize_crop_region_for_grid(grid, BASE_SIDE // scale // patch)
    width = network.inner_dim // network.num_heads
    return get_2d_rotary_pos_embed(width, window, grid, device=noisy.device, output_type="pt")


CODE = FamilyCode(encode=encode, predict=predict, process=diffusion, call_options=size_and_crop)
