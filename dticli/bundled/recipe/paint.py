"""Paints a drawing in a look: colour ramps that keep its shading, a pattern inside its outline, and a stretch."""

import math
from functools import cache

from PIL import Image, ImageChops, ImageDraw, ImageOps, ImageStat

from dticli.bundled.world.looks import Look

Colour = tuple[int, int, int]

SECOND_LIGHT = (0.45, 0.86)
"""Lightnesses of the second colour; the one that differs more from that of the main colour is used."""
INK = 104
"""Pixels whose channels are all below this (of 255) are eyes and outlines, and are not painted."""
CHROMA = 0.2


def paint(sprite: Image.Image, look: Look) -> Image.Image:
    """The sprite (RGBA) in a look's colours, pattern and build."""
    grey = _centred(sprite)
    painted = _ramp(grey, look.hue, look.light)
    if look.pattern != "plain":
        light = max(SECOND_LIGHT, key=lambda level: abs(level - look.light))
        painted = Image.composite(_ramp(grey, look.second, light), painted, _mask(look.pattern, sprite.size))
    red, green, blue, _ = sprite.split()
    value = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    ink = value.point(lambda level: 255 * (level < INK))
    painted.paste(sprite.convert("RGB"), mask=ink)
    painted.putalpha(sprite.getchannel("A"))
    return stretch(painted, look.build)


def stretch(sprite: Image.Image, build: float) -> Image.Image:
    """The sprite with `build` times its ratio of width to height, at the same area."""
    factor = math.sqrt(build)
    size = (max(1, round(sprite.width * factor)), max(1, round(sprite.height / factor)))
    return sprite if size == sprite.size else sprite.resize(size, Image.Resampling.BILINEAR)


def turn(sprite: Image.Image, degrees: float) -> Image.Image:
    """The sprite rotated about its centre, enlarged to fit."""
    return sprite.rotate(degrees, Image.Resampling.BICUBIC, expand=True)


def _centred(sprite: Image.Image) -> Image.Image:
    """The sprite's shading with its median at 128, so that light and dark drawings take a colour equally well."""
    alpha = sprite.getchannel("A")
    grey = ImageOps.autocontrast(sprite.convert("L"), mask=alpha)
    shift = 128 - ImageStat.Stat(grey, alpha.point(lambda level: 255 * (level > 127))).median[0]
    return grey.point(lambda level: min(max(round(level + shift), 0), 255))


def _ramp(grey: Image.Image, hue: float, light: float) -> Image.Image:
    dark, mid, bright = (rgb(min(max(light + shift, 0.2), 0.96), hue) for shift in (-0.26, 0.0, 0.2))
    return ImageOps.colorize(grey, dark, bright, mid=mid, midpoint=128)


@cache
def _mask(pattern: str, size: tuple[int, int]) -> Image.Image:
    """Mask of the second colour, in the drawing's own coordinates, so that a look is the same in every picture.

    Patterns are coarse, because details finer than a sixth of a thing are lost in latents of 16 x 16.
    """
    width, height = size
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    if pattern == "two-tone":
        pen.rectangle((0, round(height * 0.55), width, height), fill=255)
    elif pattern == "striped":
        band = max(width, height) / 6.5
        for number in range(-1, 8):
            left, slant = (2 * number + 0.3) * band, height * 0.3
            pen.polygon(
                (
                    (left, 0),
                    (left + band, 0),
                    (left + band - slant, height),
                    (left - slant, height),
                ),
                fill=255,
            )
    elif pattern == "spotted":
        step = max(width, height) / 3.4
        radius = step * 0.3
        for row in range(-1, 6):
            for column in range(-1, 6):
                x, y = (column + 0.5 + 0.5 * (row % 2)) * step, (row + 0.45) * step * 0.85
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


@cache
def _rgb(light: int, hue: int) -> Colour:
    chroma = CHROMA
    while not all(-0.001 <= channel <= 1.001 for channel in _linear(light / 1000, chroma, hue)):
        chroma -= 0.005
    return tuple(
        round(255 * _encoded(min(max(channel, 0.0), 1.0))) for channel in _linear(light / 1000, chroma, hue)
    )  # type: ignore[return-value]


def rgb(light: float, hue: float) -> Colour:
    """The sRGB colour of an Oklab lightness and an Oklch hue in degrees, with the largest chroma up to CHROMA in sRGB."""
    return _rgb(round(light * 1000), round(hue) % 360)


def _linear(light: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """Linear sRGB of an Oklch colour (Ottosson 2020)."""
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )


def _encoded(channel: float) -> float:
    return 12.92 * channel if channel <= 0.0031308 else 1.055 * channel ** (1 / 2.4) - 0.055
