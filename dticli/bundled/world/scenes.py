"""Scenes: complete descriptions of pictures, with which every element can be judged."""

from dataclasses import dataclass

from .looks import Look


@dataclass(frozen=True)
class Thing:
    """One sticker.

    Attributes:
        noun: its class word.
        look: None if it looks as its artist drew it.
        name: a word for noun and look in captions; empty without.
        told: parts of the look that captions describe: "colour", "pattern", "build"; with a name, a colour other than its own.
        size, accessory: empty for none.
        hand: art set of a thing without a look.
    """

    noun: str
    look: Look | None = None
    name: str = ""
    told: tuple[str, ...] = ()
    size: str = ""
    accessory: str = ""
    hand: str = "flat"

    @property
    def drawn_by(self) -> str:
        """Its art set."""
        return self.look.hand if self.look else self.hand


@dataclass(frozen=True)
class Background:
    """A place, a plain colour, or a pattern of two colours."""

    place: str = ""
    pattern: str = ""
    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """The complete description of a picture.

    Attributes:
        things: one or two.
        style: empty if captions name none.
        relation: position of the first thing relative to the second; empty for one thing.
        side: position of a single thing; empty for the centre.
        count: number of copies of a single thing.
    """

    things: tuple[Thing, ...]
    background: Background
    style: str = ""
    relation: str = ""
    side: str = ""
    count: int = 1
