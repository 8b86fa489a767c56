"""Stable Diffusion 1, 2 and XL: CLIP encoders and a convolutional denoiser."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from .parts import TinyFamily, array_copy_warning, clip_text, image_autoencoder
from .tokenizers import clip_tokenizer

NOISE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def _unet(context: int, **config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=context,
        **config,
    )


def sd1(*, eos_token_id: int = 2) -> StableDiffusionPipeline:
    """Predicts the noise; PNDM as shipped."""
    return StableDiffusionPipeline(
        vae=image_autoencoder(sample_size=64, scaling_factor=0.18215),
        text_encoder=clip_text(width=32, eos_token_id=eos_token_id),
        tokenizer=clip_tokenizer(),
        unet=_unet(32, attention_head_dim=2),
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2(*, eos_token_id: int = 2) -> StableDiffusionPipeline:
    """Predicts the velocity; pads with `!`; DDIM as shipped."""
    return StableDiffusionPipeline(
        vae=image_autoencoder(sample_size=64, scaling_factor=0.18215),
        text_encoder=clip_text(width=32, layers=3, activation="gelu", eos_token_id=eos_token_id),
        tokenizer=clip_tokenizer(pad_token="!"),
        unet=_unet(32, attention_head_dim=(1, 2), use_linear_projection=True),
        scheduler=DDIMScheduler(
            **NOISE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(*, eos_token_id: int = 2) -> StableDiffusionXLPipeline:
    """Two encoders of different width side by side, the second one's pooled output, and six time ids."""
    projection, embedded_time = 24, 8
    return StableDiffusionXLPipeline(
        vae=image_autoencoder(sample_size=64, scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip_text(width=32, eos_token_id=eos_token_id),
        text_encoder_2=clip_text(
            width=48, layers=3, activation="gelu", projection=projection, eos_token_id=eos_token_id
        ),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        unet=_unet(
            32 + 48,
            attention_head_dim=(1, 2),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=embedded_time,
            projection_class_embeddings_input_dim=6 * embedded_time + projection,
        ),
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        add_watermarker=False,
    )


SD1 = TinyFamily(sd1, {"text_encoder": "tokenizer"}, size=16)
SD2 = TinyFamily(sd2, {"text_encoder": "tokenizer"}, size=16)
SDXL = TinyFamily(
    sdxl,
    {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    size=16,
    warnings=(array_copy_warning("scheduling_euler_discrete"),),
)
