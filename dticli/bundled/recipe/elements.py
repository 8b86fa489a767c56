"""A scene as a row of class labels, in the order the eye sees it; what judges predict and heads are trained on.

Two things are ordered by place (left before right, upper before lower), not by mention: `a cat right of a dog` and
`a dog left of a cat` are the same labels. Where a caption or scene
leaves an element open, its label is UNKNOWN and costs nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from . import words
from .scenes import Scene, Thing

UNKNOWN = -100  # torch's ignore_index

NOUNS = ("", *words.COMMON, *words.RARE)
SETTINGS = (*words.PLACES, *words.PATTERNS, *words.COLOURS)
CLASSES: dict[str, tuple[str, ...]] = {
    "noun": NOUNS[1:],
    "size": ("", *words.SIZES),
    "tint": ("", *words.TINTS),
    "accessory": ("", *words.ACCESSORIES),
    "second noun": NOUNS,
    "second size": ("", *words.SIZES),
    "second tint": ("", *words.TINTS),
    "setting": SETTINGS,
    "style": tuple(words.STYLES),
    "layout": ("single", "left", "right", "top", "bottom", "row", "column", "two", "three", "four"),
}

LOOKS = {
    art_set: style for style, (_, art_set) in words.STYLES.items() if art_set
}  # what an unfiltered picture looks like


@dataclass(frozen=True)
class Labels:
    """Class index by element, in the order of CLASSES."""

    indices: tuple[int, ...]


def labels(scene: Scene) -> Labels:
    """What the picture of the scene shows."""
    return _labels(_names(scene))


def caption_labels(scene: Scene, background_told: bool) -> Labels:
    """What a caption of the scene says: no style unless one is named, no background unless it is told."""
    told = _names(scene)
    if not background_told:
        told["setting"] = None
    if not scene.style:
        told["style"] = None
    return _labels(told)


def named(scene: Scene) -> dict[str, str]:
    """The scene's elements by name, those left open as empty strings."""
    return {element: name or "" for element, name in _names(scene).items()}


def answers(scene: Scene, seen: Mapping[str, str]) -> dict[str, bool]:
    """Whether each element a scene asks for is seen; what it merely lacks is no question.

    Of two things, `noun` and `tint` are those of the first one mentioned, and the tint is looked for where the thing is seen;
    `layout` is right when the second one stands where it should. A scene without a background asks for none.
    """
    found = _answers_of_two(scene, seen) if len(scene.things) == 2 else _answers_of_one(scene, seen)
    wanted = named(scene)
    if wanted["setting"]:
        found["setting"] = seen["setting"] == wanted["setting"]
    if scene.style:
        found["style"] = seen["style"] == wanted["style"]
    return found


def _answers_of_one(scene: Scene, seen: Mapping[str, str]) -> dict[str, bool]:
    wanted = named(scene)
    asked = [element for element in ("noun", "tint", "accessory") if wanted[element]]
    if wanted["layout"] != "single":
        asked.append("layout")
    return {element: seen[element] == wanted[element] for element in asked}


def _answers_of_two(scene: Scene, seen: Mapping[str, str]) -> dict[str, bool]:
    first, second = scene.things
    shown = (seen["noun"], seen["second noun"])
    places = shown if scene.relation == "beside" else (shown[_PLACES[scene.relation][1]],)
    found = {
        "noun": first.noun in shown,
        "second noun": second.noun in shown,
        "layout": second.noun in places and seen["layout"] == _layout(scene),
    }
    if scene.relation != "beside" and scene.style != "sketch":
        tints = _tints_seen(scene, seen)
        for element, thing, tint in zip(("tint", "second tint"), scene.things, tints, strict=True):
            if thing.tint:
                found[element] = tint == thing.tint
    return found


_PLACES = {"left": (0, 1), "above": (0, 1), "right": (1, 0), "below": (1, 0)}
"""Place in the order of the eye of the first thing mentioned, and of the second."""


def _tints_seen(scene: Scene, seen: Mapping[str, str]) -> tuple[str, str]:
    """Tint of the first thing mentioned and of the second, read where they are seen: swapped things keep their own."""
    shown, tints = (seen["noun"], seen["second noun"]), (seen["tint"], seen["second tint"])
    ahead, behind = _PLACES[scene.relation]
    first, second = (thing.noun for thing in scene.things)
    swapped = (
        shown[ahead] != first
        and shown[behind] != second
        and (shown[behind] == first or shown[ahead] == second)
    )
    return (tints[behind], tints[ahead]) if swapped else (tints[ahead], tints[behind])


def leaks(scene: Scene, seen: Mapping[str, str]) -> list[bool]:
    """For each of two things whose tints differ: whether it is seen in the other's tint."""
    if len(scene.things) < 2 or scene.relation == "beside" or scene.style == "sketch":
        return []
    own = [thing.tint for thing in scene.things]
    others = own[::-1]
    return [
        tint == other
        for tint, other in zip(_tints_seen(scene, seen), others, strict=True)
        if other and own[0] != own[1]
    ]


def _labels(named: dict[str, str | None]) -> Labels:
    return Labels(tuple(_index(element, named[element]) for element in CLASSES))


def _index(element: str, name: str | None) -> int:
    return UNKNOWN if name is None else CLASSES[element].index(name)


def _names(scene: Scene) -> dict[str, str | None]:
    first, second = _by_place(scene)
    behind = scene.background
    names: dict[str, str | None] = {
        "noun": first.noun if first else None,
        "size": first.size if first else None,
        "tint": first.tint if first else None,
        "accessory": first.accessory if first else None,
        "second noun": second.noun if second else None,
        "second size": second.size if second else None,
        "second tint": second.tint if second else None,
        "setting": behind.place or behind.pattern or next(iter(behind.colours), None),
        "style": scene.style or LOOKS.get(scene.art_set),
        "layout": _layout(scene),
    }
    if scene.style == "sketch":
        names.update(
            {"tint": "", "second tint": "", "setting": names["setting"] if _has_shape(scene) else None}
        )
    return names


def _has_shape(scene: Scene) -> bool:
    """A pencil sketch shows places and patterns, but not which colour a plain background had."""
    return bool(scene.background.place or scene.background.pattern)


def _by_place(scene: Scene) -> tuple[Thing | None, Thing | None]:
    """Things in the order of place; (None, None) for `beside`, which leaves the order open."""
    if len(scene.things) == 1:
        return scene.things[0], Thing("")
    if scene.relation == "beside":
        return None, None
    first, second = scene.things
    return (first, second) if scene.relation in ("left", "above") else (second, first)


def _layout(scene: Scene) -> str:
    if scene.count > 1:
        return {2: "two", 3: "three", 4: "four"}[scene.count]
    if len(scene.things) == 2:
        return "column" if scene.relation in ("above", "below") else "row"
    return scene.side or "single"
