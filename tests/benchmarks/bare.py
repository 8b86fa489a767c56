"""The least that a training step can be: the model's own modules, forward and backward to one row of each table.

    python -m tests.benchmarks.bare MODEL PHOTOS [--batch 4] [--size 64] [--precision fp32]

Photos are encoded once and the caption is always the same: no draws, no captions, no checks, no log, no report.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor


def main() -> None:
    """Take steps until the process ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    pipe = DiffusionPipeline.from_pretrained(options.model, torch_dtype=dtype)
    for module in (pipe.vae, pipe.unet, *_encoders(pipe)):
        module.requires_grad_(False)
    for _ in steps(pipe, _latents(pipe, options.photos, options.size, dtype), options.batch, options.size):
        pass


def steps(pipe: Any, latents: Tensor, batch: int, size: int) -> Iterator[None]:
    """Take a step at a turn, of a frozen pipeline.

    Args:
        latents: (photos, channels, height, width), scaled, in the denoiser's dtype.
        size: pixels of a side.
    """
    encoders = _encoders(pipe)
    rows, hooks = zip(*(_learning(encoder, latents.dtype) for encoder in encoders), strict=True)
    optimizer = torch.optim.SGD(rows, lr=1e-3)
    texts = pipe.tokenizer(
        ["a photo of a dog"] * batch,
        padding="max_length",
        max_length=pipe.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    clean = latents[torch.arange(batch) % len(latents)]
    level = torch.full((batch,), 500)
    try:
        while True:
            noise = torch.randn_like(clean)
            noisy = pipe.scheduler.add_noise(clean, noise, level)
            said = pipe.unet(noisy, level, **_conditioning(encoders, texts, size), return_dict=False)[0]
            torch.nn.functional.mse_loss(said.float(), noise.float()).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _encoders(pipe: Any) -> list[Any]:
    return [each for each in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if each]


def _learning(encoder: Any, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """A row that every state of the encoder's table depends on, and the hook by which it does."""
    table = encoder.get_input_embeddings()
    row = table.weight[1].float().clone().requires_grad_()
    return row, table.register_forward_hook(lambda module, args, states: states + 0 * row.to(dtype))


def _conditioning(encoders: Sequence[Any], texts: Tensor, size: int) -> dict[str, Any]:
    """What the denoiser is told: by one encoder as in Stable Diffusion 1, by two as in SDXL."""
    if len(encoders) == 1:
        return {"encoder_hidden_states": encoders[0](texts)[0]}
    said = [encoder(texts, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([each.hidden_states[-2] for each in said], dim=-1)
    times = torch.tensor([size, size, 0, 0, size, size]).expand(len(texts), -1)
    return {
        "encoder_hidden_states": states,
        "added_cond_kwargs": {"text_embeds": said[1][0], "time_ids": times},
    }


@torch.no_grad()
def _latents(pipe: Any, photos: Path, size: int, dtype: torch.dtype) -> Tensor:
    """Scaled latents of all photos, squeezed to squares."""
    pixels = np.stack(
        [
            np.asarray(Image.open(file).convert("RGB").resize((size, size)), np.float32)
            for file in sorted(photos.iterdir())
            if file.suffix in (".png", ".jpg")
        ]
    )
    pictures = torch.from_numpy(pixels / 127.5 - 1).permute(0, 3, 1, 2).to(dtype)
    return pipe.vae.encode(pictures).latent_dist.mean * pipe.vae.config.scaling_factor


if __name__ == "__main__":
    main()
