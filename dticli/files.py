"""Reads files of users and others: only regular files of bounded size; every problem becomes a message of one line.

Reading a pipe or a device could block or never end. Imports no libraries.
"""

import codecs
import os
import stat
from pathlib import Path

from dticli.errors import DtiError

MAX_TEXT = 16 * 2**20
"""Largest file of settings, prompts or captions, in bytes."""

_MARKS = (
    # UTF-32 first, because its mark starts with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind(path: str | Path) -> str | None:
    """What a path is instead of a regular file, such as "a folder"; links are followed. None if it is one, or does not exist."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return "a link that leads nowhere" if os.path.islink(path) else None
    return _kind(mode)


def problem(path: str | Path) -> str | None:
    """Why a file cannot be read, found without opening it; None for a regular file."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    except ValueError:
        return "not a name that a file can have"
    return f"it is {found}" if (found := _kind(mode)) else None


def _kind(mode: int) -> str | None:
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def require(path: str | Path, error: type[DtiError], advice: str) -> None:
    """Raise `error` unless `path` is a regular file; for files that a library opens.

    Args:
        advice: end of the message: what was expected, and what to do.
    """
    if reason := problem(path):
        raise error(f"cannot read {path} ({reason}): {advice}")


def read_bytes(path: str | Path, error: type[DtiError], advice: str, *, most: int = MAX_TEXT) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        error: it cannot be read, is not a regular file, or is larger; the message ends with `advice`.
    """
    require(path, error, advice)
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as reason:
        raise error(f"cannot read {path} ({reason.strerror}): {advice}") from None
    if len(data) > most:
        raise error(f"cannot read {path} (more than {most} bytes): {advice}")
    return data


def read_text(path: str | Path, error: type[DtiError], advice: str, *, most: int = MAX_TEXT) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; arguments and errors as of `read_bytes`."""
    data = read_bytes(path, error, advice, most=most)
    try:
        return decoded(data)
    except ValueError as reason:
        raise error(f"cannot read {path} ({reason}): {advice}") from None


def decoded(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Raises:
        ValueError: the bytes are in another encoding.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        # UTF-16 without a mark can be valid UTF-8, with every other byte zero.
        if encoding != "utf-8-sig" or data.count(0) * 4 <= len(data):
            return data.decode(encoding)
    except UnicodeDecodeError:
        pass
    raise ValueError("not UTF-8; save it as UTF-8")


def require_regular(folder: Path, error: type[DtiError], advice: str) -> None:
    """Raise `error` if a folder that a library will read, or a direct subfolder, contains a pipe, a device or a socket."""
    for root, folders, names in os.walk(folder):
        if Path(root) != folder:
            folders.clear()
        for name in names:
            found = kind(Path(root, name))
            if found and os.path.exists(Path(root, name)):
                raise error(f"{Path(root, name)} is {found}: {advice}")
