"""A model with the classes, widths and vocabularies of SDXL, and little behind them: random weights, made when they are needed.

Both tables of rows are as large as SDXL's, so that whatever a program does with them takes as long; encoders have two layers, and
denoiser and autoencoder are narrow, so that a step takes a second on two cores.
"""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.tiny.stable_diffusion import NOISE
from tests.tiny.tokenizers import clip_tokenizer

VOCABULARY = 49408
LAYERS = 2
SIZE = 256


def save(folder: Path) -> Path:
    """Write the model to a folder in the layout of diffusers."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            block_out_channels=(32, 64, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=SIZE,
            scaling_factor=0.13025,
        ),
        text_encoder=CLIPTextModel(_text(768, 12, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text(1280, 20, "gelu")),
        tokenizer=_tokenizer("<|endoftext|>"),
        tokenizer_2=_tokenizer("!"),
        unet=UNet2DConditionModel(
            sample_size=SIZE // 8,
            block_out_channels=(64, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(1, 2),
            cross_attention_dim=768 + 1280,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + 1280,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def _text(width: int, heads: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )


def _tokenizer(pad_token: str) -> CLIPTokenizer:
    """The tiny tokenizer with as many pieces as CLIP's: those that are added stand in no text."""
    model = json.loads(clip_tokenizer().backend_tokenizer.to_str())["model"]
    *pieces, first, last = sorted(model["vocab"], key=model["vocab"].get)
    spare = [f"<spare-{number}>" for number in range(VOCABULARY - len(model["vocab"]))]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *spare, first, last])}
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)
