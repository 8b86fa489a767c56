"""The parts of the recipe's model: their files, and the whole model in diffusers layout and float16."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from dticli.bundled import MODEL_NAME, model_folder

from . import autoencoder, cache, text_encoder


def scheduler() -> DDIMScheduler:
    """The noise schedule of training and sampling."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def denoiser_folder() -> Path:
    """The folder of the denoiser, its trained rows and the latents."""
    return cache.folder("diffusion")


def load_encoder() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer, and the text encoder in float32, with the rows trained with the denoiser if they exist."""
    tokens, encoder = text_encoder.load()
    if (denoiser_folder() / "text_encoder").is_dir():
        encoder = CLIPTextModel.from_pretrained(denoiser_folder() / "text_encoder").float().eval()
    return tokens, encoder


def load_decoder() -> AutoencoderKL:
    """The autoencoder in float32, with the decoder of step `decoder` if it exists."""
    return autoencoder.load(decoder_weights().parent)


def decoder_weights() -> Path:
    """The file of weights that `load_decoder` reads."""
    trained = decoder_folder() / autoencoder.weights().name
    return trained if trained.is_file() else autoencoder.weights()


def decoder_folder() -> Path:
    """The folder of the autoencoder from step `decoder`."""
    return cache.folder(decoder_name()) / "vae"


def decoder_name() -> str:
    """The name of step `decoder` in the cache, which depends on the autoencoder."""
    return f"decoder/{cache.fingerprint(autoencoder.weights())}"


def judge_a() -> Path:
    """The file of judge A."""
    return cache.folder("judges") / "judge-a.safetensors"


def judge_b() -> Path:
    """The file of judge B."""
    return cache.folder("judges") / "judge-b.safetensors"


def built() -> Path:
    """The folder of the recipe's model before `package`."""
    return cache.root() / MODEL_NAME


def assemble(target: Path) -> None:
    """Write the whole model to `target`, with the `dti.toml` of the bundled model."""
    tokens, encoder = load_encoder()
    pipeline = StableDiffusionPipeline(
        vae=load_decoder(),
        text_encoder=encoder,
        tokenizer=tokens,
        unet=UNet2DConditionModel.from_pretrained(denoiser_folder() / "unet"),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    defaults = (model_folder() / "dti.toml").read_bytes()

    def fill(folder: Path) -> None:
        pipeline.save_pretrained(folder)
        _forget_origins(folder)
        (folder / "dti.toml").write_bytes(defaults)

    cache.write_folder(target, fill)


def _forget_origins(folder: Path) -> None:
    """Remove the paths from which parts were loaded, which diffusers records in configs."""
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(model: Path | None = None) -> StableDiffusionPipeline:
    """Load a model folder as a float32 pipeline without progress bars; the recipe's model by default."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        model or built(), safety_checker=None, requires_safety_checker=False
    )
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
