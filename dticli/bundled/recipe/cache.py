"""Where the recipe keeps what it has made, and how it writes it: whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def root() -> Path:
    """`$XDG_CACHE_HOME/dti/recipe`, by default under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dti" / "recipe"


def folder(name: str) -> Path:
    """One step's folder, made when missing."""
    path = root() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(target: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Fill a temporary file beside `target` and move it into place, so that a crash leaves the old one whole."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_bytes(target: Path, content: bytes) -> None:
    """Write bytes whole or not at all."""
    write(target, lambda file: file.write(content))
