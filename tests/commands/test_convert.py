"""`dti convert` as a user runs it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dticli import bundled
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Another trainer's SD 1.x file: half precision, one dimension, a name with capitals."""
    path = tmp_path / "My Dog.safetensors"
    save_file({"emb_params": torch.linspace(-1, 1, 768).half()}, path)
    return path


@pytest.fixture
def xl(tmp_path: Path) -> Path:
    """kohya's SDXL file."""
    path = tmp_path / "sks-dog.safetensors"
    save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, path)
    return path


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_files_for_a_program(dti: Dti, foreign: Path, xl: Path, tmp_path: Path) -> None:
    """Several files at once, each named after its word; what was repaired is said; how it is typed too."""
    outcome = dti("convert", foreign, xl, "--to", "comfyui", "-o", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    first, second = outcome.json["words"]
    assert (first["token"], first["typed"]) == ("<my-dog>", "embedding:my-dog")
    assert [Path(name).name for name in first["files"] + second["files"]] == [
        "my-dog.safetensors",
        "sks-dog.safetensors",
    ]
    assert "1-D" in outcome.err
    assert "float16 became float32" in outcome.err
    assert "My Dog" in outcome.err
    stored = load_file(tmp_path / "out" / "my-dog.safetensors")
    assert {key: (rows.shape, rows.dtype) for key, rows in stored.items()} == {
        "clip_l": ((1, 768), torch.float32)
    }
    assert set(load_file(tmp_path / "out" / "sks-dog.safetensors")) == {"clip_l", "clip_g"}


def test_the_folder_is_the_programs_by_default(
    dti: Dti, xl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`diffusers/sks-dog/learned_embeds*.safetensors`, which reads back as the same word."""
    monkeypatch.chdir(tmp_path)
    assert dti("convert", xl, "--to", "diffusers").code == 0
    assert sorted(path.name for path in Path("diffusers/sks-dog").iterdir()) == [
        "learned_embeds.safetensors",
        "learned_embeds_2.safetensors",
    ]
    assert load_file("diffusers/sks-dog/learned_embeds.safetensors")["<sks-dog>"].shape == (2, 768)
    assert dti("convert", "diffusers/sks-dog", "--to", "dti").code == 0
    assert dti("convert", xl, "--to", "dti", "-o", "direct").code == 0
    assert Path("dti/sks-dog.safetensors").read_bytes() == Path("direct/sks-dog.safetensors").read_bytes()


def test_a_trained_word_converts_to_itself(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """`--to dti` of our own file is the same file; what `train` wrote is kept."""
    outcome = dti("convert", dog, "--to", "dti", "-o", tmp_path)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "dog.safetensors").read_bytes() == dog.read_bytes()
    assert metadata(dog)["modelspec.usage_hint"] == "dti, diffusers: <dog>"


def test_the_bundled_models_words_fit_no_other_program(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """A word of width 256 is refused for every other program, in words; nothing is written."""
    for target in ("a1111", "comfyui", "kohya", "invoke", "onetrainer"):
        outcome = dti("convert", dog, "--to", target, "-o", tmp_path / "out")
        assert (outcome.code, "width 256" in outcome.error) == (2, True)
    assert not (tmp_path / "out").exists()


def test_metadata_that_is_given(dti: Dti, xl: Path, tmp_path: Path) -> None:
    """Title, author, licence and date go in as given and stay in later conversions; the date must be one."""
    said = ("--title", "A dog", "--author", "Ada", "--license", "cc0-1.0", "--date", "2025-12-31")
    assert dti("convert", xl, "--to", "dti", "-o", tmp_path / "a", *said).code == 0
    assert (
        dti("convert", tmp_path / "a" / "sks-dog.safetensors", "--to", "invoke", "-o", tmp_path / "b").code
        == 0
    )
    stored = metadata(tmp_path / "b" / "sks-dog.safetensors")
    assert [stored[f"modelspec.{name}"] for name in ("title", "author", "license", "date")] == [*said[1::2]]
    for option, value in (("--date", "tomorrow"), ("--author", "a\nb"), ("--title", "\x1b[2J")):
        outcome = dti("convert", xl, "--to", "dti", "-o", tmp_path / "c", option, value)
        assert (outcome.code, option in outcome.error) == (2, True)


def test_everyday_words_are_warned_of(dti: Dti, tmp_path: Path) -> None:
    """A file called `cat` would set off the word wherever an A1111 prompt says cat; `sks-cat` would not."""
    save_file({"<cat>": torch.ones(1, 768)}, tmp_path / "cat.safetensors")
    outcome = dti("convert", tmp_path / "cat.safetensors", "--to", "a1111", "-o", tmp_path / "a")
    assert (outcome.code, "everyday" in outcome.err, "<my-cat>" in outcome.err) == (0, True, True)
    outcome = dti(
        "convert", tmp_path / "cat.safetensors", "--to", "a1111", "-o", tmp_path / "b", "--token", "<sks-cat>"
    )
    assert (outcome.code, "everyday" in outcome.err) == (0, False)
    assert (tmp_path / "b" / "sks-cat.safetensors").is_file()
    assert metadata(tmp_path / "b" / "sks-cat.safetensors")["modelspec.title"] == "sks-cat"
    assert (
        dti(
            "convert", tmp_path / "a" / "cat.safetensors", "--to", "dti", "-o", tmp_path, "--token", "<tom>"
        ).code
        == 0
    )
    assert metadata(tmp_path / "tom.safetensors")["modelspec.title"] == "tom"
    outcome = dti("convert", tmp_path / "cat.safetensors", "--to", "comfyui", "-o", tmp_path / "c")
    assert (outcome.code, "everyday" in outcome.err) == (0, False)


def test_rescaling_repairs_an_inflated_word(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Ten times too long, it gets the vocabulary's mean again with its direction, and the limits are said."""
    ((name, rows),) = load_file(dog).items()
    save_file({name: rows * 10}, tmp_path / "inflated.safetensors")
    options = ("--to", "dti", "--rescale", "mean", "-o", tmp_path / "out")
    outcome = dti("convert", tmp_path / "inflated.safetensors", *options, "--model", "stickers", "--json")
    assert outcome.code == 0, outcome.err
    assert "only as far as the direction is still good" in outcome.err
    weights = load_file(bundled.model_folder() / "text_encoder" / "model.safetensors")
    table = next(v for k, v in weights.items() if k.endswith("token_embedding.weight")).double()
    lengths = table.norm(dim=1)
    mean = lengths[lengths > 0].mean().item()
    (rescaled,) = outcome.json["words"][0]["rescaled"]
    assert rescaled["before"] == pytest.approx(10 * rows.norm(dim=1).mean().item(), rel=1e-5)
    assert rescaled["after"] == pytest.approx(mean, rel=1e-5)
    repaired = load_file(tmp_path / "out" / "dog.safetensors")[name].double()
    np.testing.assert_allclose(repaired.norm(dim=1), mean, rtol=1e-6)
    np.testing.assert_allclose(
        repaired / mean, rows.double() / rows.double().norm(dim=1, keepdim=True), atol=1e-6
    )
    assert metadata(tmp_path / "out" / "dog.safetensors")["dti.rescaled"] == "mean"
    standing = dti(
        "inspect-norms", tmp_path / "out" / "dog.safetensors", "--model", "stickers", "--json"
    ).json
    assert standing["models"][0]["standings"][0]["position"]["in_distribution"]


def test_rescaling_uses_the_recorded_model(dti: Dti, dog: Path, xl: Path, tmp_path: Path) -> None:
    """Our own file says its model; a stranger's must be told, and the model must fit."""
    outcome = dti("convert", dog, "--to", "dti", "--rescale", "2x", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    outcome = dti("convert", xl, "--to", "dti", "--rescale", "mean", "-o", tmp_path / "out")
    assert (outcome.code, "--model" in outcome.error) == (2, True)
    outcome = dti(
        "convert", xl, "--to", "dti", "--rescale", "mean", "--model", "stickers", "-o", tmp_path / "out"
    )
    assert (outcome.code, "256" in outcome.error) == (3, True)
    outcome = dti("convert", dog, "--to", "dti", "--rescale", "huge", "-o", tmp_path / "out")
    assert (outcome.code, "huge" in outcome.error) == (2, True)


def test_the_model_names_the_family(dti: Dti, tmp_path: Path) -> None:
    """A vector of unknown width becomes the named model's, and says so from then on."""
    tiny.build("sd1").save_pretrained(tmp_path / "tiny")
    save_file({"<dog>": torch.ones(1, 32)}, tmp_path / "odd.safetensors")
    outcome = dti("convert", tmp_path / "odd.safetensors", "--to", "diffusers", "-o", tmp_path / "a")
    assert (outcome.code, "--model" in outcome.error) == (2, True)
    options = ("--model", tmp_path / "tiny", "-o", tmp_path / "b")
    assert dti("convert", tmp_path / "odd.safetensors", "--to", "diffusers", *options).code == 0
    assert metadata(tmp_path / "b" / "dog" / "learned_embeds.safetensors")["dti.family"] == "sd"


def test_bad_requests_are_one_line_and_write_nothing(
    dti: Dti, xl: Path, foreign: Path, tmp_path: Path
) -> None:
    """Unknown programs, names for several files, words of one name, missing files, a refusal among good ones."""
    out = ("-o", tmp_path / "out")
    assert dti("convert", xl, "--to", "photoshop", *out).code == 2
    assert dti("convert", xl, foreign, "--to", "dti", "--token", "<a>", *out).code == 2
    assert dti("convert", xl, "--to", "dti", "--token", "A Dog", *out).code == 2
    outcome = dti("convert", xl, xl, "--to", "dti", *out)
    assert (outcome.code, "both become" in outcome.error) == (2, True)
    assert dti("convert", tmp_path / "none.safetensors", "--to", "dti", *out).code == 3
    save_file({"<w>": torch.ones(1, 4096)}, tmp_path / "w.safetensors", {"dti.family": "wan"})
    outcome = dti("convert", xl, tmp_path / "w.safetensors", "--to", "comfyui", *out)
    assert (outcome.code, "UMT5" in outcome.error) == (2, True)
    assert not (tmp_path / "out").exists()


def test_existing_files_are_kept_without_force(dti: Dti, xl: Path, tmp_path: Path) -> None:
    """Converting into the same folder again needs `--force`."""
    options = ("--to", "kohya", "-o", tmp_path / "out")
    assert dti("convert", xl, *options).code == 0
    outcome = dti("convert", xl, *options)
    assert (outcome.code, "--force" in outcome.error) == (2, True)
    assert dti("convert", xl, *options, "--force").code == 0


def test_training_writes_for_other_programs_too(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """`train --format diffusers` writes both; a program that cannot use the word is refused before the first step."""
    common = (
        "train",
        photos,
        "--token",
        "<rex>",
        "--init",
        "dog",
        "--steps",
        2,
        "--batch-size",
        1,
        "--quiet",
    )
    common = (*common, "--model", "stickers", "-o", tmp_path / "rex.safetensors")
    outcome = dti(*common, "--format", "comfyui")
    assert (outcome.code, "width 256" in outcome.error) == (2, True)
    assert not (tmp_path / "rex.safetensors").exists()
    outcome = dti(*common, "--format", "diffusers", "--json")
    assert outcome.code == 0, outcome.err
    (export,) = outcome.json["exports"]
    assert Path(export) == tmp_path / "diffusers" / "rex" / "learned_embeds.safetensors"
    ours, theirs = load_file(tmp_path / "rex.safetensors"), load_file(export)
    assert torch.equal(ours["<rex>"], theirs["<rex>"])
