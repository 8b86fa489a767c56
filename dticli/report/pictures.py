"""Pictures inside a page: as data, no larger than a page shows them."""

import base64
import io
from dataclasses import dataclass

from PIL import Image

SIDE = 512
"""Pixels of the longer side, at most."""
SMALL = 128
"""Up to this side a picture stays as it is, and its pixels are shown as squares."""


@dataclass(frozen=True)
class Embedded:
    """A picture as the `src` of an image."""

    uri: str
    width: int
    height: int
    small: bool


def embedded(image: Image.Image) -> Embedded:
    """A picture as data, scaled down where it is larger than a page needs."""
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
