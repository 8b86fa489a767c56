"""What is said of two words: whose look lands where, and whether what lies between them lies between."""

import numpy as np
import pytest

from dticli.bundled.recipe import ceilings, pairs
from dticli.bundled.recipe.ceilings import Target
from dticli.bundled.world.looks import Look
from dticli.words.learned_word import Token

CAT = Target("cat", Look(75, 0.6, "plain", 75, 1.0, "flat"), "<cat>")
CAR = Target("car", Look(150, 0.6, "striped", 255, 0.8, "flat"), "<car>")
PLACES = {"left": 0, "above": 0, "right": 1, "below": 1}
"""Of the first thing mentioned, in the order of the eye."""


def part(prefix, noun, hue, pattern, build):
    return {
        f"{prefix}noun": noun,
        f"{prefix}hue": str(hue),
        f"{prefix}pattern": pattern,
        f"{prefix}pattern hue": "0",
        f"{prefix}build": build,
    }


def pictured(scene, looks):
    """What is seen where the things stand where they should, with these looks by noun."""
    first, second = scene.things if PLACES[scene.relation] == 0 else scene.things[::-1]
    return part("", first.noun, *looks[first.noun]) | part("second ", second.noun, *looks[second.noun])


@pytest.mark.parametrize(
    ("looks", "expected"),
    [
        ({"cat": (75, "plain", ""), "car": (150, "striped", "tall")}, {"own": 1, "other's": 0, "look": 1}),
        (
            {"cat": (150, "plain", ""), "car": (75, "striped", "tall")},
            {"own": 0, "other's": 1, "look": 2 / 3},
        ),
        ({"cat": (75, "plain", ""), "car": (75, "plain", "")}, {"own": 0.5, "other's": 0.5, "look": 0.5}),
        ({"cat": (270, "plain", ""), "car": (270, "plain", "")}, {"own": 0, "other's": 0, "look": 1 / 3}),
    ],
)
def test_a_look_is_credited_to_the_thing_it_is_seen_on(looks, expected):
    """Wherever a thing stands: all four relations, both orders."""
    scenes, prompts = pairs._asking((CAT, CAR))
    assert {scene.relation for scene in scenes} == set(PLACES)
    assert len({scene.things[0].noun for scene in scenes}) == 2
    assert prompts[0] == "a <cat> left of a <car> on the beach"
    found = pairs._of_two(scenes, [pictured(scene, looks) for scene in scenes])
    assert found == pytest.approx(expected | {"both": 1})


def test_pictures_without_both_things_say_nothing_of_looks():
    """Half of the pictures show two cats; the others are right."""
    scenes, _ = pairs._asking((CAT, CAR))
    right = {"cat": (75, "plain", ""), "car": (150, "striped", "tall")}
    seen = [
        pictured(scene, right) | ({"noun": "cat", "second noun": "cat"} if place % 2 else {})
        for place, scene in enumerate(scenes)
    ]
    assert pairs._of_two(scenes, seen) == pytest.approx({"both": 0.5, "own": 1, "other's": 0, "look": 1})
    empty = pairs._of_two(scenes, [one | {"noun": "fox"} for one in seen])
    assert empty["both"] == 0
    assert np.isnan(empty["own"])


@pytest.mark.parametrize(
    ("hue", "build", "expected"),
    [
        (75, "", {"hue": 1, "build": 1}),
        (105, "tall", {"hue": 1, "build": 1}),
        (165, "long", {"hue": 1, "build": 0}),  # within 25 degrees beyond the car's 150
        (60, "", {"hue": 1, "build": 1}),
        (45, "", {"hue": 0, "build": 1}),
        (180, "", {"hue": 0, "build": 1}),
        (285, "", {"hue": 0, "build": 1}),
    ],
)
def test_between_is_the_shorter_arc_and_the_builds_of_both(hue, build, expected):
    ends = [part("", "cat", 75, "plain", "")] * 2
    inner = [part("", "car", hue, "plain", build), part("", "fox", hue, "plain", build)]
    found = pairs._of_way((CAT, CAR), [ends] * 2 + [inner] * 3 + [ends] * 2)
    assert found == pytest.approx(
        expected | {"thing at the ends": 1, "thing in between": 0.5, "hue by chance": 125 / 360}
    )


def test_the_ways_lead_between_nouns_and_within_them():
    """Six pairs of neighbours, and the four nouns that have two looks."""
    ways = list(pairs._ways())
    assert len(ways) == 10
    assert sorted(one.noun for one, other in ways if one.noun == other.noun) == [
        "car",
        "cat",
        "elephant",
        "robot",
    ]
    assert all(one.said != other.said for one, other in ways)
    assert {one.said for way in ways for one in way} == {f"<{each.name}>" for each, _ in ceilings.reporting()}


def test_the_middle_of_two_words_by_hand():
    """Unit rows at right angles: half way lies at 45 degrees, of length 1 by slerp and of 0.7071 by lerp."""
    ends = [
        Token("<cat>", {"clip_l": np.array([row], dtype=np.float32)}, {}) for row in ((1.0, 0.0), (0.0, 1.0))
    ]
    for path, length in zip(pairs.PATHS, (1.0, np.sqrt(0.5)), strict=True):
        middle = pairs._mixed(ends, 0.5, path)
        np.testing.assert_allclose(middle.rows["clip_l"], [[length * np.sqrt(0.5)] * 2], rtol=1e-6)
        assert pairs._length(middle) == pytest.approx(length)
