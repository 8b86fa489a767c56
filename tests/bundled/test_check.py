"""Bars, intervals and judges."""

import pytest
import torch
from scipy.stats import binomtest

from dticli import bundled
from dticli.bundled import judge, subjects
from dticli.bundled.recipe import assembly, check, gate
from dticli.bundled.world import elements
from dticli.bundled.world.elements import CLASSES
from dticli.bundled.world.looks import Look
from dticli.bundled.world.scenes import Background, Scene, Thing


@pytest.mark.parametrize(("right", "asked"), [(0, 10), (7, 10), (10, 10), (830, 1000)])
def test_the_lower_bound_is_wilson_s(right, asked):
    """The same as SciPy's Wilson interval."""
    expected = binomtest(right, asked).proportion_ci(0.95, method="wilson").low
    assert check.wilson_lower(right, asked) == pytest.approx(expected, abs=1e-6)


SCENES = [
    Scene((Thing("dog", accessory="hat"),), Background(place="snow"), style="sticker"),
    Scene((Thing("dog"), Thing("cat")), Background(colours=("red",)), relation="right"),
    Scene((Thing("owl"), Thing("key")), Background(colours=("red",)), relation="beside"),
]


def perfect():
    """What a judge would name; `next to` leaves the order open, so it may see either first."""
    seen = {
        element: [elements.named(scene)[element] or known[0] for scene in SCENES]
        for element, known in CLASSES.items()
    }
    seen["noun"][2], seen["second noun"][2] = "key", "owl"
    return seen


def test_a_perfect_model_is_right_everywhere():
    """Judged names that are the scenes' own give full recall on every question asked."""
    seen = perfect()
    table = check.recalls(SCENES, seen)
    assert {bar: (recall.right, recall.asked) for bar, recall in table.items()} == {
        "noun": (1, 1), "background": (3, 3), "style": (1, 1), "second noun": (2, 2), "accessory": (1, 1), "relation": (1, 1),
    }  # fmt: skip


def test_swapped_things_fail_the_relation():
    """The right nouns on the wrong sides are a wrong relation, though both of them are there."""
    seen = perfect()
    seen["noun"][1], seen["second noun"][1] = "dog", "cat"
    table = check.recalls(SCENES, seen)
    assert (table["relation"].right, table["relation"].asked) == (0, 1)
    assert table["second noun"].right == 2


def test_where_a_thing_is_missing_no_direction_is_asked():
    """`a dog right of a cat` without the cat is a missing second noun, not a wrong direction as well."""
    seen = perfect()
    seen["noun"][1] = "drum"
    table = check.recalls(SCENES, seen)
    assert (table["relation"].asked, table["second noun"].right) == (0, 1)


def test_unseen_prompts_hold_only_unseen_combinations():
    """What is checked was never trained on, and every prompt tells its background."""
    scenes, prompts = check.unseen(50, seed=1)
    assert all(check.grammar.held_out(scene) for scene in scenes)
    assert len(set(prompts)) > 45


def test_gate_prompts_name_an_example_subject():
    """The scaled word is in every prompt, and nothing else is scaled: what the others lose is not their own length."""
    scenes, prompts = gate.prompts_on_subjects(20, seed=1)
    classes = {subject.class_word for subject in subjects()}
    assert all(
        [thing.noun in classes for thing in scene.things] in ([True], [True, False]) for scene in scenes
    )
    assert any(len(scene.things) == 2 for scene in scenes)
    assert all(scene.things[0].noun in prompt for scene, prompt in zip(scenes, prompts, strict=True))


def test_a_word_alone_has_its_plain_state_and_leaves_every_other():
    """Stock `encode_prompt` shows it as "a photo of a WORD" does; other slots and, afterwards, all are as they were."""
    pipeline = assembly.load(bundled.model_folder())

    def states(prompt):
        return pipeline.encode_prompt(prompt, "cpu", 1, False)[0][0]

    prompt, place = "a red fox wearing a hat", 3
    plain, told = states("a photo of a fox")[5], states(prompt)
    with gate._alone(pipeline):
        alone = states(prompt)
    torch.testing.assert_close(alone[place], plain)
    assert not torch.allclose(alone[place], told[place], atol=0.1)
    others = torch.arange(len(told)) != place
    assert torch.equal(alone[others], told[others])
    assert torch.equal(states(prompt), told)


@pytest.mark.parametrize("kind", [judge.DualEncoder, judge.Observer])
def test_judges_name_every_element(kind):
    """One name an element and picture, out of the element's own."""
    torch.manual_seed(0)
    named = judge.names(kind().eval(), torch.zeros(3, 3, 64, 64))
    assert list(named) == list(CLASSES)
    assert all(len(names) == 3 and set(names) <= set(CLASSES[element]) for element, names in named.items())


def test_the_gate_counts_what_words_say_of_a_look() -> None:
    """Colour, pattern and build are asked for beside the elements that judges name, each by its own scenes."""
    told = Look(hue=142.0, light=0.7, pattern="striped", second=350.0, build=1.0, hand="flat")
    scenes = [
        Scene((Thing("dog", told, told=("colour", "pattern")),), Background(place="snow")),
        Scene((Thing("dog", told, told=("colour",)),), Background(place="beach")),
        Scene((Thing("cat"),), Background(place="snow")),
    ]
    seen = {name: [""] * 3 for name in CLASSES} | {
        "noun": ["dog", "cat", "cat"],
        "hue": ["135", "0", "0"],
        "pattern": ["plain", "plain", "plain"],
        "setting": ["snow", "snow", "snow"],
    }
    assert gate._tally(scenes, seen) == {
        "noun": gate.Tally(2, 3),
        "colour": gate.Tally(1, 2),
        "pattern": gate.Tally(0, 1),
        "setting": gate.Tally(2, 3),
    }
