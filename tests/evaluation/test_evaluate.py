"""`dti evaluate`, with tiny judges of the real classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.stats import bootstrap
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from dticli import bundled
from dticli.errors import ModelError, UsageError
from dticli.evaluation import judges, measure, prompts
from dticli.photos import albums
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
CPU = torch.device("cpu")
SIZE = {"height": 32, "width": 32}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
SIGHT = TEXT | {"image_size": 32, "patch_size": 16}


def tokenizer() -> CLIPTokenizer:
    return tiny.build("sd1").tokenizer


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DINOv2."""
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module", params=["clip", "siglip"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP, and a random SigLIP."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    words = tokenizer()
    text = TEXT | {"vocab_size": len(words), "max_position_embeddings": words.model_max_length}
    if request.param == "clip":
        CLIPModel(CLIPConfig(text_config=text, vision_config=SIGHT, projection_dim=8)).save_pretrained(folder)
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE).save_pretrained(folder)
    else:
        SiglipModel(SiglipConfig(text_config=text, vision_config=SIGHT)).save_pretrained(folder)
        SiglipImageProcessorPil(size=SIZE).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def pictures() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in bundled.photos("dog")[:3]]


def test_likeness_is_the_cosine_of_features(vision: Path) -> None:
    """Features are unit vectors, those of the class token, whatever is looked at beside."""
    eyes = judges.likeness(str(vision), CPU)
    together = eyes.features(pictures())
    assert torch.allclose(together.norm(dim=1), torch.ones(3))
    assert torch.allclose(together[1:2], eyes.features(pictures()[1:2]), atol=1e-6)
    model = Dinov2Model.from_pretrained(vision)
    pixels = eyes.processor(images=pictures(), return_tensors="pt").pixel_values
    states = model(pixels).last_hidden_state[:, 0]
    assert torch.allclose(together, states / states.norm(dim=1, keepdim=True), atol=1e-6)


def test_no_weight_of_a_judge_is_made_up(tmp_path: Path) -> None:
    """A transformer saved without its pooling layer is read at the class token; with another weight missing, not at all."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=28,
        patch_size=14,
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(
        tmp_path
    )
    eyes = judges.likeness(str(tmp_path), CPU)
    pixels = eyes.processor(images=pictures(), return_tensors="pt").pixel_values
    with torch.no_grad():
        states = model(pixels).last_hidden_state[:, 0]
    assert torch.allclose(eyes.features(pictures()), states / states.norm(dim=1, keepdim=True), atol=1e-6)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if name.endswith("layernorm_after.weight"))
    save_file(
        {name: value for name, value in weights.items() if name != gone},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"lack .*layernorm_after\.weight"):
        judges.likeness(str(tmp_path), CPU)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"hidden_size": "wide"}),
        ("config.json", {"num_attention_heads": 0}),
        ("preprocessor_config.json", []),
    ],
)
def test_a_broken_judge_is_one_line(name: str, content: Any, vision: Path, tmp_path: Path) -> None:
    """Whatever a library raises for files that make no sense, it is an error of the judge and not a bug."""
    folder = shutil.copytree(vision, tmp_path / "broken")
    whole = json.loads((folder / name).read_text()) | content if content else content
    (folder / name).write_text(json.dumps(whole))
    with pytest.raises(ModelError, match=r"cannot be loaded as a judge: .*; choose another --image-judge"):
        judges.likeness(str(folder), CPU)


def test_alignment_is_what_the_model_was_trained_to_say(reader: Path) -> None:
    """CLIP's cosine between its two projections; SigLIP's probability, from its own scale and bias."""
    judge = judges.alignment(str(reader), CPU)
    found = judge.scores(pictures(), "a photo of dog")
    pixels = judge.processor(images=pictures(), return_tensors="pt").pixel_values
    ids = judge.tokenizer(["a photo of dog"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        seen = judge.model.get_image_features(pixel_values=pixels).pooler_output
        read = judge.model.get_text_features(**ids).pooler_output
    cosine = torch.nn.functional.cosine_similarity(seen, read)
    if judge.gives_probabilities:
        cosine = torch.sigmoid(cosine * judge.model.logit_scale.exp() + judge.model.logit_bias)
    assert torch.allclose(found, cosine, atol=1e-5)


def test_the_interval_is_scipys() -> None:
    """Mean and percentile bootstrap against SciPy's; one value has none."""
    values = np.random.default_rng(1).normal(size=40)
    ours = measure.mean(list(values))
    theirs = bootstrap((values,), np.mean, method="percentile", rng=2).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert measure.mean([0.5]) == measure.Mean(0.5, None, None)


def test_the_interval_of_a_ratio_is_scipys() -> None:
    """Pairs are drawn together; a reference that may be nothing gives none."""
    generator = np.random.default_rng(1)
    below = generator.uniform(0.5, 1, 30)
    above = below * generator.normal(1.2, 0.1, 30)
    ours = measure.ratio(list(above), list(below))
    theirs = bootstrap(
        (above, below),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        method="percentile",
        paired=True,
        rng=2,
    ).confidence_interval
    assert ours is not None
    assert ours.value == pytest.approx(above.mean() / below.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)
    assert measure.ratio([1.0, 1.0], [0.5, 0.0]) is None


def test_the_sets_keep_their_promise() -> None:
    """Every prompt has one place for the word, none comes twice, and complex ones end with it or nearly so."""
    for name in prompts.SETS:
        assert len(set(prompts.read(name))) == len(prompts.read(name)) == 20
    for name in ("complex", "stickers-complex"):
        assert all(prompt.template.index("{}") >= len(prompt.template) / 2 for prompt in prompts.read(name))


def test_prompts_from_a_file(tmp_path: Path) -> None:
    """Empty lines do not count; a line without a place for the word, an empty file and no file are errors."""
    file = tmp_path / "prompts.txt"
    file.write_text("{} asleep\n\n{} awake\n")
    assert [prompt.of("a cat") for prompt in prompts.read(str(file))] == ["a cat asleep", "a cat awake"]
    for text, part in (("a dog", "exactly one"), ("{} and {}", "exactly one"), ("", "empty")):
        file.write_text(text)
        with pytest.raises(UsageError, match=part):
            prompts.read(str(file))
    with pytest.raises(UsageError, match="simple, complex"):
        prompts.read("simpel")


def test_masks_hide_the_background(tmp_path: Path) -> None:
    """What the mask leaves out is white, and the subject is untouched."""
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png")
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 4, 8))
    mask.save(tmp_path / "masks" / "1.png")
    (photo,) = albums.read(tmp_path / "1.png", str(tmp_path / "masks")).photos
    values = np.asarray(albums.whole(photo))
    assert (values[:, :4] == (255, 0, 0)).all()
    assert (values[:, 4:] == 255).all()


@pytest.fixture
def word(tmp_path: Path) -> Path:
    """A word that says what it was learned from."""
    width = tiny_width()
    rows = torch.randn(1, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    save_file(
        {"<dog>": rows},
        tmp_path / "dog.safetensors",
        {"dti.init": "dog", "dti.model": "stickers", "dti.model_kind": "bundled"},
    )
    return tmp_path / "dog.safetensors"


def tiny_width() -> int:
    return json.loads((bundled.model_folder() / "text_encoder" / "config.json").read_text())["hidden_size"]


def test_a_word_is_judged(
    dti: Dti, word: Path, vision: Path, reader: Path, photos: Path, tmp_path: Path
) -> None:
    """Figures for each prompt, their means, and the pictures they are of; drawn again, they are the same."""
    (tmp_path / "prompts.txt").write_text("{} in the snow\n{} on the beach\n")
    command = (
        "evaluate",
        word,
        word,
        "--photos",
        photos,
        "--prompt-set",
        tmp_path / "prompts.txt",
        "--count",
        2,
    )
    options = ("--image-judge", vision, "--text-judge", reader, "--steps", 2, "--quiet", "--json")
    outcome = dti(*command, *options, "--out", tmp_path / "pictures")
    assert outcome.code == 0, outcome.err
    first, again = outcome.json["words"]
    assert (first["token"], first["noun"], first["pictures"]) == ("<dog>", "dog", 4)
    assert first["prompts"] == again["prompts"]
    assert first["likeness"]["value"] == pytest.approx(
        np.mean([each["likeness"] for each in first["prompts"]])
    )
    drawn = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "pictures" / "0").glob("*.png"))]
    assert len(drawn) == 4
    eyes, judge = judges.likeness(str(vision), CPU), judges.alignment(str(reader), CPU)
    seen = eyes.features([Image.open(path).convert("RGB") for path in sorted(photos.glob("*.png"))])
    likeness = (eyes.features(drawn[:2]) @ seen.T).mean().item()
    alignment = judge.scores(drawn[:2], "dog in the snow").mean().item()
    assert first["prompts"][0] == {
        "prompt": "{} in the snow",
        "likeness": pytest.approx(likeness, abs=1e-5),
        "alignment": pytest.approx(alignment, abs=1e-5),
        "elements": {},
        "leakage": None,
    }


def test_mistakes_come_before_the_drawing(
    dti: Dti, word: Path, vision: Path, photos: Path, tmp_path: Path
) -> None:
    """A word that does not say what it is, judges of the wrong kind or that are not there: one line each."""
    silent = tmp_path / "silent.safetensors"
    save_file({"<dog>": torch.ones(1, tiny_width())}, silent)
    base = ("--photos", photos, "--model", "stickers", "--offline")
    assert "--noun" in dti("evaluate", silent, *base).error
    for judge, code, part in (
        (vision, 4, "does not compare pictures with sentences"),
        ("no judge", 2, "expected dinov2"),
        ("clip", 5, "not on this machine"),
    ):
        outcome = dti("evaluate", word, *base, "--image-judge", vision, "--text-judge", judge)
        assert outcome.code == code, outcome.err
        assert part in outcome.error
