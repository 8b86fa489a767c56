"""Decodes picture files: upright, in sRGB, at full or reduced size; several files ahead of their use, in threads."""

import contextlib
import functools
import importlib
import io
import itertools
import math
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from dticli import mistaken
from dticli.paths import MARK

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "HEIF")
"""Formats that are read, whatever the file name: Pillow would run Ghostscript on a PostScript file."""
PLUGINS = {"pillow_heif": "register_heif_opener"}
ROTATION = 0x0112
"""The EXIF tag of the orientation; from 5 on, height and width are swapped."""
SPARE = 1.5
"""JPEG files are decoded at this multiple of the wanted size at least: what filtering then makes of them differs from what
it makes of the whole file by less than 46 dB of PSNR allow, measured on noise with the spectrum of photos at 64 to 1,024 px."""
THREADS = 8
KEPT = 2**28
"""Bytes of scaled photos that are kept in memory for their crops; others are decoded again."""

Fit = Callable[[tuple[int, int]], tuple[int, int]]
"""From the (height, width) of a whole picture to that it will be scaled to."""

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Results in the order of the items, computed in threads, few at a time to limit memory use."""
    workers, items = min(THREADS, os.cpu_count() or 1), iter(items)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(function, item) for item in itertools.islice(items, workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            for each in waiting:
                each.cancel()


class _Unwarned:
    """Suppresses warnings while any thread is inside; `warnings.catch_warnings` alone is not thread-safe."""

    def __init__(self) -> None:
        self.lock, self.inside, self.filters = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.filters.__exit__(None, None, None)


_unwarned = _Unwarned()


def register_plugins() -> None:
    """Let Pillow use what is installed beside it."""
    for module, function in PLUGINS.items():
        with contextlib.suppress(ImportError):
            getattr(importlib.import_module(module), function)()
    Image.init()


DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises where a file is no picture, or a broken one."""


@dataclass(frozen=True)
class OpenedPhoto:
    """A decoded picture.

    Attributes:
        picture: upright, RGB or RGBA, 8 bits in sRGB.
        size: (height, width) of the whole file, upright; the picture may be smaller.
        frames: of which it is the first.
        drawn: it says that dti drew it.
    """

    picture: Image.Image
    size: tuple[int, int]
    frames: int
    drawn: bool


def read(path: Path, fit: Fit | None = None) -> OpenedPhoto:
    """Decode a picture.

    Args:
        fit: what the picture will be scaled to; JPEG files are decoded smaller then, in less time.

    Raises:
        Exception: damaged and hostile files raise whatever their bytes lead the decoders to; see `reason`.
    """
    # Pillow warns of half of its pixel limit and of odd metadata: only what stops it is ours to report.
    with _unwarned, Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as file:
        frames = getattr(file, "n_frames", 1)
        on_its_side = file.getexif().get(ROTATION, 1) in (5, 6, 7, 8)
        height, width = file.size if on_its_side else file.size[::-1]
        if fit is not None:
            # Pillow's order is width, height, of the file as it lies.
            least = fit((height, width)) if on_its_side else fit((height, width))[::-1]
            file.draft("", (math.ceil(SPARE * least[0]), math.ceil(SPARE * least[1])))
        file.load()
        drawn = _is_drawn(file)
        return OpenedPhoto(
            _in_srgb(_in_eight_bits(ImageOps.exif_transpose(file))), (height, width), frames, drawn
        )


def _is_drawn(picture: Image.Image) -> bool:
    """Whether a picture says that dti drew it."""
    software = picture.getexif().get(ExifTags.Base.Software)
    said = (picture.info.get("Software"), picture.info.get("comment"), software)
    return any(each in (MARK, MARK.encode()) for each in said)


@dataclass(frozen=True)
class Sheet:
    """A photo scaled to what its crops are cut from.

    Attributes:
        picture: RGB; what is transparent lies on white.
        alpha: how opaque it is; None if it is everywhere.
    """

    picture: Image.Image
    alpha: Image.Image | None

    @property
    def bytes(self) -> int:
        height, width = self.picture.size
        return height * width * (3 if self.alpha is None else 4)


def sheet(picture: Image.Image, size: tuple[int, int]) -> Sheet:
    """Scale a decoded picture to (height, width)."""
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    return Sheet(scaled(on_white(picture), size), alpha and scaled(alpha, size))


def scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at (height, width)."""
    return picture if picture.size == size[::-1] else picture.resize(size[::-1], Image.Resampling.LANCZOS)


def on_white(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent is white."""
    if picture.mode != "RGBA":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


class Sheets:
    """Sheets that wait for their crops, so that checking a photo and cutting it decode it once.

    A sheet is of one state of a file: another time of change or size is another file.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self.lock = threading.Lock()
        self.kept: dict[tuple[object, ...], Sheet] = {}

    @property
    def full(self) -> bool:
        return self.bytes >= self.most

    def put(self, path: Path, size: tuple[int, int], made: Sheet) -> None:
        """Keep a sheet, if there is room."""
        key = _key(path, size)
        with self.lock:
            if key not in self.kept and self.bytes + made.bytes <= self.most:
                self.kept[key] = made
                self.bytes += made.bytes

    def take(self, path: Path, size: tuple[int, int]) -> Sheet:
        """The sheet of a photo, which is not kept any longer; decoded now if it was not kept."""
        with self.lock:
            found = self.kept.pop(_key(path, size), None)
            self.bytes -= found.bytes if found else 0
        return found or sheet(read(path, lambda _: size).picture, size)


def _key(path: Path, size: tuple[int, int]) -> tuple[object, ...]:
    status = path.stat()
    return (path.absolute(), size, status.st_mtime_ns, status.st_size, status.st_ino)


SHEETS = Sheets(KEPT)


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey pictures of 16 bits and of floats; deep colours are reduced by Pillow itself."""
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0, neginf=0).clip(0)
    whole = 65535 if picture.mode.startswith("I") else 1
    scale = 255 / max(whole, values.max() if values.max() > whole else whole)
    return Image.fromarray((values * scale).round().astype(np.uint8))


def _in_srgb(picture: Image.Image) -> Image.Image:
    """RGB or RGBA, from the colour space its profile names."""
    profile = picture.info.get("icc_profile")
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    if picture.mode not in ("RGB", "RGBA", "CMYK", "L", "LAB"):
        picture = picture.convert(mode)
    if profile:
        # A broken profile, or one for other channels, says nothing about the colours.
        with contextlib.suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                converted = ImageCms.profileToProfile(picture, source, _srgb(), outputMode=mode)
                picture = converted or picture
    return picture.convert(mode)


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def reason(error: Exception, path: Path) -> str:
    """Why a file could not be decoded, in words."""
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels; make it smaller"
    if isinstance(error, UnidentifiedImageError) and path.suffix.lower() in (".heic", ".heif"):
        return "HEIC needs a plug-in: pip install pillow-heif"
    if isinstance(error, UnidentifiedImageError):
        what = mistaken.known_file(path)
        return f"not a picture but {what}" if what else "not a picture, or damaged"
    return f"cannot be read ({next(iter(str(error).splitlines()), '') or type(error).__name__})"
