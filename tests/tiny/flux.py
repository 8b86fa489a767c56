"""FLUX.1, which reads CLIP's pooled output and T5's states, Chroma, T5's alone, and FLUX.2, three layers of a language model."""

import warnings
from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen3ForCausalLM,
)

from .parts import TinyFamily, attention, clip_text, flux_autoencoder, qwen3_config, t5_text
from .tokenizers import clip_tokenizer, mistral_tokenizer, qwen_tokenizer, t5_tokenizer

CLIP_WIDTH, T5_WIDTH, QWEN_WIDTH, MISTRAL_WIDTH = 32, 24, 16, 16
MOVED_CLASS = "`FluxPosEmbed` is deprecated"
"""What Chroma's transformer causes, which imports a class from where it was."""
KLEIN_LAYERS, FLUX2_LAYERS = 28, 31
"""The pipelines read states 9, 18 and 27, or 10, 20 and 30, by default, so there must be as many."""


def _flux1(
    guidance_embeds: bool, scheduler: FlowMatchEulerDiscreteScheduler, eos_token_id: int
) -> FluxPipeline:
    tokenizer_2 = t5_tokenizer()
    return FluxPipeline(
        scheduler=scheduler,
        vae=flux_autoencoder(),
        text_encoder=clip_text(width=CLIP_WIDTH, eos_token_id=eos_token_id),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(tokenizer_2, width=T5_WIDTH),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            pooled_projection_dim=CLIP_WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def flux1_dev(*, eos_token_id: int = 2) -> FluxPipeline:
    """Guidance is an input of the transformer; the noise schedule shifts with the picture's size."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return _flux1(True, scheduler, eos_token_id)


def flux1_schnell(*, eos_token_id: int = 2) -> FluxPipeline:
    """No guidance and no shift."""
    return _flux1(False, FlowMatchEulerDiscreteScheduler(shift=1.0), eos_token_id)


def chroma() -> ChromaPipeline:
    """Neither pooled state nor guidance: a network makes every modulation from the time; padding is masked."""
    tokenizer = t5_tokenizer()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", MOVED_CLASS, FutureWarning)
        transformer = ChromaTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=T5_WIDTH,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux_autoencoder(),
        text_encoder=t5_text(tokenizer, width=T5_WIDTH),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def flux2_klein() -> Flux2KleinPipeline:
    """The distilled one, which never guides; its autoencoder's statistics are those of a batch norm."""
    tokenizer = qwen_tokenizer()
    return Flux2KleinPipeline(
        **_flux2(QWEN_WIDTH, guidance_embeds=False),
        text_encoder=Qwen3ForCausalLM(qwen3_config(tokenizer, width=QWEN_WIDTH, layers=KLEIN_LAYERS)),
        tokenizer=tokenizer,
        is_distilled=True,
    )


def flux2() -> Flux2Pipeline:
    """The large one, whose guidance is an input; as shipped, a processor holds its tokenizer, which needs torchvision."""
    tokenizer = mistral_tokenizer()
    text = MistralConfig(
        vocab_size=len(tokenizer), num_hidden_layers=FLUX2_LAYERS, **attention(MISTRAL_WIDTH)
    )
    eyes = PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = Mistral3Config(text_config=text, vision_config=eyes, tie_word_embeddings=False)
    parts = _flux2(MISTRAL_WIDTH, guidance_embeds=True)
    # one word after so long a message of the system would hardly be seen
    parts["transformer"].transformer_blocks[0].attn.add_v_proj.weight.data *= 64
    return Flux2Pipeline(
        **parts,
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
    )


def _flux2(width: int, *, guidance_embeds: bool) -> dict[str, Any]:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=32,
        sample_size=64,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        "vae": vae,
        "transformer": Flux2Transformer2DModel(
            in_channels=128,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * width,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        ),
    }


_FLUX1 = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
FLUX1_DEV = TinyFamily(flux1_dev, _FLUX1, size=16)
FLUX1_SCHNELL = TinyFamily(flux1_schnell, _FLUX1, size=16)
FLUX2 = TinyFamily(flux2, {"text_encoder": "tokenizer"}, size=16)
CHROMA = TinyFamily(
    chroma, {"text_encoder": "tokenizer"}, size=16, warnings=(f"ignore:{MOVED_CLASS}:FutureWarning",)
)
FLUX2_KLEIN = TinyFamily(
    flux2_klein,
    {"text_encoder": "tokenizer"},
    size=16,
    # its default of 4 is announced and then ignored by a distilled model
    arguments={"guidance_scale": 1.0},
)
