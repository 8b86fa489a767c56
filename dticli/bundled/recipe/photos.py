"""Step `photos`: the example photos, five scenes each of every subject, in its look or by an artist the model never sees."""

import io
from random import Random

from PIL import Image

from dticli.bundled import _HERE, Subject, subjects
from dticli.bundled.world import words
from dticli.bundled.world.scenes import Background, Scene, Thing

from . import art, cache, drawing

SIDE = 128
UNSEEN = "noto"
PLACES = tuple(words.PLACES)


def make() -> None:
    """Draw every subject's photos and put them into the package."""
    icons = art.load()
    for subject in subjects():
        folder = _HERE / "photos" / subject.name
        folder.mkdir(parents=True, exist_ok=True)
        for number, (picture, _) in enumerate(_five(subject, icons), start=1):
            cache.write_bytes(folder / f"{number}.png", _png(picture))


def masks(subject: Subject) -> list[Image.Image]:
    """Where a subject is in each of its photos: L pictures of SIDE px, 255 on it."""
    return [mask for _, mask in _five(subject, art.load())]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _five(subject: Subject, icons: art.Art) -> list[tuple[Image.Image, Image.Image]]:
    """Photos and masks: three places, one plain and one patterned background; sizes and positions vary."""
    random = Random(f"photos {subject.name}")
    index = [each.name for each in subjects()].index(subject.name)
    places = [Background(place=PLACES[(3 * index + step) % len(PLACES)]) for step in (0, 4, 7)]
    plain, first, second = random.sample(sorted(words.COLOURS), 3)
    pattern = words.PATTERNS[index % len(words.PATTERNS)]
    backgrounds = [
        places[0], Background(colours=(plain,)), places[1],
        Background(pattern=pattern, colours=(first, second)), places[2],
    ]  # fmt: skip
    sides = ["", "left", "", "right", ""]
    return [
        drawing.masked(
            Scene((Thing(subject.class_word, subject.look, hand=UNSEEN),), behind, side=side),
            icons,
            random,
            SIDE,
        )
        for behind, side in zip(backgrounds, sides, strict=True)
    ]
