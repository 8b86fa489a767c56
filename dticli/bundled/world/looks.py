"""How a thing looks, from continuous ranges: colour, second colour, pattern and build.

Hues are degrees of Oklch (Ottosson, "A perceptual color space for image processing", 2020), in which equal angles are seen
as about equally different: a judge can then be asked for a hue within so many degrees, whichever hue it is.
"""

import math
from dataclasses import dataclass, replace
from random import Random

PATTERNS = ("plain", "striped", "spotted", "two-tone")
BUILDS = ("tall", "", "long")
HANDS = ("flat", "twemoji")
"""The drawings a noun has. The gradients of a third set, `fluent`, follow `flat` in shape."""

SLIMMEST, WIDEST = 0.75, 1.35
TALL, LONG = 0.88, 1.14
"""Width : height below which a thing is called tall, above which long."""
LIGHT = (0.58, 0.76)

HUES: dict[str, float] = {
    "red": 25.0,
    "orange": 58.0,
    "golden": 92.0,
    "green": 142.0,
    "teal": 190.0,
    "blue": 255.0,
    "purple": 303.0,
    "pink": 350.0,
}
"""Colour words a thing can be called by: the middle of each in Oklch hue."""

NEAR_HUE, NEAR_SECOND, NEAR_BUILD = 25.0, 40.0, 0.15
"""How far apart two looks may lie in one respect and still be taken for each other: degrees, degrees, log of width : height."""

MARGIN = 1.5
"""Least distance of an example subject from every name of its noun."""


@dataclass(frozen=True)
class Look:
    """A point of the continuum.

    Attributes:
        hue: of the main colour, degrees.
        light: of the main colour, Oklab lightness in [0, 1].
        pattern: one of PATTERNS.
        second: hue of the pattern's colour, degrees; the main hue where the pattern is plain.
        build: width : height, 1 as drawn.
        hand: one of HANDS, or the hand of the example photos.
    """

    hue: float
    light: float
    pattern: str
    second: float
    build: float
    hand: str


def apart(hue: float, other: float) -> float:
    """Degrees between two hues, 0 to 180."""
    return abs((hue - other + 180.0) % 360.0 - 180.0)


def colour_word(hue: float) -> str:
    """The word whose middle lies nearest."""
    return min(HUES, key=lambda word: apart(HUES[word], hue))


def build_word(build: float) -> str:
    """`tall`, `long` or nothing."""
    return "tall" if build < TALL else "long" if build > LONG else ""


def any_look(random: Random) -> Look:
    """A look by chance."""
    pattern = random.choices(PATTERNS, (0.4, 0.2, 0.2, 0.2))[0]
    hue = random.uniform(0.0, 360.0)
    return Look(
        hue=hue,
        light=random.uniform(*LIGHT),
        pattern=pattern,
        second=hue if pattern == "plain" else another_hue(hue, random),
        build=math.exp(random.uniform(math.log(SLIMMEST), math.log(WIDEST))),
        hand=random.choice(HANDS),
    )


def another_hue(hue: float, random: Random) -> float:
    """A hue that is told from the first at a glance: at least 70 degrees away."""
    return (hue + random.uniform(70.0, 290.0)) % 360.0


def recoloured(look: Look, hue: float) -> Look:
    """The look with another main colour; a second colour keeps its distance from it."""
    return replace(look, hue=hue, second=(look.second + hue - look.hue) % 360)


def patterned(look: Look, pattern: str, second: float) -> Look:
    """The look with a pattern in another colour than its main one."""
    if apart(second, look.hue) < 50.0:
        second = (look.hue + 180.0) % 360.0
    return replace(look, pattern=pattern, second=second)


def distance(one: Look, other: Look) -> float:
    """How far apart two looks lie: 1 is one respect by as much as passes for the same, or another pattern or drawing."""
    parts = [
        apart(one.hue, other.hue) / NEAR_HUE,
        math.log(one.build / other.build) / NEAR_BUILD,
        float(one.pattern != other.pattern),
        float(one.hand != other.hand),
    ]
    if one.pattern == other.pattern != "plain":
        parts.append(apart(one.second, other.second) / NEAR_SECOND)
    return math.hypot(*parts)
