"""Samples pictures in batches, reproducibly by seed, with the bundled model's settings for users."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

from dticli import settings
from dticli.bundled import model_folder

from . import cache
from .training import fast

BATCH = 25


@torch.no_grad()
def sample(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int) -> Tensor:
    """One picture per prompt, (count, 3, 64, 64) in [-1, 1]; the noise of picture i has seed + i."""
    return _sampled(pipeline, len(prompts), seed, lambda batch: {"prompt": prompts[batch]})


@torch.no_grad()
def sample_states(pipeline: StableDiffusionPipeline, states: Tensor, empty: Tensor, seed: int) -> Tensor:
    """As `sample`, for text states (count, length, width), with those of the empty prompt in the same shape."""
    return _sampled(
        pipeline,
        len(states),
        seed,
        lambda batch: {"prompt_embeds": states[batch], "negative_prompt_embeds": empty[batch]},
    )


def _sampled(
    pipeline: StableDiffusionPipeline, count: int, seed: int, asked: Callable[[slice], dict[str, Any]]
) -> Tensor:
    pipeline.unet.set_attn_processor(AttnProcessor())
    usual = settings.model_layer(model_folder(), "generate")
    parts = []
    for start in range(0, count, BATCH):
        end = min(start + BATCH, count)
        with fast():
            pictures = pipeline(
                **asked(slice(start, end)),
                generator=[torch.Generator().manual_seed(seed + place) for place in range(start, end)],
                num_inference_steps=usual["steps"],
                guidance_scale=usual["guidance"],
                output_type="pt",
            ).images
        parts.append(pictures.float() * 2 - 1)
    return torch.cat(parts)


def save_sheet(pictures: Tensor, file: Path, columns: int = 10) -> None:
    """Write pictures in [-1, 1] as one PNG, row by row."""
    side = pictures.shape[-1] + 2
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side), "white")
    for place, picture in enumerate(pictures):
        pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(pixels), ((place % columns) * side, (place // columns) * side))
    cache.write(file, lambda out: sheet.save(out, format="PNG"))
