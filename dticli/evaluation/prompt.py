"""A prompt to judge a word by, and how well pictures fit it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dticli.bundled.world.scenes import Scene


@dataclass(frozen=True)
class Prompt:
    """A prompt to judge by.

    Attributes:
        template: `{}` is where the word stands.
        scene: everything it asks for, where that is known.
    """

    template: str
    scene: "Scene | None" = None

    def of(self, word: str) -> str:
        """The prompt with the word, or the noun, in its place."""
        return self.template.replace("{}", word)


@dataclass(frozen=True)
class Reading:
    """How well the pictures of a prompt fit it.

    Attributes:
        scores: of each picture.
        elements: share of pictures that show each element the prompt asks for, the word's own noun among them.
        leakage: how often one of two things shows the other's colour; None where that cannot be.
    """

    scores: tuple[float, ...]
    elements: Mapping[str, float] = field(default_factory=dict)
    leakage: float | None = None
