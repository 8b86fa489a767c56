"""SANA, SANA-Sprint and Lumina-Image 2, whose encoder is Gemma 2."""

from typing import Any

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)

from .parts import TinyFamily, array_copy_warning, flux_autoencoder, gemma_text
from .tokenizers import gemma_tokenizer

WIDTH = 32
DEPTH = 6
"""Levels of the deep-compression autoencoder: five halvings, 32 pixels to a latent."""


def sana() -> SanaPipeline:
    """Deep-compression autoencoder; the multistep solver in its flow form, as shipped."""
    solver = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(**_parts(), scheduler=solver)


def sana_sprint() -> SanaSprintPipeline:
    """Distilled to two steps: the time is an angle, and guidance an input of the transformer."""
    return SanaSprintPipeline(
        **_parts(guidance_embeds=True, qk_norm="rms_norm_across_heads"), scheduler=SCMScheduler()
    )


def _parts(**transformer: Any) -> dict[str, Any]:
    tokenizer = gemma_tokenizer()
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    scales = ((),) * 3 + ((5,),) * 3
    widths = (8, 8, 8, 16, 16, 32)
    return {
        "tokenizer": tokenizer,
        "text_encoder": gemma_text(tokenizer, width=WIDTH),
        "vae": AutoencoderDC(
            latent_channels=32,
            attention_head_dim=8,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            encoder_layers_per_block=(1,) * DEPTH,
            decoder_layers_per_block=(1,) * DEPTH,
            encoder_qkv_multiscales=scales,
            decoder_qkv_multiscales=scales,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        ),
        "transformer": SanaTransformer2DModel(
            in_channels=32,
            out_channels=32,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=WIDTH,
            sample_size=32,
            **transformer,
        ),
    }


def lumina2() -> Lumina2Pipeline:
    """Predicts the negative velocity, with time running from noise to picture."""
    tokenizer = gemma_tokenizer()
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            hidden_size=48,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(4, 4, 4),
            axes_lens=(300, 64, 64),
            cap_feat_dim=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=flux_autoencoder(),
        text_encoder=gemma_text(tokenizer, width=WIDTH),
        tokenizer=tokenizer,
    )


SANA = TinyFamily(
    sana,
    {"text_encoder": "tokenizer"},
    size=32,
    arguments={"use_resolution_binning": False},
    warnings=(array_copy_warning("scheduling_dpmsolver_multistep"),),
)
LUMINA2 = TinyFamily(lumina2, {"text_encoder": "tokenizer"}, size=16)
SANA_SPRINT = TinyFamily(
    sana_sprint,
    {"text_encoder": "tokenizer"},
    size=32,
    arguments={"use_resolution_binning": False},
    # a level between the two, refused with another number of them
    but_two={"intermediate_timesteps": None},
)
