"""`dti inspect-norms` as a user runs it."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dticli import bundled
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]


def test_the_vocabulary_of_the_default_model(dti: Dti) -> None:
    """The numbers are those of the table's norms; a histogram shows them."""
    tensors = load_file(bundled.model_folder() / "text_encoder" / "model.safetensors")
    norms = next(v for k, v in tensors.items() if k.endswith("token_embedding.weight")).double().norm(dim=1)
    norms = norms[norms > 0]  # the others belong to no word
    outcome = dti("inspect-norms", "--model", "stickers", "--json")
    (summary,) = outcome.json["models"][0]["vocabularies"]
    assert summary["rows"] - summary["zero"] == len(norms)
    assert [summary[name] for name in ("min", "mean", "max")] == pytest.approx(
        [norms.min().item(), norms.mean().item(), norms.max().item()], rel=1e-5
    )
    assert sum(summary["counts"]) == len(norms)
    text = dti("inspect-norms", "stickers").out
    assert "#" in text
    assert f"{norms.mean().item():.4f}" in text


def test_where_a_token_stands(dti: Dti, dog: Path) -> None:
    """A DTI token lies in distribution, near its init word; ten times as long it does not."""
    (standing,) = dti("inspect-norms", dog, "--json").json["models"][0]["standings"]
    assert standing["position"]["in_distribution"]
    assert standing["cosine_to_init"] > 0.99
    assert standing["position"]["nearest"][0]["word"] == "dog</w>"
    ((key, rows),) = load_file(dog).items()
    inflated = dog.with_name("inflated.safetensors")
    save_file({key: rows * 10}, inflated)
    outcome = dti("inspect-norms", inflated, "--model", "stickers")
    assert "OUT OF DISTRIBUTION" in outcome.out
    assert "percentile 100.0" in outcome.out


def test_files_of_one_name_are_told_apart(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """By their paths, in the figures, in a probe and above the columns of a comparison; none takes the place of the other."""
    twin = tmp_path / dog.name
    twin.write_bytes(dog.read_bytes())
    outcome = dti("inspect-norms", dog, twin, "--probe", "--json")
    assert outcome.code == 0, outcome.err
    (model,) = outcome.json["models"]
    assert [each["file"] for each in model["standings"]] == [str(dog), str(twin)]
    (probed,) = model["probes"]
    assert len(probed["words"]) == 4
    how = (
        "--prompt",
        "a {}",
        "--size",
        16,
        "--steps",
        1,
        "--quiet",
        "--json",
        "--out",
        tmp_path / "grid.png",
    )
    outcome = dti("compare", dog, twin, f"<cat>={dog}", *how)
    assert outcome.json["columns"] == [str(dog), str(twin), "<cat>"]


def test_a_probe_puts_words_beside_their_twins_at_the_mean(dti: Dti, dog: Path) -> None:
    """An inflated word hides its place and hardly turns; rescaled, it is read as a word of the vocabulary is."""
    ((key, rows),) = load_file(dog).items()
    inflated = dog.with_name("long.safetensors")
    save_file({key: rows * 12}, inflated)
    outcome = dti("inspect-norms", inflated, "--model", "stickers", "--probe", "--json")
    assert outcome.code == 0, outcome.err
    (probed,) = outcome.json["models"][0]["probes"]
    long, twin = probed["words"].values()
    assert list(probed["words"]) == ["<dog> of long.safetensors", "<dog> of long.safetensors at the mean"]
    assert (long["multiple"], twin["multiple"]) == (pytest.approx(12, rel=0.05), pytest.approx(1, abs=1e-4))
    assert long["place_read"] < 0.3 < 0.7 < twin["place_read"]
    assert long["turned"] < 0.6 * twin["turned"]
    assert probed["exponents"]["moved"] == pytest.approx(-1, abs=0.1)
    ordinary = next(each for each in probed["vocabulary"] if each["multiple"] == 1)
    assert twin["turned"] == pytest.approx(ordinary["turned"], rel=0.3)


def test_a_chart_shows_the_vocabulary_and_where_words_stand(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Bars for the histogram's bins, a mark for the word, and norm and angle of its run; never over another file unasked."""
    chart = tmp_path / "norms.svg"
    outcome = dti("inspect-norms", dog, dog.with_suffix(".run"), "--plot", chart)
    assert outcome.code == 0, outcome.err
    root = ElementTree.parse(chart).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len([rect for rect in root.iter(f"{space}rect") if rect.get("x")]) == 40
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "<dog> of dog.safetensors" in texts
    assert "dog.run: angle from the start" in texts
    assert len(list(root.iter(f"{space}polyline"))) == 2
    assert dti("inspect-norms", dog, "--plot", chart).code == 2
    wrong = dti("inspect-norms", dog, "--plot", tmp_path / "norms.xyz")
    assert (wrong.code, ".svg" in wrong.error) == (2, True)


def test_files_of_other_tools_and_two_encoders(dti: Dti, tmp_path: Path) -> None:
    """A kohya-style SDXL file is placed in both vocabularies; spare and zero rows are left out of them."""
    pipe = tiny.build("sdxl")
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[7] = 0
    pipe.save_pretrained(tmp_path / "xl")
    widths = [encoder.config.hidden_size for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    save_file(
        {"clip_l": torch.ones(2, widths[0]), "clip_g": torch.ones(2, widths[1])},
        tmp_path / "word.safetensors",
    )
    outcome = dti("inspect-norms", tmp_path / "xl", tmp_path / "word.safetensors", "--json")
    assert outcome.code == 0, outcome.err
    (inspected,) = outcome.json["models"]
    assert [(v["encoder"], v["zero"]) for v in inspected["vocabularies"]] == [
        ("text_encoder", 1),
        ("text_encoder_2", 0),
    ]
    assert [(s["encoder"], s["vector"]) for s in inspected["standings"]] == [
        ("clip_l", 0),
        ("clip_l", 1),
        ("clip_g", 0),
        ("clip_g", 1),
    ]
    assert [s["position"]["norm"] for s in inspected["standings"]] == pytest.approx(
        [w**0.5 for w in widths for _ in "ab"]
    )


def test_bad_targets_are_one_line(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Missing files, folders that are no models, and tokens of another width."""
    assert dti("inspect-norms", tmp_path / "none.safetensors").code == 3
    assert dti("inspect-norms", tmp_path).code == 4
    tiny.build("sd1").save_pretrained(tmp_path / "tiny")
    outcome = dti("inspect-norms", dog, "--model", tmp_path / "tiny")
    assert (outcome.code, "256" in outcome.error) == (3, True)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_cannot_be_reached(dti: Dti, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is one line that says what else to do."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    outcome = dti("inspect-norms", "nobody/nothing", *(["--offline"] if offline else []))
    assert (outcome.code, "stickers" in outcome.error) == (5, True)
    assert ("--offline" in outcome.error) is offline
