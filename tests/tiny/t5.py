"""PixArt-Sigma, which reads T5, HunyuanDiT, BERT and T5, and AuraFlow, the Pile's T5: diffusion transformers."""

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import BertConfig, BertModel

from .parts import TinyFamily, array_copy_warning, image_autoencoder, t5_text, umt5_text
from .tokenizers import bert_tokenizer, t5_tokenizer

T5_WIDTH, BERT_WIDTH = 24, 32


def pixart_sigma() -> PixArtSigmaPipeline:
    """Predicts the noise and, in as many channels again, its variance."""
    tokenizer = t5_tokenizer()
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text(tokenizer, width=T5_WIDTH),
        vae=image_autoencoder(scaling_factor=0.13025),
        transformer=PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=128,
            patch_size=2,
            norm_elementwise_affine=False,
            interpolation_scale=2,
            use_additional_conditions=False,
            caption_channels=T5_WIDTH,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


def hunyuandit() -> HunyuanDiTPipeline:
    """Predicts the velocity and a variance; two encoders are read one after the other."""
    tokenizer, tokenizer_2 = bert_tokenizer(), t5_tokenizer(length=256)
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=BERT_WIDTH,
        intermediate_size=2 * BERT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=BERT_WIDTH**-0.5,
    )
    return HunyuanDiTPipeline(
        vae=image_autoencoder(scaling_factor=0.13025),
        text_encoder=BertModel(bert),
        tokenizer=tokenizer,
        transformer=HunyuanDiT2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=32,
            num_layers=2,
            cross_attention_dim=BERT_WIDTH,
            cross_attention_dim_t5=T5_WIDTH,
            pooled_projection_dim=16,
        ),
        scheduler=DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.018,
            prediction_type="v_prediction",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_text(tokenizer_2, width=T5_WIDTH),
        tokenizer_2=tokenizer_2,
    )


def auraflow() -> AuraFlowPipeline:
    """Its encoder is a UMT5 in form; the transformer gets no mask, but states that were zeroed."""
    tokenizer = t5_tokenizer()
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    # one word among 256 states would hardly be seen
    transformer.joint_transformer_blocks[0].attn.add_v_proj.weight.data *= 64
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5_text(tokenizer, width=T5_WIDTH),
        vae=image_autoencoder(scaling_factor=0.13025),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


AURAFLOW = TinyFamily(auraflow, {"text_encoder": "tokenizer"}, size=16)
PIXART_SIGMA = TinyFamily(
    pixart_sigma,
    {"text_encoder": "tokenizer"},
    size=16,
    arguments={"clean_caption": False, "use_resolution_binning": False},
    warnings=(array_copy_warning("scheduling_dpmsolver_multistep"),),
)
HUNYUANDIT = TinyFamily(
    hunyuandit,
    {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    size=16,
    arguments={"use_resolution_binning": False},
)
