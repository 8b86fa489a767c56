"""Looks of things, mostly from continuous ranges: colour, second colour, pattern, build and art set.

Hues are degrees in Oklch (Ottosson, "A perceptual color space for image processing", 2020), in which equal angles are about
equally different to the eye, so that one tolerance in degrees suits all hues.
"""

import math
from dataclasses import dataclass, replace
from random import Random

PATTERNS = ("plain", "striped", "spotted", "two-tone")
BUILDS = ("tall", "", "long")
HANDS = ("flat", "twemoji")
"""Art sets with different drawings of a noun. A third set, `fluent`, has the shapes of `flat`, with gradients."""

SLIMMEST, WIDEST = 0.75, 1.35
TALL, LONG = 0.88, 1.14
"""Width : height below which a thing is called tall, and above which it is called long."""
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
"""Colour words of things, to the centres of their hues in Oklch."""

NEAR_HUE, NEAR_SECOND, NEAR_BUILD = 25.0, 40.0, 0.15
"""Tolerances within which looks count as equal: degrees, degrees, and log of width : height."""

MARGIN = 1.5
"""Least distance of an example subject from every name of its noun."""


@dataclass(frozen=True)
class Look:
    """The look of a thing.

    Attributes:
        hue: of the main colour, in degrees.
        light: of the main colour, Oklab lightness in [0, 1].
        pattern: one of PATTERNS.
        second: hue of the pattern's colour, in degrees; the main hue if the pattern is plain.
        build: width : height relative to the drawing.
        hand: art set; one of HANDS, or that of the example photos.
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
    """The colour word with the nearest centre."""
    return min(HUES, key=lambda word: apart(HUES[word], hue))


def build_word(build: float) -> str:
    """`tall`, `long` or an empty string."""
    return "tall" if build < TALL else "long" if build > LONG else ""


def any_look(random: Random) -> Look:
    """A random look."""
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
    """A random hue that is clearly different: at least 70 degrees away."""
    return (hue + random.uniform(70.0, 290.0)) % 360.0


def recoloured(look: Look, hue: float) -> Look:
    """The look with another main hue; the second hue keeps its distance from it."""
    return replace(look, hue=hue, second=(look.second + hue - look.hue) % 360)


def patterned(look: Look, pattern: str, second: float) -> Look:
    """The look with a pattern; a second hue within 50 degrees of the main one is replaced by the opposite hue."""
    if apart(second, look.hue) < 50.0:
        second = (look.hue + 180.0) % 360.0
    return replace(look, pattern=pattern, second=second)


def distance(one: Look, other: Look) -> float:
    """Distance of two looks; 1 is a difference of one tolerance in one respect, or another pattern or art set."""
    parts = [
        apart(one.hue, other.hue) / NEAR_HUE,
        math.log(one.build / other.build) / NEAR_BUILD,
        float(one.pattern != other.pattern),
        float(one.hand != other.hand),
    ]
    if one.pattern == other.pattern != "plain":
        parts.append(apart(one.second, other.second) / NEAR_SECOND)
    return math.hypot(*parts)
