"""Pictures on disk: names that sort, settings as text inside, grids, strips and animations; written whole or not at all."""

import importlib.util
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from dticli import atomic
from dticli.draw.sampler import Picture, Shot
from dticli.errors import EnvironmentProblem, InputError, UsageError
from dticli.paths import MARK

GAP = 2
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
"""That name one picture rather than a folder of them."""
MARKED = frozenset({"PNG", "GIF", "JPEG", "WEBP", "AVIF", "TIFF"})
"""Formats that keep the name of a program. What is drawn is written in no other: it could be taken for a photo."""


_NUMBERED = re.compile(r"(\d{4,9})-.*\.png$")


def file_name(index: int, shot: Shot) -> str:
    """A name that sorts in the order of drawing and says what it shows."""
    words = re.sub(r"[^a-z0-9]+", "-", shot.prompt.lower()).strip("-")[:48].strip("-")
    return f"{index:04d}-{words or 'picture'}-{shot.seed}.png"


def next_number(folder: Path) -> int:
    """The number after the highest that a picture in a folder has; 0 where there is none."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return 0
    return max((int(match[1]) + 1 for name in names if (match := _NUMBERED.match(name))), default=0)


def save(path: Path, picture: Picture, description: Mapping[str, str]) -> None:
    """Write a picture as PNG with prompt, seed and `description` as text."""
    save_image(
        path, picture.image, {"prompt": picture.shot.prompt, "seed": str(picture.shot.seed), **description}
    )


def require_image(path: Path) -> str:
    """The format an image file's suffix names.

    Raises:
        UsageError: none that can be written, or that keeps who drew it.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in MARKED or kind not in Image.SAVE:
        raise UsageError(
            f"cannot write {path.name}: expected a name that ends in .png, .jpg or .webp; rename it"
        )
    return str(kind)


def require_animation(path: Path) -> None:
    """Check that frames can be written to a file of this name.

    Raises:
        EnvironmentProblem: MP4 without imageio-ffmpeg.
        UsageError: a suffix of no image, animation or video.
    """
    if path.suffix.lower() != ".mp4":
        require_image(path)
        return
    missing = [name for name in ("imageio", "imageio_ffmpeg") if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            "MP4 needs imageio-ffmpeg, which is not installed: pip install 'dticli[video]', or write .gif"
        )


def save_image(path: Path, image: Image.Image, said: Mapping[str, str] | None = None, **options: Any) -> None:
    """Write an image in the format its suffix names, with the mark that it was drawn.

    Args:
        said: what a PNG says about itself besides.
    """
    kind = require_image(path)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **_marked(image, kind, said or {}), **options)
    atomic.make_folder(path.parent)
    atomic.write_bytes(path, buffer.getvalue())


def _marked(image: Image.Image, kind: str, said: Mapping[str, str]) -> dict[str, Any]:
    """Options of Pillow's that write `MARK`, so that the picture is never a photo."""
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


def read(path: Path) -> Image.Image:
    """A picture of ours in RGB.

    Raises:
        InputError: it is damaged.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): expected a picture; delete it and try again"
        ) from None


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """All images, `columns` a row, on white."""
    return sheet([images[start : start + columns] for start in range(0, len(images), columns)])


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of images on white, shorter rows in the middle."""
    width = max(image.width for row in rows for image in row) + GAP
    height = max(image.height for row in rows for image in row) + GAP
    columns = max(map(len, rows))
    page = Image.new("RGB", (columns * width - GAP, len(rows) * height - GAP), "white")
    for index, row in enumerate(rows):
        left = (columns - len(row)) * width // 2
        for column, image in enumerate(row):
            page.paste(image, (left + column * width, index * height))
    return page


def save_animation(path: Path, frames: Sequence[Image.Image], seconds: float) -> None:
    """Write frames as GIF, WebP or MP4, or, as PNG or JPEG, side by side.

    Raises:
        EnvironmentProblem, UsageError: as `require_animation`.
    """
    require_animation(path)
    match path.suffix.lower():
        case ".gif" | ".webp":
            duration = round(1000 * seconds / len(frames))
            save_image(path, frames[0], save_all=True, append_images=frames[1:], duration=duration, loop=0)
        case ".mp4":
            _save_video(path, frames, len(frames) / seconds)
        case _:
            save_image(path, grid(frames, columns=len(frames)))


def _save_video(path: Path, frames: Sequence[Image.Image], rate: float) -> None:
    import imageio.v3 as imageio
    import numpy as np

    atomic.make_folder(path.parent)
    with atomic.staged(path) as staged:
        imageio.imwrite(
            staged,
            np.stack([np.asarray(frame) for frame in frames]),
            extension=".mp4",
            fps=rate,
            codec="libx264",
        )
