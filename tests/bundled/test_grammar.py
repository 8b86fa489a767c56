"""Scenes and captions: order that matters, combinations kept apart, hands kept unseen."""

import re
from random import Random

import pytest

from dticli.bundled.recipe import elements, grammar, negatives, words
from dticli.bundled.recipe.scenes import Background, Scene, Thing

SCENES = 3_000


@pytest.fixture(scope="module")
def told():
    """Scenes of the text encoder's mix, each with a caption."""
    random = Random(1)
    scenes = [grammar.training_scene(random, grammar.READING) for _ in range(SCENES)]
    return [(scene, grammar.caption(scene, random)) for scene in scenes]


def pair(relation: str, first: Thing, second: Thing) -> Scene:
    return Scene((first, second), Background(colours=("white",)), "flat", relation=relation)


RED_DOG, BLUE_CAT = Thing("dog", tint="red"), Thing("cat", tint="blue")


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
            names = (scene.things[0].noun, *words.COMMON.get(scene.things[0].noun, ("", ()))[1])
            noun = next(
                re.search(rf"\b{name}\b", caption) for name in names if re.search(rf"\b{name}\b", caption)
            )
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


def test_subject_nouns_never_come_in_the_unseen_hand():
    """The art of the example photos is in no picture, whatever mix and style."""
    random = Random(3)
    for mix in (grammar.PICTURES, grammar.READING):
        for _ in range(SCENES):
            scene = grammar.any_scene(random, mix)
            if any(thing.noun in grammar.SUBJECT_NOUNS for thing in scene.things):
                assert scene.art_set != "noto"
                assert scene.style != "cartoon"


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
        pair("left", Thing("dog", tint="blue"), Thing("cat", tint="red")),
    )
    assert all(elements.labels(other) != elements.labels(scene) for other in others)


def test_what_a_caption_leaves_open_has_no_label():
    """`next to` leaves the order open, an untold background the setting, a photo the style."""
    scene = pair("beside", RED_DOG, BLUE_CAT)
    said = dict(
        zip(elements.CLASSES, elements.caption_labels(scene, background_told=False).indices, strict=True)
    )
    assert [name for name, index in said.items() if index == elements.UNKNOWN] == [
        "noun", "size", "tint", "accessory", "second noun", "second size", "second tint", "setting", "style",
    ]  # fmt: skip


def test_almost_right_captions_mean_something_else(told):
    """A hard negative differs from its scene in what can be seen."""
    random = Random(5)
    for scene, _ in told[:500]:
        assert negatives.almost(scene, random) != scene


def test_attributes_are_swapped_among_the_negatives():
    """`a red dog next to a blue cat` meets `a blue dog next to a red cat`."""
    random = Random(6)
    found = {negatives.almost(pair("beside", RED_DOG, BLUE_CAT), random) for _ in range(40)}
    assert pair("beside", Thing("dog", tint="blue"), Thing("cat", tint="red")) in found


def test_judges_know_the_unseen_hand():
    """Pictures for judges show subject nouns in the Noto hand, and only the pictured nouns, as those for the denoiser do."""
    random = Random(3)
    judged = [grammar.any_scene(random, grammar.JUDGING) for _ in range(2_000)]
    shown = {thing.noun for scene in judged for thing in scene.things}
    assert shown == set(words.PICTURED)
    unseen = {scene.things[0].noun for scene in judged if scene.art_set == "noto"}
    assert unseen >= grammar.SUBJECT_NOUNS
    painted = {thing.noun for _ in range(2_000) for thing in grammar.training_scene(random).things}
    assert painted == set(words.PICTURED) >= grammar.SUBJECT_NOUNS
