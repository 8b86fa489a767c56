"""Scenes and captions: order that matters, combinations kept apart, hands kept unseen."""

import math
import re
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest

from dticli.bundled import subjects
from dticli.bundled.recipe import negatives
from dticli.bundled.world import elements, grammar, looks, names, words
from dticli.bundled.world.looks import Look
from dticli.bundled.world.scenes import Background, Scene, Thing

SCENES = 3_000


@pytest.fixture(scope="module")
def told():
    """Scenes of the text encoder's mix, each with a caption."""
    random = Random(1)
    scenes = [grammar.training_scene(random, grammar.READING) for _ in range(SCENES)]
    return [(scene, grammar.caption(scene, random)) for scene in scenes]


def pair(relation: str, first: Thing, second: Thing) -> Scene:
    return Scene((first, second), Background(colours=("white",)), relation=relation)


def in_colour(noun: str, colour: str) -> Thing:
    """A thing whose colour is said."""
    hue = looks.HUES[colour]
    return Thing(noun, Look(hue, 0.65, "plain", hue, 1.0, "flat"), told=("colour",))


RED_DOG, BLUE_CAT = in_colour("dog", "red"), in_colour("cat", "blue")


def test_captions_span_short_and_long(told):
    """Prompts reach from a few words to two dozen."""
    lengths = [len(caption.split()) for _, caption in told]
    assert min(lengths) <= 6
    assert 18 <= max(lengths) <= 26


def test_context_comes_before_the_subject_as_often_as_after(told):
    """In half of the captions the background is named first."""
    first = []
    for scene, caption in told:
        if scene.background.place and len(scene.things) == 1 and scene.count == 1:
            phrase = next(phrase for phrase in words.PLACES[scene.background.place] if phrase in caption)
            thing = scene.things[0]
            forms = (thing.name or thing.noun, *words.COMMON.get(thing.noun, ("", ()))[1])
            noun = next(filter(None, (re.search(rf"\b{form}\b", caption) for form in forms)))
            first.append(caption.index(phrase) < noun.start())
    assert 0.45 < sum(first) / len(first) < 0.55


def test_articles_agree(told):
    """`an owl`, `a unicorn`: no caption says `a owl`."""
    for _, caption in told:
        assert not re.search(r"\ba [aeio]", caption), caption
        assert not re.search(r"\ban [^aeiou]", caption), caption


def test_no_training_scene_is_held_out():
    """Held-out combinations never come up in training, and are about a tenth of all."""
    random = Random(2)
    assert not any(grammar.held_out(grammar.training_scene(random)) for _ in range(SCENES))
    share = sum(grammar.held_out(grammar.any_scene(random)) for _ in range(SCENES)) / SCENES
    assert 0.07 < share < 0.13


def test_no_picture_is_in_the_unseen_hand():
    """The art of the Noto photos is in no picture, whatever mix and style."""
    random = Random(3)
    for mix in (grammar.PICTURES, grammar.READING, grammar.JUDGING):
        for _ in range(SCENES):
            assert all(thing.drawn_by in looks.HANDS for thing in grammar.any_scene(random, mix).things)


def test_two_things_are_always_two():
    """A pair never shows one noun twice: which is which could not be told."""
    random = Random(4)
    for _ in range(SCENES):
        nouns = [thing.noun for thing in grammar.any_scene(random).things]
        assert len(set(nouns)) == len(nouns)


def test_the_same_picture_said_from_either_side_has_the_same_labels():
    """A dog left of a cat is a cat right of a dog."""
    assert elements.labels(pair("left", RED_DOG, BLUE_CAT)) == elements.labels(
        pair("right", BLUE_CAT, RED_DOG)
    )
    assert elements.labels(pair("above", RED_DOG, BLUE_CAT)) == elements.labels(
        pair("below", BLUE_CAT, RED_DOG)
    )


def test_swapping_words_changes_the_labels():
    """Order and attribute binding are in the labels, not only which words occur."""
    scene = pair("left", RED_DOG, BLUE_CAT)
    others = (
        pair("right", RED_DOG, BLUE_CAT),
        pair("left", BLUE_CAT, RED_DOG),
        pair("left", in_colour("dog", "blue"), in_colour("cat", "red")),
    )
    assert all(elements.labels(other) != elements.labels(scene) for other in others)


def test_what_a_caption_leaves_open_has_no_label():
    """`next to` leaves the order open, an untold background the setting, no named style the style."""
    scene = pair("beside", RED_DOG, BLUE_CAT)
    said = dict(
        zip(elements.CLASSES, elements.caption_labels(scene, background_told=False).indices, strict=True)
    )
    assert {name for name, index in said.items() if index != elements.UNKNOWN} == {"layout"}


def test_almost_right_captions_mean_something_else(told):
    """A hard negative differs from its scene in what can be seen."""
    random = Random(5)
    for scene, _ in told[:500]:
        assert negatives.almost(scene, random) != scene


def test_attributes_are_swapped_among_the_negatives():
    """`a red dog next to a blue cat` meets `a blue dog next to a red cat`."""
    random = Random(6)
    found = {negatives.almost(pair("beside", RED_DOG, BLUE_CAT), random) for _ in range(40)}
    assert pair("beside", in_colour("dog", "blue"), in_colour("cat", "red")) in found


def test_pictures_show_the_pictured_nouns():
    """Those and no others, for the denoiser and for judges."""
    random = Random(3)
    for mix in (grammar.PICTURES, grammar.JUDGING):
        shown = {thing.noun for _ in range(2_000) for thing in grammar.any_scene(random, mix).things}
        assert shown == set(words.PICTURED)


def test_a_third_of_things_with_a_look_go_by_name_at_least(told):
    """Names are what teaches one slot to carry a noun with its look; the rest is said in words, or not at all."""
    random = Random(8)
    things = [
        thing
        for _ in range(SCENES)
        for thing in grammar.any_scene(random).things
        if thing.noun in words.LOOKED
    ]
    named = sum(bool(thing.name) for thing in things) / len(things)
    said = sum(bool(thing.told) and not thing.name for thing in things) / len(things)
    assert named > 1 / 3
    assert said > 0.2
    assert 1 - named - said > 0.15


def test_a_caption_says_what_is_told_and_nothing_else_of_a_look():
    """Colour, pattern and build words stand in a caption exactly where `told` lists them; a name stands in the noun's place."""
    random = Random(9)
    patterns = {
        "striped": ("striped", "stripes"),
        "spotted": ("spotted", "spots"),
        "two-tone": ("two-tone", "legs"),
    }
    for noun in words.LOOKED * 40:
        thing = grammar.any_thing(noun, random)
        phrase = grammar.noun_phrase(thing, random).split()
        assert (thing.name in phrase) == bool(thing.name)
        colours = [word for word in phrase if word in looks.HUES]
        if "colour" in thing.told:
            assert looks.colour_word(thing.look.hue) in colours
        assert bool(colours) == bool({"colour", "pattern"} & set(thing.told)) or thing.told == ("pattern",)
        said = [name for name, forms in patterns.items() if set(forms) & set(phrase)]
        assert said == ([thing.look.pattern] if "pattern" in thing.told else [])
        builds = [word for word in phrase if word in ("tall", "long")]
        assert builds == ([looks.build_word(thing.look.build)] if "build" in thing.told else [])


def test_names_are_words_of_their_own_with_looks_apart():
    """As many for each noun; no two of a noun can be taken for each other; no name is a word that means something else."""
    every = names.all_names()
    assert len({name.word for name in every}) == len(every) == names.EACH * len(words.LOOKED)
    meaning = {word for noun, (_, others) in words.COMMON.items() for word in (noun, *others)} | set(
        words.RARE
    )
    assert not meaning & {name.word for name in every}
    for noun in words.LOOKED:
        own = names.of(noun)
        assert min(looks.distance(a.look, b.look) for a, b in combinations(own, 2)) > 0.85


def test_no_name_lies_near_an_example_subject():
    """A subject's look is one that the model has no word for: at least MARGIN from every name of its noun."""
    in_the_world = [subject for subject in subjects() if subject.look]
    assert len(in_the_world) == 16
    for subject in in_the_world:
        away = min(looks.distance(subject.look, name.look) for name in names.of(subject.class_word))
        assert away >= looks.MARGIN, subject.name


def test_the_distance_of_looks_is_worked_by_hand():
    """25 degrees of hue count 1, 40 of the second hue 1, another pattern 1, a build apart by e^.15 1."""
    look = Look(100.0, 0.6, "spotted", 200.0, 1.0, "flat")
    assert looks.distance(look, replace(look, hue=125.0)) == pytest.approx(1)
    assert looks.distance(look, replace(look, hue=85.0, second=220.0)) == pytest.approx(math.hypot(0.6, 0.5))
    assert looks.distance(look, replace(look, pattern="striped", second=0.0)) == pytest.approx(1)
    assert looks.distance(look, replace(look, build=math.exp(0.15), hand="twemoji")) == pytest.approx(
        math.sqrt(2)
    )
    assert looks.apart(350.0, 20.0) == pytest.approx(30)


def test_a_kept_look_is_near_in_hue_and_the_same_in_pattern_and_build():
    """25 degrees either way pass, more do not, across north too."""
    look = Look(5.0, 0.6, "striped", 120.0, 0.8, "flat")
    seen = {"hue": "345", "pattern": "striped", "build": "tall"}
    assert elements.kept(look, seen) == {"hue": True, "pattern": True, "build": True}
    seen = {"hue": "330", "pattern": "plain", "build": ""}
    assert elements.kept(look, seen) == {"hue": False, "pattern": False, "build": False}
