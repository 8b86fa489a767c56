"""Draws scenes: background, stickers and filter. All randomness is from the given `random.Random`."""

import math
from collections.abc import Callable
from functools import partial
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from dticli.bundled.world import words
from dticli.bundled.world.scenes import Background, Scene, Thing

from .art import Art
from .paint import paint, turn

Colour = tuple[int, int, int]
Corner = tuple[int, int]
Pen = ImageDraw.ImageDraw

EXTENTS = {"tiny": (0.28, 0.34), "": (0.60, 0.70), "huge": (0.88, 0.96)}
PAIRED = {"tiny": (0.24, 0.28), "": (0.46, 0.50), "huge": (0.56, 0.62)}
BY_COUNT = {2: (0.38, 0.44), 3: (0.30, 0.34), 4: (0.34, 0.40)}
WIDEST = 0.98
MOST_TURNED = 10.0  # degrees


def draw(scene: Scene, art: Art, random: Random, size: int = 64) -> Image.Image:
    """The scene as an RGB picture of `size` px."""
    return masked(scene, art, random, size)[0]


def masked(scene: Scene, art: Art, random: Random, size: int = 64) -> tuple[Image.Image, Image.Image]:
    """The scene as an RGB picture of `size` px, and a mask of the same size with 255 on its things."""
    picture = background(scene.background, random, size)
    mask = Image.new("L", picture.size)
    mount = _MOUNTS.get(scene.style, _bare)
    for thing, centre, extent in _layout(scene, random):
        sticker = turn(_sticker(thing, art), random.uniform(-MOST_TURNED, MOST_TURNED))
        small, corner = _placed(sticker, centre, extent, size)
        mount(picture, small, corner)
        mask.paste(255, corner, small.getchannel("A"))
    return _FILTERS.get(scene.style, _unfiltered)(picture), mask


# ------------------------------------------------------------------ stickers


def _layout(scene: Scene, random: Random) -> list[tuple[Thing, tuple[float, float], float]]:
    """(thing, centre, extent) of every sticker, in fractions of the picture's side."""
    first = scene.things[0]
    if scene.count > 1:
        return [
            (first, centre, random.uniform(*BY_COUNT[scene.count])) for centre in _spread(scene.count, random)
        ]
    if len(scene.things) == 2:
        return _pair(scene, random)
    return [(first, _single(scene, first, random), random.uniform(*EXTENTS[first.size]))]


def _single(scene: Scene, thing: Thing, random: Random) -> tuple[float, float]:
    reach = {"tiny": 0.16, "": 0.09, "huge": 0.01}[thing.size]
    x, y = 0.5 + random.uniform(-reach, reach), 0.54 + random.uniform(-reach, reach)
    offset = 0.24
    return {
        "left": (0.5 - offset, y), "right": (0.5 + offset, y), "top": (x, 0.5 - offset), "bottom": (x, 0.5 + offset),
    }.get(scene.side, (x, y))  # fmt: skip


def _pair(scene: Scene, random: Random) -> list[tuple[Thing, tuple[float, float], float]]:
    relation = scene.relation if scene.relation != "beside" else random.choice(("left", "right"))
    shift = random.uniform(0.23, 0.26)
    slack = random.uniform(-0.05, 0.05)
    ahead, behind = {
        "left": ((0.5 - shift, 0.55 + slack), (0.5 + shift, 0.55)),
        "right": ((0.5 + shift, 0.55 + slack), (0.5 - shift, 0.55)),
        "above": ((0.5 + slack, 0.51 - shift), (0.5, 0.52 + shift)),
        "below": ((0.5 + slack, 0.52 + shift), (0.5, 0.51 - shift)),
    }[relation]
    first, second = scene.things
    return [
        (second, behind, random.uniform(*PAIRED[second.size])),
        (first, ahead, random.uniform(*PAIRED[first.size])),
    ]


def _spread(count: int, random: Random) -> list[tuple[float, float]]:
    y = 0.55 + random.uniform(-0.06, 0.06)
    if count == 2:
        return [(0.27, y), (0.73, y)]
    if count == 3:
        return [(0.19, y), (0.5, y), (0.81, y)]
    return [(0.28, 0.3), (0.72, 0.3), (0.28, 0.74), (0.72, 0.74)]


def _sticker(thing: Thing, art: Art) -> Image.Image:
    sprite = art.sprite(thing.drawn_by, words.icon(thing.noun))
    if thing.look:
        sprite = paint(sprite, thing.look)
    if thing.accessory:
        sprite = _dress(
            sprite, art.sprite(thing.drawn_by, words.ACCESSORIES[thing.accessory]), thing.accessory
        )
    return sprite


def _dress(sprite: Image.Image, accessory: Image.Image, kind: str) -> Image.Image:
    """Put an accessory on the sprite's head, assumed at the middle of its upper edge (a bow is lower)."""
    width = round(sprite.width * 0.6)
    height = max(1, round(accessory.height * width / accessory.width))
    worn = accessory.resize((width, height), Image.Resampling.BILINEAR)
    overlap = {"bow": 0.9, "flower": 0.8}.get(kind, 0.45)
    rise = round(height * (1 - overlap))
    dressed = Image.new("RGBA", (sprite.width, sprite.height + rise))
    dressed.paste(sprite, (0, rise))
    dressed.alpha_composite(worn, ((sprite.width - width) // 2, 0))
    return dressed


def _placed(
    sticker: Image.Image, centre: tuple[float, float], extent: float, side: int
) -> tuple[Image.Image, Corner]:
    """The sticker at its size in the picture, and its (x, y) upper left corner there."""
    scale = min(extent, WIDEST) * side / max(sticker.size)
    size = (max(1, round(sticker.width * scale)), max(1, round(sticker.height * scale)))
    small = sticker.convert("RGBa").resize(
        size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC
    )
    x, y = (
        min(max(round(at * side - length / 2), 0), side - length)
        for at, length in zip(centre, size, strict=True)
    )
    return small.convert("RGBA"), (x, y)


# -------------------------------------------------------------------- mounts
# How a style draws a sticker. At 64 px, art sets differ too little to express styles such as "a cartoon of".


def _bare(picture: Image.Image, sticker: Image.Image, corner: Corner) -> None:
    picture.paste(sticker, corner, sticker)


def _rimmed(colour: Colour, picture: Image.Image, sticker: Image.Image, corner: Corner) -> None:
    """With a rim of a thirtieth of the picture's width: the ink of a cartoon, or the paper of a sticker."""
    width = max(1, picture.width // 30)
    padded = ImageOps.expand(sticker.getchannel("A"), width)
    rim = padded.filter(ImageFilter.MaxFilter(2 * width + 1))
    picture.paste(colour, (corner[0] - width, corner[1] - width), rim)
    _bare(picture, sticker, corner)


def _lit(picture: Image.Image, sticker: Image.Image, corner: Corner) -> None:
    """Lit from above, with a soft shadow to the lower right."""
    reach = picture.width // 12
    shadow = ImageOps.expand(sticker.getchannel("A"), reach).filter(ImageFilter.GaussianBlur(reach / 3))
    picture.paste(
        (16, 16, 24),
        (corner[0] - reach // 2, corner[1] - reach // 2),
        shadow.point(lambda level: level * 2 // 3),
    )
    ramp = Image.linear_gradient("L").resize(sticker.size)
    white, black = (Image.new("RGB", sticker.size, shade) for shade in ("white", "black"))
    colours = sticker.convert("RGB")
    lighter = Image.composite(colours, white, ramp.point(lambda level: min(255, 120 + level)))
    lit = Image.composite(black, lighter, ramp.point(lambda level: max(0, level - 110)))
    lit.putalpha(sticker.getchannel("A"))
    _bare(picture, lit, corner)


_MOUNTS: dict[str, Callable[[Image.Image, Image.Image, Corner], None]] = {
    "cartoon": partial(_rimmed, (20, 18, 24)),
    "sticker": partial(_rimmed, (255, 255, 255)),
    "render": _lit,
}


# --------------------------------------------------------------- backgrounds


def background(kind: Background, random: Random, size: int) -> Image.Image:
    """A plain, patterned or drawn background of `size` px."""
    if kind.place:
        return _place(kind.place, random, size)
    colours = [_jitter(words.COLOURS[name], random) for name in kind.colours]
    if not kind.pattern:
        return Image.new("RGB", (size, size), colours[0])
    canvas = Image.new("RGB", (2 * size, 2 * size), colours[0])
    _PATTERNS[kind.pattern](ImageDraw.Draw(canvas), 2 * size, colours[1], random)
    return canvas.reduce(2)


def _jitter(colour: Colour, random: Random, amount: int = 10) -> Colour:
    red, green, blue = (min(255, max(0, channel + random.randint(-amount, amount))) for channel in colour)
    return red, green, blue


def _stripes(pen: Pen, side: int, colour: Colour, random: Random) -> None:
    step = side // random.choice((6, 8))
    upright = random.random() < 0.5
    for at in range(random.randrange(step), side, 2 * step):
        pen.rectangle((at, 0, at + step - 1, side) if upright else (0, at, side, at + step - 1), fill=colour)


def _dots(pen: Pen, side: int, colour: Colour, random: Random) -> None:
    step = side // random.choice((5, 6))
    radius = step * 0.3
    start = random.randrange(step)
    for row, y in enumerate(range(start - step, side + step, step)):
        for x in range(start - step - (row % 2) * step // 2, side + step, step):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _checks(pen: Pen, side: int, colour: Colour, random: Random) -> None:
    step = side // random.choice((5, 6, 8))
    start = -random.randrange(step)
    for row, y in enumerate(range(start, side, step)):
        for x in range(start + (row % 2) * step, side, 2 * step):
            pen.rectangle((x, y, x + step - 1, y + step - 1), fill=colour)


_PATTERNS: dict[str, Callable[[Pen, int, Colour, Random], None]] = {
    "striped": _stripes,
    "dotted": _dots,
    "checkered": _checks,
}


def _place(name: str, random: Random, size: int) -> Image.Image:
    sky, ground, horizon = _PLACE_COLOURS[name]
    side = 2 * size
    level = round(side * (horizon + random.uniform(-0.05, 0.05)))
    canvas = _gradient(_jitter(sky[0], random), _jitter(sky[1], random), side, max(level, 1))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, level, side, side), fill=_jitter(ground, random))
    _PLACES[name](pen, side, level, random)
    return canvas.reduce(2)


def _gradient(top: Colour, bottom: Colour, side: int, level: int) -> Image.Image:
    """A gradient from `top` to `bottom` over the first `level` rows, and `bottom` below."""
    ramp = Image.linear_gradient("L").resize((1, level))
    column = Image.new("L", (1, side), 255)
    column.paste(ramp, (0, 0))
    return Image.composite(
        Image.new("RGB", (side, side), bottom),
        Image.new("RGB", (side, side), top),
        column.resize((side, side)),
    )


def _disc(pen: Pen, x: float, y: float, radius: float, colour: Colour) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _beach(pen: Pen, side: int, level: int, random: Random) -> None:
    sea = round(level + side * 0.16)
    pen.rectangle((0, level, side, sea), fill=_jitter((34, 134, 206), random))
    for _ in range(4):
        x, y = random.randrange(side), random.randrange(level, sea)
        pen.line((x, y, x + side // 8, y), fill=(210, 236, 248), width=2)
    _disc(pen, random.choice((0.15, 0.85)) * side, side * 0.14, side * 0.08, (255, 236, 120))
    pen.arc(
        (-side * 0.1, sea - side * 0.04, side * 1.1, sea + side * 0.05),
        180,
        360,
        fill=(240, 248, 250),
        width=3,
    )


def _snow(pen: Pen, side: int, level: int, random: Random) -> None:
    for x in sorted(random.uniform(0, side) for _ in range(3)):
        height, half = side * random.uniform(0.2, 0.3), side * 0.09
        pen.polygon(((x - half, level), (x + half, level), (x, level - height)), fill=(52, 110, 96))
        pen.polygon(
            (
                (x - half / 3, level - height * 0.67),
                (x + half / 3, level - height * 0.67),
                (x, level - height),
            ),
            fill=(250, 252, 255),
        )
    for _ in range(26):
        _disc(
            pen,
            random.uniform(0, side),
            random.uniform(0, side),
            side * random.uniform(0.008, 0.016),
            (255, 255, 255),
        )


def _jungle(pen: Pen, side: int, level: int, random: Random) -> None:
    for _ in range(5):
        x, width = random.uniform(0, side), side * random.uniform(0.03, 0.06)
        pen.rectangle((x, 0, x + width, level + side * 0.1), fill=_jitter((84, 60, 38), random))
    for _ in range(16):
        x, y = (
            random.uniform(0, side),
            random.choice((random.uniform(0, 0.25), random.uniform(0.75, 1.0))) * side,
        )
        length, slope = side * random.uniform(0.12, 0.2), random.uniform(-0.6, 0.6)
        pen.polygon(
            ((x - length, y), (x, y - length * 0.3), (x + length, y + length * slope), (x, y + length * 0.3)),
            fill=_jitter((26, 120, 46), random, 24),
        )


def _city(pen: Pen, side: int, level: int, random: Random) -> None:
    x = 0.0
    while x < side:
        width, top = side * random.uniform(0.12, 0.2), level - side * random.uniform(0.25, 0.6)
        wall = _jitter(random.choice(((112, 122, 142), (150, 140, 132), (88, 98, 122))), random)
        pen.rectangle((x, top, x + width - 2, level), fill=wall)
        for row in range(round(top) + 6, level - 8, side // 14):
            for column in range(round(x) + 5, round(x + width) - 8, side // 18):
                pen.rectangle((column, row, column + side // 40, row + side // 32), fill=(250, 226, 140))
        x += width
    pen.line(
        (0, level + (side - level) // 2, side, level + (side - level) // 2), fill=(240, 224, 120), width=3
    )


def _night(pen: Pen, side: int, level: int, random: Random) -> None:
    for _ in range(34):
        _disc(
            pen,
            random.uniform(0, side),
            random.uniform(0, level),
            side * random.uniform(0.006, 0.014),
            (252, 250, 214),
        )
    x, y, radius = random.choice((0.18, 0.82)) * side, side * 0.16, side * 0.09
    _disc(pen, x, y, radius, (250, 240, 190))
    _disc(pen, x + radius * 0.5, y - radius * 0.3, radius * 0.85, (20, 26, 70))


def _desert(pen: Pen, side: int, level: int, random: Random) -> None:
    for shade in ((226, 178, 100), (210, 156, 82)):
        x, y = random.uniform(0, side), level + side * random.uniform(0.06, 0.2)
        pen.ellipse((x - side * 0.6, y, x + side * 0.6, y + side * 0.5), fill=_jitter(shade, random))
    for x in (random.uniform(0.05, 0.2) * side, random.uniform(0.8, 0.95) * side):
        width, height = side * 0.035, side * random.uniform(0.18, 0.26)
        green = _jitter((60, 130, 70), random)
        pen.rounded_rectangle((x - width, level - height, x + width, level + side * 0.06), width, fill=green)
        pen.line(
            (
                (x, level - height * 0.3),
                (x + width * 3, level - height * 0.3),
                (x + width * 3, level - height * 0.7),
            ),
            fill=green,
            width=round(width),
        )
    _disc(pen, random.choice((0.3, 0.7)) * side, side * 0.13, side * 0.09, (255, 244, 190))


def _underwater(pen: Pen, side: int, level: int, random: Random) -> None:
    for _ in range(16):
        x, y, radius = random.uniform(0, side), random.uniform(0, level), side * random.uniform(0.012, 0.03)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=(190, 234, 246), width=2)
    for _ in range(7):
        x = random.uniform(0, side)
        height, green = side * random.uniform(0.15, 0.4), _jitter((24, 130, 96), random, 20)
        points = [(x + side * 0.02 * math.sin(k), level + side * 0.1 - height * k / 8) for k in range(9)]
        pen.line(points, fill=green, width=round(side * 0.025))


def _sunset(pen: Pen, side: int, level: int, random: Random) -> None:
    x = random.uniform(0.25, 0.75) * side
    pen.pieslice(
        (x - side * 0.2, level - side * 0.2, x + side * 0.2, level + side * 0.2),
        180,
        360,
        fill=(255, 232, 120),
    )
    for _ in range(6):
        at, y = random.uniform(0, side), random.uniform(level + 4, side)
        pen.line((at, y, at + side * random.uniform(0.1, 0.3), y), fill=(250, 160, 100), width=2)


def _meadow(pen: Pen, side: int, level: int, random: Random) -> None:
    blossoms = ((240, 80, 110), (250, 214, 70), (250, 250, 250), (180, 100, 220))
    for _ in range(34):
        x, y, radius = (
            random.uniform(0, side),
            random.uniform(level + 4, side),
            side * random.uniform(0.016, 0.028),
        )
        colour = random.choice(blossoms)
        for petal in range(4):
            angle = petal * math.pi / 2
            _disc(pen, x + radius * math.cos(angle), y + radius * math.sin(angle), radius * 0.8, colour)
        _disc(pen, x, y, radius * 0.6, (250, 190, 60))
    for _ in range(2):
        x, y = random.uniform(0, side), random.uniform(0.08, 0.25) * side
        for step in range(3):
            _disc(pen, x + step * side * 0.06, y, side * 0.05, (250, 252, 255))


def _mountains(pen: Pen, side: int, level: int, random: Random) -> None:
    for x in (random.uniform(0, 0.3), random.uniform(0.35, 0.65), random.uniform(0.7, 1.0)):
        height, half = side * random.uniform(0.4, 0.62), side * random.uniform(0.24, 0.34)
        middle, top = x * side, level - height
        pen.polygon(
            ((middle - half, level), (middle + half, level), (middle, top)),
            fill=_jitter((112, 118, 138), random),
        )
        pen.polygon(
            ((middle - half * 0.3, top + height * 0.3), (middle, top + height * 0.2),
             (middle + half * 0.3, top + height * 0.3), (middle, top)),
            fill=(250, 252, 255),
        )  # fmt: skip


# (top of the sky, bottom of the sky), ground, horizon
_PLACE_COLOURS: dict[str, tuple[tuple[Colour, Colour], Colour, float]] = {
    "beach": (((110, 196, 246), (190, 230, 250)), (240, 214, 156), 0.48),
    "snow": (((158, 190, 222), (214, 228, 240)), (240, 245, 252), 0.6),
    "jungle": (((30, 92, 48), (76, 150, 72)), (44, 94, 42), 0.75),
    "city": (((140, 178, 214), (206, 220, 232)), (74, 76, 84), 0.78),
    "night": (((10, 14, 50), (36, 44, 104)), (24, 34, 54), 0.84),
    "desert": (((132, 202, 240), (246, 226, 180)), (234, 192, 118), 0.62),
    "underwater": (((40, 150, 214), (12, 70, 146)), (196, 176, 128), 0.86),
    "sunset": (((98, 60, 140), (250, 140, 70)), (120, 62, 96), 0.7),
    "meadow": (((124, 200, 246), (204, 234, 250)), (98, 182, 76), 0.52),
    "mountains": (((116, 176, 232), (206, 226, 242)), (96, 152, 84), 0.74),
}
_PLACES: dict[str, Callable[[Pen, int, int, Random], None]] = {
    "beach": _beach,
    "snow": _snow,
    "jungle": _jungle,
    "city": _city,
    "night": _night,
    "desert": _desert,
    "underwater": _underwater,
    "sunset": _sunset,
    "meadow": _meadow,
    "mountains": _mountains,
}


# ------------------------------------------------------------------- filters


def _unfiltered(picture: Image.Image) -> Image.Image:
    return picture


def tile(picture: Image.Image) -> Image.Image:
    """The picture with a frame and round corners, as an icon on white."""
    side = picture.width
    box, radius, width = (0, 0, side - 1, side - 1), side * 0.22, max(1, side // 30)
    inside = Image.new("L", picture.size)
    ImageDraw.Draw(inside).rounded_rectangle(box, radius, fill=255)
    tiled = Image.composite(picture, Image.new("RGB", picture.size, "white"), inside)
    ImageDraw.Draw(tiled).rounded_rectangle(box, radius, outline=(70, 74, 90), width=width)
    return tiled


def pencil(picture: Image.Image) -> Image.Image:
    """Grey strokes on paper: colour dodge of the picture with its blurred negative."""
    grey = picture.convert("L")
    blurred = ImageOps.invert(grey).filter(ImageFilter.GaussianBlur(picture.width / 24))
    dodged = ImageChops.add(grey, blurred)
    strokes = ImageChops.multiply(
        dodged, ImageOps.autocontrast(grey).point(lambda level: 150 + level * 105 // 255)
    )
    return ImageOps.colorize(strokes, (30, 30, 36), (250, 248, 242))


def pixelate(picture: Image.Image) -> Image.Image:
    """The picture in 16 x 16 squares with few colours."""
    coarse = picture.resize((16, 16), Image.Resampling.BOX)
    return ImageOps.posterize(coarse, 4).resize(picture.size, Image.Resampling.NEAREST)


_FILTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "icon": tile,
    "sketch": pencil,
    "pixel": pixelate,
}
