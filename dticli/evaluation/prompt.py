"""A prompt for evaluation, and how well pictures fit it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dticli.bundled.world.scenes import Scene


@dataclass(frozen=True)
class Prompt:
    """A prompt for evaluation.

    Attributes:
        template: its text, with `{}` in the place of the word.
        scene: all requested elements; None if they are not known.
    """

    template: str
    scene: "Scene | None" = None

    def of(self, word: str) -> str:
        """The prompt with a word or noun in place of `{}`."""
        return self.template.replace("{}", word)


@dataclass(frozen=True)
class Reading:
    """How well the pictures of a prompt fit it.

    Attributes:
        scores: fit of each picture.
        elements: for each requested element, including the word's noun, the share of pictures that show it.
        leakage: how often one of two things shows the other's colour; None if that is not applicable.
    """

    scores: tuple[float, ...]
    elements: Mapping[str, float] = field(default_factory=dict)
    leakage: float | None = None
