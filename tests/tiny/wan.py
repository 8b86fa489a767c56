"""Wan 2.1 and Qwen-Image, which share an autoencoder made for videos."""

from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from .parts import VIDEO_AUTOENCODER, TinyFamily, umt5_text
from .tokenizers import QWEN25_SPARE_ROWS, qwen_tokenizer, t5_tokenizer

UMT5_WIDTH, QWEN_WIDTH = 24, 32


def wan() -> WanPipeline:
    """Text to video, asked for one frame; UniPC in its flow form, as shipped."""
    tokenizer = t5_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5_text(tokenizer, width=UMT5_WIDTH),
        vae=AutoencoderKLWan(**VIDEO_AUTOENCODER),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=UMT5_WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
    )


def qwen_image() -> QwenImagePipeline:
    """The encoder is a vision-language model of which only the language part is used."""
    tokenizer = qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + QWEN25_SPARE_ROWS,
            "hidden_size": QWEN_WIDTH,
            "intermediate_size": 2 * QWEN_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "initializer_range": QWEN_WIDTH**-0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": QWEN_WIDTH,
            "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=False,
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
        vae=AutoencoderKLQwenImage(**VIDEO_AUTOENCODER),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=QWEN_WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
    )


WAN = TinyFamily(wan, {"text_encoder": "tokenizer"}, size=16, arguments={"num_frames": 1})
QWEN_IMAGE = TinyFamily(
    qwen_image,
    {"text_encoder": "tokenizer"},
    size=16,
    # its default of 4 is announced and then ignored unless there is a negative prompt
    arguments={"true_cfg_scale": 1.0},
)
