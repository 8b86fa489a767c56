"""Token files written: 2-D float32 tensors in safetensors, with text metadata; the same word gives the same bytes.

A word of one encoder is stored under its own name, as diffusers does; a word of several under the encoders' keys
(`clip_l`, `clip_g`, `t5xxl`), as ComfyUI and A1111 do.
"""

import hashlib
import itertools
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dticli import atomic
from dticli.errors import UsageError
from dticli.words.learned_word import Token
from dticli.words.programs import SOLE


def write(path: str | Path, token: Token, *, force: bool = False) -> None:
    """Write a token file, whole or not at all.

    Raises:
        UsageError: the file exists and `force` is not set, or its suffix is not `.safetensors`.
        EnvironmentProblem: the disk refuses.
    """
    path = Path(path)
    require_name(path)
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists: expected a new name; choose another or add --force to replace it")
    atomic.write_bytes(path, to_bytes(token))


def require_name(path: Path) -> None:
    """Raise UsageError unless a token file can have this name."""
    if path.suffix != ".safetensors":
        raise UsageError(f"cannot write {path}: expected a name ending in .safetensors; choose another name")


def to_bytes(token: Token) -> bytes:
    """The token file's content; a function of the token alone."""
    if len(token.rows) > 1:
        return to_bytes_as(token, {key: key for key in token.rows})
    (key,) = token.rows
    return to_bytes_as(token, {key: token.name})


def to_bytes_as(token: Token, names: Mapping[str, str]) -> bytes:
    """A file of some of the token's tensors under other names.

    Args:
        names: encoder key to tensor name. Which encoder a single tensor is for goes into the metadata.
    """
    computed = {"dti.name": token.name}
    if len(names) == 1 and SOLE not in names:
        computed["dti.encoder"] = next(iter(names))
    tensors = {name: token.rows[key] for key, name in names.items()}
    return serialize(tensors, {**token.metadata, **computed})


def serialize(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with everything in sorted order, which the library's own writer does not promise.

    Adds `format` and `modelspec.hash_sha256`, the digest of the bytes after the header.

    Args:
        tensors: float32.
        metadata: text to text; the format cannot hold lone surrogates, which become question marks.

    Source: https://github.com/huggingface/safetensors#format.
    """
    names = sorted(tensors)
    parts = [_little_endian(tensors[name]) for name in names]
    ends = list(itertools.accumulate(map(len, parts)))
    data = b"".join(parts)
    header: dict[str, Any] = {
        name: {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [end - len(part), end]}
        for name, part, end in zip(names, parts, ends, strict=True)
    }
    digest = f"0x{hashlib.sha256(data).hexdigest()}"
    header["__metadata__"] = {**metadata, "format": "pt", "modelspec.hash_sha256": digest}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    encoded = text.encode("utf-8", "replace")
    # Data at a multiple of eight bytes can be mapped as numbers.
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + data


def content_hash(token: Token) -> str:
    """SHA-256 of the vectors in hexadecimal, as in `modelspec.hash_sha256`; ignores name and metadata."""
    digest = hashlib.sha256()
    for key in sorted(token.rows):
        digest.update(_little_endian(token.rows[key]))
    return digest.hexdigest()


def _little_endian(rows: np.ndarray) -> bytes:
    return rows.astype("<f4").tobytes()
