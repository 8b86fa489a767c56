"""Stable Diffusion 3: two projecting CLIPs and a T5 that may be missing, and a joint transformer."""

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from .parts import TinyFamily, clip_text, image_autoencoder, t5_text
from .tokenizers import clip_tokenizer, t5_tokenizer

CLIP_WIDTHS = (16, 24)
T5_WIDTH = 48
"""Wider than both CLIPs side by side, whose states are padded to it."""


def sd3(*, eos_token_id: int = 2, with_t5: bool = True) -> StableDiffusion3Pipeline:
    """All three encoders, or the first two as in a download without the large one."""
    small, large = CLIP_WIDTHS
    tokenizer_3 = t5_tokenizer() if with_t5 else None
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=T5_WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=small + large,
            pos_embed_max_size=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=image_autoencoder(
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.0609,
            scaling_factor=1.5305,
        ),
        text_encoder=clip_text(width=small, projection=small, eos_token_id=eos_token_id),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(
            width=large, layers=3, activation="gelu", projection=large, eos_token_id=eos_token_id
        ),
        tokenizer_2=clip_tokenizer(pad_token="!"),
        text_encoder_3=None if tokenizer_3 is None else t5_text(tokenizer_3, width=T5_WIDTH),
        tokenizer_3=tokenizer_3,
    )


def sd3_no_t5(*, eos_token_id: int = 2) -> StableDiffusion3Pipeline:
    """Without the third encoder; zeros stand for its states."""
    return sd3(eos_token_id=eos_token_id, with_t5=False)


_CLIPS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
SD3 = TinyFamily(sd3, {**_CLIPS, "text_encoder_3": "tokenizer_3"}, size=16)
SD3_NO_T5 = TinyFamily(sd3_no_t5, _CLIPS, size=16, absent=("text_encoder_3", "tokenizer_3"))
