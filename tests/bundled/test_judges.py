"""What judges are shown: pictures varied in ways that leave what is asked of them true."""

import numpy as np
import torch

from dticli.bundled.recipe import judges
from dticli.bundled.world import elements
from dticli.bundled.world.elements import UNKNOWN


def test_variations_leave_true_what_stays_named() -> None:
    """A thing beside another keeps its side; one that is alone may change it; what colours decide is not asked for."""
    place = {name: index for index, name in enumerate(elements.CLASSES)}
    pictures = torch.zeros(64, 3, 64, 64)
    pictures[:, :, 28:36, 10:18] = 1.0
    labels = torch.zeros(64, len(elements.CLASSES), dtype=torch.long)
    labels[::2, place["second noun"]] = 1
    sides = set()
    for seed in range(8):
        varied, named = judges._varied(pictures, labels, np.random.default_rng(seed))
        at = varied.abs().sum(dim=(1, 2)).cumsum(dim=1)
        left = at[:, 31] > at[:, 63] / 2
        assert left[::2].all()
        sides |= set(left[1::2].tolist())
        kept = [
            place[name] for name in ("noun", "pattern", "build", "size", "accessory", "layout", "second noun")
        ]
        assert torch.equal(named[:, kept], labels[:, kept])
        unnamed = [
            place[name] for name in ("hue", "pattern hue", "second hue", "second pattern hue", "setting")
        ]
        assert (named[:, unnamed] == UNKNOWN).all()
    assert sides == {True, False}
