"""Models of true size with random weights: what the commands take and say, beside what `--check` said before.

SDXL takes 6.5 GB on disk, 10 GB of memory and minutes: `pytest -m slow tests/test_true_size.py -s` prints the figures.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from transformers import CLIPTokenizer

from tests import public_tokenizers, true_size

ROOT = Path(__file__).parents[1]
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Gives large tensors back to the system when they are freed; glibc keeps holes otherwise, which the estimate leaves out."""
IMPORTS = "import dticli.commands.train, dticli.learn.run; from diffusers import StableDiffusionXLPipeline"


@dataclass(frozen=True)
class Ended:
    """What a command did.

    Attributes:
        peak: the most memory it needed, in bytes. Pages of files that it let go before its first step do not count: weights
            are read through such pages into memory of their own, one component after another, and whatever else wants the
            memory can have the pages at once.
        first: seconds until the first step was logged.
    """

    out: str
    err: str
    peak: int
    first: float


def ended(arguments: Sequence[object], log: Path | None = None) -> Ended:
    """Run Python with these arguments, as a process of its own, which is looked at four times a second.

    Args:
        log: of the run's steps.
    """
    started, first = time.monotonic(), float("nan")
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ALLOCATOR | {"PYTHONPATH": str(ROOT)},
    )
    seen: list[dict[str, int]] = []
    needed: set[str] | None = None
    while process.poll() is None:
        try:
            seen.append({each.path: each.rss for each in psutil.Process(process.pid).memory_maps()})
        except psutil.NoSuchProcess:
            break
        if log and needed is None and log.exists():
            first, needed = time.monotonic() - started, {*seen[-1]}
        time.sleep(0.25)
    out, err = process.communicate()
    assert process.returncode == 0, err
    peak = max(sum(size for path, size in each.items() if needed is None or path in needed) for each in seen)
    return Ended(out, err, peak, first)


PUBLISHED = {
    "sd15": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sdxl": {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "vae": 83_653_863,
        "text_encoder_2": 694_659_840,
    },
}
"""Parameters of the public weights."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_true_sizes_are_true(name: str) -> None:
    """Each component has as many parameters as the public model's."""
    pipe = true_size.without_numbers(name)
    for component, count in PUBLISHED[name].items():
        assert sum(each.numel() for each in getattr(pipe, component).parameters()) == count, component


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return public_tokenizers.clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_what_is_taken_is_what_check_said(
    name: str, photos: Path, tmp_path: Path, tokenizer: CLIPTokenizer
) -> None:
    """Two steps stay within 10 % of the estimate, activations included; norms are inspected and a picture is drawn."""
    model, word = tmp_path / "model", tmp_path / "dog.safetensors"
    pipe = true_size.build(name, torch.device("cpu"), torch.bfloat16, tokenizer)
    pipe.save_pretrained(model)
    del pipe
    cpu = ("--precision", "bf16", "--device", "cpu")
    run = ["-m", "dticli", "train", photos, "--token", "<dog>", "--init", "dog", "--model", model]
    run += ["--out", word, "--steps", 2, "--batch-size", 1, "--resolution", 512, *cpu]
    said = json.loads(ended([*run, "--check", "--json"]).out)["memory"]
    libraries = ended(["-c", IMPORTS]).peak
    trained = ended(run, tmp_path / "dog.run" / "log.jsonl")
    peak = (trained.peak - libraries) / 1e9
    steps = [
        json.loads(line)["seconds"] for line in (tmp_path / "dog.run" / "log.jsonl").read_text().splitlines()
    ]
    print(
        f"{name}: peak {peak:.2f} GB, estimated {said['needed']:.2f} GB; "
        f"first step after {trained.first:.0f} s, the second {steps[1] - steps[0]:.0f} s later"
    )
    assert said["needed"] == pytest.approx(peak, rel=0.1)
    assert any(line.startswith("loading ") for line in trained.err.splitlines())
    assert str(word) in trained.out
    norms = ended(["-m", "dticli", "inspect-norms", model, word])
    assert "49408" in norms.out
    draw = [
        "-m",
        "dticli",
        "generate",
        "a <dog>",
        "-t",
        word,
        "--model",
        model,
        "--out",
        tmp_path / "pictures",
    ]
    ended([*draw, "--steps", 2, "--size", 512, *cpu])
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
