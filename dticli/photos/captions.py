"""What is said about each photo while training: templates, a text file beside it, or a captions file."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dticli.errors import InputError
from dticli.photos.albums import Photo, listed
from dticli.settings import TrainSettings

OBJECT_TEMPLATES = (
    "a photo of {}",
    "a picture of {}",
    "a close-up of {}",
    "a snapshot of {}",
    "an image of {}",
    "a photograph of {}",
    "a clear photo of {}",
    "a sharp picture of {}",
    "a bright photo of {}",
    "a dim photo of {}",
    "a cropped photo of {}",
    "a wide shot of {}",
    "a detailed photo of {}",
    "a simple picture of {}",
    "a nice photo of {}",
    "a candid shot of {}",
    "a studio photo of {}",
    "a phone photo of {}",
    "a side view of {}",
    "a front view of {}",
    "the photo shows {}",
    "this is {}",
    "here is {}",
    "a view of {}",
)
STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "an image in the style of {}",
    "an artwork in the style of {}",
    "a drawing in the style of {}",
    "a scene in the style of {}",
    "a print in the style of {}",
    "a landscape in the style of {}",
    "a portrait in the style of {}",
    "a still life in the style of {}",
    "a sketch in the style of {}",
    "a rendering in the style of {}",
    "a composition in the style of {}",
    "a poster in the style of {}",
    "an illustration in the style of {}",
    "a detail in the style of {}",
)
TEMPLATES = {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}


MAX_BYTES = 2**20
"""Of a caption file; more is no caption."""


@dataclass(frozen=True)
class Captions:
    """What is said about each photo, and what is wrong with it.

    Attributes:
        texts: each photo's captions; one is drawn for every sample.
        problems: complaints about single photos, in words.
    """

    texts: Mapping[Path, tuple[str, ...]]
    problems: tuple[str, ...]

    def require_usable(self) -> None:
        """Raise InputError if there are problems; names them."""
        if self.problems:
            raise InputError(
                f"{listed(self.problems)}: expected a caption with the word for every photo; write it"
            )


def read(photos: Sequence[Photo], settings: TrainSettings) -> Captions:
    """Captions of all photos: templates, the `.txt` file beside each, or the lines of one file.

    Raises:
        InputError: the captions file is missing, or is not JSON lines.
    """
    if settings.captions_file:
        own = _from_file(Path(settings.captions_file), photos)
    elif settings.captions == "sidecar":
        own = {photo.path: _sidecar(photo) for photo in photos}
    else:
        templates = settings.templates or TEMPLATES[settings.property]
        return Captions(
            dict.fromkeys((photo.path for photo in photos), from_templates(templates, settings.token)), ()
        )
    checked = {photo: _checked(own[photo.path], photo, settings.token) for photo in photos}
    return Captions(
        {photo.path: (text,) for photo, text in checked.items() if isinstance(text, str)},
        tuple(text.reason for text in checked.values() if isinstance(text, _Problem)),
    )


def from_templates(templates: Sequence[str], word: str) -> tuple[str, ...]:
    """Every template with the word in its place."""
    return tuple(template.replace("{}", word) for template in templates)


def cut(captions: Captions, tokenizers: Sequence[Any], word: str) -> tuple[str, ...]:
    """Captions that one of the tokenizers cuts off at its limit, with what it takes and what there is.

    The word counts as one piece; a word of several vectors takes more.
    """
    found = []
    for text in dict.fromkeys(text for texts in captions.texts.values() for text in texts):
        for tokenizer in tokenizers:
            count = len(tokenizer(text.replace(word, " x ")).input_ids)
            if count > tokenizer.model_max_length:
                found.append(f"{text[:60]!r} has {count} pieces, and {tokenizer.model_max_length} are read")
                break
    return tuple(found)


@dataclass(frozen=True)
class _Problem:
    """Why a photo has no usable caption."""

    reason: str


def _checked(text: str | _Problem, photo: Photo, word: str) -> str | _Problem:
    if isinstance(text, str) and word not in text:
        return _Problem(f"the caption of {photo.name} lacks {word} ({text[:60]!r})")
    return text


def _sidecar(photo: Photo) -> str | _Problem:
    path = photo.path.with_suffix(".txt")
    try:
        return _plain(_read(path))
    except FileNotFoundError:
        return _Problem(f"no {path.name} beside {photo.name}")
    except (OSError, ValueError) as error:
        return _Problem(f"{path.name} cannot be read ({error})")


def _from_file(path: Path, photos: Sequence[Photo]) -> dict[Path, str | _Problem]:
    """Captions from JSON lines `{"file": "1.png", "text": "a photo of <dog>"}` (`file_name` is accepted too)."""
    try:
        lines = _read(path, most=64 * MAX_BYTES).split("\n")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path} ({error}): expected JSON lines; check --captions-file"
        ) from None
    texts = dict(_entry(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    missing = "{} has no caption for {}"
    return {
        photo.path: texts.get(_normal(photo.name))
        or texts.get(_normal(photo.path.name))
        or _Problem(missing.format(path.name, photo.name))
        for photo in photos
    }


def _entry(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        name, text = entry.get("file") or entry["file_name"], entry["text"]
        if not (isinstance(name, str) and isinstance(text, str)):
            raise TypeError
        # What cannot be encoded is half of a character.
        text.encode()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise InputError(
            f'{path.name} line {number} is not {{"file": ..., "text": ...}}: expected JSON lines; correct it'
        ) from None
    return _normal(name), _plain(text)


def _read(path: Path, most: int = MAX_BYTES) -> str:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most} bytes")
    return data.decode("utf-8-sig")


def _plain(text: str) -> str:
    """On one line, without control characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _normal(name: str) -> str:
    """File systems differ in how they spell accents."""
    return unicodedata.normalize("NFC", name)
