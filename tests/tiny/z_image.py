"""Z-Image: Qwen3 states of as many tokens as the prompt has, in one stream with the picture's."""

from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Model

from .parts import TinyFamily, flux_autoencoder, qwen3_config
from .tokenizers import qwen_tokenizer

WIDTH = 32


def zimage() -> ZImagePipeline:
    """Predicts the negative velocity, with time running from noise to picture."""
    tokenizer = qwen_tokenizer()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flux_autoencoder(),
        text_encoder=Qwen3Model(qwen3_config(tokenizer, width=WIDTH, layers=3)),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        ),
    )


ZIMAGE = TinyFamily(zimage, {"text_encoder": "tokenizer"}, size=16)
