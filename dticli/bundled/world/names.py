"""Names of looks: each stands for one noun with a small range of looks, as *dalmatian* and *corgi* do.

They train the model to read a noun with its look from one word, as it must for learned words.
"""

from dataclasses import dataclass
from functools import cache
from itertools import cycle, product
from random import Random

from . import looks, words
from .looks import Look

EACH = 16
"""Number of names per noun."""
SPREAD_HUE, SPREAD_LIGHT, SPREAD_BUILD = 7.0, 0.03, 0.04
"""Largest deviation of a picture from its name's look: degrees, lightness, and share of width : height."""
_ONSETS, _VOWELS, _CODAS = "bdfgklmnprstvz", "aeiou", ("", "", "", "n", "r", "l", "m")
_PATTERNS = ("plain", "two-tone", "plain", "striped", "plain", "spotted", "two-tone", "striped")
_BUILDS = (1.0, 0.8, 1.28)


@dataclass(frozen=True)
class Name:
    """A word for `noun` with `look`, the centre of its range."""

    word: str
    noun: str
    look: Look


@cache
def all_names() -> tuple[Name, ...]:
    """All names: EACH for each noun of words.LOOKED, with evenly spaced hues."""
    spoken = iter(_words(EACH * len(words.LOOKED)))
    return tuple(
        Name(next(spoken), noun, look)
        for noun in words.LOOKED
        for look in _spread(Random(f"names of {noun}"))
    )


@cache
def of(noun: str) -> tuple[Name, ...]:
    """The names of a noun."""
    return tuple(name for name in all_names() if name.noun == noun)


def strayed(middle: Look, random: Random) -> Look:
    """A random look within the range of a name."""
    hue = (middle.hue + random.uniform(-SPREAD_HUE, SPREAD_HUE)) % 360
    return Look(
        hue=hue,
        light=middle.light + random.uniform(-SPREAD_LIGHT, SPREAD_LIGHT),
        pattern=middle.pattern,
        second=hue if middle.pattern == "plain" else middle.second,
        build=middle.build * (1 + random.uniform(-SPREAD_BUILD, SPREAD_BUILD)),
        hand=middle.hand,
    )


def _spread(random: Random) -> list[Look]:
    start = random.uniform(0, 360)
    order = random.sample(range(EACH), EACH)  # so that patterns are independent of hues
    forms = cycle(product(_BUILDS, looks.HANDS))
    found = []
    for place, pattern in zip(order, cycle(_PATTERNS), strict=False):
        hue = (start + 360 * place / EACH) % 360
        build, hand = next(forms)
        second = hue if pattern == "plain" else looks.another_hue(hue, random)
        found.append(Look(hue, random.uniform(*looks.LIGHT), pattern, second, build, hand))
    return found


def _words(count: int) -> list[str]:
    """Short pronounceable words that are not nouns of captions."""
    random = Random("names")
    taken = {word for noun, (_, others) in words.COMMON.items() for word in (noun, *others)} | set(words.RARE)
    found: dict[str, None] = {}
    while len(found) < count:
        word = "".join(random.choice(letters) for letters in (_ONSETS, _VOWELS, _ONSETS, _VOWELS, _CODAS))
        if word not in taken:
            found[word] = None
    return list(found)
