"""Pictures show what their scene says."""

from random import Random

import numpy as np
import pytest
from PIL import Image

from dticli.bundled.recipe import drawing
from dticli.bundled.recipe.paint import paint
from dticli.bundled.world import looks, words
from dticli.bundled.world.looks import Look
from dticli.bundled.world.scenes import Background, Scene, Thing

PLAIN = Background(colours=("white",))


def in_colour(noun, colour):
    """A thing painted plainly in a colour word's middle."""
    hue = looks.HUES[colour]
    return Thing(noun, Look(hue, 0.65, "plain", hue, 1.0, "flat"))


def draw(scene, shapes, seed=0, size=64):
    return np.asarray(drawing.draw(scene, shapes, Random(seed), size)).astype(int)


def ink(picture):
    """(x, y) of the mean of everything that is not the corner's colour."""
    rows, columns = np.nonzero(np.abs(picture - picture[0, 0]).sum(axis=2) > 60)
    return columns.mean(), rows.mean()


def test_a_scene_is_drawn_the_same_for_the_same_seed(shapes):
    """Chance comes from the generator handed in and from nowhere else."""
    scene = Scene((Thing("dog"),), Background(place="city"))
    assert (draw(scene, shapes, 3) == draw(scene, shapes, 3)).all()
    assert (draw(scene, shapes, 3) != draw(scene, shapes, 4)).any()


@pytest.mark.parametrize("colour", words.COLOURS)
def test_a_plain_background_has_its_colour(colour, shapes):
    """The corner is within the jitter of the named colour."""
    picture = draw(Scene((Thing("dog"),), Background(colours=(colour,))), shapes)
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
    picture = draw(Scene((Thing("dog"),), PLAIN, side=side), shapes)
    assert sign * (ink(picture)[axis] - 31.5) > 4


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("above", 1, -1), ("below", 1, 1)]
)
def test_relations_are_drawn(relation, axis, sign, shapes):
    """The red thing lies on its side of the blue one."""
    things = (in_colour("dog", "red"), in_colour("cat", "blue"))
    picture = draw(Scene(things, PLAIN, relation=relation), shapes)
    red = np.argwhere(picture[..., 0] - picture[..., 2] > 50).mean(axis=0)[::-1]
    blue = np.argwhere(picture[..., 2] - picture[..., 0] > 50).mean(axis=0)[::-1]
    assert sign * (red[axis] - blue[axis]) > 15


def test_sizes_are_ordered(shapes):
    """Tiny covers less than normal, normal less than huge."""
    covered = [
        (np.abs(picture - picture[0, 0]).sum(axis=2) > 60).mean()
        for size in ("tiny", "", "huge")
        for picture in [draw(Scene((Thing("dog", size=size),), PLAIN), shapes)]
    ]
    assert 2 * covered[0] < covered[1]
    assert 1.5 * covered[1] < covered[2]


def test_pixel_art_has_sixteen_squares_a_side(shapes):
    """Every 4 x 4 block of a pixel-art picture is of one colour."""
    picture = draw(Scene((Thing("dog"),), Background(place="city"), style="pixel"), shapes)
    blocks = picture.reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_a_sketch_has_no_colour(shapes):
    """A pencil sketch is grey on paper."""
    picture = draw(Scene((in_colour("dog", "red"),), Background(place="sunset"), style="sketch"), shapes)
    assert (picture.max(axis=2) - picture.min(axis=2)).max() <= 12


@pytest.mark.parametrize(("style", "ink_of_rim"), [("cartoon", 24), ("sticker", 255)])
def test_a_rim_runs_around_the_thing_and_nowhere_else(style, ink_of_rim, shapes):
    """What a cartoon or a sticker changes is of the rim's one colour, and the thing keeps its own."""
    behind = Background(colours=("teal",))
    bare, rimmed = (
        draw(Scene((in_colour("dog", "red"),), behind, style=named), shapes) for named in ("", style)
    )
    changed = np.abs(bare - rimmed).sum(axis=2) > 0
    solid = changed & (np.abs(bare - bare[0, 0]).sum(axis=2) == 0)
    assert 0.02 < solid.mean() < 0.2
    assert np.median(np.abs(rimmed[solid] - ink_of_rim)) <= 6
    _, mask = drawing.masked(Scene((in_colour("dog", "red"),), behind, style=style), shapes, Random(0))
    inside = np.asarray(mask) == 255
    assert inside.mean() > 0.1
    assert not changed[inside].any()


def test_a_render_is_lit_from_above(shapes):
    """Lighter than the bare thing in its upper part, darker in its lower part, with a shadow beside it."""
    bare, lit = (
        draw(Scene((Thing("dog"),), Background(colours=("grey",)), style=named), shapes)
        for named in ("", "render")
    )
    rows = np.nonzero((np.abs(bare - bare[0, 0]).sum(axis=2) > 60).any(axis=1))[0]
    thing = np.abs(bare - bare[0, 0]).sum(axis=2) > 60
    upper, lower = thing.copy(), thing.copy()
    upper[rows[0] + len(rows) // 4 :], lower[: rows[-1] - len(rows) // 4] = False, False
    assert (lit - bare)[upper].mean() > 10
    assert (lit - bare)[lower].mean() < -10
    _, mask = drawing.masked(
        Scene((Thing("dog"),), Background(colours=("grey",)), style="render"), shapes, Random(0)
    )
    beside = np.asarray(mask) == 0
    assert (lit[beside] <= bare[beside]).all()
    assert (lit[beside] < bare[beside]).any()


def test_an_icon_has_round_corners_on_white(shapes):
    """Corners are white, the middle of an edge is the frame, and nothing within is touched."""
    bare, tiled = (
        draw(Scene((Thing("dog"),), Background(colours=("black",)), style=named), shapes)
        for named in ("", "icon")
    )
    assert (tiled[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert (np.abs(tiled[0, 32] - (70, 74, 90)) <= 2).all()
    assert (tiled[16:48, 4:60] == bare[16:48, 4:60]).all()


@pytest.fixture
def sprite():
    """A light body with a dark eye on a transparent ground."""
    picture = Image.new("RGBA", (60, 60))
    picture.paste((200, 120, 40, 255), (5, 10, 55, 50))
    picture.paste((40, 40, 40, 255), (15, 15, 25, 20))
    return picture


@pytest.mark.parametrize("pattern", looks.PATTERNS)
def test_paint_keeps_outline_and_ink(pattern, sprite):
    """Painting changes colours, not what is transparent, nor eyes and outlines."""
    painted = paint(sprite, Look(190.0, 0.65, pattern, 20.0, 1.0, "flat"))
    assert painted.getchannel("A").tobytes() == sprite.getchannel("A").tobytes()
    assert painted.getpixel((20, 17)) == (40, 40, 40, 255)


@pytest.mark.parametrize("colour", looks.HUES)
def test_a_colour_word_is_painted_as_its_hue(colour, sprite):
    """The body's Oklch hue, by colour-science's published matrices, lies within five degrees of the word's."""
    painted = paint(sprite, in_colour("dog", colour).look)
    assert looks.apart(oklch_hue(painted.getpixel((40, 40))[:3]), looks.HUES[colour]) < 5


def oklch_hue(pixel):
    """Hue in degrees of an sRGB pixel, through XYZ (Ottosson's first matrices, not the direct ones that paint inverts)."""
    encoded = np.array(pixel) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    lms = np.array([[0.8189330101, 0.3618667424, -0.1288597137], [0.0329845436, 0.9293118715, 0.0361456387],
                    [0.0482003018, 0.2643662691, 0.6338517070]])  # fmt: skip
    lab = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                    [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip
    _, a, b = lab @ np.cbrt(lms @ (xyz @ linear))
    return np.degrees(np.arctan2(b, a)) % 360


def test_a_build_is_a_stretch_of_the_same_area(sprite):
    """Width : height changes by the factor, and how much is covered does not."""
    painted = paint(sprite, Look(190.0, 0.65, "plain", 190.0, 1.3, "flat"))
    assert painted.width / painted.height == pytest.approx(1.3, rel=0.03)
    assert painted.width * painted.height == pytest.approx(3600, rel=0.03)


def test_a_mask_lies_where_the_thing_is(shapes):
    """Where the picture differs from its plain background, and nowhere else."""
    picture, mask = drawing.masked(Scene((in_colour("dog", "red"),), PLAIN), shapes, Random(0))
    pixels = np.asarray(picture).astype(int)
    changed = np.abs(pixels - pixels[0, 0]).sum(axis=2) > 60
    assert (changed == (np.asarray(mask) > 127)).mean() > 0.97


def test_an_accessory_adds_height(shapes):
    """What is worn stands above what wears it."""
    plain, dressed = (draw(Scene((Thing("dog", accessory=worn),), PLAIN), shapes) for worn in ("", "crown"))
    assert (plain != dressed).any()
    assert ink(dressed)[0] == pytest.approx(ink(plain)[0], abs=4)
