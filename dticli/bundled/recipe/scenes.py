"""What a picture shows, as a value: every element of it is known, so every element can be judged."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """One sticker: a noun with its own attributes; an empty string where an attribute is absent."""

    noun: str
    size: str = ""
    tint: str = ""
    accessory: str = ""


@dataclass(frozen=True)
class Background:
    """A place, or one plain colour, or a pattern of two colours."""

    place: str = ""
    pattern: str = ""
    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """The full annotation of a picture.

    `things` holds one or two; `relation` is the first one's place seen from the second; `side` is where a single thing
    stands; `count` is how many copies of a single thing there are. `style` is empty for photo-like pictures.
    """

    things: tuple[Thing, ...]
    background: Background
    art_set: str
    style: str = ""
    relation: str = ""
    side: str = ""
    count: int = 1
