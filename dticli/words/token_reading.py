"""Token files of any tool read: safetensors and pickles, in every known layout."""

import io
import json
import logging
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dticli import files, mistaken
from dticli.errors import InputError
from dticli.models import families
from dticli.paths import SNAPSHOT, SUFFIXES, best, snapshots
from dticli.words import learned_word, pictured
from dticli.words.learned_word import Token
from dticli.words.programs import ALIASES, PUBLISHED, SOLE, STRING_TO_PARAM, Container

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger(__name__)
ENCODERS = frozenset(
    {"clip_l", "clip_g", "clip_h", "t5xxl", "umt5xxl", "gemma2_2b", "qwen3_4b", "llama"}
    | {encoder.key for family in families.TABLE for encoder in family.encoders}
)
"""Keys that name an encoder rather than a word."""
OF_A_STATE = ("state.", "rows.")
"""How the names of the tensors in a checkpoint of a run begin."""
MAX_HEADER = 16 * 2**20
MAX_PICKLE = 64 * 2**20
MAX_WORDS = 64
"""In one file; what names more tensors is a model."""
_ANONYMOUS = frozenset({SOLE, "emb_params", "emp_params", STRING_TO_PARAM})
_BUNDLED = re.compile(r"bundle_emb\.(?P<word>.*?)\.(?P<part>string_to_param\.\*|[^.]+)", re.DOTALL)
_FLOATS = frozenset(
    {"float16", "bfloat16", "float32", "float64"}
    | {"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
)
_OF_NUMPY = frozenset({"F16", "F32", "F64"})
# They follow from name and vectors and are written anew, so that no stale value is carried along.
_COMPUTED = frozenset({"dti.name", "dti.encoder", "format", "modelspec.hash_sha256"})


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it: the name it is stored under, its shape, and its dtype such as `float16`."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Layout:
    """How a file holds a word, before anything is repaired.

    Attributes:
        container: the kind of file.
        tensors: encoder key, or `SOLE`, to what is stored.
        called: the word's name in the file, if it says one.
        empty: which rows are zeros, from 0; they are left out.
    """

    container: Container
    tensors: Mapping[str, Stored]
    called: str | None = None
    empty: tuple[int, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """Encoder key to the name of its tensor."""
        return {key: stored.name for key, stored in self.tensors.items()}

    @property
    def repairs(self) -> tuple[str, ...]:
        """Repairs made while reading, one phrase each."""
        flat = any(len(stored.shape) == 1 for stored in self.tensors.values())
        others = sorted({stored.dtype for stored in self.tensors.values()} - {"float32"})
        moved = [
            f"what stands under {stored.name} is for {key}, by its width"
            for key, stored in self.tensors.items()
            if _encoder_of(_part(stored.name)) not in (None, SOLE, key)
        ]
        found = {
            "a 1-D tensor was taken as one vector": flat,
            f"{' and '.join(others)} became float32": bool(others),
            f"zeros were left out (vector {', '.join(map(str, self.empty))})": bool(self.empty),
        }
        return (*(text for text, holds in found.items() if holds), *moved)


def _require_harmless(name: str) -> None:
    """Names reach terminals and become file names."""
    if not name or not name.isprintable() or "/" in name or "\\" in name:
        raise InputError(
            f"the word's name is {learned_word.shown(name)}: expected letters, no path separators or control characters; "
            "rename it with the tool that wrote it"
        )


def _listing(names: Iterable[str]) -> str:
    """The first few of some foreign names."""
    names = list(names)
    return ", ".join(map(learned_word.shown, names[:3])) + (", ..." if len(names) > 3 else "")


@dataclass(frozen=True)
class _Found:
    """What a file holds: rows by encoder, the name they are stored under if any, its metadata, and its layout."""

    name: str | None
    rows: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]
    layout: Layout


def read(path: str | Path, name: str | None = None) -> Token:
    """Read a token file of any tool: diffusers, A1111 (its pictures too), ComfyUI, kohya, OneTrainer, InvokeAI, dti.

    A LoRA file that bundles one word gives that word. The format is told by content. 1-D tensors are taken as
    one vector; other precisions become float32; vectors of zeros are left out; rows under the key of another CLIP encoder
    go by their width. The name is the key the tensor is stored under, else
    `dti.name` of the metadata or the pickled name, else the file's own; one that prompts cannot use gives way
    to the nearest usable, and is kept in the metadata as `dti.original_name`. Pickles are read as plain data:
    nothing in them runs.

    Args:
        name: stands in for the file's own, where that says nothing, as in `learned_embeds.bin`.

    Raises:
        InputError: missing, damaged, or not one usable word; says what was found.
    """
    return read_with_layout(path, name)[0]


def read_with_layout(
    path: str | Path, name: str | None = None, pick: str | None = None
) -> tuple[Token, Layout]:
    """As `read`, and how the file held the word.

    Args:
        pick: which word, of a file with several.
    """
    path = located(path)
    try:
        if reason := files.problem(path):
            raise InputError(f"{reason}: expected a token file ({', '.join(SUFFIXES)}); check the path")
        found = _read(path, pick)
        return _token(found, path.stem if name is None else name), found.layout
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a readable token file; copy it again") from None


def located(path: str | Path) -> Path:
    """The file that a path names: itself, or that of the state `dog.run@200` or `dog.run@best` kept along a run.

    Raises:
        InputError: the run keeps no state of that step, or none was chosen.
    """
    named = SNAPSHOT.fullmatch(str(path))
    if not named or os.path.exists(path):
        return Path(path)
    run = Path(named["run"])
    kept = snapshots(run)
    if named["step"] == "best":
        step, how = chosen(run)
        LOG.info(f"{run}@best is step {step}: {how}")
    else:
        step = int(named["step"])
    if found := kept.get(step):
        return found
    steps = f"steps {', '.join(map(str, kept))}" if kept else "none: train with --keep"
    raise InputError(f"{run} keeps no state of step {step}: expected one of those it keeps, {steps}")


def chosen(run: Path) -> tuple[int, str]:
    """The step that was chosen from a run's states, and how.

    Raises:
        InputError: none was chosen.
    """
    advice = f"expected the choice of a state; make it with dti best {run}"
    try:
        choice = json.loads(files.read_text(best(run), InputError, advice))
        return int(choice["step"]), str(choice["how"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise InputError(f"{best(run)} does not say which state is best: {advice}") from None


def _token(found: _Found, stem: str) -> Token:
    metadata = {key: value for key, value in found.metadata.items() if key not in _COMPUTED}
    rows, encoder = found.rows, found.metadata.get("dti.encoder")
    if encoder in ENCODERS and len(rows) == 1:
        rows = dict.fromkeys([encoder], next(iter(rows.values())))
    given = next(name for name in (found.name, found.metadata.get("dti.name"), stem) if name is not None)
    _require_harmless(given)
    name = learned_word.nearest_usable(given) or learned_word.nearest_usable(stem) or "<token>"
    if name != given:
        metadata.setdefault("dti.original_name", given)
    return Token(name, rows, metadata)


def _read(path: Path, pick: str | None) -> _Found:
    with path.open("rb") as file:
        head = file.read(mistaken.HEAD)
    # A JSON object follows the eight bytes of a length; in no pickle or zip a brace stands there.
    if head[8:9] == b"{":
        return _read_safetensors(path, pick)
    if pictured.is_picture(head):
        return _of_content(pictured.read(path), "picture", pick, np.ndarray)
    if what := mistaken.known(head):
        raise InputError(f"{what} (expected a token file)")
    return _read_pickle(path, pick)


def _read_safetensors(path: Path, pick: str | None) -> _Found:
    metadata = _metadata(path)
    try:
        with safe_open(path, framework="np") as file:
            name, sources = _choose(file.keys(), pick)
            slices = {key: file.get_slice(source) for key, source in sources.items()}
            for key, each in slices.items():
                learned_word.require_shape(key, each.get_shape())
        # Torch knows more kinds of numbers, and takes a second to come.
        known = {each.get_dtype() for each in slices.values()} <= _OF_NUMPY
        with safe_open(path, framework="np" if known else "pt") as file:
            tensors = {key: file.get_tensor(source) for key, source in sources.items()}
    except SafetensorError as error:
        raise InputError(
            f"damaged safetensors file ({learned_word.shown(str(error))}); get another copy"
        ) from None
    return _found("safetensors", name, sources, tensors, metadata)


def _found(
    container: Container,
    name: str | None,
    sources: Mapping[str, str],
    tensors: "Mapping[str, np.ndarray | Tensor]",
    metadata: Mapping[str, str],
) -> _Found:
    """The rows of the chosen tensors, repaired.

    Args:
        sources: encoder key to the name the tensor is stored under.
    """
    for key, tensor in tensors.items():
        learned_word.require_shape(key, tensor.shape)
    keys = _by_width({key: tensor.shape[-1] for key, tensor in tensors.items()})
    stored = {
        keys[key]: Stored(sources[key], tuple(tensor.shape), _dtype(tensor))
        for key, tensor in tensors.items()
    }
    rows = {keys[key]: _rows(key, tensor) for key, tensor in tensors.items()}
    empty = _empty(rows)
    kept = [row for row in range(len(next(iter(rows.values())))) if row not in empty]
    if empty and kept:
        rows = {key: each[kept] for key, each in rows.items()}
    called = name if name is not None else metadata.get("dti.name")
    return _Found(name, rows, metadata, Layout(container, stored, called, empty if kept else ()))


def _by_width(widths: Mapping[str, int]) -> dict[str, str]:
    """Each encoder key to itself, or CLIP's to those that the one model with such widths has."""
    clips = sorted(key for key in widths if key.startswith("clip_"))
    others = {key: width for key, width in widths.items() if key not in clips}
    known = [variant for variants in PUBLISHED.values() for variant in variants]
    fitting = [
        each
        for each in known
        if others.items() <= each.items() and sorted(each.values()) == sorted(widths.values())
    ]
    distinct = len({widths[key] for key in clips}) == len(clips)
    # One encoder may have other names: ComfyUI calls SD 2's clip_h.
    told = len(widths) > 1 or widths.keys() == {"clip_g"}
    if not (told and distinct and len(fitting) == 1):
        return {key: key for key in widths}
    by_width = {width: key for key, width in fitting[0].items()}
    return {key: by_width[width] for key, width in widths.items()}


def _dtype(tensor: "np.ndarray | Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _empty(rows: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Which rows are zeros in some encoder, if all have as many rows."""
    if len({len(each) for each in rows.values()}) > 1:
        return ()
    zeros = ~np.stack([each.any(axis=1) for each in rows.values()]).all(axis=0)
    return tuple(np.flatnonzero(zeros).tolist())


def _metadata(path: Path) -> dict[str, str]:
    """The header's metadata. Refuses names that occur twice, of which safetensors would keep the last."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER:
            raise InputError(f"a header of {length} bytes: expected at most {MAX_HEADER}; get another copy")
        header = file.read(length)
    try:
        metadata = json.loads(header, object_pairs_hook=_without_duplicates).get("__metadata__") or {}
    except (ValueError, RecursionError):
        raise InputError("damaged safetensors file (the header is not JSON); get another copy") from None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError("damaged safetensors file (the metadata is not text); get another copy")
    return metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(
                f"{learned_word.shown(name)} occurs twice in the header: expected it once; get another copy"
            )
        found[name] = value
    return found


def _read_pickle(path: Path, pick: str | None) -> _Found:
    import torch

    size = path.stat().st_size
    if size > MAX_PICKLE:
        raise InputError(f"{size} bytes: expected at most {MAX_PICKLE}; is this a whole model?")
    content = _unpickle(path.read_bytes())
    inside = content.get("string_to_param") if isinstance(content, Mapping) else None
    container: Container = "old pickle" if isinstance(inside, torch.nn.ParameterDict) else "pickle"
    return _of_content(content, container, pick, torch.Tensor)


def _of_content(content: Any, container: Container, pick: str | None, kind: type) -> _Found:
    """The word in what a pickle holds, or in what stands for one; its tensors are of this kind."""
    tensors = _tensors(content, kind)
    name, sources = _choose(tensors, pick)
    pickled = content.get("name") if isinstance(content, Mapping) else None
    said = {"dti.name": pickled} if isinstance(pickled, str) and pickled else {}
    return _found(container, name, sources, {key: tensors[source] for key, source in sources.items()}, said)


def _tensors(content: Any, kind: type) -> dict[str, Any]:
    """The tensors by name: a bare one, those of A1111's `string_to_param`, or all in a mapping."""
    if isinstance(content, kind):
        return {SOLE: content}
    if not isinstance(content, Mapping):
        raise InputError(f"holds a {type(content).__name__}: expected tensors by name; choose a token file")
    if "string_to_param" in content:
        # torch before 1.12 pickled an nn.ParameterDict here, which keeps its tensors in an attribute.
        content = getattr(content["string_to_param"], "_parameters", content["string_to_param"])
        if not isinstance(content, Mapping) or (SOLE in content and len(content) > 1):
            raise InputError("string_to_param holds no words by name: expected one; get another copy")
        content = {STRING_TO_PARAM if name == SOLE else name: value for name, value in content.items()}
    return {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, kind)
    }


def _unpickle(data: bytes) -> Any:
    """The plain data of a pickle: tensors, containers, numbers and text."""
    import torch

    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_PICKLE:
                    raise ValueError("unpacks to more than a token file holds")
        with warnings.catch_warnings(), torch.serialization.safe_globals([torch.nn.ParameterDict]):
            # torch comments on old formats, which the user cannot change.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        # Damaged and hostile pickles raise whatever their opcodes lead to.
        raise InputError(
            "neither safetensors nor a pickle of plain tensors (code in pickles is never run): "
            "expected a token file; export it as safetensors with the tool that wrote it"
        ) from None


def _choose(names: Collection[str], pick: str | None = None) -> tuple[str | None, dict[str, str]]:
    """Which tensors of a file are the word's vectors.

    Args:
        pick: which word, of a file with several: its name there, with or without brackets.

    Returns:
        the name they are stored under, if any, and encoder key -> tensor name.

    Raises:
        InputError: no word, or several and none was picked.
    """
    if names and all(name.startswith(OF_A_STATE) for name in names):
        raise InputError(
            "holds the state of a run: expected a word; name the token file beside the run's folder"
        )
    words = _words(names)
    if pick is not None:
        meant = (pick, learned_word.nearest_usable(pick) or pick)
        word = next(
            (word for word in words if word in meant or learned_word.nearest_usable(word) in meant), None
        )
        if word is None:
            listed = f"those of {_listing(words)}" if words else "no word by name"
            raise InputError(f"holds no word {learned_word.shown(pick)}: it holds {listed}; check --pick")
        return word, words[word]
    if len(words) > 1:
        raise InputError(
            f"holds several words ({_listing(words)}): expected one; take one out with dti convert --pick NAME"
        )
    if words:
        return next(iter(words.items()))
    return None, _by_encoder({name: name for name in sorted(names)})


def _words(names: Collection[str]) -> dict[str, dict[str, str]]:
    """The words that a file names: encoder key -> tensor name of each; none where it names encoders alone."""
    bundled: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        if match := _BUNDLED.fullmatch(name):
            bundled.setdefault(match["word"], {})[name] = match["part"]
    if bundled:
        return {word: _by_encoder(parts) for word, parts in bundled.items()}
    if any(_encoder_of(name.removesuffix("_out")) for name in names):
        return {}
    # More than a handful are a model's.
    return {name: {SOLE: name} for name in sorted(names)} if len(names) <= MAX_WORDS else {}


def _part(name: str) -> str:
    """What a tensor's name says of its encoder."""
    match = _BUNDLED.fullmatch(name)
    return match["part"] if match else name


def _by_encoder(parts: Mapping[str, str]) -> dict[str, str]:
    """Encoder key -> tensor name, from tensor name -> what it says of its encoder; others are left out."""
    chosen: dict[str, str] = {}
    for source, part in parts.items():
        if part.endswith("_out") and _encoder_of(part.removesuffix("_out")):
            raise InputError(
                f"{learned_word.shown(source)} belongs to an encoder's output: expected vectors for its input; "
                "train without output embeddings"
            )
        key = _encoder_of(part)
        if key in chosen:
            raise InputError(
                f"{learned_word.shown(chosen[key])} and {learned_word.shown(source)} are for one encoder; remove either"
            )
        if key:
            chosen[key] = source
    if not chosen or (SOLE in chosen and len(chosen) > 1):
        listed = f" ({_listing(parts)})" if parts else ""
        raise InputError(
            f"holds {len(parts)} tensors{listed}: expected one word, under its name or under "
            "encoder keys such as clip_l and clip_g; choose a token file"
        )
    return chosen


def _encoder_of(part: str) -> str | None:
    """The encoder key that part of a tensor's name stands for, or None."""
    key = ALIASES.get(part, part)
    return SOLE if part in _ANONYMOUS else key if key in ENCODERS else None


def _rows(key: str, tensor: "np.ndarray | Tensor") -> np.ndarray:
    """A file's tensor as (n, width) float32 with memory of its own."""
    plain = isinstance(tensor, np.ndarray) or (
        str(tensor.layout) == "torch.strided" and tensor.device.type == "cpu"
    )
    if _dtype(tensor) not in _FLOATS or not plain:
        layout = "" if isinstance(tensor, np.ndarray) else f", {tensor.layout}"
        raise InputError(
            f"{learned_word.vectors_for(key)} are {tensor.dtype}{layout}: expected floating-point numbers"
        )
    if not isinstance(tensor, np.ndarray):
        tensor = tensor.detach().float().numpy()
    with np.errstate(over="ignore"):
        return np.array(np.atleast_2d(tensor), np.float32, order="C")
