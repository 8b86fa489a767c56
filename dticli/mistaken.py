"""Recognises files that are not what their name says, by their first bytes. Imports no torch."""

import re
from pathlib import Path

HEAD = 1024
"""Number of bytes that are compared."""

SIGNS: tuple[tuple[str, str], ...] = (
    (r"$", "empty; get another copy"),
    (r"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer; fetch what it points to with git lfs pull"),
    (r"\S*/annex/objects/\S+\s*$", "a git-annex pointer; fetch what it points to with git annex get"),
    (r"\s*<(!doctype|html|head|body|script|\?xml|!--)", "a web page; download the file itself"),
    (
        r"\s*(\{\s*\"(error|message|detail)|(Entry|Repository|Revision) not found|Not Found|Invalid (username|credentials)"
        r"|Access (to|denied)|Unauthorized|Forbidden|<Error>)",
        "a server's refusal; log in or check the address, and download it again",
    ),
    (r"(PK\x05\x06|Rar!|7z\xbc\xaf\x27\x1c|\x1f\x8b|BZh|\xfd7zXZ)", "an archive; unpack it"),
)  # fmt: skip
"""Pattern of a file's first bytes; what it is, and what to do."""


def known(head: bytes) -> str | None:
    """What a file with this start is instead of a tensor file or picture, and what to do; None if it is not recognised."""
    text = head[:HEAD].decode("latin-1").removeprefix("ï»¿")
    return next((what for sign, what in SIGNS if re.match(sign, text, re.IGNORECASE)), None)


def known_file(path: Path) -> str | None:
    """As `known`, for a file; None also if it cannot be read."""
    try:
        with path.open("rb") as file:
            return known(file.read(HEAD))
    except OSError:
        return None
