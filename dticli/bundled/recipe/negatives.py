"""Scenes of hard negative captions: the same words in other positions, or one element changed."""

from dataclasses import replace
from random import Random
from typing import Any, TypeVar

from dticli.bundled.world import looks, words
from dticli.bundled.world.scenes import Scene, Thing

Choice = TypeVar("Choice")

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def almost(scene: Scene, random: Random) -> Scene:
    """A scene whose caption differs from that of `scene` only in word order or in one element."""
    changes = [
        change
        for change in (_swap_attributes, _swap_things, _turn_relation, _change_one)
        if change(scene, Random(0))
    ]
    changed = random.choice(changes)(scene, random)
    if changed is None:
        raise AssertionError("a change that applied no longer does")
    return changed


def _swap_attributes(scene: Scene, random: Random) -> Scene | None:
    """`a red dog next to a blue cat` -> `a blue dog next to a red cat`."""
    if len(scene.things) != 2 or any(thing.name for thing in scene.things):
        return None
    first, second = scene.things
    if (first.look, first.size) == (second.look, second.size):
        return None
    return replace(scene, things=(_in_the_guise_of(first, second), _in_the_guise_of(second, first)))


def _in_the_guise_of(thing: Thing, other: Thing) -> Thing:
    return replace(thing, look=other.look, told=other.told, size=other.size)


def _swap_things(scene: Scene, random: Random) -> Scene | None:
    """`a dog left of a cat` -> `a cat left of a dog`."""
    return replace(scene, things=scene.things[::-1]) if scene.relation in OPPOSITE else None


def _turn_relation(scene: Scene, random: Random) -> Scene | None:
    return replace(scene, relation=OPPOSITE[scene.relation]) if scene.relation in OPPOSITE else None


def _change_one(scene: Scene, random: Random) -> Scene:
    """Another noun, colour, accessory, side or count for the first thing."""
    first = scene.things[0]
    noun = _other(random, tuple(words.COMMON), first.noun)
    options = [_with_first(scene, noun=noun, name="")]
    if first.look and "colour" in first.told:
        word = _other(random, tuple(looks.HUES), looks.colour_word(first.look.hue))
        options.append(_with_first(scene, look=looks.recoloured(first.look, looks.HUES[word])))
    if first.accessory:
        options.append(
            _with_first(scene, accessory=_other(random, tuple(words.ACCESSORIES), first.accessory))
        )
    if scene.side:
        options.append(replace(scene, side=_other(random, words.SIDES, scene.side)))
    if scene.count > 1:
        options.append(replace(scene, count=_other(random, tuple(words.COUNTS), scene.count)))
    return random.choice(options)


def _with_first(scene: Scene, **changes: Any) -> Scene:
    return replace(scene, things=(replace(scene.things[0], **changes), *scene.things[1:]))


def _other(random: Random, choices: tuple[Choice, ...], present: Choice) -> Choice:
    return random.choice([choice for choice in choices if choice != present])
