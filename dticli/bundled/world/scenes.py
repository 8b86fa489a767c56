"""What a picture shows, as a value: every element of it is known, so every element can be judged."""

from dataclasses import dataclass

from .looks import Look


@dataclass(frozen=True)
class Thing:
    """One sticker.

    Attributes:
        noun: what it is.
        look: how it looks; None: as its artist drew it.
        name: the name that says noun and look at once, where it is called by one.
        told: what of the look is said in words: of "colour", "pattern" and "build"; beside a name, a colour not its own.
        size, accessory: empty where there is none.
        hand: who drew it, where there is no look to say so.
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
        """The art set it comes from."""
        return self.look.hand if self.look else self.hand


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
    stands; `count` is how many copies of a single thing there are. `style` is empty where none is named.
    """

    things: tuple[Thing, ...]
    background: Background
    style: str = ""
    relation: str = ""
    side: str = ""
    count: int = 1
