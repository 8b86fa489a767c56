"""The bundled world's prompts and judges, with judges that see what they are told to see."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from dticli import bundled
from dticli.bundled import judge
from dticli.bundled.recipe import elements, words
from dticli.bundled.recipe.scenes import Scene
from dticli.errors import UsageError
from dticli.evaluation import prompts, stickers
from dticli.evaluation.prompts import Prompt
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
SETS = {"stickers": stickers.simple, "stickers-complex": stickers.complex}


class Told(nn.Module):
    """Sees the same in every picture: the likeliest class of each element is the one it was told."""

    def __init__(self, seen: Mapping[str, str], certainty: float = 30.0):
        super().__init__()
        self.seen, self.certainty = seen, certainty

    def forward(self, pictures: Tensor) -> list[Tensor]:
        rows = []
        for element, names in elements.CLASSES.items():
            row = torch.zeros(len(names))
            row[names.index(self.seen.get(element, names[0]))] = self.certainty
            rows.append(row.expand(len(pictures), -1))
        return rows


def told(seen: Mapping[str, str], **kind: float) -> Any:
    return Told(seen, **kind)


def images(count: int = 2) -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), "red")] * count


def as_drawn(prompt: Prompt, noun: str) -> tuple[Scene, dict[str, str]]:
    """The prompt's scene with a noun, and what a judge sees in a picture that shows all of it."""
    assert prompt.scene is not None
    first, *others = prompt.scene.things
    scene = replace(prompt.scene, things=(replace(first, noun=noun), *others))
    return scene, {name: value for name, value in elements.named(scene).items() if value}


@pytest.mark.parametrize("name", SETS)
def test_prompts_say_what_their_scene_shows(name: str) -> None:
    """Twenty different prompts, each with one place for the word and one question at least beside it."""
    found = prompts.read(name)
    assert found == SETS[name]()
    assert len({prompt.template for prompt in found}) == 20
    for prompt in found:
        scene, seen = as_drawn(prompt, "cat")
        answers = elements.answers(scene, {each: seen.get(each, "") for each in elements.CLASSES})
        assert all(answers.values())
        assert len(answers) >= 2
        for thing in scene.things:
            assert all(word in prompt.template for word in (thing.tint, thing.accessory))
        for thing in scene.things[1:]:
            names = (thing.noun, *words.COMMON[thing.noun][1])
            assert any(name in prompt.template for name in names)


@pytest.mark.parametrize("name", SETS)
def test_a_picture_that_shows_all_has_full_recall(name: str) -> None:
    """Every element is seen, the noun too, and nothing leaks."""
    for prompt in prompts.read(name):
        scene, seen = as_drawn(prompt, "cat")
        reading = stickers.Reader(told(seen)).read(images(), prompt, "cat")
        assert reading.scores == (1.0, 1.0)
        assert set(reading.elements.values()) == {1.0}
        assert reading.leakage == (0.0 if len(scene.things) == 2 else None)


@pytest.mark.parametrize("name", SETS)
def test_the_words_own_noun_does_not_count_for_the_fit(name: str) -> None:
    """Another noun in an otherwise right picture: the noun's recall falls, the fit and everything else stay."""
    for prompt in prompts.read(name):
        scene, seen = as_drawn(prompt, "cat")
        place = next((each for each in ("noun", "second noun") if seen.get(each) == "cat"), "noun")
        reading = stickers.Reader(told(seen | {place: "dog"})).read(images(), prompt, "cat")
        assert (reading.scores, reading.elements["noun"]) == ((1.0, 1.0), 0.0)
        assert reading.leakage == (0.0 if len(scene.things) == 2 else None)


def pairs() -> list[Prompt]:
    return [prompt for prompt in stickers.complex() if prompt.scene and len(prompt.scene.things) == 2]


def test_things_on_the_wrong_sides_are_one_mistake() -> None:
    """Both things in their own tints, swapped: the relation is wrong, nothing else, and nothing leaks."""
    for prompt in pairs():
        _, seen = as_drawn(prompt, "cat")
        twins = {"noun": "second noun", "tint": "second tint"}
        swapped = seen | {a: seen[b] for a, b in twins.items()} | {b: seen[a] for a, b in twins.items()}
        reading = stickers.Reader(told(swapped)).read(images(1), prompt, "cat")
        assert {element for element, share in reading.elements.items() if share < 1} == {"layout"}
        assert reading.leakage == 0.0


def test_tints_are_those_of_the_things_mentioned() -> None:
    """A word in the wrong tint costs `tint`, whichever side it stands on."""
    for prompt in pairs():
        scene, seen = as_drawn(prompt, "cat")
        third = next(
            tint for tint in elements.CLASSES["tint"][1:] if tint not in (seen["tint"], seen["second tint"])
        )
        place = "tint" if scene.relation in ("left", "above") else "second tint"
        reading = stickers.Reader(told(seen | {place: third})).read(images(1), prompt, "cat")
        assert {element for element, share in reading.elements.items() if share < 1} == {"tint"}


def test_swapped_tints_leak() -> None:
    """Each of two things in the other's tint is leakage; both in a third tint is only wrong."""
    prompt = pairs()[0]
    _, seen = as_drawn(prompt, "cat")
    swapped = seen | {"tint": seen["second tint"], "second tint": seen["tint"]}
    third = next(
        tint for tint in elements.CLASSES["tint"][1:] if tint not in (seen["tint"], seen["second tint"])
    )
    for wrong, leakage in ((swapped, 1.0), (seen | {"tint": third, "second tint": third}, 0.0)):
        reading = stickers.Reader(told(wrong)).read(images(), prompt, "cat")
        assert reading.leakage == leakage
        assert reading.elements["tint"] == reading.elements["second tint"] == 0.0


def test_likeness_is_the_affinity_of_noun_and_hand() -> None:
    """1 for the same thing by the same hand, 0 for another, and Bhattacharyya's sum between; other elements count for nothing."""

    def features(certainty: float = 30.0, **seen: str) -> Tensor:
        return stickers.Eyes(told(seen, certainty=certainty)).features(images(1))[0]

    cat = features(noun="cat", style="cartoon", setting="snow")
    assert cat.norm() == pytest.approx(1, abs=1e-5)
    assert cat @ features(noun="cat", style="cartoon", setting="beach") == pytest.approx(1, abs=1e-5)
    assert cat @ features(noun="dog", style="cartoon") == pytest.approx(0, abs=1e-3)
    assert cat @ features(noun="cat", style="icon") == pytest.approx(0, abs=1e-3)
    unsure, sure = features(2.0, noun="cat", style="icon"), features(3.0, noun="cat", style="render")
    expected = 1.0
    for count, places in ((len(elements.CLASSES["noun"]), (0, 0)), (4, (0, 1))):
        rows = [torch.zeros(count, dtype=torch.float64) for _ in places]
        for row, place, certainty in zip(rows, places, (2.0, 3.0), strict=True):
            row[place] = certainty
        expected *= (rows[0].softmax(0) * rows[1].softmax(0)).sqrt().sum().item()
    assert unsure @ sure == pytest.approx(expected, abs=1e-5)


def test_what_a_judge_of_stickers_cannot_read_is_said() -> None:
    """A prompt without a scene, and a noun of another world."""
    reader = stickers.Reader(told({}))
    with pytest.raises(UsageError, match="--prompt-set stickers"):
        reader.require([Prompt("{} in the snow")], "cat")
    with pytest.raises(UsageError, match="cannot tell 'gargoyle'"):
        reader.require(stickers.simple(), "gargoyle")
    with pytest.raises(UsageError, match="cannot tell 'banana'"):
        reader.require(stickers.complex(), "banana")


def test_a_word_is_judged_without_a_hub(
    dti: Dti, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundled judges by name: element recall and leakage stand in the result and in its lines."""
    width = 256
    save_file(
        {"<cat>": torch.randn(1, width, generator=torch.Generator().manual_seed(0)) * 0.04},
        tmp_path / "cat.safetensors",
        {"dti.init": "cat", "dti.model": "stickers", "dti.model_kind": "bundled"},
    )
    torch.manual_seed(0)
    file = tmp_path / "judge.safetensors"
    save_file(judge.Observer().state_dict(), file)
    monkeypatch.setattr(judge, "weights", lambda name: file)
    command = ("evaluate", tmp_path / "cat.safetensors", "--photos", bundled.photos("cat")[0].parent)
    options = (
        "--prompt-set",
        "stickers-complex",
        "--image-judge",
        "stickers-b",
        "--text-judge",
        "stickers-b",
    )
    drawing = ("--count", 1, "--steps", 1, "--batch-size", 20, "--quiet", "--offline")
    outcome = dti(*command, *options, *drawing, "--json")
    assert outcome.code == 0, outcome.err
    (word,) = outcome.json["words"]
    assert {"noun", "second noun", "setting", "style", "accessory", "layout"} <= set(word["elements"])
    assert 0 <= word["leakage"] <= 1
    assert 0 <= word["likeness"]["value"] <= 1
    lines = dti(*command, *options, *drawing).out
    assert "seen in its pictures: " in lines
    assert "the other's tint" in lines
    failed = dti(*command, *options[2:], *drawing)
    assert (failed.code, "--prompt-set stickers" in failed.error) == (2, True)


@pytest.mark.parametrize("name", stickers.JUDGES)
def test_the_bundled_judges_know_each_subject_from_all_others(name: str) -> None:
    """Photos of one example subject are more alike than those of any two, on whatever backgrounds."""
    eyes = stickers.Eyes(stickers.load(name))
    subjects = [subject.name for subject in bundled.subjects()]
    features = [eyes.features([Image.open(path) for path in bundled.photos(each)]) for each in subjects]
    others = ~torch.eye(len(features[0]), dtype=torch.bool)
    own = [(rows @ rows.T)[others].mean().item() for rows in features]
    between = [(a @ b.T).mean().item() for a in features for b in features if a is not b]
    assert min(own) > max(between)
