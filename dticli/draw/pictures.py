"""Picture files: sortable names, embedded settings, grids, sheets and animations; files are written atomically."""

import importlib.util
import io
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from dticli import atomic
from dticli.draw.sampler import Picture, Shot
from dticli.errors import EnvironmentProblem, InputError, UsageError
from dticli.paths import MARK
from dticli.photos.decoding import DAMAGED

GAP = 2
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
"""Suffixes of a path that names one picture and not a folder."""
MARKED = frozenset({"PNG", "GIF", "JPEG", "WEBP", "AVIF", "TIFF"})
"""Formats that can store the name of a program. Others are not written, because drawn pictures could be taken for photos."""
LARGEST = {"WEBP": 16_383, "JPEG": 65_500, "GIF": 65_535, "AVIF": 32_768, "MP4": 16_384}
"""Largest side in pixels by format: of its writers and, for AVIF, of its readers."""
QUICKEST = {".gif": 50, ".webp": 50, ".mp4": 120}
"""Highest frame rates, in frames per second; browsers show faster GIF and WebP files at ten."""
LOG = logging.getLogger(__name__)


_NUMBERED = re.compile(r"(\d{4,9})-.*\.png$")


def file_name(index: int, shot: Shot) -> str:
    """A file name that sorts by index, with the words of the prompt and the seed."""
    words = re.sub(r"[^a-z0-9]+", "-", shot.prompt.lower()).strip("-")[:48].strip("-")
    return f"{index:04d}-{words or 'picture'}-{shot.seed}.png"


def next_number(folder: Path) -> int:
    """One more than the highest number of a picture in a folder; 0 if there is none."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return 0
    return max((int(match[1]) + 1 for name in names if (match := _NUMBERED.match(name))), default=0)


def save(path: Path, picture: Picture, description: Mapping[str, str], *, force: bool = True) -> Path:
    """Write a picture as PNG with prompt, seed and `description` as text chunks; see `save_image`."""
    said = {"prompt": picture.shot.prompt, "seed": str(picture.shot.seed), **description}
    return save_image(path, picture.image, said, force=force)


def require_image(path: Path) -> str:
    """The format that the suffix of an image file names, such as "PNG".

    Raises:
        UsageError: the format is unknown, cannot be written, or is not in `MARKED`.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in MARKED or kind not in Image.SAVE:
        raise UsageError(
            f"cannot write {path.name}: expected a name that ends in .png, .jpg or .webp; rename it"
        )
    return str(kind)


def require_animation(path: Path, frames: int, seconds: float) -> None:
    """Check that an animation of this many frames and seconds can be written to a file of this name.

    Raises:
        EnvironmentProblem: for MP4, imageio-ffmpeg or ffmpeg is missing.
        UsageError: the suffix is not that of an image, animation or video, or the frame rate is too high for the format.
    """
    suffix = path.suffix.lower()
    if suffix != ".mp4":
        require_image(path)
    else:
        _require_video()
    most = QUICKEST.get(suffix)
    if most and frames > most * seconds:
        raise UsageError(
            f"{frames} frames in {seconds:g} seconds: expected at most {most} a second in {path.name}; "
            f"give --seconds {math.ceil(frames / most)}, or fewer --frames"
        )


def _require_video() -> None:
    missing = [name for name in ("imageio", "imageio_ffmpeg") if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            "MP4 needs imageio-ffmpeg, which is not installed: pip install 'dticli[video]', or write .gif"
        )
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise EnvironmentProblem(f"MP4 needs ffmpeg ({error}): install it, or write .gif") from None
    if not shutil.which(program):
        raise EnvironmentProblem(
            f"MP4 needs ffmpeg, and {program} is none: correct IMAGEIO_FFMPEG_EXE, or write .gif"
        )


def save_image(
    path: Path,
    image: Image.Image,
    said: Mapping[str, str] | None = None,
    *,
    force: bool = True,
    **options: Any,
) -> Path:
    """Write an image in the format of its suffix, with `MARK` in its metadata; reduced if it is too large for the format.

    Args:
        said: further text chunks of a PNG; other formats do not store them.
        force: replace an existing file; otherwise another name is chosen, as `atomic.claimed` does.
        options: of Pillow's writer.

    Returns:
        the file.

    Raises:
        UsageError: as `require_image`.
    """
    kind = require_image(path)
    (image,) = _within(LARGEST.get(kind), [image], path)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **_marked(image, kind, said or {}), **options)
    with _place(path, force=force) as file:
        atomic.write_bytes(file, buffer.getvalue())
    return file


def _place(path: Path, *, force: bool) -> AbstractContextManager[Path]:
    """The path to write to; makes its folder."""
    atomic.make_folder(path.parent)
    return nullcontext(path) if force else atomic.claimed(path)


def _marked(image: Image.Image, kind: str, said: Mapping[str, str]) -> dict[str, Any]:
    """Options of Pillow's writer that store `MARK`, so that the picture is never read as a photo."""
    match kind:
        case "PNG":
            text = PngInfo()
            for name, value in {"Software": MARK, **said}.items():
                text.add_itxt(name, value)
            return {"pnginfo": text}
        case "GIF":
            return {"comment": MARK.encode()}
        case _:
            exif = image.getexif()
            exif[ExifTags.Base.Software] = MARK
            return {"exif": exif}


def _within(most: int | None, images: Sequence[Image.Image], path: Path) -> list[Image.Image]:
    """Images of one size, reduced if a side is larger than `most` pixels, because pictures must not be lost to their format."""
    size = images[0].size
    if most is None or max(size) <= most:
        return list(images)
    width, height = (max(1, side * most // max(size)) for side in size)
    LOG.warning(
        f"{size[0]}x{size[1]} pixels are more than {path.name} can hold: reduced to {width}x{height}; "
        "a .png holds them all"
    )
    return [image.resize((width, height), Image.Resampling.LANCZOS) for image in images]


def read(path: Path) -> Image.Image:
    """Read a picture that was drawn, in RGB.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except DAMAGED as error:
        raise InputError(
            f"{path} cannot be read ({error}): expected a picture; delete it and try again"
        ) from None


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """All images on white, `columns` per row."""
    return sheet([images[start : start + columns] for start in range(0, len(images), columns)])


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of images on white, shorter rows centred."""
    width = max(image.width for row in rows for image in row) + GAP
    height = max(image.height for row in rows for image in row) + GAP
    columns = max(map(len, rows))
    page = Image.new("RGB", (columns * width - GAP, len(rows) * height - GAP), "white")
    for index, row in enumerate(rows):
        left = (columns - len(row)) * width // 2
        for column, image in enumerate(row):
            page.paste(image, (left + column * width, index * height))
    return page


def save_animation(path: Path, frames: Sequence[Image.Image], seconds: float, *, force: bool = True) -> Path:
    """Write frames as GIF, WebP or MP4; other formats get them side by side. `force` and the return value as in `save_image`.

    Raises:
        EnvironmentProblem, UsageError: as `require_animation`.
    """
    require_animation(path, len(frames), seconds)
    match path.suffix.lower():
        case ".gif" | ".webp":
            first, *others = _within(LARGEST[require_image(path)], frames, path)
            # GIF stores hundredths of a second: rounding the ends of frames, not their durations, does not add up errors.
            ends = [round(100 * seconds * index / len(frames)) for index in range(len(frames) + 1)]
            durations = [10 * (end - start) for start, end in pairwise(ends)]
            moving: dict[str, Any] = {
                "save_all": True,
                "append_images": others,
                "duration": durations,
                "loop": 0,
            }
            return save_image(path, first, force=force, **moving)
        case ".mp4":
            images = _within(LARGEST["MP4"], frames, path)
            with _place(path, force=force) as file:
                _save_video(file, images, len(frames) / seconds)
            return file
        case _:
            return save_image(path, grid(frames, columns=len(frames)), force=force)


def _save_video(path: Path, frames: Sequence[Image.Image], rate: float) -> None:
    """Write an MP4. Odd sides are padded by one white pixel, because the codec stores colours for two pixels at a time."""
    import imageio.v3 as imageio
    import numpy as np

    even = [ImageOps.expand(frame, (0, 0, frame.width % 2, frame.height % 2), "white") for frame in frames]
    with atomic.staged(path) as staged:
        try:
            imageio.imwrite(
                staged,
                np.stack([np.asarray(frame) for frame in even]),
                plugin="FFMPEG",
                extension=".mp4",
                fps=rate,
                codec="libx264",
                macro_block_size=2,
            )
        except OSError as error:
            raise _no_video(path, error) from None
        if not os.path.isfile(staged):
            raise _no_video(path)


def _no_video(path: Path, error: OSError | None = None) -> EnvironmentProblem:
    said = next(iter(str(error or "").splitlines()), "") or "it wrote nothing"
    return EnvironmentProblem(f"cannot write {path}: ffmpeg failed ({said}); free some space, or write .gif")
