"""Where the recipe keeps what it has made, and how it writes it: whole or not at all."""

import hashlib
import os
import shutil
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


def write_folder(target: Path, fill: Callable[[Path], Any]) -> None:
    """Fill a new folder beside `target` and put it in its place, so that a crash while filling leaves the old one whole."""
    fresh = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        fill(fresh)
        fresh.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def fingerprint(weights: Path) -> str:
    """Eight hex digits that change with a file's content; they name what was computed from it."""
    return hashlib.blake2b(weights.read_bytes(), digest_size=4).hexdigest()


def write_bytes(target: Path, content: bytes) -> None:
    """Write bytes whole or not at all."""
    write(target, lambda file: file.write(content))
