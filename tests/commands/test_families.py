"""Every family from end to end, as a user runs it: a saved tiny pipeline, two words learned, pictures drawn, norms shown."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dticli import bundled
from dticli.cli import run
from dticli.draw import sampler
from dticli.models import families
from dticli.models.families import Family
from dticli.settings import GenerateSettings
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
every_family = pytest.mark.parametrize("name", tiny.cases())


def family_of(name: str) -> Family:
    pipe = tiny.build(name)
    return families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, name)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the tiny pipeline of that name is saved; with a word `<dog>` and a `<cat>` of two vectors beside it."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny.build(name).save_pretrained(made[name] / "model")
            assert train(made[name], name, dog=1, cat=2) == 0
        return made[name]

    return make


def train(folder: Path, name: str, *options: object, **vectors: int) -> int:
    """Learn words of so many vectors in one run, which loads the model once."""
    # One caption, because the run begins with a look at all of them.
    lines = ['templates = ["a photo of {}"]']
    for word, count in vectors.items():
        photos = bundled.photos(word)[0].parent
        lines += [f"[{word}]", f'photos = "{photos}"', f'init = "{word}"', f"vectors = {count}"]
    (folder / "subjects.toml").write_text("\n".join(lines))
    arguments = [
        "train",
        "--subjects",
        folder / "subjects.toml",
        "--model",
        folder / "model",
        "--out",
        folder,
    ]
    arguments += ["--steps", 2, "--batch-size", 1, "--accumulate", 1]
    arguments += ["--resolution", tiny.FAMILIES[name].size, "--quiet"]
    return run([str(each) for each in [*arguments, *options]])


@pytest.mark.parametrize("name", tiny.cases("flux2_klein", "wan"))
def test_masks_fit_latents_of_every_layout(name: str, tmp_path: Path) -> None:
    """A mask weights patched latents and those of a video as well: the word learned with it is another one."""
    tiny.build(name).save_pretrained(tmp_path / "model")
    (tmp_path / "masks").mkdir()
    for photo in bundled.photos("dog"):
        with Image.open(photo) as picture:
            mask = Image.new("L", picture.size)
        mask.paste(255, (0, 0, mask.width // 2, mask.height))
        mask.save(tmp_path / "masks" / photo.name)
    words = []
    # Twice the smallest size: of one latent, a mask of mean one is 1.
    for options in ((), ("--masks", tmp_path / "masks", "--force")):
        assert train(tmp_path, name, "--resolution", 2 * tiny.FAMILIES[name].size, *options, dog=1) == 0
        words.append(load_file(tmp_path / "dog.safetensors")["<dog>"])
    assert not torch.equal(*words)


@every_family
def test_a_learned_word_has_the_vocabularys_norm_in_every_encoder(
    folder: Callable[[str], Path], name: str
) -> None:
    """The file holds as many rows as were asked for in each encoder, turned from the init word, as long as the mean row."""
    pipe, encoders = tiny.build(name), family_of(name).encoders
    for word, vectors in (("dog", 1), ("cat", 2)):
        file = load_file(folder(name) / f"{word}.safetensors")
        assert set(file) == ({each.key for each in encoders} if len(encoders) > 1 else {f"<{word}>"})
        for encoder in encoders:
            rows = file.get(encoder.key, file.get(f"<{word}>"))
            table = getattr(pipe, encoder.component).get_input_embeddings().weight.detach()
            lengths = np.linalg.norm(table[: len(getattr(pipe, encoder.tokenizer))].numpy(), axis=1)
            assert rows.shape == (vectors, table.shape[1])
            assert np.allclose(rows.norm(dim=1).numpy(), lengths[lengths > 0].mean(), rtol=1e-4)
            nearest = torch.nn.functional.cosine_similarity(rows[:1], table).max().item()
            assert 0.9 < nearest < 0.99999


def draw(dti: Dti, folder: Path, name: str, out: Path, *options: object) -> list[np.ndarray]:
    """The pictures that `dti generate` draws."""
    size = tiny.FAMILIES[name].size
    model = ("--model", folder / "model", "--out", out, "--size", size)
    outcome = dti("generate", *options, *model, "--steps", 2, "--quiet", "--json")
    assert outcome.code == 0, outcome.err
    pictures = [np.asarray(Image.open(drawn["file"])) for drawn in outcome.json["pictures"]]
    assert {picture.shape for picture in pictures} == {(size, size, 3)}
    return pictures


def stock(name: str, **options: Any) -> np.ndarray:
    """What `pipe(...)` draws with `options`, besides the size and what keeps the size as it is."""
    pictures = tiny.build(name)(prompt=["a photo of dog"], **tiny.call(name, "pil", seed=7) | options)[0][0]
    return np.asarray(pictures[0] if isinstance(pictures, list) else pictures)


def defaults(name: str) -> dict[str, Any]:
    """Parameters of `pipe(...)` with their defaults."""
    return {
        key: each.default
        for key, each in inspect.signature(type(tiny.build(name)).__call__).parameters.items()
    }


@every_family
def test_generate_draws_what_the_stock_pipeline_draws(
    dti: Dti, folder: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """Without learned words, a picture is that of `pipe(...)` with its own defaults and the same noise."""
    # Where guidance is on by default but needs a negative prompt, Qwen-Image's authors advise a space.
    strength = defaults(name).get("true_cfg_scale", 0)
    guided = {"true_cfg_scale": strength, "negative_prompt": [" "]} if strength > 1 else {}
    (ours,) = draw(dti, folder(name), name, tmp_path, "a photo of dog", "--seed", 7)
    assert np.array_equal(ours, stock(name, **guided))


@pytest.mark.parametrize("name", tiny.cases("sdxl", "flux1_dev", "flux2_klein", "sana", "wan", "qwen_image"))
def test_a_negative_prompt_works_or_is_refused(
    dti: Dti, folder: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """It goes where the pipeline has it, with the guidance that heeds it; otherwise it is an error, not ignored."""
    known, asked = defaults(name), ("a photo of dog", "--seed", 7, "--negative", "red", "--guidance")
    if "negative_prompt" in known:
        scale = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
        (ours,) = draw(dti, folder(name), name, tmp_path / "a", *asked, 3)
        assert np.array_equal(ours, stock(name, negative_prompt=["red"], **{scale: 3.0}))
        assert not np.array_equal(ours, stock(name, **{scale: 3.0}))
    if "negative_prompt" not in known or "true_cfg_scale" in known:
        outcome = dti("generate", *asked, 1, "--model", folder(name) / "model", "--out", tmp_path / "b")
        assert (outcome.code, "negative" in outcome.error) == (2, True)


@every_family
def test_two_words_beside_each_other(
    dti: Dti, folder: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """A word of one vector and one of two appear in one prompt, and each of them moves the picture."""
    prompts = ("<dog> and <cat>", "<dog> and grass", "grass and <cat>")
    tokens = ("-t", folder(name) / "dog.safetensors", "-t", folder(name) / "cat.safetensors")
    both, dog, cat = draw(dti, folder(name), name, tmp_path, *prompts, *tokens)
    assert not np.array_equal(both, dog)
    assert not np.array_equal(both, cat)


@every_family
def test_inspect_norms_knows_each_encoder(dti: Dti, folder: Callable[[str], Path], name: str) -> None:
    """Every encoder's vocabulary without its spare rows, what the theory says of it, and where each vector stands."""
    pipe, encoders = tiny.build(name), family_of(name).encoders
    outcome = dti("inspect-norms", folder(name) / "model", folder(name) / "cat.safetensors", "--json")
    assert outcome.code == 0, outcome.err
    (report,) = outcome.json["models"]
    for summary in report["vocabularies"]:
        encoder = next(each for each in encoders if each.component == summary["encoder"])
        rows = len(getattr(pipe, encoder.component).get_input_embeddings().weight)
        assert (summary["rows"], summary["spare"]) == (rows, rows - len(getattr(pipe, encoder.tokenizer)))
        assert report["theory"][encoder.component]["residual_stagnation"] is (encoder.key != "bert")
    assert len(report["vocabularies"]) == len(encoders)
    assert [(each["encoder"], each["vector"]) for each in report["standings"]] == [
        (encoder.key, vector) for encoder in encoders for vector in (0, 1)
    ]
    said = dti("inspect-norms", folder(name) / "model").out
    assert said.count("theory: ") == len(encoders)


@every_family
def test_models_counts_what_a_model_stores(dti: Dti, folder: Callable[[str], Path], name: str) -> None:
    """`dti models FOLDER` names the family and counts every number of every component once."""
    outcome = dti("models", folder(name) / "model", "--json")
    assert outcome.code == 0, outcome.err
    (described,) = outcome.json["models"]
    assert described["family"]["name"] == family_of(name).name
    parts = {
        key: each for key, each in tiny.build(name).components.items() if isinstance(each, torch.nn.Module)
    }
    counts = {
        key: sum(each.numel() for each in {t.data_ptr(): t for t in part.state_dict().values()}.values())
        for key, part in parts.items()
    }
    assert described["parameters"] == counts
    (weights,) = (each for each in described["weights"] if each["precision"] == "fp32")
    assert weights["total"] == pytest.approx(4 * sum(counts.values()) / 1e9)


def test_models_lists_every_family(dti: Dti) -> None:
    """Each row of the table with its pipelines, encoders, defaults and what was verified."""
    outcome = dti("models")
    assert outcome.code == 0
    for family in families.TABLE:
        assert f"{family.name}: {', '.join(family.pipelines)}" in outcome.out
    assert outcome.out.count("verified: ") == len(families.TABLE)
    assert [row["name"] for row in dti("models", "--json").json["families"]] == [
        row.name for row in families.TABLE
    ]


def test_a_strange_pipeline_is_refused(dti: Dti, tmp_path: Path) -> None:
    """A class without a family is one line that names those there are."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "FancyPipeline"}')
    outcome = dti("models", tmp_path)
    assert (outcome.code, "FancyPipeline" in outcome.error, "SanaPipeline" in outcome.error) == (
        4,
        True,
        True,
    )


@pytest.mark.parametrize("steps", [1, 2, 3, None])
def test_sana_sprint_draws_in_any_number_of_steps(steps: int | None) -> None:
    """Its pipeline has a level of its own between two steps, and refuses that with another number of them."""
    pipe = tiny.build("sana_sprint")
    shots, seen = sampler.shots(["a photo of dog"], 0, 1), []
    pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(1))
    settings = GenerateSettings(steps=steps, size="32")
    assert len(list(sampler.sample(pipe, family_of("sana_sprint"), [], shots, settings))) == 1
    assert len(seen) == (steps or 2)
