"""Pictures embedded in a page as data URIs, at the size at which they are shown."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

SIDE = 512
"""Largest longer side, in pixels."""
SMALL = 128
"""Up to this longer side, a picture is stored as PNG, and its pixels are shown as squares."""


@dataclass(frozen=True)
class Embedded:
    """A picture as a data URI, with its size in pixels.

    Attributes:
        small: whether its pixels are shown as squares.
    """

    uri: str
    width: int
    height: int
    small: bool


def embedded(image: Image.Image) -> Embedded:
    """Embed a picture, reduced to SIDE if it is larger."""
    shown = image.convert("RGB")
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small = max(image.size) <= SMALL
    buffer = io.BytesIO()
    if small:
        shown.save(buffer, "PNG")
    else:
        shown.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Embedded(f"data:image/{'png' if small else 'jpeg'};base64,{data}", *shown.size, small)
