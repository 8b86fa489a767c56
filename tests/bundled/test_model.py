"""The shipped model is an ordinary one."""

import json
import tomllib

import pytest
import torch
from diffusers import StableDiffusionPipeline

from dticli import bundled


@pytest.fixture(scope="module")
def pipeline():
    """Loaded by the stock class."""
    loaded = StableDiffusionPipeline.from_pretrained(
        bundled.model_folder(), safety_checker=None, requires_safety_checker=False
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded.to(torch.float32)


def test_weights_fit_the_package():
    """All weights together, judges included, are at most 48 MiB."""
    root = bundled.model_folder().parent
    assert sum(file.stat().st_size for file in root.rglob("*.safetensors")) <= 48 * 2**20


def test_the_schedule_ends_in_noise(pipeline):
    """Zero terminal SNR, velocity prediction, trailing steps."""
    config = pipeline.scheduler.config
    assert pipeline.scheduler.alphas_cumprod[-1].item() == pytest.approx(0, abs=1e-6)
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")


def test_the_encoder_pools_at_its_eos(pipeline):
    """Config and tokenizer agree on the end of text, so the pooled state sees the whole prompt."""
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id
    short, long = (
        pipeline.text_encoder(pipeline.tokenizer(text, return_tensors="pt").input_ids).pooler_output
        for text in ("a dog", "a dog in the snow")
    )
    assert not torch.allclose(short, long, atol=1e-3)


def test_a_picture_comes_out(pipeline):
    """Two steps of the stock pipeline give a 64 px picture, the same for the same seed."""
    first, second = (
        pipeline(
            "a red dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images
        for _ in range(2)
    )
    assert first.shape == (1, 64, 64, 3)
    assert (first == second).all()


def test_training_defaults_are_stated():
    """The model says at which resolution it was trained."""
    defaults = tomllib.loads((bundled.model_folder() / "dti.toml").read_text())
    assert defaults["train"]["resolution"] == 64


def test_no_config_says_where_the_model_was_made() -> None:
    """diffusers notes the folder each part was loaded from; the shipped model keeps no path of a machine."""
    for file in bundled.model_folder().rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text(encoding="utf-8")), file
