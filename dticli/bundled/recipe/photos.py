"""Step `photos`: draw the example photos, five scenes of each subject, in its look or by an artist the model never sees."""

import io
import json
from dataclasses import replace
from pathlib import Path
from random import Random

from PIL import Image

from dticli.bundled import _HERE, Subject, photos, subjects
from dticli.bundled.world import grammar, words
from dticli.bundled.world.scenes import Background, Scene, Thing

from . import art, cache, drawing

SIDE = 128
UNSEEN = "noto"
PLACES = tuple(words.PLACES)
CAPTIONS = 12
"""Most captions of a photo."""


def make() -> None:
    """Draw every subject's photos, and write them into the package."""
    icons = art.load()
    for subject in subjects():
        folder = _HERE / "photos" / subject.name
        folder.mkdir(parents=True, exist_ok=True)
        for number, (picture, _) in enumerate(_five(subject, icons), start=1):
            cache.write_bytes(folder / f"{number}.png", _png(picture))


def lay_masks(subject: Subject, icons: art.Art, folder: Path) -> Path:
    """Write masks for `dti train --masks`, 255 on the subject, with the names of the photos; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo, (_, mask) in zip(photos(subject.name), _five(subject, icons), strict=True):
        cache.write_bytes(folder / photo.name, _png(mask))
    return folder


def lay_captions(subject: Subject, file: Path) -> Path:
    """Write captions for `dti train --captions-file` that describe the surroundings of the subject; returns the file."""
    random = Random(f"captions {subject.name}")
    lines = []
    for photo, scene in zip(
        photos(subject.name), _scenes(subject, Random(f"photos {subject.name}")), strict=True
    ):
        spoken = replace(scene, things=(Thing("{}"),))
        said = sorted({grammar.caption(spoken, random) for _ in range(CAPTIONS)})
        lines += [json.dumps({"file": photo.name, "text": text}) for text in said]
    cache.write_bytes(file, "\n".join([*lines, ""]).encode())
    return file


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _five(subject: Subject, icons: art.Art) -> list[tuple[Image.Image, Image.Image]]:
    """The photos of a subject and their masks."""
    random = Random(f"photos {subject.name}")
    return [drawing.masked(scene, icons, random, SIDE) for scene in _scenes(subject, random)]


def _scenes(subject: Subject, random: Random) -> list[Scene]:
    """Scenes of a subject: three places, a plain and a patterned background, two of them at a side."""
    index = [each.name for each in subjects()].index(subject.name)
    places = [Background(place=PLACES[(3 * index + step) % len(PLACES)]) for step in (0, 4, 7)]
    plain, first, second = random.sample(sorted(words.COLOURS), 3)
    pattern = words.PATTERNS[index % len(words.PATTERNS)]
    backgrounds = [
        places[0], Background(colours=(plain,)), places[1],
        Background(pattern=pattern, colours=(first, second)), places[2],
    ]  # fmt: skip
    sides = ["", "left", "", "right", ""]
    thing = Thing(subject.class_word, subject.look, hand=UNSEEN)
    return [Scene((thing,), behind, side=side) for behind, side in zip(backgrounds, sides, strict=True)]
