"""What a step takes on a CUDA card, for models of true size with random weights; nothing is downloaded.

    python -m tests.benchmarks.gpu [--model sdxl sd15] [--size 768 1024] [--batch 1 2 4] [--steps 10]

Writes the table of docs/gpu.md with the card's name. Our step and a bare one, which runs the same encoders and UNet forward and
backward on prepared tensors, alternate in one process. Each way of running is measured by itself.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dticli.errors import is_out_of_memory
from dticli.learn.trainer import Learner, Task
from dticli.models import memory
from tests import trainings, true_size
from tests.trainings import training

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
START, END = "<!-- measured -->", "<!-- end -->"
CUDA, DTYPE = torch.device("cuda"), torch.bfloat16
STEPS = 10**6


@dataclass(frozen=True)
class Row:
    """Medians of a way to run: seconds of a step, share of it outside encoders and UNet, peak gigabytes."""

    name: str
    seconds: float
    beside: float
    peak: float

    def __str__(self) -> str:
        return f"| {self.name} | {self.seconds:.3f} | {100 * self.beside:.0f} % | {self.peak:.1f} |"


@contextmanager
def plain(pipe: Any) -> Iterator[None]:
    yield


@contextmanager
def channels_last(pipe: Any) -> Iterator[None]:
    pipe.unet.to(memory_format=torch.channels_last)
    yield
    pipe.unet.to(memory_format=torch.contiguous_format)


@contextmanager
def compiled(pipe: Any, **options: Any) -> Iterator[None]:
    own = pipe.unet.forward
    pipe.unet.forward = torch.compile(own, **options)
    yield
    pipe.unet.forward = own
    torch.compiler.reset()


@contextmanager
def cuda_graphs(pipe: Any) -> Iterator[None]:
    with compiled(pipe, mode="reduce-overhead"):
        yield


@contextmanager
def tf32(pipe: Any) -> Iterator[None]:
    """Of matrices in float32: those of the rows and of what layers keep precise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


WAYS = {
    "as it is": plain,
    "channels_last": channels_last,
    "compile": compiled,
    "graphs": cuda_graphs,
    "TF32": tf32,
}


def bare(task: Task) -> Callable[[], None]:
    """The same encoders and UNet, forward and backward, on prompts and noise that are there already."""
    pipe, family, size = task.pipe, task.family, task.batches.size
    code, frames = family.code, list(task.latents.frames[:1]) * size
    noisy = torch.randn(size, *task.latents.mean[0].shape, device=CUDA, dtype=task.dtype)
    level = torch.full((size,), 500, device=CUDA)
    tables = [getattr(pipe, each.component).get_input_embeddings() for each in family.encoders]

    def step() -> None:
        handles = [
            each.register_forward_hook(lambda m, a, output: output.requires_grad_()) for each in tables
        ]
        prediction = code.predict(pipe, noisy, level, code.encode(pipe, ["a photo of dog"] * size, frames))
        prediction.float().square().mean().backward()
        for handle in handles:
            handle.remove()

    return step


def timed(step: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(name: str, task: Task, learner: Learner, steps: int) -> Row:
    reports = trainings.fit(task, learner)
    ours, floor = (lambda: next(reports)), bare(task)
    for _ in range(3):
        timed(ours), timed(floor)
    torch.cuda.reset_peak_memory_stats()
    pairs = [(timed(ours), timed(floor)) for _ in range(steps)]
    peak = torch.cuda.max_memory_allocated() / 1e9
    reports.close()
    seconds = statistics.median(a for a, _ in pairs)
    return Row(name, seconds, 1 - statistics.median(b / a for a, b in pairs), peak)


def rows(names: list[str], sizes: list[int], batches: list[int], steps: int) -> Iterator[str]:
    for name in names:
        for size in sizes:
            for batch in batches:
                for way, context in (*WAYS.items(), ("--low-memory", plain)):
                    title = f"{name} | {size} | {batch} | {way}"
                    pipe = true_size.build(name, CUDA, DTYPE)
                    try:
                        task, learner = training(
                            pipe, CUDA, DTYPE, resolution=size, batch_size=batch, steps=STEPS
                        )
                        if way == "--low-memory":
                            memory.economize(pipe, task.family, CUDA)
                        with context(pipe):
                            yield str(measured(title, task, learner, steps))
                    except RuntimeError as error:
                        if not is_out_of_memory(error):
                            raise
                        yield f"| {title} | does not fit | | |"
                    del pipe
                    torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="+", default=["sdxl", "sd15"])
    parser.add_argument("--size", nargs="+", type=int, default=[768, 1024])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no CUDA device: there is nothing to measure", file=sys.stderr)
        return 5
    table = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, random weights:",
        "",
        "| model | pixels | batch | way | seconds a step | of it beside encoders and UNet | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows(options.model, options.size, options.batch, options.steps):
        print(row, flush=True)
        table.append(row)
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(before + "\n".join([START, "", *table, "", END]) + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
