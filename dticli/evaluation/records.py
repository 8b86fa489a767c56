"""Measurements kept as JSON files, one each; written atomically, and measured again if they cannot be read."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter

from dticli import atomic, files
from dticli.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def write(file: Path, record: "DataclassInstance") -> None:
    """Write a dataclass as JSON, atomically."""
    atomic.write_text(file, json.dumps(asdict(record), indent=1))


def read(file: Path, kind: type[Record], names: Mapping[str, Any]) -> Record | None:
    """Read a record; None if it is absent or damaged.

    Args:
        names: fields whose stored values are replaced, because arms with equal settings share their files.
    """
    try:
        return TypeAdapter(kind).validate_python(json.loads(files.read_text(file, InputError, "")) | names)
    except (InputError, ValueError, TypeError, RecursionError):
        return None
