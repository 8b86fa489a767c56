"""The recipe's cache folder, and atomic writing of its files."""

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
    """The folder of a step, created if it does not exist."""
    path = root() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(target: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Write a temporary file beside `target`, and replace `target` by it, so that a crash leaves the old file intact."""
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
    """Write a temporary folder beside `target`, and replace `target` by it; a crash while writing leaves the old one intact."""
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
    """A hash of a file's content in eight hex digits, for names of files that were computed from it."""
    return hashlib.blake2b(weights.read_bytes(), digest_size=4).hexdigest()


def write_bytes(target: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write(target, lambda file: file.write(content))
