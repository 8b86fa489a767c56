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
from dticli.bundled.world import elements, looks, words
from dticli.bundled.world.looks import Look
from dticli.bundled.world.scenes import Scene
from dticli.errors import UsageError
from dticli.evaluation import prompts, stickers
from dticli.evaluation.prompt import Prompt
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


def two_colours(scene: Scene) -> bool:
    """Whether one of two things could be seen in the other's colour."""
    return len(scene.things) == 2 and all(thing.look for thing in scene.things)


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
            colour = looks.colour_word(thing.look.hue) if thing.look else ""
            assert all(word in prompt.template for word in (colour, thing.accessory))
        for thing in scene.things[1:]:
            names = (thing.noun, *words.COMMON[thing.noun][1])
            assert any(name in prompt.template for name in names)


@pytest.mark.parametrize("name", SETS)
def test_a_picture_that_shows_all_has_full_recall(name: str) -> None:
    """Every element is seen, the noun too, and nothing leaks."""
    for prompt in prompts.read(name):
        scene, seen = as_drawn(prompt, "cat")
        reading = stickers.StickerReader(told(seen)).read(images(), prompt, "cat")
        assert reading.scores == (1.0, 1.0)
        assert set(reading.elements.values()) == {1.0}
        assert reading.leakage == (0.0 if two_colours(scene) else None)


@pytest.mark.parametrize("name", SETS)
def test_the_words_own_noun_does_not_count_for_the_fit(name: str) -> None:
    """Another noun in an otherwise right picture: the noun's recall falls, the fit and everything else stay."""
    for prompt in prompts.read(name):
        scene, seen = as_drawn(prompt, "cat")
        place = next((each for each in ("noun", "second noun") if seen.get(each) == "cat"), "noun")
        reading = stickers.StickerReader(told(seen | {place: "dog"})).read(images(), prompt, "cat")
        assert (reading.scores, reading.elements["noun"]) == ((1.0, 1.0), 0.0)
        assert reading.leakage == (0.0 if two_colours(scene) else None)


LOOK = ("hue", "pattern", "pattern hue", "build")


def pairs(coloured: bool = False) -> list[Prompt]:
    """Prompts with two things; `coloured`: those that give the word a colour."""
    found = [prompt for prompt in stickers.complex() if prompt.scene and len(prompt.scene.things) == 2]
    return [each for each in found if each.scene and (each.scene.things[0].told or not coloured)]


def test_things_on_the_wrong_sides_are_one_mistake() -> None:
    """Both things in their own looks, swapped: the relation is wrong, nothing else, and nothing leaks."""
    for prompt in pairs():
        _, seen = as_drawn(prompt, "cat")
        seen = {element: seen.get(element, known[0]) for element, known in elements.CLASSES.items()}
        twins = {each: f"second {each}" for each in ("noun", *LOOK)}
        swapped = seen | {a: seen[b] for a, b in twins.items()} | {b: seen[a] for a, b in twins.items()}
        reading = stickers.StickerReader(told(swapped)).read(images(1), prompt, "cat")
        assert {element for element, share in reading.elements.items() if share < 1} == {"layout"}
        assert reading.leakage in (0.0, None)


def test_colours_are_those_of_the_things_mentioned() -> None:
    """A word in the wrong colour costs `colour`, whichever side it stands on."""
    for prompt in pairs(coloured=True):
        scene, seen = as_drawn(prompt, "cat")
        place = "hue" if scene.relation in ("left", "above") else "second hue"
        wrong = seen | {place: third_hue(seen)}
        reading = stickers.StickerReader(told(wrong)).read(images(1), prompt, "cat")
        assert {element for element, share in reading.elements.items() if share < 1} == {"colour"}


def third_hue(seen: Mapping[str, str]) -> str:
    """The class of a colour word that neither thing is in."""
    own = {looks.colour_word(float(seen[place])) for place in ("hue", "second hue")}
    return elements.hue_class(next(hue for word, hue in looks.HUES.items() if word not in own))


def test_swapped_colours_leak() -> None:
    """Each of two things in the other's colour is leakage; both in a third colour is only wrong."""
    prompt = pairs(coloured=True)[0]
    _, seen = as_drawn(prompt, "cat")
    swapped = seen | {"hue": seen["second hue"], "second hue": seen["hue"]}
    third = third_hue(seen)
    for wrong, leakage in ((swapped, 1.0), (seen | {"hue": third, "second hue": third}, 0.0)):
        reading = stickers.StickerReader(told(wrong)).read(images(), prompt, "cat")
        assert reading.leakage == leakage
        assert reading.elements["colour"] == reading.elements["second colour"] == 0.0


CAT = next(subject for subject in bundled.subjects() if subject.name == "cat")


def shown(noun: str, look: Look) -> dict[str, str]:
    """What a judge sees of a thing."""
    build = looks.build_word(look.build)
    hues = {"hue": elements.hue_class(look.hue), "pattern hue": elements.hue_class(look.second)}
    return {"noun": noun, **hues, "pattern": look.pattern, "build": build}


def test_a_subject_is_told_from_twenty_three_others() -> None:
    """Itself is identified with all of its look, every other candidate is not; the fit to the prompt is the same for all."""
    assert CAT.look
    prompt = stickers.asking([stickers.simple()[0]], CAT.look)[0]
    known = stickers.candidates(CAT.class_word, CAT.look)
    assert len(known) == len(set(known)) == 24
    for place, (noun, look) in enumerate(known):
        seen = as_drawn(prompt, "cat")[1] | shown(noun, look)
        reading = stickers.StickerReader(told(seen)).read(images(), prompt, CAT.class_word)
        assert reading.elements["identified"] == float(place == 0)
        kept = [reading.elements[f"kept {part}"] for part in ("hue", "pattern", "build")]
        assert reading.elements["look"] == pytest.approx(sum(kept) / 3)
        assert (reading.elements["look"] == 1.0) == (looks.apart(look.hue, CAT.look.hue) <= 25 and (
            look.pattern, looks.build_word(look.build)) == (CAT.look.pattern, looks.build_word(CAT.look.build)))  # fmt: skip
        assert reading.scores == (1.0, 1.0)


@pytest.mark.parametrize(
    "subject", [each for each in bundled.subjects() if each.look], ids=lambda each: each.name
)
def test_candidates_hold_near_misses_and_no_twin(subject: bundled.Subject) -> None:
    """Of one noun with other looks and of other nouns with the same look; none could be taken for the subject itself."""
    assert subject.look
    (noun, look), *others = stickers.candidates(subject.class_word, subject.look)
    assert (noun, look) == (subject.class_word, subject.look)
    assert any(each == noun for each, _ in others)
    assert any(each != noun and other == look for each, other in others)
    for each, other in others:
        assert each != noun or looks.distance(replace(other, hand=look.hand), look) >= 1


def test_where_the_prompt_gives_another_colour_no_look_is_asked() -> None:
    """`a blue <cat>` is not wrong for being blue, and a pencil sketch shows no colour."""
    assert CAT.look
    for prompt in stickers.asking([*stickers.simple(), *stickers.complex()], CAT.look):
        assert prompt.scene
        scene, seen = as_drawn(prompt, "cat")
        reading = stickers.StickerReader(told(seen)).read(images(1), prompt, "cat")
        open_to_it = not scene.things[0].told and scene.style != "sketch"
        assert ("identified" in reading.elements) == open_to_it
        assert "identified" not in reading.elements or reading.elements["look"] == 1.0


def test_likeness_is_the_affinity_of_noun_and_look() -> None:
    """1 for the same thing, 0 for another noun or look, and Bhattacharyya's sum between; other elements count for nothing."""

    def features(certainty: float = 30.0, **seen: str) -> Tensor:
        return stickers.StickerEyes(told(seen, certainty=certainty)).features(images(1))[0]

    cat = features(noun="cat", hue="45", setting="snow")
    assert cat.norm() == pytest.approx(1, abs=1e-5)
    assert cat @ features(noun="cat", hue="45", setting="beach") == pytest.approx(1, abs=1e-5)
    others: list[dict[str, str]] = [
        {"noun": "dog"},
        {"noun": "apple"},
        {"hue": "60"},
        {"pattern": "spotted"},
        {"build": "long"},
    ]
    for other in others:
        assert cat @ features(**({"noun": "cat", "hue": "45"} | other)) == pytest.approx(0, abs=1e-3)
    unsure, sure = features(2.0, noun="cat", hue="0"), features(3.0, noun="cat", hue="90")
    expected = 1.0
    for element, places in (("noun", (0, 0)), ("hue", (0, 1)), ("pattern", (0, 0)), ("build", (0, 0))):
        rows = [torch.zeros(len(elements.CLASSES[element]), dtype=torch.float64) for _ in places]
        for row, place, certainty in zip(rows, places, (2.0, 3.0), strict=True):
            row[place] = certainty
        chances = [row.softmax(0) for row in rows]
        if element == "noun":  # nouns without looks are one class
            rest = [1 - each[:1].sum() - (len(words.LOOKED) - 1) * each[1] for each in chances]
            chances = [
                torch.cat([each[: len(words.LOOKED)], left[None]])
                for each, left in zip(chances, rest, strict=True)
            ]
        expected *= (chances[0] * chances[1]).sqrt().sum().item()
    assert unsure @ sure == pytest.approx(expected, abs=1e-5)


def test_what_a_judge_of_stickers_cannot_read_is_said() -> None:
    """A prompt without a scene, and a noun of another world."""
    reader = stickers.StickerReader(told({}))
    with pytest.raises(UsageError, match="--prompt-set stickers"):
        reader.require([Prompt("{} in the snow")], "cat")
    with pytest.raises(UsageError, match="does not know 'gargoyle'"):
        reader.require(stickers.simple(), "gargoyle")
    with pytest.raises(UsageError, match="does not know 'banana'"):
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
    asked = {"noun", "identified", "look", "second noun", "setting", "style", "accessory", "layout"}
    assert asked <= set(word["elements"])
    assert 0 <= word["leakage"] <= 1
    assert 0 <= word["likeness"]["value"] <= 1
    lines = dti(*command, *options, *drawing).out
    assert "seen in its pictures: " in lines
    assert "the other's colour" in lines
    failed = dti(*command, *options[2:], *drawing)
    assert (failed.code, "--prompt-set stickers" in failed.error) == (2, True)


@pytest.mark.parametrize("name", stickers.JUDGES)
def test_the_bundled_judges_know_each_subject_from_all_others(name: str) -> None:
    """Photos of an example subject are more like each other than like those of any other, on whatever backgrounds."""
    eyes = stickers.StickerEyes(stickers.load(name))
    subjects = [subject.name for subject in bundled.subjects() if subject.look]
    features = [eyes.features([Image.open(path) for path in bundled.photos(each)]) for each in subjects]
    others = ~torch.eye(len(features[0]), dtype=torch.bool)
    own = [(rows @ rows.T)[others].mean().item() for rows in features]
    between = [max((a @ b.T).mean().item() for b in features if b is not a) for a in features]
    assert [
        (each, ours, other) for each, ours, other in zip(subjects, own, between, strict=True) if ours <= other
    ] == []
