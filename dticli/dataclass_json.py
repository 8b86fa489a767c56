"""Dataclasses as JSON, for `--json` and results of plans."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_json(result: Any) -> str:
    """A dataclass as indented JSON; characters that are not printable are escaped, for terminals.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(_plain(result), ensure_ascii=False, indent=2, allow_nan=False)
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def _plain(value: Any) -> Any:
    """A value as nested dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    return value
