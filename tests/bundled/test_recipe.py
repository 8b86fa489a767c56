"""The recipe from art to a judged model, at a size that shows it runs, not that it learns."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from dticli.bundled.recipe import (
    art,
    assembly,
    autoencoder,
    cache,
    check,
    decoder,
    diffusion,
    gate,
    judges,
    package,
    shards,
    text_encoder,
    training,
    vocabulary,
)
from dticli.bundled.world import grammar

MOMENT = 0.01  # minutes


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Every training step run for a moment on inline art; the log's lines and the built model's folder."""
    pytest.importorskip("resvg_py")
    from .conftest import inline_art

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(art, "load", inline_art)
        patch.setattr(shards, "SHARD", 24)
        for module, size in ((text_encoder, 8), (autoencoder, 2), (diffusion, 4), (judges, 4)):
            patch.setattr(module, "BATCH", size)
        patch.setattr(autoencoder, "WATCHED", 4)
        patch.setattr(judges, "WATCHED", 8)
        patch.setattr(gate, "SCALES", (1.0, 4.0))
        log = training.RecipeLog(cache.folder("logs") / "log")
        for kind in shards.KINDS:
            shards.make(kind, 48, 0, log)
        text_encoder.run(MOMENT, 0, log)
        autoencoder.run(MOMENT, 0, log)
        diffusion.run(MOMENT, 0, log)
        decoder.run(MOMENT, 0, log)
        judges.run(MOMENT, 0, log)
        yield log, assembly.built()


@pytest.mark.slow
def test_the_model_is_an_ordinary_one(built):
    """The stock pipeline loads it in float16 files and its sizes fit the package."""
    _, folder = built
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size == 256
    assert pipeline.text_encoder.config.num_hidden_layers >= 8
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) <= package.MOST_BYTES
    assert (folder / "dti.toml").is_file()


@pytest.mark.slow
def test_another_decoder_leaves_latents_as_they_are(built):
    """Only the decoder's weights change, the denoiser's latents are found again, and the model holds the new decoder."""
    _, folder = built
    before, after = autoencoder.load(), assembly.load_decoder()
    pairs = {name: (value, after.state_dict()[name]) for name, value in before.state_dict().items()}
    changed = {name.split(".")[0] for name, pair in pairs.items() if not torch.equal(*pair)}
    assert changed == {"decoder", "post_quant_conv"}
    assert after.config["scaling_factor"] == before.config["scaling_factor"]
    told = []
    diffusion.encode_pictures(told.append)
    assert told == []
    shipped = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False
    )
    weight = shipped.vae.decoder.conv_in.weight
    assert torch.equal(weight.half(), after.decoder.conv_in.weight.half())


@pytest.mark.slow
def test_silent_rows_are_zero_and_spoken_rows_are_not(built):
    """Letters and pieces say nothing; every word has a row of its own."""
    tokens, encoder = text_encoder.load()
    silent = set(vocabulary.silent_ids(tokens, grammar.every_caption_word()))
    norms = encoder.get_input_embeddings().weight.norm(dim=1)
    assert {index for index in range(len(tokens)) if not norms[index]} == silent


@pytest.mark.slow
def test_what_was_drawn_is_not_drawn_again(built):
    """A finished shard is kept, byte for byte."""
    log, _ = built
    files = shards.shard_files("pictures")
    before = [file.stat().st_mtime_ns for file in files]
    shards.make("pictures", 48, 0, log)
    assert [file.stat().st_mtime_ns for file in files] == before


@pytest.mark.slow
def test_check_and_gate_measure_both_judges(built):
    """Reports hold counts for every bar and scale; the encoder's rows are back in place after the gate."""
    log, _ = built
    check.run(4, 0, None, log)
    report = json.loads((cache.folder("check") / "check.json").read_text())
    assert set(report["judged"]["a"]) == set(report["judged"]["b"]) == set(check.BARS)
    pipeline = assembly.load()
    rows = pipeline.text_encoder.get_input_embeddings().weight.detach().clone()
    with gate._scaled(pipeline, 8.0):
        assert not torch.equal(pipeline.text_encoder.get_input_embeddings().weight, rows)
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight, rows)
    gate.run(4, 0, None, log)
    report = json.loads((cache.folder("gate") / "gate.json").read_text())
    assert set(report["states"]) == set(report["pictures"]) == set(report["encoder"]) == {"1.0", "4.0"}
    assert set(report["alone"]) == set(report["pictures"]["1.0"])
