"""What was measured, kept in a file each: written whole, and measured again where it cannot be read."""

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
    """Keep a dataclass, whole or not at all."""
    atomic.write_text(file, json.dumps(asdict(record), indent=1))


def read(file: Path, kind: type[Record], names: Mapping[str, Any]) -> Record | None:
    """What is kept there, under the names it has now: arms that say the same share their files. None if absent or damaged."""
    try:
        return TypeAdapter(kind).validate_python(json.loads(files.read_text(file, InputError, "")) | names)
    except (InputError, ValueError, TypeError, RecursionError):
        return None
