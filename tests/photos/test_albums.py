"""Photos as they come: formats, rotations, transparency, profiles, copies, damage; crops, masks and captions."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo

from dticli.draw import pictures
from dticli.errors import DtiError, InputError, UsageError
from dticli.learn import hyperparameters
from dticli.paths import ALPHA
from dticli.photos import albums, captions, decoding
from dticli.photos.albums import BACKGROUND, Album, Photo
from dticli.photos.captions import Captioning
from dticli.settings import TrainSettings, resolve
from tests.conftest import Outcome

RED, BLUE, GREEN = (220, 30, 40), (20, 40, 210), (30, 160, 60)


def settings(**given: object) -> TrainSettings:
    base = {
        "token": "<dog>",
        "init": "dog",
        "steps": 1,
        "batch_size": 1,
        "lr": 0.1,
        "kappa": 0.0,
        "resolution": 64,
    }
    return resolve(TrainSettings, base | given)


def cropping(**given: object) -> albums.Cropping:
    return hyperparameters.cropping(settings(**given), 8)


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Red at the left, blue at the right, a green stripe on top."""
    image = Image.new("RGB", (width, height), RED)
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height), BLUE)
    draw.rectangle((0, 0, width, height // 8), GREEN)
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read_one(folder: Path, name: str, data: bytes, **options: str) -> Photo:
    (folder / name).write_bytes(data)
    (photo,) = albums.read(folder / name, **options).photos
    return photo


def whole(photo: Photo) -> np.ndarray:
    """The photo as (height, width, 3) of 0 to 255, through its only crop."""
    (crop,) = albums.crops([photo], cropping(crop="none"))
    return (albums.pixels(crop).permute(1, 2, 0).numpy() + 1) * 127.5


def is_the_picture(photo: Photo, tolerance: int = 12) -> None:
    """Colours stand where they belong."""
    assert photo.size == (64, 96)
    pixels = whole(photo)
    height, width = pixels.shape[:2]
    assert width > height
    for place, colour in (((0.6, 0.2), RED), ((0.6, 0.8), BLUE), ((0.04, 0.3), GREEN)):
        found = pixels[int(place[0] * height), int(place[1] * width)]
        assert np.abs(found - colour).max() <= tolerance, (place, found)


def sixteen_bit() -> Image.Image:
    return Image.fromarray((np.linspace(0, 65535, 64 * 96).reshape(64, 96)).astype(np.uint16))


def black(mode: str) -> list[Image.Image]:
    return [Image.new(mode, (96, 64))]


READABLE: dict[str, Callable[[], tuple[str, bytes]]] = {
    "png": lambda: ("a.png", encoded(picture(), "PNG")),
    "jpeg": lambda: ("a.JPG", encoded(picture(), "JPEG", quality=95, subsampling=0)),
    "webp": lambda: ("a.webp", encoded(picture(), "WEBP", lossless=True)),
    "avif": lambda: ("a.avif", encoded(picture(), "AVIF", quality=95)),
    "bmp": lambda: ("a.bmp", encoded(picture(), "BMP")),
    "tiff": lambda: ("a.tif", encoded(picture(), "TIFF", compression="tiff_lzw")),
    "jpeg 2000": lambda: ("a.jp2", encoded(picture(), "JPEG2000")),
    "palette": lambda: ("a.gif", encoded(picture().quantize(16), "GIF")),
    "cmyk": lambda: ("a.jpg", encoded(picture().convert("CMYK"), "JPEG", quality=95, subsampling=0)),
    "opaque alpha": lambda: ("a.png", encoded(picture().convert("RGBA"), "PNG")),
    "wrong suffix": lambda: ("a.jpg", encoded(picture(), "PNG")),
    "non-Latin name": lambda: ("狗 собака ü.png", encoded(picture(), "PNG")),
    "terminal name": lambda: ("a\x1b[31m\n.png", encoded(picture(), "PNG")),
    "long name": lambda: ("a" * 250 + ".png", encoded(picture(), "PNG")),
    "animated gif": lambda: ("a.gif", encoded(picture().quantize(16), "GIF", save_all=True, append_images=black("P"))),
    "animated webp": lambda: ("a.webp", encoded(picture(), "WEBP", lossless=True, save_all=True, append_images=black("RGB"))),
    "animated png": lambda: ("a.png", encoded(picture(), "PNG", save_all=True, append_images=black("RGB"))),
    "broken profile": lambda: ("a.png", encoded(picture(), "PNG", icc_profile=b"no profile")),
    "broken exif": lambda: ("a.jpg", encoded(picture(), "JPEG", exif=b"Exif\0\0garbage", quality=95, subsampling=0)),
    "much text": lambda: ("a.png", encoded(picture(), "PNG", pnginfo=text_chunk("x" * 10_000))),
}  # fmt: skip


def text_chunk(text: str) -> PngInfo:
    info = PngInfo()
    info.add_text("comment", text, zip=True)
    return info


@pytest.mark.parametrize("case", READABLE)
def test_formats(tmp_path: Path, case: str) -> None:
    """What shows the same picture is read as the same picture."""
    photo = read_one(tmp_path, *READABLE[case]())
    is_the_picture(photo)
    assert (photo.note is not None) is case.startswith("animated")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int) -> None:
    """All eight ways to hold a camera; the stored picture is turned the other way by NumPy."""
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }[orientation](np.asarray(picture()))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    is_the_picture(read_one(tmp_path, "a.png", encoded(image, "PNG", exif=exif)))


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    """Half transparent red is half red, half white."""
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 128))
    assert whole(read_one(tmp_path, "a.png", encoded(image, "PNG")))[32, 32] == pytest.approx(
        [255, 127, 127], abs=1
    )
    palette = Image.new("P", (64, 64), 0)
    palette.putpalette([9, 9, 9])
    assert whole(read_one(tmp_path, "b.png", encoded(palette, "PNG", transparency=0)))[
        32, 32
    ] == pytest.approx([255] * 3)


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    """A ramp over 65536 greys is a ramp over 256, in PNG and TIFF; a TIFF of floats goes from 0 to 1."""
    ramp = np.linspace(0, 255, 64 * 96).reshape(64, 96)
    floats = Image.fromarray((ramp / 255).astype(np.float32))
    for name, data in (
        ("a.png", encoded(sixteen_bit(), "PNG")),
        ("a.tif", encoded(sixteen_bit(), "TIFF")),
        ("b.tif", encoded(floats, "TIFF")),
    ):
        photo = read_one(tmp_path, name, data)
        decoded = np.asarray(decoding.read(photo.path).picture)[..., 0]
        assert np.abs(decoded - ramp).max() <= 1, name


def test_colour_profiles_are_applied(tmp_path: Path) -> None:
    """A picture in another RGB, as littleCMS itself converts it; the file's numbers alone would be other colours."""
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(picture(), ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    profile = ImageCms.ImageCmsProfile(lab).tobytes()
    is_the_picture(read_one(tmp_path, "a.tif", encoded(image, "TIFF", icc_profile=profile)), tolerance=16)


# What is skipped


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flipped(data: bytes, seed: int) -> bytes:
    """Some bytes changed, after the signature."""
    generator = np.random.default_rng(seed)
    damaged = bytearray(data)
    for place in generator.integers(16, len(data), 24):
        damaged[place] = int(generator.integers(0, 256))
    return bytes(damaged)


def gif_bomb() -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x00;"


def bmp_bomb() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


UNUSABLE: dict[str, Callable[[], tuple[str, bytes, str]]] = {
    "empty": lambda: ("a.png", b"", "empty"),
    "text": lambda: ("a.png", b"not a picture", "not a picture"),
    "html": lambda: ("a.jpg", b"<!DOCTYPE html><html>", "not a picture"),
    "truncated png": lambda: ("a.png", cut(encoded(picture(), "PNG"), 0.6), ""),
    "truncated jpeg": lambda: ("a.jpg", cut(encoded(picture(), "JPEG"), 0.6), ""),
    "truncated webp": lambda: ("a.webp", cut(encoded(picture(), "WEBP"), 0.6), ""),
    "truncated avif": lambda: ("a.avif", cut(encoded(picture(), "AVIF"), 0.6), ""),
    "truncated gif": lambda: ("a.gif", cut(encoded(picture().quantize(16), "GIF"), 0.5), ""),
    "truncated tiff": lambda: ("a.tif", cut(encoded(picture(), "TIFF"), 0.6), ""),
    "signature alone": lambda: ("a.png", b"\x89PNG\r\n\x1a\n", ""),
    "jpeg start alone": lambda: ("a.jpg", b"\xff\xd8\xff", ""),
    "one pixel": lambda: ("a.png", encoded(Image.new("RGB", (1, 1)), "PNG"), "1x1 pixels"),
    "a line": lambda: ("a.png", encoded(Image.new("RGB", (30_000, 1)), "PNG"), "30000x1 pixels"),
    "bomb": lambda: ("a.png", png(30_000, 30_000), "too many pixels"),
    "largest png": lambda: ("a.png", png(2**31 - 1, 2**31 - 1), "too many pixels"),
    "no size": lambda: ("a.png", png(0, 0), ""),
    "data missing": lambda: ("a.png", png(64, 64), ""),
    "text bomb": lambda: ("a.png", encoded(picture(), "PNG", pnginfo=text_chunk("x" * 80_000_000)), "too large"),
    "gif bomb": lambda: ("a.gif", gif_bomb(), ""),
    "bmp bomb": lambda: ("a.bmp", bmp_bomb(), "too many pixels"),
    "tiff loop": lambda: ("a.tif", b"II*\0\x08\0\0\0" + b"\x00\x00" + b"\x08\0\0\0", ""),
    "tiff wild offset": lambda: ("a.tif", b"II*\0\xff\xff\xff\x7f", ""),
    "postscript": lambda: ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "not a picture"),
    "svg": lambda: ("a.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a picture"),
    "zip": lambda: ("a.png", b"PK\x03\x04" + b"\0" * 60, "not a picture"),
    "pickle": lambda: ("a.png", b"cos\nsystem\n(S'true'\ntR.", "not a picture"),
    "heic without plug-in": lambda: ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_pictures_are_skipped_with_a_reason(tmp_path: Path, case: str) -> None:
    """One bad file among good ones costs nothing but itself."""
    name, data, reason = UNUSABLE[case]()
    (tmp_path / name).write_bytes(data)
    (tmp_path / "good.png").write_bytes(encoded(picture(), "PNG"))
    album = albums.read(tmp_path)
    assert [photo.name for photo in album.photos] == ["good.png"]
    ((skipped),) = album.skipped
    assert skipped.name == name
    assert reason in skipped.reason
    assert "\n" not in skipped.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_damaged_bytes_never_crash(tmp_path: Path, kind: str) -> None:
    """Eight random damages of each format are read or skipped."""
    data = encoded(picture(), kind)
    for seed in range(8):
        (tmp_path / f"{seed}.png").write_bytes(flipped(data, seed))
    (tmp_path / "good.png").write_bytes(encoded(picture(32, 32), "PNG"))
    album = albums.read(tmp_path)
    assert len(album.photos) + len(album.skipped) == 9
    for crop in albums.crops(album.photos, cropping()):
        assert albums.pixels(crop).isfinite().all()


def test_a_large_picture_is_used(tmp_path: Path) -> None:
    """30,000 pixels along one side are only long."""
    photo = read_one(tmp_path, "a.png", encoded(Image.new("L", (30_000, 200)), "PNG"))
    assert photo.size == (200, 30_000)
    (crop,) = albums.crops([photo], cropping())
    assert albums.pixels(crop).shape == (3, 64, 64)


def test_what_else_lies_in_folders(tmp_path: Path) -> None:
    """Sub-folders are searched; hidden files, other files, pipes, dead links and loops do no harm; copies count once."""
    data = encoded(picture(), "PNG")
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "b.png").write_bytes(encoded(picture(80, 80), "PNG"))
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "copy.png").write_bytes(data)
    (tmp_path / ".hidden.png").write_bytes(data)
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "c.png").write_bytes(data)
    (tmp_path / "notes.txt").write_text("a photo of <dog>")
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    os.symlink("self.png", tmp_path / "self.png")
    os.symlink("nowhere", tmp_path / "dead.png")
    os.mkfifo(tmp_path / "pipe.png")
    album = albums.read(tmp_path)
    assert [photo.name for photo in album.photos] == ["a.png", "sub/deep/b.png"]
    reasons = {skipped.name: skipped.reason for skipped in album.skipped}
    assert reasons.keys() == {"copy.png", "self.png", "dead.png", "pipe.png"}
    assert reasons["copy.png"] == "a copy of a.png"
    assert reasons["pipe.png"] == "not a regular file"
    assert album.others == 2


def test_what_programs_put_among_photos_is_left_out(tmp_path: Path) -> None:
    """Masks in a folder of the photos' own, masks beside photos, a disk station's thumbnails, and runs with their pictures."""
    for name in (
        "a.png",
        "sub/b.png",
        "masks/a.png",
        "masks/b.png",
        "a-masklabel.png",
        "@eaDir/a.png/thumb.jpg",
        "x.run/p.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture(64 + 8 * len(name), 64), "PNG"))
    (tmp_path / "x.run" / "run.toml").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "masks")
    for mask in ("masks/a.png", "masks/sub/b.png"):
        (tmp_path / mask).parent.mkdir(exist_ok=True)
        size = decoding.read(tmp_path / mask.removeprefix("masks/")).picture.size
        (tmp_path / mask).write_bytes(encoded(Image.new("L", size, 255), "PNG"))
    (tmp_path / "masks" / "b.png").unlink()
    for masks in (tmp_path / "masks", tmp_path / "linked"):
        album = albums.read(tmp_path, str(masks))
        assert [photo.name for photo in album.photos] == ["a.png", "sub/b.png"]
        assert all(photo.mask for photo in album.photos)
    assert albums.in_folders(album.photos) == "1 of 2 photos are from sub-folders: sub"
    assert albums.in_folders(album.photos[:1]) is None


def test_what_was_drawn_is_no_photo_whatever_it_was_written_as(tmp_path: Path) -> None:
    """In every format that a photo may have: the file is known by its mark, or none is written."""
    refused = []
    for suffix in sorted(albums.SUFFIXES):
        folder = tmp_path / suffix
        folder.mkdir()
        try:
            pictures.save_image(folder / f"a{suffix}", picture(64, 64).convert("RGB"))
        except UsageError:
            refused.append(suffix)
            continue
        with pytest.raises(InputError, match="drawn by dti"):
            albums.read(folder)
    assert {".bmp", ".jp2"} <= {*refused} <= {".bmp", ".jp2", ".heic", ".heif", ".avif"}


def test_what_is_skipped_for_one_reason_is_one_line() -> None:
    """A folder full of pictures that were drawn is not a page of warnings."""
    skipped = [
        albums.Skipped(Path(f"{n}.png"), f"{n}.png", "empty" if n == 3 else "drawn by dti")
        for n in range(200)
    ]
    assert list(albums.complaints(skipped)) == [
        "skipped 0.png, 1.png, 2.png, 4.png, 5.png and 194 more: drawn by dti",
        "skipped 3.png: empty",
    ]


def test_a_photo_too_long_for_any_memory_is_skipped(tmp_path: Path) -> None:
    """Brought to the height of a crop, it would take gigabytes; a panorama is used."""
    for name, size in {
        "long": (60_000, 8),
        "tall": (8, 60_000),
        "wide": (4000, 20),
        "wider": (4001, 20),
    }.items():
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", size, RED), "PNG"))
    album = albums.read(tmp_path)
    assert [photo.name for photo in album.photos] == ["wide.png"]
    assert {each.name for each in album.skipped} == {"long.png", "tall.png", "wider.png"}
    assert all("too long and narrow" in each.reason for each in album.skipped)


def test_hundreds_of_photos_keep_their_order(tmp_path: Path) -> None:
    """Three hundred are read in the order of their names."""
    for index in range(300):
        (tmp_path / f"{index:03}.png").write_bytes(
            encoded(Image.new("RGB", (8, 8), (index % 256, index // 256, 0)), "PNG")
        )
    names = [photo.name for photo in albums.read(tmp_path).photos]
    assert names == [f"{index:03}.png" for index in range(300)]


def noise(width: int, height: int) -> Image.Image:
    """Smooth patches of colour, such as photos are made of."""
    small = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path: Path, orientation: int) -> None:
    """A reduced decoding is at most three times as large as wanted, and a whole one differs from it by 2.5 of 255 on average."""
    exif = Image.Exif()
    exif[decoding.ROTATION] = orientation
    (tmp_path / "a.jpg").write_bytes(encoded(noise(1600, 1200), "JPEG", quality=95, exif=exif))
    fit = albums.fit(cropping())
    small, large = decoding.read(tmp_path / "a.jpg", fit), decoding.read(tmp_path / "a.jpg")
    assert (
        small.size
        == large.size
        == large.picture.size[::-1]
        == ((1200, 1600) if orientation == 1 else (1600, 1200))
    )
    assert min(small.picture.size) < 2 * decoding.SPARE * 64
    size = fit(large.size)
    a, b = (np.asarray(decoding.sheet(each.picture, size).picture, float) for each in (small, large))
    assert np.square(a - b).mean() < 2.5**2


def test_a_photo_is_decoded_once_where_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking keeps it for its crops; without room it is decoded again; either way the crops have the same pixels."""
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(encoded(noise(320, 240), name[-3:].replace("jpg", "jpeg")))
    decoded: list[Path] = []
    stock = decoding.read
    monkeypatch.setattr(decoding, "read", lambda path, fit=None: decoded.append(path) or stock(path, fit))

    def cut(most: int) -> list[torch.Tensor]:
        decoded.clear()
        sheets = decoding.Sheets(most)
        monkeypatch.setattr(albums, "SHEETS", sheets)
        album = albums.read(tmp_path, fit=albums.fit(cropping()))
        found = [
            pixels for _, pixels, _ in albums.cut(albums.crops(album.photos, cropping(flip=True, crops=2)))
        ]
        assert sheets.bytes == 0
        return found

    kept, times = cut(decoding.KEPT), len(decoded)
    again, twice = cut(0), len(decoded)
    assert (times, twice, len(kept)) == (2, 4, 8)
    assert all(map(torch.equal, kept, again))


def test_progress_is_told_photo_by_photo(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.txt"):
        (tmp_path / name).write_bytes(encoded(noise(32, 48 if name == "a.png" else 64), "PNG"))
    heard: list[tuple[int, int]] = []
    album = albums.read(tmp_path, told=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 2), (2, 2)]
    assert len(album.photos) == 2


def test_threads_leave_the_filters_of_warnings_as_they_were(tmp_path: Path) -> None:
    """Pillow's warnings are silenced in several threads at once, and heard again afterwards."""
    before = list(warnings.filters)
    with decoding._unwarned:
        list(
            decoding.ahead(
                lambda _: decoding._unwarned.__enter__() or decoding._unwarned.__exit__(), range(40)
            )
        )
        warnings.warn("not heard", stacklevel=1)
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


# Crops


def test_crop_modes(tmp_path: Path) -> None:
    """The middle, somewhere, or the whole photo in a shape near its own."""
    photo = read_one(tmp_path, "a.png", encoded(picture(), "PNG"))
    (centre,) = albums.crops([photo], cropping())
    assert (centre.resized, centre.size, centre.corner) == ((64, 96), (64, 64), (0, 16))
    somewhere = albums.crops([photo], cropping(crop="random", crops=16))
    assert len({crop.corner for crop in somewhere}) > 4
    assert all(0 <= crop.corner[1] <= 32 for crop in somewhere)
    (uncut,) = albums.crops([photo], cropping(crop="none"))
    assert uncut.size == (56, 80)
    first, *others = albums.crops([photo], cropping(crops=3, flip=True))
    assert first.corner == centre.corner
    assert [crop.flipped for crop in others] == [True, False, True, False, True]
    assert len({crop.corner for crop in albums.crops([photo], cropping(crops=16))}) > 4
    with pytest.raises(DtiError, match="expected 1"):
        settings(crop="none", crops=2)


@pytest.mark.parametrize(
    "shape", [(100, 100), (300, 200), (200, 300), (30_000, 100), (100, 30_000), (1080, 1920)]
)
@pytest.mark.parametrize("side", [64, 512, 1024])
def test_buckets(shape: tuple[int, int], side: int) -> None:
    """Sides are multiples of what the model needs; the area is about right; the shape follows the photo's up to 4:1."""
    height, width = albums.bucket(shape, side, 8)
    assert (height % 8, width % 8) == (0, 0)
    assert height * width == pytest.approx(side**2, rel=0.3)
    wanted = min(4.0, max(0.25, shape[0] / shape[1]))
    assert height / width == pytest.approx(wanted, rel=0.3)


def test_a_mirror_image_is_the_mirrored_crop(tmp_path: Path) -> None:
    """Column for column."""
    photo = read_one(tmp_path, "a.png", encoded(picture(), "PNG"))
    plain, mirrored = albums.crops([photo], cropping(flip=True))
    assert torch.equal(albums.pixels(mirrored), albums.pixels(plain).flip(-1))


# Masks


def masked(folder: Path, mask: Image.Image) -> Album:
    (folder / "photos").mkdir()
    (folder / "masks").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    (folder / "masks" / "a.png").write_bytes(encoded(mask, "PNG"))
    return albums.read(folder / "photos", masks=str(folder / "masks"))


def test_a_mask_weights_the_subject(tmp_path: Path) -> None:
    """White counts fully, black a little; the mask is cropped and mirrored like its photo."""
    mask = Image.new("L", (96, 64), 0)
    ImageDraw.Draw(mask).rectangle((0, 0, 47, 64), 255)
    album = masked(tmp_path, mask)
    plain, mirrored = albums.crops(album.photos, cropping(flip=True))
    weights = albums.weights(plain)
    assert weights is not None
    assert weights[:, 0].tolist() == pytest.approx([1] * 64)
    assert weights[:, -1].tolist() == pytest.approx([BACKGROUND] * 64)
    assert torch.equal(albums.weights(mirrored), weights.flip(-1))


def test_transparency_can_be_the_mask(tmp_path: Path) -> None:
    """What is transparent is background; photos without transparency are subject all over."""
    image = picture().convert("RGBA")
    image.putalpha(Image.new("L", (96, 64), 0))
    (tmp_path / "a.png").write_bytes(encoded(image, "PNG"))
    (tmp_path / "b.png").write_bytes(encoded(picture(), "PNG"))
    album = albums.read(tmp_path, masks=ALPHA)
    clear, opaque = (albums.weights(crop) for crop in albums.crops(album.photos, cropping()))
    assert clear is not None
    assert opaque is not None
    assert clear.unique().tolist() == pytest.approx([BACKGROUND])
    assert opaque.unique().tolist() == [1]


def test_masks_that_do_not_fit_are_errors(tmp_path: Path) -> None:
    """Missing, damaged or of another shape: named, not ignored."""
    with pytest.raises(InputError, match="50x64 pixels"):
        masked(tmp_path, Image.new("L", (50, 64)))
    (tmp_path / "masks" / "a.png").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be used"):
        albums.read(tmp_path / "photos", masks=str(tmp_path / "masks"))
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(InputError, match=r"no mask for a\.jpg"):
        albums.read(tmp_path / "photos", masks=str(tmp_path / "masks"))
    with pytest.raises(InputError, match="no folder"):
        albums.read(tmp_path / "photos", masks=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="transparency"):
        albums.read(tmp_path / "photos", masks=ALPHA)


def test_another_mask_is_another_photo(tmp_path: Path) -> None:
    """A run must not go on with other masks."""
    first = masked(tmp_path, Image.new("L", (96, 64), 0)).photos[0].fingerprint
    (tmp_path / "masks" / "a.png").write_bytes(encoded(Image.new("L", (96, 64), 9), "PNG"))
    assert albums.read(tmp_path / "photos", masks=str(tmp_path / "masks")).photos[0].fingerprint != first


# Captions


@pytest.fixture
def album(tmp_path: Path) -> Album:
    for name, colour in (("a.png", RED), ("ü.png", BLUE)):
        (tmp_path / name).write_bytes(encoded(Image.new("RGB", (64, 64), colour), "PNG"))
    return albums.read(tmp_path)


BAD_SIDECARS = {
    "lacks the word": b"a photo of a dog",
    "empty": b"",
    "latin-1": "Fußball <dog>".encode("latin-1"),
    "utf-16 without a mark": "a <dog>".encode("utf-16-le"),
    "one line of two lacks the word": b"a photo of <dog>\non grass",
    "huge": b"<dog> " * 400_000,
}


@pytest.mark.parametrize("case", BAD_SIDECARS)
def test_bad_sidecars_are_problems(album: Album, tmp_path: Path, case: str) -> None:
    """Each is named; all are reported at once."""
    (tmp_path / "a.txt").write_bytes(BAD_SIDECARS[case])
    said = captions.read(album.photos, Captioning("<dog>", sidecar=True))
    assert ["a." in each for each in said.problems] == [True, False]
    assert "ü.txt" in said.problems[1]
    with pytest.raises(InputError, match=r"ü\.txt"):
        said.require_usable()


def test_captions_are_made_plain(album: Album, tmp_path: Path) -> None:
    """A byte order mark, line breaks and escape sequences are no words."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa photo\tof \x1b[31m<dog>\0\r\n\n")
    (tmp_path / "ü.txt").write_text("фото <dog> 🐕")
    said = captions.read(album.photos, Captioning("<dog>", sidecar=True))
    assert not said.problems
    assert sorted(text for texts in said.texts.values() for text in texts) == [
        "a photo of [31m<dog>",
        "фото <dog> 🐕",
    ]


BROKEN_LINES = (
    "{",
    "[]",
    "3",
    "null",
    '{"file": 3, "text": "<dog>"}',
    '{"file": "a.png"}',
    '{"file": "a.png", "text": "\\ud800 <dog>"}',
    '{"file": "a.png", "text": null}',
    "[" * 100_000,
)


@pytest.mark.parametrize("line", BROKEN_LINES, ids=lambda line: line[:40])
def test_broken_lines_of_a_captions_file_are_errors(album: Album, tmp_path: Path, line: str) -> None:
    """With the number of the line."""
    file = tmp_path / "captions.jsonl"
    file.write_text('{"file": "u\u0308.png", "text": "<dog>"}\n' + line)
    with pytest.raises(InputError, match="line 2"):
        captions.read(album.photos, Captioning("<dog>", list_file=str(file)))
    file.write_text('{"file": "u\u0308.png", "text": "<dog>"}\n{"file": "a.png", "text": "<dog> a"}')
    assert not captions.read(album.photos, Captioning("<dog>", list_file=str(file))).problems


# The report


@pytest.fixture
def check(dti: Callable[..., Outcome], tmp_path: Path) -> Iterator[Callable[..., Outcome]]:
    base = ("--token", "<dog>", "--init", "dog", "--model", "stickers", "--check")
    return lambda *options: dti("train", tmp_path, *base, *options)


def test_check_tells_everything(check: Callable[..., Outcome], album: Album, tmp_path: Path) -> None:
    """Used, skipped, cropped, lacking the word, cut off; exit code 3 where the run would be refused."""
    (tmp_path / "broken.png").write_bytes(b"no")
    (tmp_path / "wide.png").write_bytes(encoded(picture(300, 100), "PNG"))
    (tmp_path / "a.txt").write_text("<dog> " + "on grass " * 100)
    (tmp_path / "wide.txt").write_text("a photo of a dog")
    outcome = check("--captions", "sidecar")
    assert outcome.code == 3
    for part in (
        "3 photos", "wide.png: 300x100, reduced to 192x64, cropped to 64x64", "skipped broken.png: not a picture",
        "cut off: '<dog> on grass", "problem: no ü.txt", "problem: the caption of wide.png lacks <dog>",
    ):  # fmt: skip
        assert part in outcome.out, outcome.out
    report = check("--json", "--crop", "none")
    assert report.code == 0
    assert [photo["window"] for photo in report.json["photos"]] == [[64, 64], [40, 112], [64, 64]]


def test_a_masked_run_of_whole_photos_learns(dti: Callable[..., Outcome], tmp_path: Path) -> None:
    """Photos of several shapes in one batch, with transparency for masks, train a word; the loss is the weighted mean."""
    for index, size in enumerate(((96, 64), (64, 96), (64, 64))):
        image = picture(*size).convert("RGBA")
        image.putalpha(Image.new("L", size, 100 * index))
        (tmp_path / f"{index}.png").write_bytes(encoded(image, "PNG"))
    base = (
        "--token",
        "<dog>",
        "--init",
        "dog",
        "--model",
        "stickers",
        "--steps",
        2,
        "--batch-size",
        3,
        "--quiet",
    )
    out = ("--out", tmp_path / "dog.safetensors")
    assert dti("train", tmp_path, *base, *out, "--masks", "alpha", "--crop", "none").code == 0


def test_a_mirrored_crop_says_where_it_lies_on_the_mirrored_photo(tmp_path: Path) -> None:
    """SDXL and HunyuanDiT are told the corner: cut there out of the mirrored photo, the crop is the same picture."""
    image = picture(90, 64)
    (tmp_path / "a.png").write_bytes(encoded(image, "PNG"))
    crops = albums.crops(albums.read(tmp_path).photos, cropping(resolution=32, crops=4, flip=True))
    assert {crop.flipped for crop in crops} == {True, False}
    assert any(crop.shown_corner != crop.corner for crop in crops)
    for crop in crops:
        height, width = crop.resized
        shown = albums.whole(crop.photo).resize((width, height), Image.Resampling.LANCZOS)
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.flipped else shown
        top, left = crop.shown_corner
        window = np.asarray(shown)[top : top + 32, left : left + 32]
        assert np.array_equal(window, ((albums.pixels(crop).permute(1, 2, 0) + 1) * 127.5).round().numpy())
