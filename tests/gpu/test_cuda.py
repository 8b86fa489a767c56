"""On a CUDA card: every family learns what it learns on the CPU; what was promised of devices holds there."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dticli.models import activations, families
from tests import tiny, trainings, true_size
from tests.conftest import Outcome
from tests.trainings import training

pytestmark = pytest.mark.gpu
Dti = Callable[..., Outcome]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEPS = 20
NEAR = {torch.float32: 0.999, torch.bfloat16: 0.9, torch.float16: 0.9}
"""Cosine between the directions that were turned, by what the model computes in."""


def turned(
    name: str, device: torch.device, dtype: torch.dtype, *, low_memory: bool = False
) -> dict[str, torch.Tensor]:
    """How far each row moved in 20 steps."""
    task, learner = training(name, device, dtype, low_memory=low_memory, steps=STEPS)
    for report in trainings.fit(task, learner):
        assert math.isfinite(report.loss)
    return {key: (learner.word.rows[key] - start).detach().cpu() for key, start in learner.start.items()}


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("name", tiny.cases())
def test_the_word_turns_as_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    """After 20 steps in one direction, within what the precision rounds."""
    ours, theirs = turned(name, CPU, torch.float32), turned(name, CUDA, dtype)
    for key, rows in ours.items():
        cosine = torch.nn.functional.cosine_similarity(rows.flatten(), theirs[key].flatten(), dim=0)
        assert cosine > NEAR[dtype], key


@pytest.mark.parametrize("name", tiny.cases())
def test_low_memory_learns_the_same(name: str) -> None:
    """Computing activations again and leaving parts on the host change nothing but the last bits."""
    ours, theirs = turned(name, CUDA, torch.float32), turned(name, CUDA, torch.float32, low_memory=True)
    for key, rows in ours.items():
        torch.testing.assert_close(theirs[key], rows, rtol=1e-3, atol=1e-5)


def train(word: Path, photos: Path, *options: object) -> list[str]:
    fixed = [
        "train",
        photos,
        "--token",
        "<dog>",
        "--init",
        "dog",
        "--model",
        "stickers",
        "--out",
        word,
        "--quiet",
    ]
    return [str(each) for each in [*fixed, "--device", "cuda", "--batch-size", 2, *options]]


def test_deterministic_repeats_bytes_and_resumes_exactly(photos: Path, tmp_path: Path) -> None:
    """Twice the same command, and once with a stop in between, are one file."""
    # Each in a process of its own: the setting holds for the whole process.
    for name, steps in (("a", (4,)), ("b", (4,)), ("c", (2, 4))):
        for count in steps:
            command = train(
                tmp_path / f"{name}.safetensors", photos, "--deterministic", "--steps", count, "--resume"
            )
            subprocess.run([sys.executable, "-m", "dticli", *command], check=True)
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b == c


def test_two_processes_on_one_card_are_refused(photos: Path, tmp_path: Path) -> None:
    """NCCL takes one process for each card: the error names how many there are."""
    count = torch.cuda.device_count() + 1
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "-m", "dticli"]
    command = [*launcher, *train(tmp_path / "dog.safetensors", photos, "--steps", 1)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "no CUDA device" in ended.stderr


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_step_takes_what_was_estimated(name: str, low_memory: bool) -> None:
    """Peak of the allocator in a step at true size, less the weights, is within 10 % of the estimate."""
    size, batch = 512, 1
    nothing = true_size.without_numbers(name)
    family = families.of_index({"_class_name": type(nothing).__name__, **nothing.config}, name)
    for module in nothing.components.values():
        if isinstance(module, torch.nn.Module):
            module.to(torch.bfloat16).requires_grad_(False).eval()
    estimated = activations._step(nothing, family, (size, size), batch, low_memory=low_memory)
    pipe = true_size.build(name, CUDA, torch.bfloat16)
    task, learner = training(
        pipe, CUDA, torch.bfloat16, low_memory=low_memory, resolution=size, batch_size=batch
    )
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    next(trainings.fit(task, learner))
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(estimated, rel=0.1)


def test_advice_on_running_out_of_memory_fits(photos: Path, tmp_path: Path, dti: Dti) -> None:
    """With little of the card allowed, the batch that the error names goes through."""
    word = tmp_path / "dog.safetensors"
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_allocated() + 600e6) / total))
    try:
        outcome = dti(*train(word, photos, "--steps", 1, "--batch-size", 256))
        assert outcome.code == 5
        advice = outcome.error.split(" would fit")[0].split(": ")[-1].split()
        assert "--batch-size" in advice or "--low-memory" in advice
        assert dti(*train(word, photos, "--steps", 1, "--batch-size", 256, "--force", *advice)).code == 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
