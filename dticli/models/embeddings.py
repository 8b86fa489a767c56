"""A model's vocabulary: the embedding table of each text encoder, read from its files without building the model.

Rows keep the dtype they are stored in and stay mapped to disk. Safetensors files are read without torch, whose import takes
longer than everything else.
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
# First the files that are loaded when no variant is asked for, then variants such as fp16.
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
"""What safetensors calls numbers that NumPy can hold, and what NumPy does; bfloat16, which it lacks, by their bits."""
BFLOAT16 = np.dtype("<u2")

AGAIN = "expected a model in diffusers layout; download it again"


@dataclass(frozen=True, eq=False)
class Table:
    """The embedding table of one text encoder.

    Attributes:
        encoder: the pipeline's component, such as `text_encoder_2`.
        rows: (vocabulary + spare, width), in the stored dtype, before any scale the encoder applies; bfloat16 as the bits of
            `BFLOAT16`.
        words: the tokenizer's pieces in order of their rows, as it spells them (`dog</w>`, `▁dog`).
    """

    encoder: str
    rows: np.ndarray
    words: Sequence[str]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.rows.shape[1]

    @property
    def tensor(self) -> "Tensor":
        """The rows as a tensor on the CPU, which shares their memory."""
        import torch

        tensor = torch.from_numpy(self.rows)
        return tensor.view(torch.bfloat16) if self.rows.dtype == BFLOAT16 else tensor


def table_of(encoder: str, weight: "Tensor", tokenizer: Any) -> Table:
    """A table of a loaded encoder.

    Args:
        encoder: name of the component.
        weight: (rows, width), such as `text_encoder.get_input_embeddings().weight`; copied unless it is on the CPU.
        tokenizer: the base tokenizer, before words are added to it.
    """
    return _table(encoder, _array(weight), _pieces_of(tokenizer))


def _table(encoder: str, rows: np.ndarray, pieces: Sequence[str | None]) -> Table:
    # Some tokenizers know special pieces beyond the end of the table; ids without a piece have no word.
    return Table(encoder, rows, tuple(piece or "" for piece in pieces[: len(rows)]))


def _array(weight: "Tensor") -> np.ndarray:
    """A tensor's numbers as a table has them."""
    import torch

    weight = weight.detach().cpu()
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.uint16).numpy()
    # NumPy knows no fractions of eight bits.
    return (weight if weight.element_size() > 1 else weight.float()).numpy()


def read_tables(folder: Path, elsewhere: Mapping[str, tuple[Path, str]] | None = None) -> tuple[Table, ...]:
    """Read the embedding table of every text encoder that has a tokenizer, in order of their names.

    Only that tensor is read, from safetensors, shards or pickled weights of plain tensors; a variant such as
    fp16 only where there is nothing else.

    Args:
        folder: a model in diffusers layout.
        elsewhere: file, and name of the tensor in it, of tables that are not in the folder, by encoder.

    Raises:
        ModelError: a file is missing or damaged, or no text encoder is found; names the file.
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
    """Encoder key to table, of those encoders a word is learned in."""
    keys = {encoder.component: encoder.key for encoder in encoders}
    return {keys[table.encoder]: table for table in tables if table.encoder in keys}


def _class_name(index: Mapping[str, Any], component: str) -> str | None:
    """The class of a component; None where the pipeline has none, which diffusers writes as [null, null]."""
    match index.get(component):
        case [_, str(name)]:
            return name
    return None


def _find_table(folder: Path) -> tuple[Path, str | None]:
    """The file with an encoder's table, and its name there if that is known already."""
    path = _weight_file(folder)
    if path.suffix != ".json":
        return path, None
    shards = read_json(path, AGAIN).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{path} names no shards: expected a weight_map; download the model again")
    key = _table_key(shards, path)
    return folder / Path(str(shards[key])).name, key


def _read_rows(path: Path, key: str | None) -> np.ndarray:
    """The table in one file of weights, mapped to disk where the format allows; `key` is searched if None."""
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
    """The table in a safetensors file; None where it is no matrix of numbers that NumPy can hold."""
    # Opening it checks that what the header says is in the file.
    with safe_open(path, framework="np") as file:
        key = key or _table_key(file.keys(), path)
        stored = file.get_slice(key)
        dtype, shape = _STORED.get(stored.get_dtype()), tuple(stored.get_shape())
    if dtype is None or len(shape) != 2 or not all(shape):
        return None
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        start, _ = json.loads(file.read(length))[key]["data_offsets"]
    # Copied on write: torch takes no memory that must not be written to.
    return np.memmap(path, dtype, "c", 8 + length + start, shape)


def _weight_file(folder: Path) -> Path:
    """The file, or the index of shards, that `from_pretrained` would load."""
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
    """The name of the input table among a text encoder's tensors; not its decoder's or its output's."""
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
    """A tokenizer's pieces in the order of their ids."""
    pieces: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return pieces


def _read_pieces(folder: Path, kind: str) -> list[str | None]:
    """The same of a tokenizer's files; it is loaded, which takes seconds, only where they do not say everything."""
    try:
        found = _pieces_in(folder)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Whatever is wrong with the files, loading them says it.
        found = None
    return _pieces_of(read_tokenizer(folder, kind)) if found is None else found


def _pieces_in(folder: Path) -> list[str | None] | None:
    """The pieces that a tokenizer's JSON files name; None where there are none, or a special one would be added to them."""
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
    """The pieces that a tokenizer's settings name: loading it adds those to the vocabulary that are not in it."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if not os.path.lexists(folder / name):
            continue
        for key, value in read_json(folder / name, AGAIN).items():
            if name == "added_tokens.json":
                yield key
            elif key.endswith(("_token", "_tokens", "_tokens_decoder")):
                yield from _texts(value)


def _texts(value: Any) -> Iterator[str]:
    """The pieces in a setting: bare, with their properties, or several of either."""
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
    """Raise ValueError for a tokenizer that has no vocabulary: without its files, transformers makes an empty one."""
    if len(tokenizer.get_vocab()) <= len({*tokenizer.all_special_tokens}):
        raise ValueError("a tokenizer knows no words")


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A JSON object of a model.

    Raises:
        ModelError: unreadable, or anything else; then `advice`.
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
