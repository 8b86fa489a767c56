"""Drawn shards are kept for as long as the rules that drew them."""

from pathlib import Path

import pytest

from dticli.bundled.recipe import art, cache, drawing, shards, training
from dticli.bundled.world import grammar


class Lines(training.RecipeLog):
    """A log that only remembers."""

    def __init__(self, lines):
        super().__init__(Path())
        self.lines = lines

    def __call__(self, line):
        self.lines.append(line)


@pytest.fixture
def drawn(tmp_path, monkeypatch, shapes):
    """Two shards of four pictures in an empty cache; a function that draws them again and names what it drew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(art, "load", lambda: shapes)
    monkeypatch.setattr(shards, "SHARD", 4)

    def draw():
        lines = []
        shards.make("pictures", 8, 0, Lines(lines))
        return lines

    assert len(draw()) == 2
    return draw


def test_whole_shards_are_kept(drawn):
    """Nothing is drawn twice, and what is read is what was drawn."""
    assert drawn() == []
    pictures = shards.read("pictures")
    assert pictures.pixels.shape == (8, 64, 64, 3)
    assert len(pictures.scenes) == 8


def test_a_missing_shard_alone_is_drawn(drawn):
    """The other one stays, and the drawn one is as before."""
    before = shards.read("pictures")
    (cache.folder("world") / "pictures-000.npz").unlink()
    assert drawn() == ["world pictures: 4 pictures"]
    assert (shards.read("pictures").pixels == before.pixels).all()


def test_a_smaller_world_forgets_the_rest(drawn):
    """Shards beyond those asked for would be trained on, by whatever rules they were drawn."""
    shards.make("pictures", 4, 0, Lines([]))
    assert len(shards.read("pictures").scenes) == 4


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (drawing, "EXTENTS", {"tiny": (0.2, 0.3), "": (0.4, 0.5), "huge": (0.6, 0.7)}),
        (grammar, "_noun", None),
    ],
)
def test_changed_rules_draw_anew(drawn, monkeypatch, module, name, value):
    """Other sizes or other scenes: pictures of before are not mixed with pictures of now."""
    monkeypatch.setattr(module, name, value or (lambda random, mix: random.choice(("key", "drum"))))
    assert len(drawn()) == 2
    assert drawn() == []
