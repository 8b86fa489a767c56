"""SDXL and Stable Diffusion 1.5 as large as they are, with random weights: nothing is downloaded, and nothing is known.

Configs are those of stabilityai/stable-diffusion-xl-base-1.0 and of Stable Diffusion 1.5. Tokenizers are tiny ones, whose ids lie
within the true tables, where no other is given.
"""

import copy
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.tiny.stable_diffusion import NOISE
from tests.tiny.tokenizers import clip_tokenizer


def build(name: str, device: torch.device, dtype: torch.dtype, tokenizer: CLIPTokenizer | None = None) -> Any:
    """The pipeline `sdxl` or `sd15`; the same numbers each time on one kind of device.

    Args:
        tokenizer: of every encoder, which SDXL's second one pads with "!".
    """
    pipe = without_numbers(name)
    if tokenizer:
        pipe.tokenizer = tokenizer
        if name == "sdxl":
            pipe.tokenizer_2 = copy.deepcopy(tokenizer)
            pipe.tokenizer_2.pad_token = "!"
    generator = torch.Generator(device).manual_seed(0)
    for name, module in pipe.components.items():
        if isinstance(module, nn.Module):
            buffers = {key: each.shape for key, each in module.named_buffers()}
            assert all(key.endswith("position_ids") for key in buffers), (name, buffers)
            module.to(dtype).to_empty(device=device)
            for key, parameter in module.named_parameters():
                _fill(key, parameter.data, generator)
            for each in module.buffers():
                each.copy_(torch.arange(each.numel(), device=device).view(each.shape))
            module.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def without_numbers(name: str) -> Any:
    """The pipeline on torch's `meta` device."""
    # Schedulers compute when they are made.
    if name == "sdxl":
        scheduler: Any = EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
    else:
        scheduler = PNDMScheduler(**NOISE, skip_prk_steps=True)
    with torch.device("meta"):
        return {"sdxl": _sdxl, "sd15": _sd15}[name](scheduler)


def _fill(name: str, values: torch.Tensor, generator: torch.Generator) -> None:
    """Norms pass on what comes; matrices keep its size; biases are zero."""
    if values.ndim > 1:
        width = values[0].numel()
        values.normal_(0, 0.02 if "embedding" in name else width**-0.5, generator=generator)
    else:
        values.fill_(1.0 if name.endswith("weight") else 0.0)


def _text(kind: Any, width: int, layers: int, heads: int, activation: str) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return kind(config)


def _autoencoder(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        **config,
    )


def _sdxl(scheduler: Any) -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return StableDiffusionXLPipeline(
        vae=_autoencoder(sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        text_encoder=_text(CLIPTextModel, 768, 12, 12, "quick_gelu"),
        text_encoder_2=_text(CLIPTextModelWithProjection, 1280, 32, 20, "gelu"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def _sd15(scheduler: Any) -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return StableDiffusionPipeline(
        vae=_autoencoder(sample_size=512, scaling_factor=0.18215),
        text_encoder=_text(CLIPTextModel, 768, 12, 12, "quick_gelu"),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
