"""The elements of a scene as class labels, which judges predict.

Two things are ordered by position (left before right, upper before lower), not by mention: `a cat right of a dog` and
`a dog left of a cat` have the same labels. An element that a caption or scene leaves open has the label UNKNOWN, which the loss
ignores.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from . import looks, words
from .looks import Look
from .scenes import Scene, Thing

UNKNOWN = -100  # torch's ignore_index

NOUNS = ("", *words.COMMON, *words.RARE)
SETTINGS = (*words.PLACES, *words.PATTERNS, *words.COLOURS)
HUE_STEP = 15
HUES = tuple(str(hue) for hue in range(0, 360, HUE_STEP))
"""Classes of hue, named by their centres in degrees."""
LOOK: dict[str, tuple[str, ...]] = {
    "hue": HUES,
    "pattern": looks.PATTERNS,
    "pattern hue": HUES,
    "build": looks.BUILDS,
}
CLASSES: dict[str, tuple[str, ...]] = {
    "noun": NOUNS[1:],
    "size": ("", *words.SIZES),
    **LOOK,
    "accessory": ("", *words.ACCESSORIES),
    "second noun": NOUNS,
    "second size": ("", *words.SIZES),
    **{f"second {element}": known for element, known in LOOK.items()},
    "setting": SETTINGS,
    "style": ("", *words.STYLES),
    "layout": ("single", "left", "right", "top", "bottom", "row", "column", "two", "three", "four"),
}
TELLING = {"colour": "hue", "pattern": "pattern", "build": "build"}
"""Parts of a look that captions can describe, to their elements."""


@dataclass(frozen=True)
class Labels:
    """Class index by element, in the order of CLASSES."""

    indices: tuple[int, ...]


def labels(scene: Scene) -> Labels:
    """Labels of the picture of a scene."""
    return _labels(named(scene))


def caption_labels(scene: Scene, background_told: bool) -> Labels:
    """Labels of a caption of a scene: UNKNOWN for a style, background or part of a look that it does not mention."""
    told = dict(named(scene))
    if not background_told:
        told["setting"] = None
    if not scene.style:
        told["style"] = None
    for prefix, thing in zip(("", "second "), _by_place(scene), strict=True):
        told |= {f"{prefix}{element}": None for element in _untold(thing)}
    return _labels(told)


def _untold(thing: Thing | None) -> list[str]:
    if thing is None or not thing.look:
        return []
    if thing.name:
        return []
    said = {TELLING[part] for part in thing.told}
    return [element for element in LOOK if element not in said]


def hue_class(hue: float) -> str:
    """The class of a hue in degrees."""
    return str(round(hue / HUE_STEP) * HUE_STEP % 360)


def kept(look: Look, seen: Mapping[str, str], prefix: str = "") -> dict[str, bool]:
    """Whether hue (within looks.NEAR_HUE degrees), pattern and build of a look are those that a judge has seen."""
    return {
        "hue": looks.apart(look.hue, float(seen[f"{prefix}hue"])) <= looks.NEAR_HUE,
        "pattern": seen[f"{prefix}pattern"] == look.pattern,
        "build": seen[f"{prefix}build"] == looks.build_word(look.build),
    }


def answers(scene: Scene, seen: Mapping[str, str]) -> dict[str, bool]:
    """Element to whether it was seen, for each element that a scene asks for; absent elements are not included.

    Of two things, `noun` and the described parts of its look are those of the first one mentioned, wherever it was seen;
    `layout` also requires the second one in its position. A scene without a background asks for none.
    """
    found = _answers_of_two(scene, seen) if len(scene.things) == 2 else _answers_of_one(scene, seen)
    wanted = named(scene)
    if wanted["setting"]:
        found["setting"] = seen["setting"] == wanted["setting"]
    if scene.style:
        found["style"] = seen["style"] == scene.style
    return found


def _answers_of_one(scene: Scene, seen: Mapping[str, str]) -> dict[str, bool]:
    thing = scene.things[0]
    found = {"noun": seen["noun"] == thing.noun}
    if thing.accessory:
        found["accessory"] = seen["accessory"] == thing.accessory
    if (layout := _layout(scene)) != "single":
        found["layout"] = seen["layout"] == layout
    return found | _answers_of_look(scene, thing, _part(seen, ""), "")


def _answers_of_two(scene: Scene, seen: Mapping[str, str]) -> dict[str, bool]:
    first, second = scene.things
    shown = (seen["noun"], seen["second noun"])
    places = shown if scene.relation == "beside" else (shown[_PLACES[scene.relation][1]],)
    found = {
        "noun": first.noun in shown,
        "second noun": second.noun in shown,
        "layout": second.noun in places and seen["layout"] == _layout(scene),
    }
    if scene.relation != "beside":
        for prefix, thing, part in zip(("", "second "), scene.things, seen_of_two(scene, seen), strict=True):
            found |= _answers_of_look(scene, thing, part, prefix)
    return found


def _answers_of_look(scene: Scene, thing: Thing, part: Mapping[str, str], prefix: str) -> dict[str, bool]:
    """Answers for the described parts of a look; pencil sketches ask for the build only."""
    look = thing.look
    if look is None:
        return {}
    right = {
        "colour": lambda: looks.colour_word(float(part["hue"])) == looks.colour_word(look.hue),
        "pattern": lambda: part["pattern"] == look.pattern,
        "build": lambda: part["build"] == looks.build_word(look.build),
    }
    return {
        f"{prefix}{what}": right[what]()
        for what in thing.told
        if not (scene.style == "sketch" and what != "build")
    }


_PLACES = {"left": (0, 1), "above": (0, 1), "right": (1, 0), "below": (1, 0)}
"""Positions of the first thing mentioned and of the second, in the order of position."""


def _part(seen: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {element: seen[f"{prefix}{element}"] for element in ("noun", *LOOK)}


def seen_of_two(scene: Scene, seen: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The seen noun and look of the first thing mentioned and of the second, also if the two were drawn swapped."""
    parts = (_part(seen, ""), _part(seen, "second "))
    ahead, behind = _PLACES[scene.relation]
    first, second = (thing.noun for thing in scene.things)
    swapped = (
        parts[ahead]["noun"] != first
        and parts[behind]["noun"] != second
        and (parts[behind]["noun"] == first or parts[ahead]["noun"] == second)
    )
    return (parts[behind], parts[ahead]) if swapped else (parts[ahead], parts[behind])


def where(scene: Scene, seen: Mapping[str, str]) -> str:
    """Prefix of the elements of the first thing mentioned, which may be the second one in the order of position."""
    if len(scene.things) == 1:
        return ""
    first = scene.things[0].noun
    if scene.relation == "beside":
        return "" if seen["noun"] == first else "second "
    return "" if seen_of_two(scene, seen)[0] == _part(seen, "") else "second "


def leaks(scene: Scene, seen: Mapping[str, str]) -> list[bool]:
    """For each of two things that should differ in colour, whether it was seen in the other's; empty otherwise."""
    if len(scene.things) < 2 or scene.relation == "beside" or scene.style == "sketch":
        return []
    own = [looks.colour_word(thing.look.hue) if thing.look else "" for thing in scene.things]
    if not all(own) or own[0] == own[1]:
        return []
    return [
        looks.colour_word(float(part["hue"])) == other
        for part, other in zip(seen_of_two(scene, seen), own[::-1], strict=True)
    ]


def _labels(named: Mapping[str, str | None]) -> Labels:
    return Labels(tuple(_index(element, named[element]) for element in CLASSES))


def _index(element: str, name: str | None) -> int:
    return UNKNOWN if name is None else CLASSES[element].index(name)


def named(scene: Scene) -> dict[str, str | None]:
    """The class of each element of a scene; None if the picture does not determine it."""
    first, second = _by_place(scene)
    behind = scene.background
    return {
        "noun": first.noun if first else None,
        "size": first.size if first else None,
        **_look_names(scene, first, ""),
        "accessory": first.accessory if first else None,
        "second noun": second.noun if second else None,
        "second size": second.size if second else None,
        **_look_names(scene, second, "second "),
        "setting": _setting(scene, behind.place or behind.pattern or next(iter(behind.colours), None)),
        "style": scene.style,
        "layout": _layout(scene),
    }


def _look_names(scene: Scene, thing: Thing | None, prefix: str) -> dict[str, str | None]:
    """Classes of a thing's look; sketches have no hues or pattern, tiny things no pattern, and plain things no second hue."""
    if thing is None or thing.look is None:
        return dict.fromkeys((f"{prefix}{element}" for element in LOOK), None)
    look, coloured = thing.look, scene.style != "sketch"
    patterned = look.pattern != "plain"
    return {
        f"{prefix}hue": hue_class(look.hue) if coloured else None,
        f"{prefix}pattern": look.pattern if coloured and thing.size != "tiny" else None,
        f"{prefix}pattern hue": hue_class(look.second) if coloured and patterned else None,
        f"{prefix}build": looks.build_word(look.build),
    }


def _setting(scene: Scene, name: str | None) -> str | None:
    """The setting; None for a plain background of a pencil sketch, which does not show its colour."""
    shaped = scene.background.place or scene.background.pattern
    return name if shaped or scene.style != "sketch" else None


def _by_place(scene: Scene) -> tuple[Thing | None, Thing | None]:
    """Things in the order of position; (None, None) for `beside`, which leaves it open."""
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
