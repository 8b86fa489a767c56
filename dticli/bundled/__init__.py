"""The bundled model `stickers`, its example photos, and the recipe that made both. Imports no torch."""

import difflib
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from dticli.bundled.world.looks import Look
from dticli.errors import InputError, ModelError

MODEL_NAME = "stickers"

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Subject:
    """An example subject: five photos of one thing whose class the model knows, and whose look it has never seen.

    Attributes:
        class_word: for the initialisation of a word.
        role: whether settings may be tuned on it, or results are reported on it.
        look: None if it was drawn by an artist whose style the model has never seen.
    """

    name: str
    class_word: str
    role: Literal["tuning", "reporting"]
    look: Look | None = None


def model_folder() -> Path:
    """The folder of the bundled model, in diffusers layout.

    Raises:
        ModelError: it is missing from the installation.
    """
    folder = _HERE / MODEL_NAME
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"the bundled model is missing from {folder}: reinstall dticli")
    return folder


@lru_cache
def subjects() -> tuple[Subject, ...]:
    """All example subjects, in the order of `subjects.toml`."""
    table = tomllib.loads((_HERE / "subjects.toml").read_text(encoding="utf-8"))
    return tuple(_subject(name, row) for name, row in table.items())


def subject(name: str) -> Subject:
    """The example subject of this name.

    Raises:
        InputError: there is none; the message names a similar one, or all.
    """
    for known in subjects():
        if known.name == name:
            return known
    raise InputError(_no_such_subject(name, [known.name for known in subjects()]))


def subject_of(folder: Path) -> Subject | None:
    """The subject whose example photos in the package have this folder; None for other photos and copies."""
    return next((each for each in subjects() if _HERE / "photos" / each.name == folder.resolve()), None)


def _subject(name: str, row: dict[str, Any]) -> Subject:
    about = {key: row.pop(key) for key in ("class", "role")}
    return Subject(name, about["class"], about["role"], Look(**row) if row else None)


def photos(name: str) -> tuple[Path, ...]:
    """The example photos of a subject, in the order of their names.

    Raises:
        InputError: there is no such subject, or its photos are missing from the installation.
    """
    known = subject(name)
    found = tuple(sorted((_HERE / "photos" / known.name).glob("*.png")))
    if not found:
        raise InputError(
            f"the example photos of {name!r} are missing from the installation: reinstall dticli"
        )
    return found


def _no_such_subject(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(names)}"
    return f"no example photos of {name!r}; {advice}"
