"""Krea 2: states of several layers of Qwen3-VL for each piece of the prompt, in one stream with the picture's."""

from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from transformers import Qwen3VLModel

from .parts import VIDEO_AUTOENCODER, TinyFamily, qwen3_vl_config
from .tokenizers import qwen_tokenizer

WIDTH = 32


def krea2() -> Krea2Pipeline:
    """The template's end follows the padding, at places that do not count it."""
    tokenizer = qwen_tokenizer()
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=6400
        ),
        vae=AutoencoderKLQwenImage(**VIDEO_AUTOENCODER),
        text_encoder=Qwen3VLModel(qwen3_vl_config(tokenizer, width=WIDTH)),
        tokenizer=tokenizer,
        transformer=Krea2Transformer2DModel(
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=WIDTH,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2),
    )


KREA2 = TinyFamily(
    krea2,
    {"text_encoder": "tokenizer"},
    size=16,
    # its norms stay in float32 when it is loaded, and not when it is cast
    warnings=("ignore:Mismatch dtype between input and weight:UserWarning",),
)
