"""Models of true size with random weights: what the commands take and say, beside what `--check` said before.

SDXL takes 6.5 GB on disk, 10 GB of memory and minutes: `pytest -m slow tests/test_true_size.py -s` prints the figures.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests import true_size

ROOT = Path(__file__).parents[1]
IMPORTS = "import dticli.commands.train, dticli.learn.run; from diffusers import StableDiffusionXLPipeline"


@dataclass(frozen=True)
class Ended:
    """What a command did; `peak` is the most memory it had, in bytes."""

    out: str
    err: str
    peak: int


def ended(arguments: Sequence[object]) -> Ended:
    """Run Python with these arguments, as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    assert process.stderr
    out, err = process.stdout.read(), process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, err
    return Ended(out, err, 1024 * used.ru_maxrss)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_what_is_taken_is_what_check_said(name: str, photos: Path, tmp_path: Path) -> None:
    """Two steps stay within 10 % of the estimate, activations included; norms are inspected and a picture is drawn."""
    model, word = tmp_path / "model", tmp_path / "dog.safetensors"
    pipe = true_size.build(name, torch.device("cpu"), torch.bfloat16)
    pipe.save_pretrained(model)
    del pipe
    run = [
        "-m",
        "dticli",
        "train",
        photos,
        "--token",
        "<dog>",
        "--init",
        "dog",
        "--model",
        model,
        "--out",
        word,
    ]
    run += ["--steps", 2, "--batch-size", 1, "--resolution", 512, "--precision", "bf16", "--device", "cpu"]
    said = json.loads(ended([*run, "--check", "--json"]).out)["memory"]
    libraries = ended(["-c", IMPORTS]).peak
    trained = ended(run)
    peak = (trained.peak - libraries) / 1e9
    seconds = [
        json.loads(line)["seconds"] for line in (tmp_path / "dog.run" / "log.jsonl").read_text().splitlines()
    ]
    print(f"{name}: peak {peak:.2f} GB, estimated {said['needed']:.2f} GB; steps ended after {seconds} s")
    assert said["needed"] == pytest.approx(peak, rel=0.1)
    assert str(word) in trained.out
    norms = ended(["-m", "dticli", "inspect-norms", model, word])
    assert "49408" in norms.out
    draw = [
        "--model",
        model,
        "--out",
        tmp_path / "pictures",
        "--steps",
        2,
        "--size",
        512,
        "--precision",
        "bf16",
    ]
    ended(["-m", "dticli", "generate", "a <dog>", "-t", word, *draw])
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
