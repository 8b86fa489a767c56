"""What a word takes on a CUDA card, for models of true size with random weights; nothing is downloaded.

    python -m tests.benchmarks.gpu [--model sdxl sd15] [--size 768 1024] [--batch 1 2 4] [--way NAME ...] [--steps 10]

Writes the tables of docs/gpu.md with the card's name, anew after each row: what ends before the last one loses nothing. Models
are saved to a temporary folder once (SDXL: 7 GB), and loaded, encoded and trained as `dti train` does it. Our steps stand beside
bare ones, which run the same encoders and denoiser forward and backward on noise that is there already, before ours and after.

`--device cpu` and the tests' tiny models take the same way through the script, for those who have no card.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dticli import bundled
from dticli.errors import EnvironmentProblem, is_out_of_memory
from dticli.evaluation.markdown import table
from dticli.learn import jobs, lifecycle
from dticli.learn.jobs import Job
from dticli.learn.run import FrozenModel, Run
from dticli.learn.trainer import Task
from dticli.models import footprint
from dticli.ranks import ALONE
from dticli.words import base_model
from dticli.words.base_model import Opened
from tests import tiny, trainings, true_size

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"
START, END = "<!-- measured -->", "<!-- end -->"
WARM_UP = 3
FOREVER = 10**6


# ------------------------------------------------------------------- ways to run


@contextmanager
def plain(denoiser: torch.nn.Module) -> Iterator[None]:
    yield


@contextmanager
def channels_last(denoiser: torch.nn.Module) -> Iterator[None]:
    denoiser.to(memory_format=torch.channels_last)
    yield
    denoiser.to(memory_format=torch.contiguous_format)


@contextmanager
def compiled(denoiser: torch.nn.Module, **options: Any) -> Iterator[None]:
    own = denoiser.forward
    denoiser.forward = torch.compile(own, **options)
    yield
    denoiser.forward = own
    torch.compiler.reset()


@contextmanager
def cuda_graphs(denoiser: torch.nn.Module) -> Iterator[None]:
    with compiled(denoiser, mode="reduce-overhead"):
        yield


@contextmanager
def tf32(denoiser: torch.nn.Module) -> Iterator[None]:
    """Of matrices in float32: those of the rows and of what layers keep precise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Way:
    """A way to run.

    Attributes:
        around: open around the steps, on the denoiser.
        settings: of `dti train`.
        quick: takes no minutes for each shape, so that it is tried with all of them instead of the first.
    """

    around: Callable[[torch.nn.Module], Any] = plain
    settings: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = True


WAYS = {
    "as-it-is": Way(),
    "low-memory": Way(settings={"low_memory": True}),
    "8bit": Way(settings={"quantize": "8bit"}),
    "channels-last": Way(channels_last),
    "tf32": Way(tf32),
    "compile": Way(compiled, quick=False),
    "cuda-graphs": Way(cuda_graphs, quick=False),
}


# ------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Device:
    """Where it is measured, and how."""

    kind: str

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.on_card else "the CPU"

    @property
    def on_card(self) -> bool:
        return self.kind == "cuda"

    def forget(self) -> None:
        """Let go of what is no longer used; the peak begins anew."""
        gc.collect()
        if self.on_card:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> str:
        """Gigabytes that tensors took at most; only cards count them."""
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if self.on_card else "not counted"

    def timed(self, step: Callable[[], object], count: int) -> list[float]:
        """Seconds of each of so many calls, after some that warm up."""
        seconds = []
        for index in range(WARM_UP + count):
            started = time.perf_counter()
            step()
            if self.on_card:
                torch.cuda.synchronize()
            seconds += [time.perf_counter() - started] * (index >= WARM_UP)
        return seconds


def bare(task: Task) -> Callable[[], None]:
    """The same encoders and denoiser, forward and backward, on noise that is there already, without a word in them."""
    pipe, family, size = task.pipe, task.family, task.batches.size
    code, frames, device = family.code, list(task.latents.frames[:1]) * size, task.latents.device
    shape = code.to_latents(pipe, task.latents.mean[0][None]).shape[1:]
    noisy = torch.randn(size, *shape, device=device).to(task.dtype)
    level = code.process(pipe.scheduler).levels(torch.full((size,), 0.5)).to(device)
    tables = [getattr(pipe, each.component).get_input_embeddings() for each in family.encoders]

    def step() -> None:
        handles = [
            each.register_forward_hook(lambda m, a, output: output.requires_grad_()) for each in tables
        ]
        conditioning = code.encode(pipe, ["a photo of dog"] * size, frames)
        code.predict(pipe, noisy, level, conditioning).float().square().mean().backward()
        for handle in handles:
            handle.remove()

    return step


@dataclass(frozen=True)
class Taken:
    """Medians: seconds of our step and of a bare one; gigabytes at most since the device was told to forget."""

    ours: float
    floor: float
    peak: str

    @property
    def beside(self) -> str:
        """The share of our step that is not encoders and denoiser."""
        return f"{100 * (1 - self.floor / self.ours):.0f} %"

    def minutes(self, steps: float) -> str:
        return f"{self.ours * steps / 60:.1f}"


def measured(run: Run, device: Device, count: int) -> Taken:
    task = replace(run.task, optimisation=replace(run.task.optimisation, steps=FOREVER))
    floor = bare(task)
    before = device.timed(floor, count)
    reports = trainings.fit(task, run.learner)
    ours = device.timed(lambda: next(reports), count)
    peak = device.peak()
    reports.close()
    after = device.timed(floor, count)
    return Taken(statistics.median(ours), statistics.median(before + after), peak)


# ----------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Bench:
    """A model on the disk, to be trained in several ways on a device.

    Attributes:
        folder: of the model, which is made there.
        count: steps to measure.
    """

    name: str
    folder: Path
    device: Device
    count: int

    @cached_property
    def opened(self) -> Opened:
        place = torch.device(self.device.kind)
        if self.name in tiny.FAMILIES:
            pipe = tiny.build(self.name).to(torch.bfloat16)
        else:
            pipe = true_size.build(self.name, place, torch.bfloat16)
        pipe.save_pretrained(self.folder)
        del pipe
        self.device.forget()
        said = {"model": str(self.folder), "base": None, "variant": None, "prediction": None}
        return base_model.open_model(said | {"offline": True, "device": self.device.kind}, ())

    def job(self, **settings: Any) -> Job:
        """A word to be learned, with the family's defaults where nothing else is said."""
        fixed = {
            "photos": str(bundled.photos("dog")[0].parent),
            "token": "<dog>",
            "init": "dog",
            "precision": "bf16",
            "device": self.device.kind,
        }
        return jobs.one(self.opened, [fixed | settings], None, None)

    def ways(
        self, names: Sequence[str], sizes: Sequence[int], batches: Sequence[int]
    ) -> Iterator[Sequence[str]]:
        """A row for each way, size and batch; the word is one of the family's default length."""
        defaults = self.opened.family.defaults
        pictures = defaults.steps * defaults.batch_size * defaults.accumulate
        for name in names:
            way = WAYS[name]
            load = lifecycle.loader(self.job(**way.settings), ALONE)
            shapes = list(product(sizes, batches))[: None if way.quick else 1]
            for size, batch in shapes:
                job = self.job(resolution=size, batch_size=batch, accumulate=1, **way.settings)
                taken = self.tried(job, load, way)
                head = (self.name, str(size), str(batch), name)
                if isinstance(taken, str):
                    yield *head, taken, "", "", ""
                else:
                    minutes = taken.minutes(pictures / batch)
                    yield *head, f"{taken.ours:.3f}", taken.beside, taken.peak, minutes

    def presets(self, size: int | None) -> Iterator[Sequence[str]]:
        """A row for each preset: what it chooses, its estimate, and what that takes.

        Args:
            size: pixels; default: the family's.
        """
        job = self.job(**({} if size is None else {"resolution": size}))
        for preset in footprint.PRESETS:
            head = (self.name, str(job.settings.resolution), preset)
            try:
                found = footprint.fitted(job.opened.model, job.opened.family, job.settings, preset)
            except EnvironmentProblem as error:
                yield *head, str(error), "", "", ""
                continue
            chosen = (" ".join(found.changed) or "nothing", f"{found.needed:.1f}")
            fitting = replace(job, settings=found.settings)
            taken = self.tried(fitting, lifecycle.loader(fitting, ALONE), Way())
            if isinstance(taken, str):
                yield *head, *chosen, taken, ""
            else:
                yield *head, *chosen, taken.peak, taken.minutes(job.settings.steps)

    def tried(self, job: Job, load: Callable[[], FrozenModel], way: Way) -> Taken | str:
        """What a word takes, or why it cannot be learned so."""
        self.device.forget()
        try:
            run = lifecycle.prepare(job, load)
            with way.around(run.task.family.code.denoiser(run.task.pipe)):
                return measured(run, self.device, self.count)
        except EnvironmentProblem as error:
            return str(error)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return "does not fit"


WAY_HEAD = (
    *("model", "pixels", "batch", "way", "seconds a step"),
    *("of it beside encoders and denoiser", "peak GB", "minutes a word"),
)
PRESET_HEAD = (
    *("model", "pixels", "preset", "what it chooses"),
    *("estimated GB", "peak GB", "minutes a word"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="+", default=["sdxl", "sd15"])
    parser.add_argument("--size", nargs="+", type=int, default=[768, 1024])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--way", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--preset-size", type=int, help="pixels of the presets; default: the family's")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    device = Device(options.device)
    if device.on_card and not torch.cuda.is_available():
        print("error: no CUDA device: there is nothing to measure", file=sys.stderr)
        return 5
    ways: list[Sequence[str]] = []
    presets: list[Sequence[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        benches = [
            Bench(name, Path(folder) / name, device, options.steps) for name in dict.fromkeys(options.model)
        ]
        for bench in benches:
            for rows, found in (
                (presets, bench.presets(options.preset_size)),
                (ways, bench.ways(options.way, options.size, options.batch)),
            ):
                for row in found:
                    print(*row, sep=" | ", flush=True)
                    rows.append(row)
                    _write(options.page, device, ways, presets)
    return 0


def _write(
    page: Path, device: Device, ways: Sequence[Sequence[str]], presets: Sequence[Sequence[str]]
) -> None:
    lines = [
        f"{device.name}, torch {torch.__version__}, bf16, random weights. Peaks are of photos and steps together; a word has",
        "the family's default steps and pictures a step.",
        "",
        *table(WAY_HEAD, ways),
        "",
        "What `--preset` chooses, and what that takes:",
        "",
        *table(PRESET_HEAD, presets),
    ]
    text = page.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    page.write_text(before + "\n".join([START, "", *lines, "", END]) + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
