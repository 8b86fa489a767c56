"""Token files as they come: what reading repairs and says, what it names instead, and words it takes out of others' files."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dticli.errors import InputError
from dticli.models import single_file
from dticli.photos import albums
from dticli.words import conversion, pictured, token_reading
from dticli.words.programs import SOLE
from tests.conftest import Outcome

Dti = Callable[..., Outcome]


def rows(width: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def saved(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path = folder / "dog.safetensors"
    safetensors.torch.save_file(tensors, path, metadata)
    return path


# Keys and widths


@pytest.mark.parametrize(
    ("widths", "expected", "said"),
    [
        # OneTrainer issue 514
        ({"clip_g": 768, "t5": 4096}, {"clip_l": 768, "t5xxl": 4096}, ["clip_g is for clip_l"]),
        ({"clip_g": 768, "t5xxl": 4096}, {"clip_l": 768, "t5xxl": 4096}, ["clip_g is for clip_l"]),
        ({"clip_l": 1280, "clip_g": 768}, {"clip_l": 768, "clip_g": 1280}, ["clip_l is for clip_g", "clip_g is for clip_l"]),
        (
            {"clip_l": 1280, "clip_g": 768, "t5xxl": 4096},
            {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096},
            ["clip_l is for clip_g", "clip_g is for clip_l"],
        ),
        ({"clip_g": 768}, {"clip_l": 768}, ["clip_g is for clip_l"]),
        ({"clip_g": 1024}, {"clip_l": 1024}, ["clip_g is for clip_l"]),
        # Right, or nothing that decides.
        ({"clip_l": 768, "clip_g": 1280}, {"clip_l": 768, "clip_g": 1280}, []),
        ({"clip_g": 1280}, {"clip_g": 1280}, []),
        ({"clip_l": 32, "clip_g": 48}, {"clip_l": 32, "clip_g": 48}, []),
        ({"clip_l": 48, "clip_g": 48}, {"clip_l": 48, "clip_g": 48}, []),
        ({"t5": 4096}, {"t5xxl": 4096}, []),
        ({"clip_l": 768, "t5xxl": 1280}, {"clip_l": 768, "t5xxl": 1280}, []),
        ({"clip_h": 1024}, {"clip_l": 1024}, []),
        ({"umt5xxl": 4096}, {"umt5xxl": 4096}, []),
    ],
)  # fmt: skip
def test_rows_under_another_encoders_key_go_by_their_width(
    widths: dict[str, int], expected: dict[str, int], said: list[str], tmp_path: Path
) -> None:
    """Each tensor, known by its width, ends under the key of the encoder with that width; said once for each."""
    tensors = {key: rows(width, seed=width) for key, width in widths.items()}
    source = conversion.read(saved(tmp_path, tensors))
    assert {key: each.shape[1] for key, each in source.token.vectors.items()} == expected
    for each in source.token.vectors.values():
        assert torch.equal(each, rows(each.shape[1], seed=each.shape[1])) or len(set(widths.values())) < len(
            widths
        )
    moved = [text for text in source.repairs if "by its width" in text]
    assert len(moved) == len(said)
    assert all(any(part in text for text in moved) for part in said)


def test_a_bundled_word_is_repaired_alike(tmp_path: Path) -> None:
    tensors = {
        "bundle_emb.dog.clip_g": rows(768),
        "bundle_emb.dog.t5": rows(4096),
        "lora_te1.weight": torch.ones(3, 3),
    }
    source = conversion.read(saved(tmp_path, tensors))
    assert list(source.token.vectors) == ["clip_l", "t5xxl"]
    assert any("clip_g is for clip_l" in text for text in source.repairs)


# Rows


@pytest.mark.parametrize("zeros", [[1], [0, 2], [3], [0, 1, 2]])
@pytest.mark.parametrize("keys", [("emb_params",), ("clip_l", "clip_g")])
def test_rows_of_zeros_are_left_out_in_every_encoder(
    zeros: list[int], keys: tuple[str, ...], tmp_path: Path
) -> None:
    """Zeros have no direction; encoders keep as many rows as each other, in their order."""
    tensors = {key: rows(width, 4) for key, width in zip(keys, (768, 1280), strict=False)}
    tensors[keys[-1]][zeros] = 0
    token, layout = token_reading.read_with_layout(saved(tmp_path, tensors))
    kept = [row for row in range(4) if row not in zeros]
    for key, mine in token.vectors.items():
        assert torch.equal(mine, tensors["emb_params" if key == SOLE else key][kept])
    assert layout.repairs == (f"zeros were left out (vector {', '.join(map(str, zeros))})",)


def test_a_word_of_zeros_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="zero"):
        token_reading.read(saved(tmp_path, {"clip_l": torch.zeros(2, 768), "clip_g": rows(1280)}))


FLOATS = (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
# safetensors has no names for these.
PICKLED = (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [*((dtype, ".safetensors") for dtype in FLOATS), *((dtype, ".pt") for dtype in (*FLOATS, *PICKLED))],
)
def test_every_float_is_read(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    """Exactly what the type holds, as float32, and said."""
    path, stored = tmp_path / f"dog{suffix}", rows(768).to(dtype)
    if suffix == ".pt":
        torch.save({"<dog>": stored}, path)
    else:
        safetensors.torch.save_file({"<dog>": stored}, path)
    token, layout = token_reading.read_with_layout(path)
    assert torch.equal(token.vectors[SOLE], stored.to(torch.float32))
    assert layout.repairs == (f"{str(dtype).removeprefix('torch.')} became float32",)


# Not token files


IMPOSTORS = {
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3123\n", "Git LFS pointer.*git lfs pull"),
    "annex": (b"/annex/objects/SHA256E-s3123--4d7a.safetensors\n", "git-annex pointer"),
    "annex link": (b"../.git/annex/objects/aa/bb/SHA256E-s3--4d/SHA256E-s3--4d.pt", "git-annex pointer"),
    "page": (b"<!DOCTYPE html>\n<html class=''>", "web page"),
    "page with a mark": (b"\xef\xbb\xbf  <html>", "web page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    "hub's answer": (b"Entry not found", "server's refusal"),
    "hub's other answer": (b"Invalid username or password.", "server's refusal"),
    "JSON": (b'{"error":"Unauthorized"}', "server's refusal"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04", "archive"),
    "gzip": (b"\x1f\x8b\x08\x00", "archive"),
    "empty": (b"", "empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSTORS)
def test_files_that_are_not_what_they_are_called_are_named(case: str, dti: Dti, tmp_path: Path) -> None:
    """As a token file of any suffix, as a checkpoint, and as a photo."""
    data, said = IMPOSTORS[case]
    for suffix in (".safetensors", ".pt", ".bin"):
        path = tmp_path / f"dog{suffix}"
        path.write_bytes(data)
        with pytest.raises(InputError, match=said):
            token_reading.read(path)
    outcome = dti("models", tmp_path / "dog.safetensors", "--offline")
    assert outcome.code == 4
    assert any(word in outcome.error for word in said.split(".*")), outcome.error
    (tmp_path / "photo.png").write_bytes(data)
    with pytest.raises(InputError, match=said.split(".*", maxsplit=1)[0]):
        albums.read(tmp_path)
    assert not single_file.is_checkpoint(tmp_path / "dog.safetensors")


# Pictures


def content(count: int = 3, width: int = 768, name: str | None = "my dog") -> dict[str, Any]:
    """What A1111 pickles and pictures, tensors as lists."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {"TORCHTENSOR": rows(width, count).tolist()}},
        "name": name,
        "step": 500,
    }


def chunked(data: Any) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(data).encode()).decode())
    Image.new("RGB", (64, 64), "teal").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def pattern(count: int) -> np.ndarray:
    """The generator's numbers, one by one; the first ones are those its authors test for."""
    found, seed = [], 0
    for _ in range(count):
        seed = (1664525 * seed + 1013904223) % 2**32
        found.append(seed % 255)
    assert found[:8] == [253, 242, 127, 44, 157, 27, 239, 133]
    return np.array(found, dtype=np.uint8)


def beside(data: Any, kind: str = "PNG") -> bytes:
    """The data in the low bits left and right of a picture, decorated in the high bits as A1111 does."""
    packed = np.frombuffer(zlib.compress(json.dumps(data).encode(), 9), np.uint8)
    height = 128
    size = -(-len(packed) // (height * 3)) * height * 3
    blocks = []
    for nibbles in (packed & 0x0F, packed >> 4):
        block = np.resize(nibbles, size).reshape(height, -1, 3)
        # The decoration may be black, the pattern must show: what is black altogether parts the blocks.
        shade = np.random.default_rng(0).integers(1, 16, block.shape, dtype=np.uint8) << 4
        blocks.append((block ^ (pattern(block.size).reshape(block.shape) & 0x0F)) | shade)
    picture, black = np.full((height, 64, 3), 0x77, np.uint8), np.zeros((height, 1, 3), np.uint8)
    whole = np.concatenate([blocks[0], black, picture, black, blocks[1]], axis=1)
    framed = np.pad(whole, ((4, 4), (5, 5), (0, 0)))
    file = io.BytesIO()
    Image.fromarray(framed).save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


PICTURES = {
    "text chunk": ("dog.png", lambda: chunked(content())),
    "beside": ("dog.png", lambda: beside(content())),
    "beside, many vectors": ("dog.png", lambda: beside(content(20))),
    "beside, one vector": ("dog.png", lambda: beside(content(1))),
    "WebP": ("dog.webp", lambda: beside(content(), "WEBP")),
    "unnamed": ("dog.png", lambda: beside(content(name=None))),
    "called otherwise": ("dog.pt", lambda: chunked(content())),
}


@pytest.mark.parametrize("case", PICTURES)
def test_words_in_pictures_are_read(case: str, dti: Dti, tmp_path: Path) -> None:
    """In the text or in the pixels, a picture of A1111's gives the word its `.pt` gives."""
    name, make = PICTURES[case]
    path = tmp_path / name
    path.write_bytes(make())
    token, layout = token_reading.read_with_layout(path)
    count = len(token.vectors[SOLE])
    assert count == {"beside, many vectors": 20, "beside, one vector": 1}.get(case, 3)
    assert torch.equal(token.vectors[SOLE], rows(768, count))
    assert (token.name, layout.container) == ("<dog>" if case == "unnamed" else "<my-dog>", "picture")
    outcome = dti("convert", path, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    said = {each["program"]: each["loads"] for each in dti("info", path, "--json").json["programs"]}
    assert (said["ComfyUI"], said["SwarmUI"]) == ("converted", "converted")
    if path.suffix != ".pt" and case != "unnamed":
        assert said["A1111"] == "as it is"


def damaged() -> list[bytes]:
    whole = beside(content())
    blank = io.BytesIO()
    Image.new("RGB", (300, 128), "black").save(blank, "PNG")
    plain = io.BytesIO()
    Image.new("RGB", (300, 128), "teal").save(plain, "PNG")
    return [
        *(whole[: len(whole) // 2], blank.getvalue(), plain.getvalue()),
        *(chunked([]), chunked({"string_to_param": {"*": {"TORCHTENSOR": [[1, 2], [3]]}}})),
        *(chunked({"string_to_param": {"*": {"TORCHTENSOR": "x"}}}), chunked({"string_to_param": 3})),
        *(chunked({"string_to_param": {"*": {"TORCHTENSOR": []}}}), whole[:8], b"RIFF\0\0\0\0WEBP"),
        beside({"padding": "x" * 300_000}),
    ]


def test_other_pictures_are_refused_in_a_line(tmp_path: Path) -> None:
    """Cut off, without blocks, and with anything but a word in them."""
    for data in damaged():
        (tmp_path / "dog.png").write_bytes(data)
        with pytest.raises(InputError) as error:
            token_reading.read(tmp_path / "dog.png")
        assert "\n" not in str(error.value)


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictured, "MAX_JSON", 1000)
    (tmp_path / "dog.png").write_bytes(beside(content()))
    with pytest.raises(InputError):
        token_reading.read(tmp_path / "dog.png")


# Several words


def several() -> dict[str, Callable[[Path], tuple[Path, str]]]:
    a, b = rows(768, seed=1), rows(768, seed=2)

    def put(path: Path, value: Any) -> Path:
        torch.save(value, path) if path.suffix == ".pt" else safetensors.torch.save_file(value, path)
        return path

    return {
        "diffusers": lambda folder: put(folder / "w.safetensors", {"<cat>": a, "<dog>": b}),
        "names without brackets": lambda folder: put(folder / "w.safetensors", {"cat": a, "dog": b}),
        "pickle": lambda folder: put(folder / "w.pt", {"<cat>": a, "<dog>": b}),
        "A1111": lambda folder: put(
            folder / "w.pt", {"string_to_param": {"cat": a, "dog": b}, "name": "both"}
        ),
        "LoRA": lambda folder: put(
            folder / "w.safetensors",
            {
                "bundle_emb.cat.emb_params": a,
                "bundle_emb.dog.emb_params": b,
                "lora_unet.weight": torch.ones(3, 3),
            },
        ),
    }  # type: ignore[return-value]


@pytest.mark.parametrize("case", several())
def test_one_of_several_words_is_picked(case: str, dti: Dti, tmp_path: Path) -> None:
    """Without a choice all are named, with the way to take one out."""
    path = several()[case](tmp_path)
    outcome = dti("info", path)
    assert outcome.code == 3
    assert all(text in outcome.error for text in ("cat", "dog", "dti convert --pick")), outcome.error
    for name in ("dog", "<dog>"):
        assert dti("convert", path, "--pick", name, "-o", tmp_path / "out", "--force").code == 0
        stored = safetensors.torch.load_file(tmp_path / "out" / "dog.safetensors")
        assert torch.equal(stored["<dog>"], rows(768, seed=2))
    outcome = dti("convert", path, "--pick", "bird", "-o", tmp_path / "out")
    assert outcome.code == 3
    assert "cat" in outcome.error
