"""Token files: what is written, against the format and stock loaders; what is read, against files other tools write."""

import errno
import hashlib
import io
import json
import os
import pickle
import resource
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dticli import atomic
from dticli.errors import DtiError, EnvironmentProblem, InputError, UsageError
from dticli.words import learned_word, token_reading, token_writing
from dticli.words.learned_word import Token
from dticli.words.programs import SOLE
from tests import tiny


def values(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def rows_of(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(values(count, width, seed))


def sole(count: int = 2, width: int = 32) -> Token:
    return Token.of("<sks-dog>", {SOLE: rows_of(count, width)}, {"modelspec.title": "a dog"})


def pair() -> Token:
    return Token.of("<dog>", {"clip_l": rows_of(2, 32), "clip_g": rows_of(2, 48, 1)}, {"dti.seed": "3"})


def same(a: Token, b: Token) -> bool:
    return (
        a.name == b.name
        and dict(a.metadata) == dict(b.metadata)
        and a.vectors.keys() == b.vectors.keys()
        and all(torch.equal(a.vectors[key], b.vectors[key]) for key in a.vectors)
    )


def put(folder: Path, data: bytes, name: str = "my-dog.safetensors") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def pickled(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def parsed(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data by the format's definition."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def outcome(function: Callable[..., Any], argument: Any) -> Any:
    """What a function returns, or the error it has for users."""
    try:
        return function(argument)
    except DtiError as error:
        return error


# Writing


def test_written_bytes_follow_the_format() -> None:
    """Sorted keys, aligned data, two-dimensional little-endian float32, and the digest of the data in the metadata."""
    data = token_writing.to_bytes(pair())
    header, body = parsed(data)
    assert (len(data) - len(body)) % 8 == 0
    assert list(header) == sorted(header) == ["__metadata__", "clip_g", "clip_l"]
    assert header["clip_g"] == {"dtype": "F32", "shape": [2, 48], "data_offsets": [0, 384]}
    assert header["clip_l"] == {"dtype": "F32", "shape": [2, 32], "data_offsets": [384, 640]}
    assert body == values(2, 48, 1).astype("<f4").tobytes() + values(2, 32).astype("<f4").tobytes()
    assert header["__metadata__"] == {
        "dti.name": "<dog>",
        "dti.seed": "3",
        "format": "pt",
        "modelspec.hash_sha256": "0x" + hashlib.sha256(body).hexdigest(),
    }
    assert token_writing.content_hash(pair()) == hashlib.sha256(body).hexdigest()


def test_one_tensor_is_stored_under_the_words_name() -> None:
    """The safetensors library finds one key, the placeholder, with the same numbers."""
    stored = safetensors.torch.load(token_writing.to_bytes(sole()))
    assert list(stored) == ["<sks-dog>"]
    assert torch.equal(stored["<sks-dog>"], rows_of(2, 32))


def test_bytes_are_the_same_in_another_process() -> None:
    """Nothing depends on hash seeds or on the order of mappings."""
    script = (
        "import hashlib; import torch\n"
        "from dticli.words.learned_word import Token; from dticli.words.token_writing import to_bytes\n"
        "rows = {'t5xxl': torch.full((1, 8), .5), 'clip_l': torch.ones(1, 4)}\n"
        "metadata = {'b': '2', 'a': 'é', 'c': '3', 'd': '\\udcff'}\n"
        "print(hashlib.sha256(to_bytes(Token.of('<dog>', rows, metadata))).hexdigest())"
    )
    rows = {"clip_l": torch.ones(1, 4), "t5xxl": torch.full((1, 8), 0.5)}
    here = token_writing.to_bytes(Token.of("<dog>", rows, {"d": "?", "c": "3", "a": "é", "b": "2"}))
    environment = os.environ | {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    there = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert there.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_content_hash_ignores_name_and_metadata() -> None:
    """Renamed or annotated, a word keeps its hash; changed in one bit, it does not."""
    first = sole()
    other = Token.of("<cat>", first.vectors, {})
    changed = first.vectors[SOLE].clone()
    changed[0, 0] = torch.nextafter(changed[0, 0], torch.tensor(9.0))
    assert token_writing.content_hash(first) == token_writing.content_hash(other)
    assert token_writing.content_hash(first) != token_writing.content_hash(
        Token.of("<cat>", {SOLE: changed}, {})
    )


@pytest.mark.parametrize("token", [sole(), pair(), Token.of("<a>", {"clip_l": rows_of(1, 8)}, {"é": "ü\n"})])
def test_reading_returns_what_was_written(token: Token, tmp_path: Path) -> None:
    """Name, encoder keys, numbers and metadata survive, under whatever file name."""
    path = tmp_path / "renamed.safetensors"
    token_writing.write(path, token)
    assert same(token_reading.read(path), token)


@pytest.mark.parametrize(
    ("vectors", "metadata", "error"),
    [
        ({}, {}, InputError),
        ({"clip_l": torch.ones(1, 4), "clip_g": torch.ones(2, 4)}, {}, InputError),
        ({SOLE: torch.tensor([[1.0, float("nan")]])}, {}, InputError),
        ({SOLE: torch.zeros(1, 4)}, {}, InputError),
        ({SOLE: torch.ones(1, 4, dtype=torch.float64)}, {}, TypeError),
        ({SOLE: torch.ones(4)}, {}, TypeError),
        ({SOLE: torch.ones(1, 4)}, {"steps": 3}, TypeError),
    ],
)
def test_a_token_is_valid_or_is_not(vectors: Any, metadata: Any, error: type[Exception]) -> None:
    """What could not be written or read back cannot be made."""
    with pytest.raises(error):
        Token.of("<dog>", vectors, metadata)


def test_writing_over_a_file_needs_force(tmp_path: Path) -> None:
    """An existing file is left alone until --force is given."""
    path = put(tmp_path, b"precious")
    with pytest.raises(UsageError, match="--force"):
        token_writing.write(path, sole())
    assert path.read_bytes() == b"precious"
    token_writing.write(path, sole(), force=True)
    assert path.read_bytes() == token_writing.to_bytes(sole())


def test_writing_keeps_to_the_suffix(tmp_path: Path) -> None:
    """Safetensors under another suffix would be taken for a pickle by other programs."""
    with pytest.raises(UsageError, match=r"\.safetensors"):
        token_writing.write(tmp_path / "dog.pt", sole())


# Stock loaders


@pytest.mark.parametrize("count", [1, 2])
def test_diffusers_loads_a_written_word(count: int, tmp_path: Path) -> None:
    """`load_textual_inversion` without arguments puts our rows under our name, and expands prompts for n > 1."""
    pipe = tiny.build("sd1")
    path = tmp_path / "sks-dog.safetensors"
    token_writing.write(path, sole(count))
    pipe.load_textual_inversion(str(path))
    names = ["<sks-dog>", "<sks-dog>_1"][:count]
    table = pipe.text_encoder.get_input_embeddings().weight
    ids = pipe.tokenizer.convert_tokens_to_ids(names)
    assert torch.equal(table[ids].detach(), rows_of(count, 32))
    assert pipe.maybe_convert_prompt("a <sks-dog>", pipe.tokenizer) == "a " + " ".join(names)


def test_diffusers_loads_the_encoders_of_a_written_word(tmp_path: Path) -> None:
    """A two-encoder file, read with the safetensors library, goes into SDXL encoder by encoder."""
    pipe = tiny.build("sdxl")
    path = tmp_path / "dog.safetensors"
    token_writing.write(path, pair())
    stored = safetensors.torch.load_file(path)
    pipe.load_textual_inversion(stored["clip_l"], token="<dog>")
    pipe.load_textual_inversion(
        stored["clip_g"], token="<dog>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
    )
    for encoder, tokenizer, key in [
        ("text_encoder", "tokenizer", "clip_l"),
        ("text_encoder_2", "tokenizer_2", "clip_g"),
    ]:
        start = getattr(pipe, tokenizer).convert_tokens_to_ids("<dog>")
        table = getattr(pipe, encoder).get_input_embeddings().weight
        assert torch.equal(table[start : start + 2].detach(), pair().vectors[key])


# Reading other tools' files

L, G, ONE = rows_of(2, 768), rows_of(2, 1280, 1), rows_of(1, 768)


def a1111(tensor: Tensor = L, name: Any = "sks-dog") -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": nn.Parameter(tensor)},
        "name": name,
        "step": 500,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


def old_a1111() -> dict[str, Any]:
    parameters = nn.ParameterDict({"*": nn.Parameter(L)})
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters, "name": "sks-dog"}


def safe(tensors: dict[str, Tensor], **metadata: str) -> bytes:
    return safetensors.torch.save(
        {name: tensor.clone() for name, tensor in tensors.items()}, metadata or None
    )


ST, PT = "my-dog.safetensors", "my-dog.pt"
LAYOUTS: dict[str, tuple[str, bytes, str, dict[str, Tensor]]] = {
    "diffusers": (ST, safe({"<sks-dog>": L}), "<sks-dog>", {SOLE: L}),
    "diffusers, dashes": (ST, safe({"<a--b_c>": L}), "<a--b_c>", {SOLE: L}),
    "diffusers, old, 1-D": ("learned_embeds.bin", pickled({"<sks-dog>": ONE[0]}), "<sks-dog>", {SOLE: ONE}),
    "diffusers, 1-D": (ST, safe({"<sks-dog>": ONE[0]}), "<sks-dog>", {SOLE: ONE}),
    "reference": ("learned_embeds.safetensors", safe({"<dog>": G}), "<dog>", {SOLE: G}),
    "A1111": (PT, pickled(a1111()), "<sks-dog>", {SOLE: L}),
    "A1111, unnamed": (PT, pickled(a1111(name=None)), "<my-dog>", {SOLE: L}),
    "A1111, not zip": (PT, pickled(a1111(), _use_new_zipfile_serialization=False), "<sks-dog>", {SOLE: L}),
    "A1111, ParameterDict": (PT, pickled(old_a1111()), "<sks-dog>", {SOLE: L}),
    "A1111, SDXL": (PT, pickled({"clip_g": G, "clip_l": L}), "<my-dog>", {"clip_l": L, "clip_g": G}),
    "bare tensor": (PT, pickled(ONE[0]), "<my-dog>", {SOLE: ONE}),
    "kohya": (ST, safe({"emb_params": L}), "<my-dog>", {SOLE: L}),
    "kohya, SDXL": (ST, safe({"clip_g": G, "clip_l": L}), "<my-dog>", {"clip_l": L, "clip_g": G}),
    "kohya, pickled": (PT, pickled({"emb_params": L}), "<my-dog>", {SOLE: L}),
    "SDXL with extras": (
        ST,
        safe({"clip_g": G, "clip_l": L, "mask": ONE}),
        "<my-dog>",
        {"clip_l": L, "clip_g": G},
    ),
    "OneTrainer": (ST, safe({"emp_params": L}), "<my-dog>", {SOLE: L}),
    "OneTrainer, SD3": (
        ST,
        safe({"t5": rows_of(2, 4096), "clip_l": L, "clip_g": G}),
        "<my-dog>",
        {"clip_l": L, "clip_g": G, "t5xxl": rows_of(2, 4096)},
    ),
    "OneTrainer, Sana": (ST, safe({"gemma": rows_of(2, 2304)}), "<my-dog>", {"gemma2_2b": rows_of(2, 2304)}),
    "ComfyUI, FLUX": (ST, safe({"t5xxl": G, "clip_l": L}), "<my-dog>", {"clip_l": L, "t5xxl": G}),
    "ComfyUI, one key": (ST, safe({"clip_g": G}), "<my-dog>", {"clip_g": G}),
    "LoRA bundle": (
        ST,
        safe(
            {
                "bundle_emb.<sks-dog>.clip_l": L,
                "bundle_emb.<sks-dog>.t5": G,
                "lora_te1.weight": torch.ones(3, 3),
            }
        ),
        "<sks-dog>",
        {"clip_l": L, "t5xxl": G},
    ),
    "A1111 bundle": (ST, safe({"bundle_emb.v1.5 dog.string_to_param.*": L}), "<v1-5-dog>", {SOLE: L}),
    "dti as emb_params": (ST, safe({"emb_params": L}, **{"dti.name": "<toy>"}), "<toy>", {SOLE: L}),
    "dti, encoder named": (ST, safe({"<toy>": L}, **{"dti.encoder": "clip_l"}), "<toy>", {"clip_l": L}),
    "half": (ST, safe({"<toy>": L.half()}), "<toy>", {SOLE: L.half().float()}),
    "bfloat16": (ST, safe({"<toy>": L.bfloat16()}), "<toy>", {SOLE: L.bfloat16().float()}),
    "double": (PT, pickled({"<toy>": L.double()}), "<toy>", {SOLE: L}),
    "column-major": (PT, pickled({"<toy>": L.T.contiguous().T}), "<toy>", {SOLE: L}),
    "wrong suffix": (PT, safe({"<toy>": L}), "<toy>", {SOLE: L}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tools_layout_is_read(layout: str, tmp_path: Path) -> None:
    """Name, encoders and numbers of each layout, written with the tool's own library calls."""
    filename, data, name, vectors = LAYOUTS[layout]
    token = token_reading.read(put(tmp_path, data, filename))
    assert token.name == name
    assert token.vectors.keys() == vectors.keys()
    for key, expected in vectors.items():
        assert torch.equal(token.vectors[key], expected)
        assert token.vectors[key].is_contiguous()
        assert not token.vectors[key].requires_grad


def test_foreign_metadata_is_kept_but_not_what_would_go_stale(tmp_path: Path) -> None:
    """A licence survives; a hash or name that later changes does not."""
    stale = {
        "format": "tf",
        "modelspec.hash_sha256": "0xabc",
        "dti.name": "<other>",
        "modelspec.license": "CC0",
    }
    token = token_reading.read(put(tmp_path, safe({"<toy>": L}, **stale)))
    assert (token.name, token.metadata) == ("<toy>", {"modelspec.license": "CC0"})


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("sks", "<sks>"),
        ("<MyDog>", "<mydog>"),
        ("My  Dog v2.1", "<my-dog-v2-1>"),
        ("bad_prompt", "<bad_prompt>"),
        ("<_dog_>", "<dog>"),
        ("Ünïcode", "<unicode>"),
        ("猫", "<my-dog>"),
        ("a" * 90, f"<{'a' * 62}>"),
    ],
)
def test_foreign_names_become_usable(given: str, name: str, tmp_path: Path) -> None:
    """A name prompts cannot use gives way to one they can, and is kept in the metadata, also on rewriting."""
    token = token_reading.read(put(tmp_path, safe({given: L})))
    assert (token.name, token.metadata["dti.original_name"]) == (name, given)
    again = token_reading.read(put(tmp_path, token_writing.to_bytes(token)))
    assert same(token, again)


def test_a_file_whose_name_has_no_letters_is_still_a_word(tmp_path: Path) -> None:
    """Where neither key nor file name offers a letter, the word is called token."""
    assert token_reading.read(put(tmp_path, safe({"emb_params": L}), "猫.safetensors")).name == "<token>"


def test_reading_does_not_hold_on_to_the_file(tmp_path: Path) -> None:
    """Numbers stay when the file is overwritten in place, which would change a mapped tensor."""
    path = put(tmp_path, safe({"<toy>": L}))
    token = token_reading.read(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(token.vectors[SOLE], L)


@pytest.mark.parametrize(
    ("data", "container", "stored"),
    [
        (safe({"emb_params": ONE[0].half()}), "safetensors", {SOLE: ("emb_params", (768,), "float16")}),
        (pickled(a1111()), "pickle", {SOLE: ("string_to_param.*", (2, 768), "float32")}),
        (
            safe({"t5": L, "clip_g": G}),
            "safetensors",
            {"clip_g": ("clip_g", (2, 1280), "float32"), "t5xxl": ("t5", (2, 768), "float32")},
        ),
    ],
)
def test_the_layout_is_what_the_file_holds(data: bytes, container: str, stored: Any, tmp_path: Path) -> None:
    """Names, shapes and dtypes before anything is repaired; a repair is said in words."""
    _, layout = token_reading.read_with_layout(put(tmp_path, data))
    found = {key: (each.name, each.shape, each.dtype) for key, each in layout.tensors.items()}
    assert (layout.container, found) == (container, stored)
    assert bool(layout.repairs) is ("float16" in str(stored))


def test_what_the_metadata_says_of_the_encoder_goes_first(tmp_path: Path) -> None:
    """A word exported under another program's key for its encoder is ours again."""
    path = put(tmp_path, safe({"clip_h": ONE}, **{"dti.encoder": "clip_l"}))
    assert list(token_reading.read(path).vectors) == ["clip_l"]
    assert token_reading.read(path, "<toy>").name == "<toy>"


def test_the_encoder_in_the_metadata_is_that_of_a_single_tensor(tmp_path: Path) -> None:
    """A file that holds rows for two keeps both, whatever is left of an earlier one in its metadata."""
    path = put(tmp_path, safe({"clip_g": G, "clip_l": L}, **{"dti.encoder": "clip_l"}))
    assert sorted(token_reading.read(path).vectors) == ["clip_g", "clip_l"]


# Hostile and damaged files


class Bomb:
    """A pickle that creates a file when loaded with code allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def raw(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def huge_storage() -> bytes:
    """A pickle in torch's old format whose tensor claims a million million numbers."""
    data = pickled({"<dog>": ONE}, _use_new_zipfile_serialization=False)
    assert data.count(b"M\x00\x03") == 3  # 768: of the storage, of the shape, of the stride
    return data.replace(b"M\x00\x03", b"\x8a\x06" + (10**12).to_bytes(6, "little"))


DOG = b'"<dog>":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}'
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "header only": token_writing.to_bytes(sole())[:40],
    "one byte short": token_writing.to_bytes(sole())[:-1],
    "one byte more": token_writing.to_bytes(sole()) + b"\0",
    "gigantic header": struct.pack("<Q", 2**62) + b"{}",
    "large header": struct.pack("<Q", 2**40) + b"{" + bytes(64),
    "header is a list": raw(b"{]"),
    "deep header": raw(b'{"a":' * 100_000),
    "digits": raw(b'{"a":' + b"9" * 5000 + b"}"),
    "no tensors": raw({}),
    "metadata is a list": raw({"__metadata__": [1], "<dog>": entry([1, 2], 0, 8)}, bytes(8)),
    "metadata is numbers": raw({"__metadata__": {"a": 1}, "<dog>": entry([1, 2], 0, 8)}, bytes(8)),
    "offsets beyond": raw({"<dog>": entry([1, 2], 0, 2**40)}, bytes(8)),
    "name twice": raw(
        b"{" + DOG + b"," + DOG.replace(b"0,8", b"0,16").replace(b"1,2", b"2,2") + b"}", b"ABCDEFGHIJKLMNOP"
    ),
    "empty name": safe({"": L}),
    "path in name": safe({"../../etc/passwd": L}),
    "backslash in name": safe({"..\\dog": L}),
    "escape in name": safe({"\x1b[2J": L}),
    "newline in name": safe({"<dog>\n": L}),
    "right-to-left in name": safe({"<do\u202eg>": L}),
    "hostile dti.name": safe({"emb_params": L}, **{"dti.name": "a/b"}),
    "hostile pickled name": pickled(a1111(name="../dog")),
    "hostile bundle": safe({"bundle_emb.a/b.clip_l": L}),
    "NaN": safe({"<dog>": torch.tensor([[1.0, float("nan")]])}),
    "inf": safe({"<dog>": torch.tensor([[1.0, float("inf")]])}),
    "float64 beyond float32": pickled({"<dog>": torch.tensor([[1e300, 1.0]], dtype=torch.float64)}),
    "no rows": safe({"<dog>": torch.ones(0, 768)}),
    "no columns": safe({"<dog>": torch.ones(2, 0)}),
    "zeros": safe({"<dog>": torch.zeros(2, 8)}),
    "scalar": safe({"<dog>": torch.tensor(1.0)}),
    "3-D": safe({"<dog>": torch.ones(1, 1, 8)}),
    "integers": safe({"<dog>": torch.ones(1, 8, dtype=torch.int64)}),
    "int8": safe({"<dog>": torch.ones(1, 8).to(torch.int8)}),
    "complex": pickled({"<dog>": torch.ones(1, 8, dtype=torch.complex64)}),
    "sparse": pickled({"<dog>": torch.eye(4).to_sparse()}),
    "meta": pickled({"<dog>": torch.ones(1, 8, device="meta")}),
    "thousands of vectors": safe({"<dog>": torch.ones(5000, 8)}),
    "absurd width": safe({"<dog>": torch.ones(1, 20_000)}),
    "expanded to terabytes": pickled({"<dog>": torch.ones(1).expand(10**6, 10**6)}),
    "huge storage": huge_storage(),
    "two words": safe({"<dog>": L, "<cat>": L}),
    "two bundled words": safe({"bundle_emb.dog.clip_l": L, "bundle_emb.cat.clip_l": L}),
    "two names for one encoder": safe({"t5": L, "t5xxl": L}),
    "sole and named": safe({"emb_params": L, "clip_g": G}),
    "output embedding": safe({"clip_l": L, "t5_out": L}),
    "only output embedding": safe({"emp_params_out": L}),
    "ragged": safe({"clip_l": L, "clip_g": rows_of(3, 1280)}),
    "a LoRA": safe({"lora_te.up.weight": L, "lora_te.down.weight": L}),
    "pickled list": pickled([L]),
    "pickled number": pickled(3),
    "pickled without tensors": pickled({"name": "dog"}),
    "string_to_param is a tensor": pickled({"string_to_param": L}),
    "string_to_param holds two": pickled({"string_to_param": {"*": L, "a": L}}),
    "string_to_param holds text": pickled({"string_to_param": {"*": "text"}}),
    "plain pickle": pickle.dumps({"<dog>": [1.0]}),
    "empty zip": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_unusable_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    """Each ends in one printable line that names the file, quickly and without using memory it claims."""
    path = put(tmp_path, HOSTILE[name], "foreign.bin")
    with pytest.raises(InputError) as caught:
        token_reading.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) - len(str(path)) < 300


def test_code_in_pickles_never_runs(tmp_path: Path) -> None:
    """A pickle that would make a folder is refused, in both of torch's formats; the folder is not made."""
    made = tmp_path / "made"
    for zip_format in (True, False):
        data = pickled({"<dog>": L, "code": Bomb(made)}, _use_new_zipfile_serialization=zip_format)
        with pytest.raises(InputError, match="never run"):
            token_reading.read(put(tmp_path, data, "dog.pt"))
    assert not made.exists()
    torch.load(io.BytesIO(data), weights_only=False)
    assert made.exists(), "the bomb is no bomb"


def test_a_whole_model_is_not_unpickled(tmp_path: Path) -> None:
    """A pickle larger than any token file is refused by its size."""
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.truncate(token_reading.MAX_PICKLE + 1)
    with pytest.raises(InputError, match="whole model"):
        token_reading.read(path)


def test_a_small_file_cannot_unpack_to_a_large_one(tmp_path: Path) -> None:
    """A token beside 68 MB of zeros, deflated to a few kilobytes, is refused unopened; deflated alone it is read."""
    for pad, refused in ((1, False), (17_000_000, True)):
        path = tmp_path / "dog.pt"
        plain = zipfile.ZipFile(io.BytesIO(pickled({"clip_l": L, "pad": torch.zeros(pad)})))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        assert path.stat().st_size < 2**20
        found = outcome(token_reading.read, path)
        assert isinstance(found, InputError) if refused else torch.equal(found.vectors["clip_l"], L)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, lambda path: os.mkfifo(path)])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Missing paths, folders and pipes are refused without waiting."""
    make(tmp_path / "dog.pt")
    with pytest.raises(InputError, match=r"dog\.pt: (no such file|it is a (folder|pipe)): expected"):
        token_reading.read(tmp_path / "dog.pt")


SEEDS = [
    token_writing.to_bytes(Token.of("<dog>", {SOLE: rows_of(1, 4)}, {"a": "b"})),
    token_writing.to_bytes(Token.of("<dog>", {"clip_l": rows_of(1, 4), "clip_g": rows_of(1, 6)}, {})),
    safe({"bundle_emb.dog.clip_l": rows_of(1, 4), "bundle_emb.dog.t5": rows_of(1, 4)}),
    pickled(a1111(rows_of(1, 4))),
    pickled(a1111(rows_of(1, 4)), _use_new_zipfile_serialization=False),
    pickled(old_a1111(), _use_new_zipfile_serialization=False)[:2000],
    pickled(rows_of(1, 4)[0]),
]
Edit = tuple[str, int, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete"]),
        st.integers(0, 2000),
        st.binary(min_size=1, max_size=4),
    ),
    max_size=4,
)


def edited(data: bytes, edits: list[Edit], length: int | None) -> bytes:
    for kind, where, text in edits:
        where %= len(data) + 1
        after = where if kind == "insert" else where + len(text)
        data = data[:where] + (b"" if kind == "delete" else text) + data[after:]
    return data[:length]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.sampled_from(SEEDS), edits=EDITS, length=st.none() | st.integers(0, 1500))
def test_damaged_files_give_a_valid_token_or_an_input_error(
    data: bytes, edits: list[Edit], length: int | None, scratch: Path
) -> None:
    """Whatever bytes of a file change, what comes out is refused cleanly or can be written and read again."""
    require_refusal_or_token(edited(data, edits, length), scratch)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(data=st.sampled_from(SEEDS), edits=EDITS, length=st.none() | st.integers(0, 1500))
def test_damaged_files_at_length(data: bytes, edits: list[Edit], length: int | None, scratch: Path) -> None:
    """The same, for minutes."""
    require_refusal_or_token(edited(data, edits, length), scratch)


def require_refusal_or_token(data: bytes, scratch: Path) -> None:
    found = outcome(token_reading.read, put(scratch, data, "fuzzed.bin"))
    if isinstance(found, InputError):
        assert "\n" not in str(found)
    else:
        assert same(token_reading.read(put(scratch, token_writing.to_bytes(found))), found)
        assert learned_word.check_name(found.name) == found.name


# Names


@pytest.mark.parametrize("name", ["<a>", "<dog>", "<sks-dog>", "<dog_2>", "<7>", f"<{'a' * 62}>"])
def test_good_names_pass(name: str) -> None:
    """Small letters, digits, - and _ in brackets."""
    assert learned_word.check_name(name) == name


@pytest.mark.parametrize(
    ("name", "complaint", "offer"),
    [
        ("dog", "no angle brackets", "'<dog>'"),
        ("<dog", "no angle brackets", "'<dog>'"),
        ("<MyDog>", "capitals", "'<mydog>'"),
        ("<my dog>", "spaces", "'<my-dog>'"),
        ("My Dog", "no angle brackets and has capitals, .* and has spaces", "'<my-dog>'"),
        ("<dög>", "tokenizers split", "'<dog>'"),
        ("<-dog->", "starting and ending", "'<dog>'"),
        ("<dog>_1", "no angle brackets", "'<dog-_1>'"),
        ("", "empty", "'<dog>'"),
        ("<>", "empty", "'<dog>'"),
        ("<猫>", "tokenizers split", "'<dog>'"),
        (f"<{'a' * 63}>", "more than 64", f"'<{'a' * 62}>'"),
        ("<dog\x1b>", "tokenizers split", "'<dog>'"),
    ],
)
def test_bad_names_are_told_apart_and_corrected(name: str, complaint: str, offer: str) -> None:
    """The message says what is wrong and offers a name that passes."""
    with pytest.raises(UsageError, match=complaint) as caught:
        learned_word.check_name(name)
    assert str(caught.value).endswith(f"write {offer}")
    assert str(caught.value).isprintable()
    learned_word.check_name(offer.strip("'"))


@given(st.text(max_size=80))
def test_every_bad_name_is_offered_a_good_one(name: str) -> None:
    """For any text, the last word of the message is a usable name, and the message is one line."""
    found = outcome(learned_word.check_name, name)
    if isinstance(found, UsageError):
        assert str(found).isprintable()
        learned_word.check_name(str(found).rsplit("write ", 1)[1].strip("'"))
    else:
        assert found == name


# Matching


def token_with(**widths: int) -> Token:
    return Token.of(
        "<dog>", {key.replace("sole", SOLE): rows_of(1, width) for key, width in widths.items()}, {}
    )


@pytest.mark.parametrize(
    ("token", "widths"),
    [
        (token_with(sole=768), {"clip_l": 768}),
        (token_with(sole=2304), {"gemma2_2b": 2304}),
        (token_with(clip_l=768), {"clip_l": 768}),
        (token_with(clip_h=1024), {"clip_l": 1024}),
        (token_with(clip_g=1280, clip_l=768), {"clip_l": 768, "clip_g": 1280}),
    ],
)
def test_matching_encoders_get_their_rows(token: Token, widths: dict[str, int]) -> None:
    """By key for several encoders, by width for one; in the model's order."""
    fitted = learned_word.fit(token, widths).rows
    assert list(fitted) == list(widths)
    assert {key: rows.shape for key, rows in fitted.items()} == {
        key: (1, width) for key, width in widths.items()
    }


@pytest.mark.parametrize(
    ("token", "widths", "said"),
    [
        (token_with(sole=768), {"clip_l": 1024}, "one encoder of width 768: expected clip_l of width 1024"),
        (
            token_with(sole=768),
            {"clip_l": 768, "clip_g": 1280},
            "expected clip_l of width 768 and clip_g of width 1280",
        ),
        (token_with(t5xxl=4096), {"umt5xxl": 4096}, "t5xxl of width 4096: expected umt5xxl of width 4096"),
        (
            token_with(clip_l=768, clip_g=1280),
            {"clip_l": 768},
            "clip_l of width 768 and clip_g of width 1280: expected",
        ),
        (token_with(clip_l=768), {"clip_l": 768, "t5xxl": 4096}, "expected clip_l of width 768 and t5xxl"),
        (
            token_with(clip_l=1280, clip_g=768),
            {"clip_l": 768, "clip_g": 1280},
            "clip_l of width 1280 and clip_g",
        ),
    ],
)
def test_other_encoders_or_widths_are_refused(token: Token, widths: dict[str, int], said: str) -> None:
    """The message names what the file holds and what the model needs."""
    with pytest.raises(InputError, match=said):
        learned_word.fit(token, widths)


# Whole or not at all


@pytest.fixture
def file_size_limit() -> Iterator[int]:
    """No file may grow beyond the returned number of bytes; a disk that is full behaves alike."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield 4096
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_halfway_leaves_the_old_file(file_size_limit: int, tmp_path: Path) -> None:
    """The old content stays, nothing is left beside it, and the error says what to do."""
    path = put(tmp_path, b"old")
    with pytest.raises(EnvironmentProblem, match=r"my-dog.*ulimit"):
        atomic.write_bytes(path, bytes(file_size_limit + 1))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_every_refusal_of_the_disk_is_explained(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step the disk refuses, the old file stays and the error has a remedy."""
    path = put(tmp_path, b"old")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(EnvironmentProblem, match="; "):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def test_other_errors_pass_through_and_leave_nothing(tmp_path: Path) -> None:
    """An error of the body, even of another file, is not taken for one of the disk."""
    path = put(tmp_path, b"old")
    for error in (
        ValueError("bug"),
        KeyboardInterrupt(),
        PermissionError(errno.EACCES, "no", "/another/file"),
    ):

        def write_half(error: BaseException = error) -> None:
            with atomic.staged(path) as temporary:
                temporary.write_bytes(b"half")
                raise error

        with pytest.raises(type(error)):
            write_half()
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == [path.name]


def test_the_file_appears_only_when_complete(tmp_path: Path) -> None:
    """While the body runs the new content is elsewhere, in the same folder and under the same suffix."""
    path = tmp_path / "grid.png"
    with atomic.staged(path) as temporary:
        temporary.write_bytes(b"half")
        assert (temporary.parent, temporary.suffix) == (path.parent, ".png")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert os.listdir(tmp_path) == ["grid.png"]


def test_folders_are_refused_before_the_work_starts(tmp_path: Path) -> None:
    """A path that is a folder, or lies in none, is found before the body runs."""
    for path, problem in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "dog.png", r"no folder .*no; create"),
    ):
        with pytest.raises(EnvironmentProblem, match=problem), atomic.staged(path):
            pytest.fail("the body ran")


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    """The umask decides, not a private temporary file's mode."""
    atomic.write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """Writing through a symbolic link replaces the file it points to."""
    target, link = put(tmp_path, b"old", "target"), tmp_path / "link"
    link.symlink_to(target)
    atomic.write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_results_are_known_to_be_writable_before_the_work(tmp_path: Path) -> None:
    """Missing folders are made, nothing else is left; files in the way are named before anything is written."""
    new, old = tmp_path / "a" / "b" / "dog.png", put(tmp_path, b"old")
    atomic.require_writable([new])
    assert new.parent.is_dir()
    assert not list(new.parent.iterdir())
    with pytest.raises(UsageError, match=r"my-dog.*--force"):
        atomic.require_writable([new, old])
    atomic.require_writable([new, old], force=True)
    assert old.read_bytes() == b"old"
    for path, problem in ((tmp_path, "is a folder"), (old / "dog.png", "cannot make the folder")):
        with pytest.raises(EnvironmentProblem, match=problem):
            atomic.require_writable([path], force=True)


@pytest.mark.parametrize(
    ("value", "part"),
    [(3e38, "norm overflows"), (1e25, "norm overflows"), (1e-40, "is zero"), (1e-30, "is zero")],
)
def test_a_vector_whose_length_is_no_number_is_refused(tmp_path: Path, value: float, part: str) -> None:
    """Every number of it is finite and not zero, and its length in float32 is infinite or zero: no direction comes of it."""
    rows = torch.full((2, 32), value)
    rows[0] = 1
    with pytest.raises(InputError, match=f"vector 1 .*{part}"):
        learned_word.Token.of("<dog>", {"clip_l": rows}, {})
    for dtype in (torch.float32, torch.float64):
        safetensors.torch.save_file({"<dog>": rows.to(dtype)}, tmp_path / "dog.safetensors")
        with pytest.raises(InputError, match=part):
            token_reading.read(tmp_path / "dog.safetensors")
