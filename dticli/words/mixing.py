"""Interpolation of words: a path through several, a grid between three or four, a weighted mean of any number.

Each is described by weights, one for every word; `mixed` computes the rows.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from dticli.errors import InputError, UsageError
from dticli.settings import PathKind

if TYPE_CHECKING:
    from torch import Tensor

Rows = Mapping[str, "Tensor"]
"""Encoder key to (vectors, width)."""
Weights = tuple[float, ...]
"""One non-negative weight for each word; their sum is 1."""


def shares(weights: Sequence[float]) -> Weights:
    """Weights divided by their sum.

    Raises:
        UsageError: one is negative, all are zero, or one or their sum is not finite.
    """
    # A sum that is not finite is one of weights beyond reach.
    if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < float("inf"):
        shown = ",".join(f"{weight:g}" for weight in weights)
        raise UsageError(f"weights {shown}: expected numbers of at least 0, one of them above; try 2,1,1")
    return tuple(weight / sum(weights) for weight in weights)


def even(count: int) -> list[float]:
    """`count` equally spaced positions from 0 to 1, ends included."""
    return [index / (count - 1) for index in range(count)]


def along(words: int, positions: Sequence[float]) -> list[Weights]:
    """Weights at positions on the path through `words` words: 0 is the first, 1 the last, with equal segments in between."""
    places = [position * (words - 1) for position in positions]
    return [tuple(max(0.0, 1 - abs(place - index)) for index in range(words)) for place in places]


def grid(words: int, side: int) -> list[list[Weights]]:
    """Rows of weights: a square with four words in its corners, or a triangle with three, `side` words along each edge.

    The square's corners are, in order, top left, top right, bottom left, bottom right; the triangle's top, bottom left,
    bottom right, and its row i holds i + 1 words.

    Raises:
        UsageError: neither three nor four words.
    """
    steps = even(side)
    if words == 4:
        return [[((1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u) for u in steps] for v in steps]
    if words == 3:
        return [[(1 - v, v - u, u) for u in steps[: row + 1]] for row, v in enumerate(steps)]
    raise UsageError(f"a grid between {words} words: expected three or four; leave out --grid for a path")


def mixed(words: Sequence[Rows], weights: Weights, path: PathKind) -> "dict[str, Tensor]":
    """The weighted mean of words; a word with weight 1 is returned exactly.

    Args:
        words: alike, as `require_alike` checks.
        path: `slerp` takes the mean of the directions on the sphere, which of two words is the point on their great circle, and
            the geometric mean of the lengths; `lerp` the mean of the rows.

    Raises:
        NumericalError: directions have no mean on the sphere.

    Source: arXiv:2512.13672, section 3, for two words.
    """
    parts = [(word, weight) for word, weight in zip(words, weights, strict=True) if weight]
    if len(parts) == 1:
        return dict(parts[0][0])
    import torch

    shares = torch.tensor([weight for _, weight in parts])
    return {key: _mean(torch.stack([word[key] for word, _ in parts]), shares, path) for key in parts[0][0]}


def _mean(rows: "Tensor", weights: "Tensor", path: PathKind) -> "Tensor":
    """Of rows (words, vectors, width) with weights (words,)."""
    from dticli import sphere

    weights = weights.to(rows)
    spread = weights[:, None, None]
    # From the first row on, so that equal rows have exactly themselves as their mean.
    if path == "lerp":
        return rows[0] + (spread * (rows - rows[0])).sum(dim=0)
    units, lengths = sphere.normalize(rows), rows.norm(dim=-1, keepdim=True)
    magnitude = lengths[0] * (spread * (lengths / lengths[0]).log()).sum(dim=0).exp()
    two = len(rows) == 2
    mean = sphere.slerp(units[0], units[1], weights[1]) if two else sphere.frechet_mean(units, weights)
    return magnitude * mean


def require_alike(words: Sequence[Rows]) -> None:
    """Raise InputError where words have different numbers of vectors or different encoders."""
    shapes = [{key: tuple(rows.shape) for key, rows in word.items()} for word in words]
    other = next((shape for shape in shapes if shape != shapes[0]), None)
    if other:
        raise InputError(
            f"the tokens have (vectors, width) {shapes[0]} and {other}: expected the same; "
            "learn both on one model with the same --vectors"
        )


def degrees(a: Rows, b: Rows) -> dict[str, float]:
    """Angle between the directions of two words, by encoder, mean over vectors."""
    import torch

    from dticli import sphere

    return {
        key: torch.rad2deg(sphere.angle(sphere.normalize(a[key]), sphere.normalize(b[key]))).mean().item()
        for key in a
    }


def turns(words: Sequence[Rows]) -> tuple[dict[str, float], ...]:
    """`degrees` between neighbouring words."""
    return tuple(degrees(a, b) for a, b in pairwise(words))
