"""Art for the recipe's tests: a few shapes drawn here, under the names of the real icons, so that no network is needed."""

from functools import cache
from itertools import cycle

import pytest

from dticli.bundled.recipe.art import PACKAGES, Art
from dticli.bundled.world import words

SHAPES = (
    '<rect x="4" y="10" width="24" height="16" fill="#c33"/><rect x="9" y="4" width="14" height="8" fill="#623"/>',
    '<circle cx="16" cy="16" r="13" fill="#3a6"/><circle cx="11" cy="12" r="3" fill="#fff"/>',
    '<path d="M16 2 L30 30 L2 30 Z" fill="#36c"/><rect x="14" y="14" width="4" height="10" fill="#fe4"/>',
)


@cache
def inline_art() -> Art:
    """Every icon the world asks for, in every art set, drawn as one of SHAPES."""
    names = sorted(
        {words.icon(noun) for noun in (*words.COMMON, *words.RARE)} | set(words.ACCESSORIES.values())
    )
    svgs = {
        name: f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{shape}</svg>'
        for name, shape in zip(names, cycle(SHAPES), strict=False)
    }
    return Art(dict.fromkeys(PACKAGES, svgs))


@pytest.fixture
def shapes() -> Art:
    """The inline art; skips where the recipe's renderer is not installed."""
    pytest.importorskip("resvg_py")
    return inline_art()
