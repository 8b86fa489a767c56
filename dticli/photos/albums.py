"""From a folder or a picture to checked photos: which are used, which are skipped and why, their crops and masks."""

import hashlib
import itertools
import math
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

from dticli import paths, randomness
from dticli.errors import InputError, is_out_of_memory
from dticli.photos import decoding
from dticli.photos.decoding import SHEETS, Fit
from dticli.randomness import Key

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2"}
    | {".avif", ".heic", ".heif"}
)
MASK_ENDING = "-masklabel"
"""Of masks that OneTrainer keeps beside photos."""
MIN_SIDE = 8
"""Smallest side of a photo in pixels."""
MOST_OBLONG = 200
"""Largest aspect ratio of a photo: scaled to the height of a crop, a longer one would take all memory."""
MAX_SHAPE = 4.0
"""Longer than this, even whole photos are cropped."""
BACKGROUND = 0.1
"""Weight of the loss outside the mask; with 0, what the word draws there would be undefined."""


@dataclass(frozen=True)
class Photo:
    """A readable picture.

    Attributes:
        name: path inside the folder of photos, with slashes.
        size: (height, width) in pixels, after EXIF rotation.
        fingerprint: of the content of the file and of its mask.
        transparent: whether it has an alpha channel.
        mask: picture with bright parts on the subject; the photo's own path if its alpha channel is the mask.
        note: what was done to make it usable.
    """

    path: Path
    name: str
    size: tuple[int, int]
    fingerprint: str
    transparent: bool = False
    mask: Path | None = None
    note: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    name: str
    reason: str


@dataclass(frozen=True)
class Album:
    """What was found: photos in the order of their names, what was left out, and how many other files there are."""

    photos: tuple[Photo, ...]
    skipped: tuple[Skipped, ...]
    others: int = 0


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

    @property
    def shown_corner(self) -> tuple[int, int]:
        """(top, left) of the window on the photo as the crop shows it: on the mirrored photo if it is flipped."""
        top, left = self.corner
        return (top, self.resized[1] - left - self.size[1]) if self.flipped else self.corner


Told = Callable[[int, int], None]
"""Called with progress: number done, total number."""


# Finding


def read(
    source: Path, masks: str | None = None, fit: Fit | None = None, told: Told = lambda done, total: None
) -> Album:
    """Check every picture under `source`, a folder (with sub-folders) or a single picture.

    Args:
        masks: None, `alpha`, or a folder with a mask of the same name for each photo.
        fit: the size that photos will be scaled to, so that they need not be decoded again; None if they will not be scaled.
        told: called with the number of checked pictures after each one.

    Raises:
        InputError: nothing is there, no picture can be used, or a mask is missing; says why.
    """
    try:
        os.stat(source)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"no folder {source} ({reason}): expected a folder of photos; check path and permissions"
        ) from None
    decoding.register_plugins()
    found = _FoundPhotos(source, without=masks)
    pictures = found.pictures()
    checked = []
    for item in decoding.ahead(lambda path: _check(path, found.name(path), fit), pictures):
        checked.append(item)
        told(len(checked), len(pictures))
    items = [*found.unreadable, *_without_copies(checked)]
    photos = tuple(item for item in items if isinstance(item, Photo))
    skipped = tuple(item for item in items if isinstance(item, Skipped))
    if not photos and not skipped:
        raise InputError(
            f"no photos in {source}: expected .jpg, .png or .webp; pass the folder that holds them"
        )
    if not photos:
        first = skipped[0]
        raise InputError(
            f"none of {len(skipped)} pictures in {source} can be read ({first.name}: {first.reason}): "
            "expected intact .jpg, .png or .webp files; export them again"
        )
    return Album(_with_masks(photos, masks) if masks else photos, skipped, found.others)


class _FoundPhotos:
    """The files under a folder; links to folders are not followed, so that loops end.

    What programs put among photos is left out: thumbnails, masks, and runs of dti.
    """

    def __init__(self, source: Path, without: str | None = None) -> None:
        self.source = source
        self.without = os.path.realpath(without) if without and without != paths.ALPHA else None
        self.unreadable: list[Skipped] = []
        self.others = 0

    def pictures(self) -> list[Path]:
        """Pictures by suffix, in all sub-folders, in the order of their names; hidden files are none."""
        if os.path.isfile(self.source):
            return [self.source]
        return sorted(self._walk(), key=self.name)

    def name(self, path: Path) -> str:
        """The path inside the folder."""
        return path.name if path == self.source else path.relative_to(self.source).as_posix()

    def _walk(self) -> Iterator[Path]:
        for root, folders, names in os.walk(self.source, onerror=self._refused):
            folders[:] = [name for name in folders if not self._is_foreign(Path(root, name))]
            for name in names:
                if name.startswith("."):
                    continue
                if Path(name).suffix.lower() in SUFFIXES and not Path(name).stem.endswith(MASK_ENDING):
                    yield Path(root, name)
                else:
                    self.others += 1

    def _is_foreign(self, folder: Path) -> bool:
        run = folder.suffix == paths.RUN and os.path.isfile(folder / "run.toml")
        return folder.name.startswith((".", "@")) or run or os.path.realpath(folder) == self.without

    def _refused(self, error: OSError) -> None:
        path = Path(error.filename)
        self.unreadable.append(Skipped(path, self.name(path), f"cannot be opened ({error.strerror})"))


def _without_copies(items: Sequence[Photo | Skipped]) -> Iterator[Photo | Skipped]:
    """A second copy would count twice in every epoch."""
    seen: dict[str, str] = {}
    for item in items:
        if isinstance(item, Photo):
            original = seen.setdefault(item.fingerprint, item.name)
            if original != item.name:
                yield Skipped(item.path, item.name, f"a copy of {original}")
                continue
        yield item


# Checking


def _check(path: Path, name: str, fit: Fit | None = None) -> Photo | Skipped:
    """Decode the picture, because only that detects truncated files; keep it scaled, if there is room."""
    problem = _unusable(path)
    if problem:
        return Skipped(path, name, problem)
    try:
        wanted = None if SHEETS.full else fit
        opened = decoding.read(path, wanted or _as_small_as_can_be)
        fingerprint = _fingerprint(path)
        height, width = opened.size
        if min(width, height) < MIN_SIDE:
            return Skipped(path, name, f"only {width}x{height} pixels")
        if max(width, height) > MOST_OBLONG * min(width, height):
            return Skipped(path, name, f"{width}x{height} pixels are too long and narrow; crop it")
        if opened.drawn:
            return Skipped(path, name, paths.MARK)
        if wanted:
            SHEETS.put(path, size := wanted(opened.size), decoding.sheet(opened.picture, size))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Damaged and hostile pictures raise whatever their bytes lead the decoders to.
        return Skipped(path, name, decoding.reason(error, path))
    note = f"the first of {opened.frames} frames" if opened.frames > 1 else None
    return Photo(path, name, opened.size, fingerprint, opened.picture.mode == "RGBA", note=note)


def _as_small_as_can_be(size: tuple[int, int]) -> tuple[int, int]:
    return (1, 1)


def _unusable(path: Path) -> str | None:
    """What is wrong with a file before it is opened: opening a pipe would wait for ever."""
    try:
        status = path.stat()
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return None if status.st_size else "empty"


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Masks


def _with_masks(photos: Sequence[Photo], masks: str) -> tuple[Photo, ...]:
    if masks == paths.ALPHA:
        if not any(photo.transparent for photo in photos):
            raise InputError("no photo has transparency, which --masks alpha needs: use --masks FOLDER")
        return tuple(replace(p, mask=p.path, fingerprint=f"{p.fingerprint} alpha") for p in photos)
    folder = Path(masks)
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder}: expected a mask for each photo; check --masks")
    by_stem = {_stem(found): path for found, path in _named(folder)}
    missing = [photo.name for photo in photos if _stem(photo.name) not in by_stem]
    if missing:
        raise InputError(
            f"no mask for {listed(missing)} in {folder}: expected a picture of the same name; add it, or leave out the photo"
        )
    return tuple(_with_mask(photo, by_stem[_stem(photo.name)]) for photo in photos)


def _named(folder: Path) -> list[tuple[str, Path]]:
    found = _FoundPhotos(folder)
    return [(found.name(path), path) for path in found.pictures()]


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", name.rpartition(".")[0])


def _with_mask(photo: Photo, path: Path) -> Photo:
    mask = _check(path, path.name)
    if isinstance(mask, Skipped):
        raise InputError(f"the mask {path} cannot be used: {mask.reason}; save it again")
    (height, width), (mask_height, mask_width) = photo.size, mask.size
    if abs(math.log(height / width * mask_width / mask_height)) > 0.02:
        raise InputError(
            f"the mask {path} has {mask_width}x{mask_height} pixels: expected the shape of {photo.name}, {width}x{height}"
        )
    return replace(photo, mask=path, fingerprint=f"{photo.fingerprint} {mask.fingerprint}")


def in_folders(photos: Sequence[Photo]) -> str | None:
    """How many photos come from sub-folders, and from which; None where none does."""
    folders = [photo.name.rpartition("/")[0] for photo in photos if "/" in photo.name]
    if not folders:
        return None
    return (
        f"{len(folders)} of {len(photos)} photos are from sub-folders: {listed(list(dict.fromkeys(folders)))}"
    )


def complaints(skipped: Sequence[Skipped]) -> Iterator[str]:
    """What is not used, and why; a line for each reason."""
    names: dict[str, list[str]] = {}
    for each in skipped:
        names.setdefault(each.reason, []).append(each.name)
    for reason, those in names.items():
        yield f"skipped {listed(those)}: {reason}"


def listed(names: Sequence[str], most: int = 5, mark: str = ", ") -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return mark.join(names[:most]) + more


# Cropping


@dataclass(frozen=True)
class Cropping:
    """Which windows of photos are learned from.

    Attributes:
        side: of the square windows, in pixels.
        place: where they lie: `center`, `random`, or `none` for whole photos, in the nearest of a few shapes.
        count: of each photo; from the second on at random.
        mirrored: whether each is followed by its mirror image.
        multiple: sides of whole photos are multiples of this many pixels.
        seed: of the places drawn.
    """

    side: int
    place: Literal["center", "random", "none"]
    count: int
    mirrored: bool
    multiple: int
    seed: int


def crops(photos: Sequence[Photo], cropping: Cropping) -> list[Crop]:
    """Every window that is asked for, photo by photo, each followed by its mirror image if they are wanted."""
    return [
        Crop(photo, resized, corner, size, flipped)
        for photo in photos
        for resized, corner, size in _windows(photo, cropping)
        for flipped in ((False, True) if cropping.mirrored else (False,))
    ]


def _windows(
    photo: Photo, cropping: Cropping
) -> Iterator[tuple[tuple[int, int], tuple[int, int], tuple[int, int]]]:
    """Resized size, corner and size of each window; the photo's tighter side fits exactly."""
    size, resized = _window_size(photo.size, cropping), fit(cropping)(photo.size)
    room = (resized[0] - size[0], resized[1] - size[1])
    for index in range(cropping.count):
        centred = index == 0 and cropping.place != "random"
        corner = (room[0] // 2, room[1] // 2) if centred else _corner(photo, room, index, cropping.seed)
        yield resized, corner, size


def fit(cropping: Cropping) -> Fit:
    """From the size of a photo to what it is scaled to, of which all its crops are windows; its tighter side fits exactly."""

    def resized(whole: tuple[int, int]) -> tuple[int, int]:
        size = _window_size(whole, cropping)
        scale = max(size[0] / whole[0], size[1] / whole[1])
        return max(size[0], round(whole[0] * scale)), max(size[1], round(whole[1] * scale))

    return resized


def _window_size(whole: tuple[int, int], cropping: Cropping) -> tuple[int, int]:
    side = cropping.side
    return bucket(whole, side, cropping.multiple) if cropping.place == "none" else (side, side)


def _corner(photo: Photo, room: tuple[int, int], index: int, seed: int) -> tuple[int, int]:
    """A uniformly random corner; it depends on the photo's name, so other photos in the folder do not change it."""
    top, left = (
        randomness.integer(Key(seed, purpose, photo.name, sample=index), most + 1)
        for purpose, most in zip(("crop top", "crop left"), room, strict=True)
    )
    return top, left


def bucket(size: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """The (height, width) of about side x side pixels that is nearest in shape, on a grid of about side / 16."""
    grid = multiple * max(1, round(side / 16 / multiple))
    shape = min(MAX_SHAPE, max(1 / MAX_SHAPE, size[0] / size[1]))
    height, width = side * math.sqrt(shape), side / math.sqrt(shape)
    return max(grid, round(height / grid) * grid), max(grid, round(width / grid) * grid)


def cut(crops: Sequence[Crop]) -> "Iterator[tuple[Crop, Tensor, Tensor | None]]":
    """Each crop with its `pixels` and `weights`, in order; photos are decoded ahead of their use.

    Raises:
        InputError: a photo or mask is no longer readable.
    """
    groups = [list(group) for _, group in itertools.groupby(crops, lambda crop: (crop.photo, crop.resized))]
    sheets = decoding.ahead(_sheet, [group[0] for group in groups])
    for group, (picture, mask) in zip(groups, sheets, strict=True):
        for crop in group:
            yield crop, _pixels(picture, crop), None if mask is None else _weights(mask, crop)


def pixels(crop: Crop) -> "Tensor":
    """The crop as (3, height, width) float32 in [-1, 1]; transparency lies on white."""
    return _pixels(_sheet(crop)[0], crop)


def weights(crop: Crop) -> "Tensor | None":
    """How much each pixel of the crop counts, (height, width) float32 from `BACKGROUND` to 1; None without a mask."""
    _, mask = _sheet(crop)
    return None if mask is None else _weights(mask, crop)


def whole(photo: Photo) -> Image.Image:
    """The photo in RGB; what is transparent, or hidden by its mask, is white."""
    with _explained(photo):
        picture = decoding.read(photo.path).picture
        if photo.mask is None or photo.mask == photo.path:
            return decoding.on_white(picture)
        mask = decoding.read(photo.mask).picture.convert("L")
    return Image.composite(
        picture.convert("RGB"), Image.new("RGB", picture.size, "white"), mask.resize(picture.size)
    )


def _pixels(picture: Image.Image, crop: Crop) -> "Tensor":
    import torch

    values = np.asarray(_window(picture, crop), dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


def _weights(mask: Image.Image, crop: Crop) -> "Tensor":
    import torch

    values = np.asarray(_window(mask, crop), dtype=np.float32) / 255
    return torch.from_numpy(BACKGROUND + (1 - BACKGROUND) * values)


def _window(picture: Image.Image, crop: Crop) -> Image.Image:
    top, left = crop.corner
    picture = picture.crop((left, top, left + crop.size[1], top + crop.size[0]))
    return ImageOps.mirror(picture) if crop.flipped else picture


def _sheet(crop: Crop) -> tuple[Image.Image, Image.Image | None]:
    """The crop's photo scaled, and the mask that goes with it, white on the subject; None without a mask."""
    photo, size = crop.photo, crop.resized
    with _explained(photo):
        sheet = SHEETS.take(photo.path, size)
        if photo.mask is None:
            return sheet.picture, None
        if photo.mask == photo.path:
            return sheet.picture, sheet.alpha or Image.new("L", sheet.picture.size, 255)
        mask = decoding.read(photo.mask, lambda _: size).picture.convert("L")
        return sheet.picture, decoding.scaled(mask, size)


@contextmanager
def _explained(photo: Photo) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise InputError(
            f"{photo.path} can no longer be read ({decoding.reason(error, photo.path)}): keep the photos in place until "
            f"training has started"
        ) from None
