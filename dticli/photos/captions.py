"""What is said about each photo while training: templates, a text file beside it, or a captions file."""

import csv
import functools
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dticli import spelling
from dticli.errors import InputError
from dticli.files import read_text
from dticli.photos.albums import Photo, listed

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
SIDECARS = (".txt", ".caption")
LISTS = (".jsonl", ".csv", ".tsv")
FILE_KEYS = ("file", "file_name", "image")
TEXT_KEYS = ("text", "caption", "prompt")
PLACES = re.compile(r"\{\}|\[(name|trigger)\]", re.IGNORECASE)
"""What other trainers write for the word."""


@dataclass(frozen=True)
class Captioning:
    """Where captions come from.

    Attributes:
        word: every caption has it.
        templates: what is said of every photo, with `{}` for the word, where nothing else is asked for.
        sidecar: each photo has a file of captions beside it.
        list_file: one file has those of all photos; goes before the others.
    """

    word: str
    templates: Sequence[str] = OBJECT_TEMPLATES
    sidecar: bool = False
    list_file: str | None = None


@dataclass(frozen=True)
class Captions:
    """What is said about each photo, and what is wrong with it.

    Attributes:
        texts: each photo's captions; one is drawn for every sample.
        problems: complaints about single photos, in words.
        unused: names of files with captions that were not asked for.
    """

    texts: Mapping[Path, tuple[str, ...]]
    problems: tuple[str, ...]
    unused: tuple[str, ...] = ()

    @property
    def remark(self) -> str | None:
        """What to say of unused files, once."""
        if not self.unused:
            return None
        return f"captions in {listed(self.unused)} are not used: add --captions sidecar, or name a list with --captions-file"

    def require_usable(self) -> None:
        """Raise InputError if there are problems; names them."""
        if self.problems:
            raise InputError(
                f"{listed(self.problems, mark='; ')}: expected a caption with the word for every photo; write it"
            )


def read(photos: Sequence[Photo], captioning: Captioning) -> Captions:
    """Captions of all photos: templates, the lines of the file beside each, or of one file for all.

    Raises:
        InputError: the captions file is missing, or is not a list.
    """
    if captioning.list_file:
        found = _from_file(Path(captioning.list_file), photos)
    elif captioning.sidecar:
        files = functools.cache(_files)
        found = {photo.path: _sidecar(photo, files) for photo in photos}
    else:
        texts = from_templates(captioning.templates, captioning.word)
        return Captions(dict.fromkeys((photo.path for photo in photos), texts), (), _unused(photos))
    checked = {photo: _checked(found[photo.path], photo, captioning.word) for photo in photos}
    return Captions(
        {photo.path: texts for photo, texts in checked.items() if not isinstance(texts, _Problem)},
        tuple(texts.reason for texts in checked.values() if isinstance(texts, _Problem)),
    )


def _unused(photos: Sequence[Photo]) -> tuple[str, ...]:
    """Names of files beside the photos that look like their captions."""
    files = functools.cache(_files)
    folders = dict.fromkeys(photo.path.parent for photo in photos)
    lists = [path for folder in folders for path in files(folder).values() if path.suffix.lower() in LISTS]
    sidecars = [path for photo in photos if (path := _path_beside(photo, files))]
    return tuple(dict.fromkeys(path.name for path in [*sidecars, *lists]))


def from_templates(templates: Sequence[str], word: str) -> tuple[str, ...]:
    """Every template with the word in its place."""
    return tuple(template.replace("{}", word) for template in templates)


def cut(
    captions: Captions, tokenizers: Sequence[Any], word: str, vectors: int, limit: float
) -> tuple[str, ...]:
    """Captions that one of the tokenizers, or the pipeline, cuts off, with what it takes and what there is.

    What a pipeline's template takes of its limit is not counted.

    Args:
        vectors: how many pieces the word takes.
        limit: of pieces, in the pipeline; infinity where tokenizers alone decide.
    """
    found = []
    written = f" {' '.join(['x'] * vectors)} "
    for text in dict.fromkeys(text for texts in captions.texts.values() for text in texts):
        for tokenizer in tokenizers:
            count, most = len(tokenizer(text.replace(word, written)).input_ids), tokenizer.model_max_length
            if count > min(most, limit):
                found.append(f"{text[:60]!r} has {count} pieces, and {min(most, limit)} are read")
                break
    return tuple(found)


@dataclass(frozen=True)
class _Problem:
    """Why a photo has no usable caption."""

    reason: str


Texts = tuple[str, ...]
_Listing = Callable[[Path], Mapping[str, Path]]


def _checked(texts: Texts | _Problem, photo: Photo, word: str) -> Texts | _Problem:
    """The captions with the word in its place."""
    if isinstance(texts, _Problem):
        return texts
    texts = tuple(PLACES.sub(lambda _: word, text) for text in texts)
    if not texts:
        return _Problem(f"the caption of {photo.name} is empty")
    if flaw := next(filter(None, map(spelling.flaw, texts)), None):
        return _Problem(f"a caption of {photo.name} {flaw}")
    lacking = [(number, text) for number, text in enumerate(texts, 1) if word not in text]
    if not lacking:
        return texts
    number, text = lacking[0]
    which = f"caption {number} of {len(texts)}" if len(texts) > 1 else "the caption"
    return _Problem(f"{which} of {photo.name} lacks {word} ({text[:60]!r})")


def _sidecar(photo: Photo, files: _Listing) -> Texts | _Problem:
    path = _path_beside(photo, files)
    if path is None:
        return _Problem(f"no {photo.path.stem}{SIDECARS[0]} beside {photo.name}")
    try:
        return _lines(read_text(path, InputError, "expected captions", most=MAX_BYTES))
    except InputError as error:
        return _Problem(str(error))


def _path_beside(photo: Photo, files: _Listing) -> Path | None:
    """The file with the photo's captions: of the same name, or of that with another suffix added."""
    there = files(photo.path.parent)
    names = [f"{name}{suffix}" for name in (photo.path.stem, photo.path.name) for suffix in SIDECARS]
    return next((there[name] for name in map(_normal, names) if name in there), None)


def _files(folder: Path) -> Mapping[str, Path]:
    """The regular files of a folder, by their names with the last suffix in small letters."""
    try:
        found = sorted((path for path in folder.iterdir() if os.path.isfile(path)), reverse=True)
    except OSError:
        return {}
    return {_normal(path.stem + path.suffix.lower()): path for path in found}


def _lines(text: str) -> Texts:
    """The captions of a text, one per line that is not blank."""
    return tuple(filter(None, map(_plain, re.split(r"[\r\n]+", text))))


def _from_file(path: Path, photos: Sequence[Photo]) -> dict[Path, Texts | _Problem]:
    """Captions from JSON lines `{"file": "1.png", "text": "a photo of <dog>"}`, or a table with such a first line.

    A path may be absolute, of another machine, with back-slashes, or the mere name.
    """
    text = read_text(path, InputError, "expected JSON lines or CSV; check --captions-file")
    read = _table if path.suffix.lower() in LISTS[1:] else _json_lines
    texts: dict[tuple[str, ...], Texts] = {}
    for name, lines in read(path, text):
        texts[name] = texts.get(name, ()) + lines
    by_end: dict[str, list[tuple[str, ...]]] = {}
    for name in texts:
        by_end.setdefault(name[-1], []).append(name)
    found: dict[Path, Texts | _Problem] = {}
    for photo in photos:
        own = _parts(photo.name)
        meant = [name for name in by_end.get(own[-1], ()) if _is_end(own, name) or _is_end(name, own)]
        # Without other folders before it, or with as few as there are.
        best = min(meant, key=lambda name: (name != own, len(name)), default=None)
        missing = _Problem(f"{path.name} has no caption for {photo.name}")
        found[photo.path] = missing if best is None else texts[best]
    return found


def _is_end(end: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    return whole[-len(end) :] == end


def _parts(name: str) -> tuple[str, ...]:
    """A path of any system, in parts."""
    return tuple(part for part in _normal(name).replace("\\", "/").split("/") if part not in ("", ".")) or (
        "",
    )


def _json_lines(path: Path, text: str) -> Iterator[tuple[tuple[str, ...], Texts]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield _entry(json.loads(line))
            except (ValueError, AttributeError, TypeError, RecursionError):
                raise InputError(
                    f'{path.name} line {number} is not {{"file": ..., "text": ...}}: expected JSON lines; correct it'
                ) from None


def _table(path: Path, text: str) -> Iterator[tuple[tuple[str, ...], Texts]]:
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    rows = csv.DictReader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        for row in rows:
            yield _entry({(name or "").strip().lower(): value for name, value in row.items()})
    except (ValueError, AttributeError, TypeError, csv.Error):
        raise InputError(
            f"{path.name} line {rows.line_num} has no file and text: expected a table that begins with "
            f"file{separator}text; correct it".replace("\t", " ")
        ) from None


def _entry(entry: Mapping[str, Any]) -> tuple[tuple[str, ...], Texts]:
    """A photo's path in parts, and its captions.

    Raises:
        AttributeError, TypeError: something is missing, or not text.
        UnicodeEncodeError: half of a character.
    """
    name = next((entry[key] for key in FILE_KEYS if entry.get(key)), None)
    found = next((entry[key] for key in TEXT_KEYS if key in entry), None)
    texts: list[Any] = found if isinstance(found, list) else [found]
    if not (isinstance(name, str) and all(isinstance(text, str) for text in texts)):
        raise TypeError
    "".join(texts).encode()
    return _parts(name), tuple(line for text in texts for line in _lines(text))


def _plain(text: str) -> str:
    """On one line, without control characters."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _normal(name: str) -> str:
    """File systems differ in how they spell accents."""
    return unicodedata.normalize("NFC", name)
