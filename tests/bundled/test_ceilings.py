"""What words are measured against: the same prompts, drawn without a model."""

import numpy as np

from dticli.bundled.recipe import ceilings
from dticli.bundled.recipe.ceilings import Target
from dticli.bundled.world.looks import Look
from dticli.evaluation import stickers


def test_drawings_show_the_look_unless_the_prompt_says_another_colour(shapes):
    """Four of the twenty prompts give the word a colour, and then two looks that differ in theirs are drawn alike."""
    looks = [Look(hue, 0.65, "plain", hue, 1.0, "flat") for hue in (25.0, 255.0)]
    red, blue = (ceilings._by_hand(Target("dog", look, "dog"), shapes) for look in looks)
    assert red.shape == (20, 64, 64, 3)
    assert red.dtype == np.uint8
    for prompt, one, other in zip(stickers.complex(), red, blue, strict=True):
        assert prompt.scene
        assert np.array_equal(one, other) == bool(prompt.scene.things[0].told)
