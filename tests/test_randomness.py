"""Draws depend on their key alone."""

import dataclasses

import numpy as np
import pytest
import torch

from dticli import randomness
from dticli.randomness import Key

KEY = Key(7, "noise", "<dog>", 3, 12)


def test_a_draw_is_a_function_of_its_key() -> None:
    """The same key gives the same numbers, whatever was drawn before and whatever the global state is."""
    first = randomness.normal(KEY, (4, 8))
    torch.manual_seed(1)
    randomness.uniform(KEY)
    state = torch.get_rng_state()
    assert torch.equal(randomness.normal(KEY, (4, 8)), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "part", [{"seed": 8}, {"purpose": "level"}, {"word": "<cat>"}, {"step": 4}, {"sample": 13}]
)
def test_every_part_of_the_key_counts(part: dict[str, object]) -> None:
    """Changing any part gives unrelated numbers."""
    other = randomness.normal(dataclasses.replace(KEY, **part), (4096,))  # type: ignore[arg-type]
    correlation = np.corrcoef(other.numpy(), randomness.normal(KEY, (4096,)).numpy())[0, 1]
    assert abs(correlation) < 0.06


def test_distributions() -> None:
    """Normal, uniform, integer and shuffled draws over many keys have the moments they should."""
    keys = [dataclasses.replace(KEY, sample=index) for index in range(2000)]
    uniform = np.array([randomness.uniform(key) for key in keys])
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.03
    assert abs(np.mean([randomness.normal(key, (16,)).var().item() for key in keys]) - 1) < 0.03
    counts = np.bincount([randomness.integer(key, 5) for key in keys], minlength=5)
    assert len(counts) == 5
    assert counts.min() > 330
    assert sorted(randomness.shuffled(KEY, 10)) == list(range(10))
    assert len({tuple(randomness.shuffled(key, 10)) for key in keys[:50]}) == 50
