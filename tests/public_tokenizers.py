"""Tokenizers of public models, fetched by package managers for the occasion; tests are skipped where these fetch nothing."""

import gzip
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


def fetched(folder: Path, *command: str) -> Path:
    """The one file that a package manager puts into an empty folder; the test is skipped where it cannot."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} fetches nothing: {done.stderr[-200:]}")
    (file,) = folder.iterdir()
    return file


def clip(folder: Path) -> CLIPTokenizer:
    """CLIP's, from the merges inside OpenCLIP's package; the folder must be empty."""
    command = ("-m", "pip", "download", "--no-deps", "open_clip_torch", "-d", ".")
    with zipfile.ZipFile(fetched(folder, sys.executable, *command)) as archive:
        lines = gzip.decompress(archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{each}</w>" for each in letters), *map("".join, merges)]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
