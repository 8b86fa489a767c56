"""Words between words: weights along paths and grids, and the mean on the sphere, reckoned in other ways."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from dticli import sphere
from dticli.errors import InputError, NumericalError, UsageError
from dticli.words import mixing


def word(
    seed: int, vectors: int = 2, width: int = 6, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Rows of different lengths, in two encoders."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(vectors, width, generator=generator, dtype=dtype) + 1.5
        for key in ("clip_l", "clip_g")
    }


def test_weights_along_a_path_visit_every_word() -> None:
    """Legs are equally long: nine frames through three words reach the second at the fifth."""
    way = mixing.along(3, mixing.even(9))
    assert way[0] == (1, 0, 0)
    assert way[4] == (0, 1, 0)
    assert way[8] == (0, 0, 1)
    assert way[1] == (0.75, 0.25, 0)
    assert all(math.isclose(sum(weights), 1) for weights in way)


def test_a_square_is_bilinear_and_a_triangle_barycentric() -> None:
    """Corners are the words, edges paths between two of them, and the centre has of all the same."""
    square = mixing.grid(4, 5)
    assert [square[0][0], square[0][4], square[4][0], square[4][4]] == [
        tuple(map(float, corner)) for corner in np.eye(4)
    ]
    assert square[2][2] == (0.25, 0.25, 0.25, 0.25)
    assert [row[:2] for row in square[0]] == mixing.along(2, mixing.even(5))
    triangle = mixing.grid(3, 4)
    assert [len(row) for row in triangle] == [1, 2, 3, 4]
    assert (triangle[0][0], triangle[3][0], triangle[3][3]) == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    np.testing.assert_allclose(triangle[2][1], [1 / 3] * 3)
    assert all(math.isclose(sum(weights), 1) for row in [*square, *triangle] for weights in row)
    with pytest.raises(UsageError, match="2 words"):
        mixing.grid(2, 5)


def test_the_mean_of_three_is_the_least_squares_point_scipy_finds() -> None:
    """The direction minimises the weighted squared angles to all three; the length is the weighted geometric mean."""
    words, weights = [word(seed, vectors=1) for seed in range(3)], (0.5, 0.3, 0.2)
    mean = mixing.mixed(words, weights, "slerp")
    for key, rows in mean.items():
        given = [each[key][0].numpy() for each in words]
        units = [each / np.linalg.norm(each) for each in given]

        def cost(vector: np.ndarray, units: list[np.ndarray] = units) -> float:
            unit = vector / np.linalg.norm(vector)
            return sum(w * np.arccos(u @ unit) ** 2 for w, u in zip(weights, units, strict=True))

        found = minimize(cost, sum(units), tol=1e-14).x
        ours = rows[0].numpy()
        np.testing.assert_allclose(ours / np.linalg.norm(ours), found / np.linalg.norm(found), atol=1e-6)
        length = np.prod([np.linalg.norm(each) ** w for w, each in zip(weights, given, strict=True)])
        assert np.linalg.norm(ours) == pytest.approx(length)


def test_two_words_meet_on_their_great_circle_however_they_are_asked_for() -> None:
    """A third word of hardly any weight changes hardly anything; one of none changes nothing."""
    words = [word(seed) for seed in range(3)]
    two = mixing.mixed(words[:2], (0.3, 0.7), "slerp")
    three = mixing.mixed(words, (0.3, 0.7, 0.0), "slerp")
    nearly = mixing.mixed(words, mixing.shares([0.3, 0.7, 1e-9]), "slerp")
    for key in two:
        assert torch.equal(two[key], three[key])
        assert torch.allclose(two[key], nearly[key], atol=1e-8)


def test_ends_are_exact_and_straight_lines_are_arithmetic() -> None:
    """All the weight on one word gives its own rows, in float32 too; lerp is the mean of the rows."""
    words = [word(seed, dtype=torch.float32) for seed in range(3)]
    for path in ("slerp", "lerp"):
        assert all(
            torch.equal(rows, words[1][key]) for key, rows in mixing.mixed(words, (0, 1, 0), path).items()
        )
        same = mixing.mixed([words[0]] * 3, (0.2, 0.3, 0.5), path)
        assert all(torch.allclose(rows, words[0][key], rtol=1e-6) for key, rows in same.items())
        assert path == "slerp" or all(torch.equal(rows, words[0][key]) for key, rows in same.items())
    line = mixing.mixed(words, (0.5, 0.25, 0.25), "lerp")
    for key, rows in line.items():
        expected = sum(w * each[key].numpy() for w, each in zip((0.5, 0.25, 0.25), words, strict=True))
        np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-5)


def test_directions_without_a_mean_are_refused() -> None:
    """Opposite ones cancel each other, in twos and in threes, with equal weights or not."""
    rows = word(0)
    other = {key: -each for key, each in rows.items()}
    for words, weights in (([rows, other], (0.3, 0.7)), ([rows, other, rows], (0.25, 0.5, 0.25))):
        with pytest.raises(NumericalError, match="opposite"):
            mixing.mixed(words, weights, "slerp")
    units = torch.stack([sphere.normalize(each["clip_l"]) for each in (rows, other, rows)])
    with pytest.raises(NumericalError, match="row 0"):
        sphere.frechet_mean(units, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [math.nan, 1], [math.inf, 1]])
def test_weights_that_mean_nothing_are_refused(weights: list[float]) -> None:
    """All zero, negative, or not numbers."""
    with pytest.raises(UsageError, match="try 2,1,1"):
        mixing.shares(weights)


def test_words_that_are_not_alike_are_refused() -> None:
    """Other numbers of vectors; and the angle between two words is that of their rows, mean over vectors."""
    with pytest.raises(InputError, match="--vectors"):
        mixing.require_alike([word(0), word(1, vectors=3)])
    a, b = word(0), word(1)
    angles = [
        np.degrees(np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y)))
        for x, y in zip(a["clip_l"].numpy(), b["clip_l"].numpy(), strict=True)
    ]
    assert mixing.degrees(a, b)["clip_l"] == pytest.approx(np.mean(angles))
