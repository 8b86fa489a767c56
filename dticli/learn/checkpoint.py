"""Checkpoints for exact resume: the state of a run between two steps, as a safetensors file with text metadata.

Random draws are keyed (see `randomness`), so rows, optimizer and step number are the whole state.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from dticli import atomic, files
from dticli.errors import InputError, UsageError, boundary
from dticli.words import token_reading

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
KEPT = 2
"""Checkpoints to keep: if the newest one is damaged, the one before it can be used."""

_STATE, _ROWS = token_reading.OF_A_STATE


@dataclass(frozen=True)
class Identity:
    """Everything that must be the same for a run to continue, as names and strings.

    Attributes:
        settings: all settings that affect what is learned, except `steps`.
        photos: fingerprint of each photo with its mask, by name.
        captions: digest of each photo's captions, by name.
        model: name, weights, precision, and the initial rows of the word.
    """

    settings: Mapping[str, str]
    photos: Mapping[str, str]
    captions: Mapping[str, str]
    model: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run between two steps.

    Attributes:
        step: steps done.
        loss: the smoothed loss, exactly.
        state: of `Learner.state`.
        rows: encoder key to the word's rows, (vectors, width), float32.
        machine: versions, device and threads; a difference is only a warning.
    """

    step: int
    loss: float
    state: "Mapping[str, Tensor]"
    rows: "Mapping[str, Tensor]"
    identity: Identity
    machine: Mapping[str, str]


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        EnvironmentProblem: the disk refuses.
    """
    from safetensors.torch import save

    tensors = {f"{_STATE}{name}": each for name, each in checkpoint.state.items()}
    tensors |= {f"{_ROWS}{key}": each for key, each in checkpoint.rows.items()}
    # Copies: the format refuses tensors that share memory, as free rows do with the state.
    tensors = {name: each.detach().cpu().clone().contiguous() for name, each in tensors.items()}
    metadata = {
        "format": str(FORMAT),
        "step": str(checkpoint.step),
        "loss": checkpoint.loss.hex(),
        "identity": json.dumps(asdict(checkpoint.identity)),
        "machine": json.dumps(dict(checkpoint.machine)),
    }
    atomic.write_bytes(path, save(tensors, metadata))


def read(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: damaged, or not a checkpoint.
        UsageError: written by a newer dti.
    """
    advice = "expected a checkpoint of dti train; delete it, or start again with --force"
    files.require(path, InputError, advice)
    with boundary(lambda reason: InputError(f"{path} is damaged ({reason}): {advice}")):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _require_format(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return Checkpoint(
            step=_count(metadata["step"]),
            loss=float.fromhex(metadata["loss"]),
            state=_part(tensors, _STATE),
            rows=_part(tensors, _ROWS),
            identity=Identity(
                **{name: _texts(each) for name, each in json.loads(metadata["identity"]).items()}
            ),
            machine=_texts(json.loads(metadata["machine"])),
        )


def _require_format(path: Path, metadata: Mapping[str, str]) -> None:
    if _count(metadata["format"]) > FORMAT:
        raise UsageError(
            f"{path} has format {metadata['format']}: expected {FORMAT} or older; "
            "continue with the newer dti that wrote it, or start again with --force"
        )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no count")
    return int(text)


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise TypeError("expected names with texts")
    return value


def _part(tensors: "Mapping[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def require_same(checkpoint: Checkpoint, now: Identity, steps: int) -> None:
    """Check that a run of `steps` steps can continue from a checkpoint.

    A run with a constant step size can be extended; no run can be made shorter than it already is.

    Raises:
        UsageError: names every difference.
    """
    found = list(_differences(checkpoint.identity, now))
    if steps < checkpoint.step:
        found.append(f"steps is {steps}, and {checkpoint.step} are done")
    if found:
        raise UsageError(
            f"cannot continue at step {checkpoint.step}: {'; '.join(found)}; "
            "expected the same run; undo the change, or start again with --force"
        )


def _differences(before: Identity, now: Identity) -> Iterator[str]:
    for name, was, now_is in _changes(before.settings, now.settings):
        # What is compared is a step's pictures on all devices; users see the setting of one.
        of_all = " on all devices together" if name == "batch_size" else ""
        yield f"{name}{of_all} was {was} and is {now_is}"
    for name, was, now_is in _changes(before.model, now.model):
        yield f"the model's {name} was {was} and is {now_is}"
    for name, was, now_is in _changes(before.photos, now.photos):
        yield f"photo {name} is {'new' if was is None else 'gone' if now_is is None else 'another'}"
    for name, was, now_is in _changes(before.captions, now.captions):
        if was is not None and now_is is not None:
            yield f"the captions of {name} changed"


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of what differs; None where it is missing."""
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            yield name, before.get(name), now.get(name)
