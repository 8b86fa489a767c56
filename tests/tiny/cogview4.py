"""CogView4: GLM-4, read without a mask after padding on the left, and sizes and crop as conditioning."""

from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from transformers import GlmConfig, GlmModel

from .parts import TinyFamily, attention, image_autoencoder
from .tokenizers import glm_tokenizer

WIDTH = 32


def cogview4() -> CogView4Pipeline:
    """The noise schedule is shifted in a straight line with the picture's side, and the time it is told is not."""
    tokenizer = glm_tokenizer()
    config = GlmConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **attention(WIDTH),
    )
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=GlmModel(config),
        vae=image_autoencoder(
            latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.0
        ),
        transformer=CogView4Transformer2DModel(
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=16,
            sample_size=8,
            rope_axes_dim=(16, 16),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )


COGVIEW4 = TinyFamily(cogview4, {"text_encoder": "tokenizer"}, size=16)
