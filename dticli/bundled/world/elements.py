"""A scene as a row of class labels, in the order the eye sees it; what judges predict and heads are trained on.

Two things are ordered by place (left before right, upper before lower), not by mention: `a cat right of a dog` and
`a dog left of a cat` are the same labels. Where a caption or scene
leaves an element open, its label is UNKNOWN and costs nothing.
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
"""Middles of the classes of hue, in degrees."""
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
"""What of a look can be said in words, and the element in which it is seen."""


@dataclass(frozen=True)
class Labels:
    """Class index by element, in the order of CLASSES."""

    indices: tuple[int, ...]


def labels(scene: Scene) -> Labels:
    """What the picture of the scene shows."""
    return _labels(named(scene))


def caption_labels(scene: Scene, background_told: bool) -> Labels:
    """What a caption of the scene says: no style unless one is named, no background unless it is told, of a look what is told."""
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
    """Whether each respect of a look is what is seen: its hue within looks.NEAR_HUE degrees, its pattern, its build."""
    return {
        "hue": looks.apart(look.hue, float(seen[f"{prefix}hue"])) <= looks.NEAR_HUE,
        "pattern": seen[f"{prefix}pattern"] == look.pattern,
        "build": seen[f"{prefix}build"] == looks.build_word(look.build),
    }


def answers(scene: Scene, seen: Mapping[str, str]) -> dict[str, bool]:
    """Whether each element a scene asks for is seen; what it merely lacks is no question.

    Of two things, `noun` and what is said of its look are those of the first one mentioned, looked for where the thing is seen;
    `layout` is right when the second one stands where it should. A scene without a background asks for none.
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
    """What of a look is said in words; a pencil sketch has no colours."""
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
"""Place in the order of the eye of the first thing mentioned, and of the second."""


def _part(seen: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {element: seen[f"{prefix}{element}"] for element in ("noun", *LOOK)}


def seen_of_two(scene: Scene, seen: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Noun and look of the first thing mentioned and of the second, read where they are seen: swapped things keep their own."""
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
    """Prefix of the elements in which the first thing mentioned is seen: it may be the second one in the order of the eye."""
    if len(scene.things) == 1:
        return ""
    first = scene.things[0].noun
    if scene.relation == "beside":
        return "" if seen["noun"] == first else "second "
    return "" if seen_of_two(scene, seen)[0] == _part(seen, "") else "second "


def leaks(scene: Scene, seen: Mapping[str, str]) -> list[bool]:
    """For each of two things that should differ in colour: whether it is seen in the other's."""
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
    """The scene's elements by name; None where the picture leaves one open."""
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
    """How a thing looks, by element; pencil leaves colours open, and pixels their pattern."""
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
    """A pencil sketch shows places and patterns, but not which colour a plain background had."""
    shaped = scene.background.place or scene.background.pattern
    return name if shaped or scene.style != "sketch" else None


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
