"""Text files that people write: captions, prompts, settings. Imports no torch."""

import codecs
import stat
from pathlib import Path

MOST = 64 * 2**20
"""Bytes; more is no text anybody wrote."""
_MARKS = (
    # UTF-32's mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read(path: Path, most: int = MOST) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 that begin with a byte order mark, as Windows writes them.

    Raises:
        OSError: missing or unreadable.
        ValueError: a pipe or device, which might never end; too large; or in another encoding. Says what to do.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError("not a regular file; save it as one")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"more than {most} bytes; shorten it")
    return decoded(data)


def decoded(data: bytes) -> str:
    """Bytes as text.

    Raises:
        ValueError: in no encoding that is known.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        # UTF-16 without a mark reads as UTF-8 where every other byte is zero.
        if encoding != "utf-8-sig" or data.count(0) * 4 <= len(data):
            return data.decode(encoding)
    except UnicodeDecodeError:
        pass
    raise ValueError("not UTF-8; save it as UTF-8")
