"""What several tiny pipelines are made of, and what a test needs to know about one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3VLConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from .tokenizers import CLIP_EOS, CLIP_LENGTH, QWEN3_SPARE_ROWS, T5_SPARE_ROWS, UMT5_SPARE_ROWS


def array_copy_warning(scheduler: str) -> str:
    """The filter for a scheduler that calls `numpy.array` on a tensor: numpy 2 finds it lacks an argument."""
    return (
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
        f":diffusers.schedulers.{scheduler}"
    )


@dataclass(frozen=True)
class TinyFamily:
    """One tiny pipeline and how to call it.

    Attributes:
        make: builds the pipeline from the global random state; use `build`, which seeds it.
        encoders: the pipeline's attributes of each text encoder in which a word has a row, and its tokenizer.
        size: smallest side, in pixels, that no stage has to round; every multiple of it is fine too.
        arguments: what `pipe(...)` needs besides prompt, size, steps and output type.
        but_two: what it needs besides, where the number of steps is another than two.
        absent: required components that are None; `from_pretrained` wants them named, as None, again.
        warnings: pytest filters for what the libraries themselves warn of when this pipeline runs.
    """

    make: Callable[..., DiffusionPipeline]
    encoders: Mapping[str, str]
    size: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    but_two: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def clip_text(
    *,
    width: int,
    layers: int = 2,
    activation: str = "quick_gelu",
    projection: int | None = None,
    eos_token_id: int = 2,
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A CLIP text encoder; with `projection`, the kind that projects its pooled output to that width.

    `eos_token_id` 2 is what the public configs say, whatever the vocabulary: pooling at the highest id.
    """
    config = CLIPTextConfig(
        vocab_size=CLIP_EOS + 1,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        hidden_act=activation,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=eos_token_id,
        pad_token_id=1,
    )
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


def image_autoencoder(*, latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    """The usual picture autoencoder: three halvings, so eight pixels to a latent."""
    widths = (8, 8, 16, 16)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        **config,
    )


def t5_text(tokenizer: T5Tokenizer, *, width: int, spare_rows: int = T5_SPARE_ROWS) -> T5EncoderModel:
    """A T5 1.1 encoder: gated, with rows beyond the tokenizer."""
    return T5EncoderModel(T5Config(**_t5(tokenizer, width, spare_rows)))


def umt5_text(tokenizer: T5Tokenizer, *, width: int) -> UMT5EncoderModel:
    """A UMT5 encoder: T5 with position biases of its own in every layer."""
    return UMT5EncoderModel(UMT5Config(**_t5(tokenizer, width, UMT5_SPARE_ROWS)))


def _t5(tokenizer: T5Tokenizer, width: int, spare_rows: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer) + spare_rows,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 2 * width,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.1,
    }


def gemma_text(tokenizer: GemmaTokenizer, *, width: int) -> Gemma2Model:
    """A Gemma 2 encoder, which scales its rows by the root of the width; one local layer and one global."""
    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            num_hidden_layers=2,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **attention(width),
        )
    )


def qwen3_config(tokenizer: Qwen2Tokenizer, *, width: int, layers: int) -> Qwen3Config:
    """The config of a Qwen3 with rows beyond its tokenizer and its output tied to them, like the 4B one."""
    return Qwen3Config(
        vocab_size=len(tokenizer) + QWEN3_SPARE_ROWS,
        num_hidden_layers=layers,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        **attention(width),
    )


def qwen3_vl_config(tokenizer: Qwen2Tokenizer, *, width: int) -> Qwen3VLConfig:
    """The config of a Qwen3-VL whose eyes, which no prompt uses, are as small as can be."""
    text = {
        "vocab_size": len(tokenizer) + QWEN3_SPARE_ROWS,
        "num_hidden_layers": 3,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
        **attention(width),
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
        "num_position_embeddings": 4,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


VIDEO_AUTOENCODER = {"base_dim": 4, "z_dim": 16, "num_res_blocks": 1}
"""Of the autoencoder of Wan, Qwen-Image and Krea 2, made for videos."""


def attention(width: int) -> dict[str, Any]:
    """What the configs of language models call alike: eight numbers a head, two heads to a key."""
    # the usual 0.02 leaves so narrow an encoder almost blind to the other words
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": width**-0.5,
    }


def flux_autoencoder() -> AutoencoderKL:
    """FLUX.1's autoencoder: sixteen channels with a shift; also Z-Image's and Lumina 2's."""
    return image_autoencoder(
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
    )
