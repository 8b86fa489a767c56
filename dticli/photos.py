"""From a folder, files or one picture to checked photos: what is used, what is skipped and why, and crops of them."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dticli import draws
from dticli.draws import Key
from dticli.errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"}
)


@dataclass(frozen=True)
class Photo:
    """A readable picture; `size` is (height, width) in pixels, upright as EXIF says."""

    path: Path
    size: tuple[int, int]


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Album:
    """What was found: photos in the order of their names, and what was left out."""

    photos: tuple[Photo, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Crop:
    """A window on a resized photo.

    Attributes:
        resized: (height, width) the whole photo is scaled to, keeping its shape.
        corner: (top, left) of the window there.
        size: (height, width) of the window.
        flipped: mirrored left to right.
    """

    photo: Photo
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]
    flipped: bool = False


def read(source: Path) -> Album:
    """Check every picture under `source`, a folder (with sub-folders) or a single picture.

    Raises:
        InputError: nothing is there, or no picture can be used; says why.
    """
    if not source.exists():
        raise InputError(f"no folder {source}: expected a folder of photos; check the path")
    files = [source] if source.is_file() else sorted(_files(source))
    checked = [_check(path) for path in files]
    photos = tuple(item for item in checked if isinstance(item, Photo))
    skipped = tuple(item for item in checked if isinstance(item, Skipped))
    if not photos and not skipped:
        raise InputError(
            f"no photos in {source}: expected .jpg, .png or .webp; pass the folder that holds them"
        )
    if not photos:
        first = skipped[0]
        raise InputError(
            f"none of {len(skipped)} pictures in {source} can be read ({first.path.name}: {first.reason}): "
            "expected intact .jpg, .png or .webp files; export them again"
        )
    return Album(photos, skipped)


def _files(folder: Path) -> Iterable[Path]:
    """Pictures by suffix, in all sub-folders; hidden files and links to folders are no pictures."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(root, name)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        )


def _check(path: Path) -> Photo | Skipped:
    """Decode once: a truncated file only shows when all of it is read."""
    try:
        width, height = _open(path).size
    except Image.DecompressionBombError:
        return Skipped(path, "too many pixels; make it smaller")
    except (OSError, ValueError, SyntaxError) as error:
        return Skipped(
            path, f"cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        )
    return Photo(path, (height, width))


def _open(path: Path) -> Image.Image:
    """Decoded, upright, RGB; transparency lies on white."""
    with warnings.catch_warnings():
        # Pillow warns from half of its pixel limit on, and raises at the limit: only the limit is ours to report.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                return Image.alpha_composite(white, picture).convert("RGB")
            if picture.mode.startswith("I;16"):
                picture = picture.point(lambda value: value / 256).convert("L")
            return picture.convert("RGB")


def crops(photo: Photo, size: tuple[int, int], count: int, seed: int, *, flip: bool) -> list[Crop]:
    """Windows of `size` (height, width) on a photo whose tighter side fits exactly.

    One crop is centred; more lie at places drawn from the seed and the photo's name, so that other photos in the folder
    do not move them. `flip` adds each crop's mirror image.
    """
    height, width = photo.size
    scale = max(size[0] / height, size[1] / width)
    resized = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    room = (resized[0] - size[0], resized[1] - size[1])
    corners = [(room[0] // 2, room[1] // 2)] if count == 1 else _corners(photo, room, count, seed)
    mirrored = (False, True) if flip else (False,)
    return [Crop(photo, resized, corner, size, flipped) for corner in corners for flipped in mirrored]


def _corners(photo: Photo, room: tuple[int, int], count: int, seed: int) -> list[tuple[int, int]]:
    """Corners drawn evenly from 0 ... room in both directions."""
    top = [draws.integer(Key(seed, "crop top", photo.path.name, sample=i), room[0] + 1) for i in range(count)]
    left = [
        draws.integer(Key(seed, "crop left", photo.path.name, sample=i), room[1] + 1) for i in range(count)
    ]
    return list(zip(top, left, strict=True))


def pixels(crop: Crop) -> Tensor:
    """The crop as (3, height, width) float32 in [-1, 1]."""
    picture = _open(crop.photo.path)
    height, width = crop.resized
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    top, left = crop.corner
    picture = picture.crop((left, top, left + crop.size[1], top + crop.size[0]))
    if crop.flipped:
        picture = ImageOps.mirror(picture)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1).contiguous()
