"""Pictures show what their scene says."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from dticli.bundled.recipe import drawing, words
from dticli.bundled.recipe.scenes import Background, Scene, Thing

PLAIN = Background(colours=("white",))


def draw(scene, shapes, seed=0, size=64):
    return np.asarray(drawing.draw(scene, shapes, Random(seed), size)).astype(int)


def ink(picture):
    """(x, y) of the mean of everything that is not the corner's colour."""
    rows, columns = np.nonzero(np.abs(picture - picture[0, 0]).sum(axis=2) > 60)
    return columns.mean(), rows.mean()


def test_a_scene_is_drawn_the_same_for_the_same_seed(shapes):
    """Chance comes from the generator handed in and from nowhere else."""
    scene = Scene((Thing("dog"),), Background(place="city"), "flat")
    assert (draw(scene, shapes, 3) == draw(scene, shapes, 3)).all()
    assert (draw(scene, shapes, 3) != draw(scene, shapes, 4)).any()


@pytest.mark.parametrize("colour", words.COLOURS)
def test_a_plain_background_has_its_colour(colour, shapes):
    """The corner is within the jitter of the named colour."""
    picture = draw(Scene((Thing("dog"),), Background(colours=(colour,)), "flat"), shapes)
    assert np.abs(picture[0, 0] - words.COLOURS[colour]).max() <= 10


@pytest.mark.parametrize("place", words.PLACES)
@pytest.mark.parametrize("size", [64, 128])
def test_every_place_is_drawn_at_either_size(place, size):
    """A place fills the canvas with more than one colour."""
    picture = drawing.background(Background(place=place), Random(1), size)
    assert picture.size == (size, size)
    assert len(picture.getcolors(size * size)) > 20


@pytest.mark.parametrize(
    ("side", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("top", 1, -1), ("bottom", 1, 1)]
)
def test_a_thing_stands_on_its_side(side, axis, sign, shapes):
    """On the left means left of the middle."""
    picture = draw(Scene((Thing("dog"),), PLAIN, "flat", side=side), shapes)
    assert sign * (ink(picture)[axis] - 31.5) > 4


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("above", 1, -1), ("below", 1, 1)]
)
def test_relations_are_drawn(relation, axis, sign, shapes):
    """The red thing lies on its side of the blue one."""
    things = (Thing("dog", tint="red"), Thing("cat", tint="blue"))
    picture = draw(Scene(things, PLAIN, "flat", relation=relation), shapes)
    red = np.argwhere(picture[..., 0] - picture[..., 2] > 50).mean(axis=0)[::-1]
    blue = np.argwhere(picture[..., 2] - picture[..., 0] > 50).mean(axis=0)[::-1]
    assert sign * (red[axis] - blue[axis]) > 15


def test_sizes_are_ordered(shapes):
    """Tiny covers less than normal, normal less than huge."""
    covered = [
        (np.abs(picture - picture[0, 0]).sum(axis=2) > 60).mean()
        for size in ("tiny", "", "huge")
        for picture in [draw(Scene((Thing("dog", size=size),), PLAIN, "flat"), shapes)]
    ]
    assert 2 * covered[0] < covered[1]
    assert 1.5 * covered[1] < covered[2]


def test_pixel_art_has_sixteen_squares_a_side(shapes):
    """Every 4 x 4 block of a pixel-art picture is of one colour."""
    picture = draw(Scene((Thing("dog"),), Background(place="city"), "flat", style="pixel"), shapes)
    blocks = picture.reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_a_sketch_has_no_colour(shapes):
    """A pencil sketch is grey on paper."""
    picture = draw(
        Scene((Thing("dog", tint="red"),), Background(place="sunset"), "flat", style="sketch"), shapes
    )
    assert (picture.max(axis=2) - picture.min(axis=2)).max() <= 12


@pytest.mark.parametrize(("style", "ink_of_rim"), [("cartoon", 24), ("sticker", 255)])
def test_a_rim_runs_around_the_thing_and_nowhere_else(style, ink_of_rim, shapes):
    """What a cartoon or a sticker changes is of the rim's one colour, and the thing keeps its own."""
    behind = Background(colours=("teal",))
    bare, rimmed = (
        draw(Scene((Thing("dog", tint="red"),), behind, "flat", style=named), shapes) for named in ("", style)
    )
    changed = np.abs(bare - rimmed).sum(axis=2) > 0
    solid = changed & (np.abs(bare - bare[0, 0]).sum(axis=2) == 0)
    assert 0.02 < solid.mean() < 0.2
    assert np.median(np.abs(rimmed[solid] - ink_of_rim)) <= 6
    inside = np.abs(bare - bare[0, 0]).sum(axis=2) > 300
    assert not changed[inside].any()


def test_a_render_is_lit_from_above(shapes):
    """Lighter than the bare thing in its upper part, darker in its lower part, with a shadow beside it."""
    bare, lit = (
        draw(Scene((Thing("dog"),), Background(colours=("grey",)), "flat", style=named), shapes)
        for named in ("", "render")
    )
    rows = np.nonzero((np.abs(bare - bare[0, 0]).sum(axis=2) > 60).any(axis=1))[0]
    thing = np.abs(bare - bare[0, 0]).sum(axis=2) > 60
    upper, lower = thing.copy(), thing.copy()
    upper[rows[0] + len(rows) // 4 :], lower[: rows[-1] - len(rows) // 4] = False, False
    assert (lit - bare)[upper].mean() > 10
    assert (lit - bare)[lower].mean() < -10
    assert (lit[~thing] <= bare[~thing]).all()
    assert (lit[~thing] < bare[~thing]).any()


def test_an_icon_has_round_corners_on_white(shapes):
    """Corners are white, the middle of an edge is the frame, and nothing within is touched."""
    bare, tiled = (
        draw(Scene((Thing("dog"),), Background(colours=("black",)), "flat", style=named), shapes)
        for named in ("", "icon")
    )
    assert (tiled[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert (np.abs(tiled[0, 32] - (70, 74, 90)) <= 2).all()
    assert (tiled[16:48, 4:60] == bare[16:48, 4:60]).all()


@pytest.mark.parametrize("tint", words.TINTS)
def test_a_tint_keeps_the_outline(tint):
    """Tinting changes colours, not what is transparent."""
    sprite = Image.new("RGBA", (20, 20))
    sprite.paste((200, 120, 40, 255), (5, 5, 15, 12))
    sprite.paste((40, 40, 40, 255), (7, 7, 9, 9))
    assert (
        drawing.tint(sprite, words.TINTS[tint]).getchannel("A").tobytes() == sprite.getchannel("A").tobytes()
    )


def test_an_accessory_adds_height(shapes):
    """What is worn stands above what wears it."""
    plain, dressed = (
        draw(Scene((Thing("dog", accessory=worn),), PLAIN, "flat"), shapes) for worn in ("", "crown")
    )
    assert (plain != dressed).any()
    assert ink(dressed)[0] == pytest.approx(ink(plain)[0], abs=4)
