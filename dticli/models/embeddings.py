"""A model's vocabulary: the embedding table of each text encoder, read from its files without building the model.

Rows keep their stored dtype and stay memory-mapped. Safetensors files are read without torch, whose import is slow.
"""

import json
import os
import re
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from dticli import files, mistaken
from dticli.errors import ModelError, boundary, is_out_of_memory
from dticli.models import foreign
from dticli.models.families import Encoder, tokenizer_in

if TYPE_CHECKING:
    from torch import Tensor

_TABLE_KEYS = ("token_embedding.weight", "shared.weight", "embed_tokens.weight", "word_embeddings.weight")
# First the files that are loaded without a variant, then variants such as fp16.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.*.safetensors",
    "model.safetensors.index.*.json",
    "pytorch_model.*.bin",
    "pytorch_model.bin.index.*.json",
)

_STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Dtypes of safetensors to those of NumPy; bfloat16, which NumPy lacks, to its bits as integers."""
BFLOAT16 = np.dtype("<u2")

AGAIN = "expected a model in diffusers layout; download it again"


@dataclass(frozen=True, eq=False)
class Table:
    """The embedding table of one text encoder.

    Attributes:
        encoder: the pipeline's component, such as `text_encoder_2`.
        rows: (vocabulary + unused, width) in the stored dtype, before any scale that the encoder applies; bfloat16 as bits, in
            the dtype `BFLOAT16`.
        words: the tokenizer's tokens in the order of their rows, as it spells them (`dog</w>`, `▁dog`); "" without a token.
    """

    encoder: str
    rows: np.ndarray
    words: Sequence[str]

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.rows.shape[1]

    @property
    def tensor(self) -> "Tensor":
        """The rows as a tensor on the CPU that shares their memory."""
        import torch

        tensor = torch.from_numpy(self.rows)
        return tensor.view(torch.bfloat16) if self.rows.dtype == BFLOAT16 else tensor


def table_of(encoder: str, weight: "Tensor", tokenizer: Any) -> Table:
    """The table of a loaded encoder.

    Args:
        encoder: name of the component.
        weight: (rows, width), such as `text_encoder.get_input_embeddings().weight`; copied unless it is on the CPU.
        tokenizer: the encoder's tokenizer, before words are added to it.
    """
    return _table(encoder, _array(weight), _pieces_of(tokenizer))


def _table(encoder: str, rows: np.ndarray, pieces: Sequence[str | None]) -> Table:
    # Some tokenizers have special tokens beyond the end of the table; ids without a token have an empty word.
    return Table(encoder, rows, tuple(piece or "" for piece in pieces[: len(rows)]))


def _array(weight: "Tensor") -> np.ndarray:
    """A tensor as rows of a `Table`."""
    import torch

    weight = weight.detach().cpu()
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.uint16).numpy()
    # NumPy has no 8-bit floats.
    return (weight if weight.element_size() > 1 else weight.float()).numpy()


def read_tables(folder: Path, elsewhere: Mapping[str, tuple[Path, str]] | None = None) -> tuple[Table, ...]:
    """Read the embedding table of every text encoder that has a tokenizer, in the order of their names.

    Only that tensor is read, from safetensors, shards or pickled weights; variants such as fp16 only if there is nothing
    else.

    Args:
        folder: a model in diffusers layout.
        elsewhere: encoder to file and tensor name, for tables that are not in the folder.

    Raises:
        ModelError: a file is missing or damaged, or there is no text encoder.
    """
    folder, elsewhere = Path(folder), elsewhere or {}
    index = read_json(folder / "model_index.json", AGAIN)
    tables = []
    for encoder in sorted(name for name in index if re.fullmatch(r"text_encoder(_\d+)?", name)):
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        kind = _class_name(index, tokenizer)
        if _class_name(index, encoder) and kind:
            rows = _read_rows(*(elsewhere.get(encoder) or _find_table(folder / encoder)))
            tables.append(_table(encoder, rows, _read_pieces(folder / tokenizer, kind)))
    if not tables:
        raise ModelError(f"{folder} names no text encoder with a tokenizer: expected a text-to-image model")
    return tuple(tables)


def by_key(tables: Iterable[Table], encoders: Iterable[Encoder]) -> dict[str, Table]:
    """Encoder key to table, for the encoders in which a word is learned."""
    keys = {encoder.component: encoder.key for encoder in encoders}
    return {keys[table.encoder]: table for table in tables if table.encoder in keys}


def _class_name(index: Mapping[str, Any], component: str) -> str | None:
    """The class of a component; None if the pipeline is without it, which diffusers writes as [null, null]."""
    match index.get(component):
        case [_, str(name)]:
            return name
    return None


def _find_table(folder: Path) -> tuple[Path, str | None]:
    """The file with an encoder's table, and the tensor's name if it is known from the index of shards."""
    path = _weight_file(folder)
    if path.suffix != ".json":
        return path, None
    shards = read_json(path, AGAIN).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{path} names no shards: expected a weight_map; download the model again")
    key = _table_key(shards, path)
    return folder / Path(str(shards[key])).name, key


def _read_rows(path: Path, key: str | None) -> np.ndarray:
    """The table in a file of weights, memory-mapped if possible; None for `key` searches its name.

    Raises:
        ModelError: the file cannot be read, or the table is not a matrix of floats.
    """
    files.require(path, ModelError, "expected weights; download the model again")
    with boundary(lambda reason: ModelError(f"{path} cannot be read ({reason}); download the model again")):
        rows = _map_rows(path, key) if path.suffix == ".safetensors" else None
        if rows is not None:
            return rows
        weight = _read_tensor(path, key)
    if weight.ndim != 2 or not weight.is_floating_point() or not weight.numel():
        raise ModelError(
            f"the embedding table in {path} is {weight.dtype} of shape {list(weight.shape)}: "
            "expected rows of floating-point numbers; choose a model that is not quantised"
        )
    return _array(weight)


def _map_rows(path: Path, key: str | None) -> np.ndarray | None:
    """The memory-mapped table in a safetensors file; None if it is not a matrix of a dtype in `_STORED`."""
    # Opening the file checks that it has the length that its header says.
    with safe_open(path, framework="np") as file:
        key = key or _table_key(file.keys(), path)
        stored = file.get_slice(key)
        dtype, shape = _STORED.get(stored.get_dtype()), tuple(stored.get_shape())
    if dtype is None or len(shape) != 2 or not all(shape):
        return None
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        start, _ = json.loads(file.read(length))[key]["data_offsets"]
    # Copy-on-write, because torch warns about read-only memory.
    return np.memmap(path, dtype, "c", 8 + length + start, shape)


def _weight_file(folder: Path) -> Path:
    """The file, or index of shards, that `from_pretrained` would load.

    Raises:
        ModelError: there is none.
    """
    for pattern in _WEIGHT_FILES:
        for path in sorted(folder.glob(pattern)):
            if "-of-" not in path.name:
                return path
    raise ModelError(f"no weights in {folder}: expected model.safetensors; download the model again")


def _read_tensor(path: Path, key: str | None) -> "Tensor":
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key or _table_key(file.keys(), path))
    import torch

    # Only the zip format of torch >= 1.6 can be mapped.
    weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return weights[key or _table_key(weights, path)]


def _table_key(keys: Collection[str], path: Path) -> str:
    """The name of the input embeddings among a text encoder's tensors, which are not those of a decoder or the output.

    Raises:
        ModelError: there is none, or several.
    """
    for ending in _TABLE_KEYS:
        found = [key for key in keys if f".{key}".endswith(f".{ending}") and "decoder" not in key.split(".")]
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelError(
                f"{path} holds several embedding tables ({', '.join(sorted(found))}): expected one"
            )
    raise ModelError(f"{path} holds no embedding table: expected a tensor {', '.join(_TABLE_KEYS)}")


def _pieces_of(tokenizer: Any) -> list[str | None]:
    """A tokenizer's tokens in the order of their ids; None for an id without one."""
    pieces: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return pieces


def _read_pieces(folder: Path, kind: str) -> list[str | None]:
    """As `_pieces_of`, from a tokenizer's files; it is loaded, which takes seconds, only if they are not sufficient."""
    try:
        found = _pieces_in(folder)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # If the files are damaged, loading them raises the error.
        found = None
    return _pieces_of(read_tokenizer(folder, kind)) if found is None else found


def _pieces_in(folder: Path) -> list[str | None] | None:
    """The tokens in a tokenizer's JSON files; None without such files, or if loading would add special tokens."""
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.json"
    if os.path.lexists(whole):
        from tokenizers import Tokenizer

        files.require(whole, ModelError, AGAIN)
        loaded = Tokenizer.from_file(str(whole))
        pieces = [loaded.id_to_token(place) for place in range(loaded.get_vocab_size())]
    elif os.path.lexists(vocabulary):
        places = read_json(vocabulary, AGAIN)
        by_place = {place: piece for piece, place in places.items()}
        pieces = [by_place.get(place) for place in range(len(places))]
    else:
        return None
    return pieces if set(_special(folder)) <= set(pieces) else None


def _special(folder: Path) -> Iterator[str]:
    """The special tokens in a tokenizer's settings; loading adds them to the vocabulary if they are not in it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if not os.path.lexists(folder / name):
            continue
        for key, value in read_json(folder / name, AGAIN).items():
            if name == "added_tokens.json":
                yield key
            elif key.endswith(("_token", "_tokens", "_tokens_decoder")):
                yield from _texts(value)


def _texts(value: Any) -> Iterator[str]:
    """The tokens in a setting: a string, an object with `content`, or several of these."""
    match value:
        case str():
            yield value
        case {"content": str(piece)}:
            yield piece
        case dict():
            yield from (piece for each in value.values() for piece in _texts(each))
        case list():
            yield from (piece for each in value for piece in _texts(each))


def read_tokenizer(folder: Path, kind: str) -> Any:
    import transformers

    loader = getattr(transformers, kind, transformers.AutoTokenizer)
    with boundary(
        lambda reason: ModelError(f"no tokenizer in {folder} ({reason}); download the model again")
    ):
        loaded = foreign.load(loader.from_pretrained, folder, local_files_only=True)
        found = tokenizer_in(loaded)
        require_words(found)
        return found


def require_words(tokenizer: Any) -> None:
    """Raise ValueError for a tokenizer without a vocabulary, which transformers makes if its files are missing."""
    if len(tokenizer.get_vocab()) <= len({*tokenizer.all_special_tokens}):
        raise ValueError("a tokenizer knows no words")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """Read a JSON object of a model.

    Raises:
        ModelError: the file cannot be read or is not a JSON object; the message ends with `advice`.
    """
    text = files.read_text(path, ModelError, advice)

    def damaged(reason: str) -> ModelError:
        what = mistaken.known_file(path)
        if what:
            return ModelError(f"{path.parent.name}/{path.name} is {what}")
        return ModelError(f"{path} is not JSON ({reason}): {advice}")

    with boundary(damaged):
        content = json.loads(text)
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged (no names and values): {advice}")
    return content
