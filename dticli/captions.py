"""What is said about each photo while training: templates, a text file beside it, or a captions file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dticli.errors import InputError

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


def from_templates(templates: Sequence[str], word: str) -> tuple[str, ...]:
    """Every template with the word in its place."""
    return tuple(template.replace("{}", word) for template in templates)


def from_sidecars(photos: Sequence[Path], word: str) -> dict[Path, str]:
    """The caption in the `.txt` file beside each photo.

    Raises:
        InputError: a file is missing, unreadable, or lacks the word; names it.
    """
    captions = {}
    for photo in photos:
        sidecar = photo.with_suffix(".txt")
        try:
            captions[photo] = " ".join(sidecar.read_text(encoding="utf-8").split())
        except FileNotFoundError:
            raise InputError(
                f"no {sidecar.name} beside {photo.name}: expected a caption with {word}; write it, or use --captions templates"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{sidecar.name} cannot be read ({error}): expected UTF-8 text; save it again"
            ) from None
    _require_word(captions, word)
    return captions


def from_file(path: Path, photos: Sequence[Path], word: str) -> dict[Path, str]:
    """Captions from JSON lines `{"file": "1.png", "text": "a photo of <dog>"}`, one a photo (`file_name` is accepted too).

    Raises:
        InputError: a line is broken, names no photo, or lacks the word; or a photo has no line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {path} ({error}): expected JSON lines; check --captions-file"
        ) from None
    texts = dict(_entry(path, number, line) for number, line in enumerate(lines, 1) if line.strip())
    names = {photo.name: photo for photo in photos}
    missing = next((name for name in names if name not in texts), None)
    if missing:
        raise InputError(f"{path.name} has no caption for {missing}: expected one line a photo; add it")
    captions = {photo: texts[name] for name, photo in names.items()}
    _require_word(captions, word)
    return captions


def _entry(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        return str(entry.get("file") or entry["file_name"]), " ".join(str(entry["text"]).split())
    except (ValueError, KeyError, AttributeError):
        raise InputError(
            f'{path.name} line {number} is not {{"file": ..., "text": ...}}: expected JSON lines; correct it'
        ) from None


def _require_word(captions: Mapping[Path, str], word: str) -> None:
    for photo, caption in captions.items():
        if word not in caption:
            raise InputError(
                f"the caption of {photo.name} lacks {word}: {caption[:60]!r}; write {word} where the subject is named"
            )
