"""What is measured, each a table."""

import io
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from psutil import Process

from dticli import bundled
from tests.benchmarks import alignment, quality, sdxl, together
from tests.benchmarks.gated import Gated, Seconds, Spread

ROUNDS = 5
STARTS = 3
STEPS = 4
BATCH = 4
NEVER = 10**6
BUNDLED_SIZE = 64
DTI = ("-m", "dticli")


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, and what to know of them."""

    title: str
    said: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def training(photos: Path, out: Path, model: Path, *options: str) -> tuple[str, ...]:
    """Arguments of a training that has always more steps to take."""
    fixed = ("--token", "<w>", "--init", "dog", "--model", str(model), "-o", str(out), "--steps", "100000")
    sized = ("--batch-size", str(BATCH), "--quiet", "--force", *options)
    return (*DTI, "train", str(photos), *fixed, *sized)


def _bare(photos: Path, model: Path, *options: str) -> tuple[str, ...]:
    return ("-m", "tests.benchmarks.bare", str(model), str(photos), "--batch", str(BATCH), *options)


def steps(peers: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """A step, the first step and memory, against the bare loop and the peers."""
    own = {name: command for name, command in peers.items() if not _wants("sdxl", command)}
    bundled_one = "the model inside the package", bundled.model_folder(), BUNDLED_SIZE
    with tempfile.TemporaryDirectory() as folder:
        yield _steps(*bundled_one, "fp32", own, _in_float32(Path(folder)) if own else None)
    yield _steps(*bundled_one, "bf16", {})
    with tempfile.TemporaryDirectory() as folder:
        like_sdxl = (
            "a model with SDXL's classes and vocabularies and little else",
            sdxl.save(Path(folder)),
            sdxl.SIZE,
        )
        yield _steps(*like_sdxl, "fp32", {name: peers[name] for name in peers if name not in own})


def _wants(field: str, command: Sequence[str]) -> bool:
    """Whether a peer's command is to be told this."""
    return any(f"{{{field}}}" in each for each in command)


def _in_float32(folder: Path) -> Path:
    """A copy of the bundled model for peers.

    Their scripts train the text encoder in the precision of its files; in the float16 of the bundled one they get NaN at once.
    """
    pipe = DiffusionPipeline.from_pretrained(bundled.model_folder(), torch_dtype=torch.float32)
    pipe.save_pretrained(folder)
    return folder


def _filled(model: Path, photos: Path, size: int, noun: str, save: int) -> dict[str, str]:
    """What is filled into a peer's command, besides the folder that it writes to."""
    return {
        "model": str(model),
        "sdxl": str(model),
        "photos": str(photos),
        "batch": str(BATCH),
        "size": str(size),
        "noun": noun,
        "save": str(save),
    }


def _steps(
    said: str,
    model: Path,
    size: int,
    precision: str,
    peers: Mapping[str, Sequence[str]],
    theirs: Path | None = None,
) -> Table:
    """The table of one model; `theirs` is the same model in files that peers can train, if these are others."""
    photos = bundled.photos("dog")[0].parent
    options = ("--precision", precision)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        out = Path(folder)
        programs = {
            "bare loop": _bare(photos, model, "--size", str(size), *options),
            "dti": training(photos, out / "w.safetensors", model, "--resolution", str(size), *options),
        }
        filled = _filled(theirs or model, photos, size, "dog", NEVER)
        programs |= {
            name: tuple(each.format(out=out / name, **filled) for each in command)
            for name, command in peers.items()
        }
        firsts: dict[str, list[Seconds]] = {name: [] for name in programs}
        for _ in range(STARTS - 1):
            for name, command in programs.items():
                with Gated(name, command) as started:
                    firsts[name].append(started.first)
        run = [stack.enter_context(Gated(name, command)) for name, command in programs.items()]
        for each in run:
            firsts[each.name].append(each.first)
        for each in run:
            each.warm_up()
        for _ in range(ROUNDS):
            for each in run:
                each.steps(STEPS)
        bare = run[0]
        return Table(
            f"A step, {precision}, {size} pixels",
            f"Of {said}. Batch {BATCH}, {ROUNDS} rounds of {STEPS} steps in turn, all programs alive at once. Ratios are of CPU "
            f"time, round by round, against a bare loop of the same modules. First step: {STARTS} starts in turn, to its end.",
            ("", "CPU ms a step", "ratio", "wall ms a step", "first step, wall s", "CPU s", "peak MB"),
            tuple(
                (
                    each.name,
                    cpu,
                    f"{Spread.of([one.cpu / other.cpu for one, other in zip(each.rounds, bare.rounds, strict=True)]):.2f}",
                    wall,
                    f"{Spread.of([one.wall for one in firsts[each.name]]):.1f}",
                    f"{Spread.of([one.cpu for one in firsts[each.name]]):.1f}",
                    f"{each.peak():.0f}",
                )
                for each, (cpu, wall) in ((each, _step(each.rounds)) for each in run)
            ),
        )


def growth(peers: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """How a step of dti grows with what it is asked for, and the start with the photos."""
    model, photos = bundled.model_folder(), bundled.photos("dog")[0].parent
    ways = {
        "batch 1": ("--batch-size", "1"),
        "batch 2": ("--batch-size", "2"),
        "batch 4": (),
        "batch 8": ("--batch-size", "8"),
        "batch 16": ("--batch-size", "16"),
        "4 vectors": ("--vectors", "4"),
        "16 vectors": ("--vectors", "16"),
        "96 pixels": ("--resolution", "96"),
        "128 pixels": ("--resolution", "128"),
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, options in ways.items():
            command = training(photos, Path(folder) / "w.safetensors", model, *options)
            with Gated(name, command) as run:
                run.warm_up()
                for _ in range(ROUNDS):
                    run.steps(STEPS)
                rows.append((name, *_step(run.rounds), f"{run.peak():.0f}"))
    yield Table(
        "What makes a step longer",
        f"Of `dti train`, batch {BATCH} and 64 pixels where nothing else is said, one program after the other.",
        ("", "CPU ms a step", "wall ms a step", "peak MB"),
        tuple(rows),
    )
    rows = []
    for count in (5, 50, 500):
        with tempfile.TemporaryDirectory() as folder:
            large = _photos(Path(folder) / "photos", count)
            command = training(large, Path(folder) / "w.safetensors", model)
            with Gated(str(count), command) as run:
                rows.append(
                    (str(count), f"{run.first.wall:.1f}", f"{run.first.cpu:.1f}", f"{run.peak():.0f}")
                )
    yield Table(
        "Photos",
        "JPEG files of 12 megapixels, from the start of the program to the end of the first step.",
        ("photos", "wall s", "CPU s", "peak MB"),
        tuple(rows),
    )


def _step(rounds: Sequence[Seconds], form: str = ".0f") -> tuple[str, str]:
    return (
        f"{Spread.of([1000 * one.cpu for one in rounds]):{form}}",
        f"{Spread.of([1000 * one.wall for one in rounds]):{form}}",
    )


def _photos(folder: Path, count: int) -> Path:
    """So many photos of 4000 x 3000: one picture, each time with other bytes behind it, because copies count once."""
    folder.mkdir()
    coarse = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((4000, 3000), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=90)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(content.getvalue() + str(number).encode())
    return folder


def start(peers: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """How long commands take that compute next to nothing."""
    with tempfile.TemporaryDirectory() as folder:
        word = Path(folder) / "dog.safetensors"
        photos = str(bundled.photos("dog")[0].parent)
        made = training(Path(photos), word, bundled.model_folder(), "--steps", "1")
        subprocess.run([sys.executable, *made], check=True, stdout=subprocess.DEVNULL)
        commands = {
            "python -c ''": (("-c", ""), 0),
            "dti --help": ((*DTI, "--help"), 0),
            "dti train --help": ((*DTI, "train", "--help"), 0),
            "dti train --no-such-option": ((*DTI, "train", "--no-such-option"), 2),
            "dti train ./photos --check": ((*DTI, "train", photos, "--check"), 0),
            "dti info dog.safetensors": ((*DTI, "info", str(word)), 0),
            "dti inspect-norms": ((*DTI, "inspect-norms"), 0),
            "dti inspect-norms dog.safetensors": ((*DTI, "inspect-norms", str(word)), 0),
            "dti models": ((*DTI, "models"), 0),
            "dti doctor --offline": ((*DTI, "doctor", "--offline"), 0),
        }
        measured = {
            name: [_process(arguments, code) for _ in range(ROUNDS)]
            for name, (arguments, code) in commands.items()
        }
    yield Table(
        "Start-up",
        f"Whole processes, files in the system's cache, {ROUNDS} times each; the model is the one inside the package.",
        ("", "wall s", "CPU s"),
        tuple(
            (
                name,
                f"{Spread.of([one.wall for one in taken]):.2f}",
                f"{Spread.of([one.cpu for one in taken]):.2f}",
            )
            for name, taken in measured.items()
        ),
    )


def _process(arguments: Sequence[str], code: int) -> Seconds:
    own = Process()
    before, started = own.cpu_times(), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True)
    wall, after = time.perf_counter() - started, own.cpu_times()
    if done.returncode != code:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Seconds(wall, cpu)


def generate(peers: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """What a picture costs by the number drawn at once."""
    rows = []
    for size in (1, 2, 4, 8, 16):
        with tempfile.TemporaryDirectory() as folder:
            few, many = (
                _process(
                    (
                        *DTI,
                        "generate",
                        "a dog",
                        "--count",
                        str(count),
                        "--batch-size",
                        str(size),
                        "-o",
                        f"{folder}/{count}",
                    ),
                    0,
                )
                for count in (16, 48)
            )
        rows.append((str(size), f"{(many.cpu - few.cpu) / 32:.3f}", f"{(many.wall - few.wall) / 32:.3f}"))
    yield Table(
        "Pictures",
        "`dti generate` on the model inside the package: 48 pictures less 16, so that loading does not count.",
        ("drawn at once", "CPU s a picture", "wall s a picture"),
        tuple(rows),
    )


def words(peers: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """Words learned together against one at a time, and the most that a batch could gain."""
    counts = (2, 4, 8)
    bare = together.curve([BATCH, *(BATCH * count for count in counts)], BUNDLED_SIZE, STEPS, ROUNDS)
    yield Table(
        "What a batch gains",
        "A bare loop of the same modules, in turn in one process. The gains over the batch of one word are the most that words "
        "learned together can have of the modules.",
        ("batch", "CPU ms a sample", "wall ms a sample", "gain, CPU", "gain, wall"),
        tuple(
            (
                str(batch),
                *_step([Seconds(one.wall / batch, one.cpu / batch) for one in taken], ".1f"),
                *_gains(bare[BATCH], taken, batch / BATCH),
            )
            for batch, taken in bare.items()
        ),
    )
    rows = []
    for count in counts:
        taken = together.measure(count, BATCH, STEPS, ROUNDS)
        rows.append(
            (
                str(count),
                *_step([one for one, _ in taken]),
                *_step([alone for _, alone in taken]),
                *_gains([alone for _, alone in taken], [one for one, _ in taken]),
            )
        )
    yield Table(
        "Several words at once",
        f"A step of all words with `--together`, and one after the other, batch {BATCH}, in turn in one process.",
        ("words", "together, CPU ms", "wall ms", "one by one, CPU ms", "wall ms", "gain, CPU", "gain, wall"),
        tuple(rows),
    )


def _gains(alone: Sequence[Seconds], together: Sequence[Seconds], times: float = 1) -> tuple[str, str]:
    """How many times as fast, round by round, of CPU time and of the clock; what is done alone is done so many times."""
    pairs = list(zip(alone, together, strict=True))
    return (
        f"{Spread.of([times * one.cpu / other.cpu for one, other in pairs]):.2f}",
        f"{Spread.of([times * one.wall / other.wall for one, other in pairs]):.2f}",
    )


SUBJECTS = ("dog", "rocket")
PLACES = (0, 10, 30, 100)


def gradients(peers: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """How well a batch's gradient points, by the way the batch is chosen."""
    by_subject = [alignment.along(name, PLACES) for name in SUBJECTS]
    yield Table(
        "Where gradients point",
        f"Cosine between the tangent gradient of a batch and that of {alignment.POOL} samples, after so many steps of a run "
        f"at the defaults; {' / '.join(SUBJECTS)}. Batches of {alignment.BATCH} where "
        "nothing else is said; timesteps run from the picture to the noise.",
        ("", *(f"step {place}" for place in PLACES)),
        tuple(
            (way, *(_each([found[place][way] for found in by_subject]) for place in range(len(PLACES))))
            for way in by_subject[0][-1]
        ),
    )


def _each(values: Sequence[float]) -> str:
    return " / ".join("-" if math.isnan(value) else f"{value:.2f}" for value in values)


OURS = (20, 40, 60, 80, 100)
THEIRS = (50, 100, 150, 200, 300, 600, 1200)
AS_GOOD_IN = {"Time to a look": ("look",), "Time to a word": ("look", "identified", "noun")}


def time_to_quality(peers: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """What it takes to learn a word that is nearly as good as dti's at its defaults: in its look, and as the subject."""
    rows: dict[str, list[tuple[str, ...]]] = {title: [] for title in AS_GOOD_IN}
    own_model = {name: command for name, command in peers.items() if not _wants("sdxl", command)}
    with tempfile.TemporaryDirectory() as folder:
        model = _in_float32(Path(folder)) if own_model else bundled.model_folder()
        for name in SUBJECTS:
            viewer, photos = quality.Viewer.of(name), bundled.photos(name)[0].parent
            noun = viewer.subject.class_word
            own = list(quality.ours(photos, noun, OURS, viewer))
            bars = {title: quality.bars(own[-1], names) for title, names in AS_GOOD_IN.items()}
            every = {figure: bar for each in bars.values() for figure, bar in each.items()}
            runs = {"dti": own}
            for peer, command in own_model.items():
                filled = _filled(model, photos, BUNDLED_SIZE, noun, THEIRS[0])
                runs[peer] = quality.until(quality.theirs(peer, command, filled, THEIRS, viewer), every)
            for title, bar in bars.items():
                first = quality.reached(own, bar)
                rows[title].extend(
                    _reached(name, program, quality.reached(run, bar), bar, first)
                    for program, run in runs.items()
                )
    for title, names in AS_GOOD_IN.items():
        yield Table(
            title,
            f"CPU time from the start of a program to its first saved word that draws {100 * quality.SHARE:.0f} % of the "
            f"{' and of the '.join(names)} that dti's word draws after {OURS[-1]} steps, its default, as judge B sees it in the "
            f"20 pictures of `stickers-complex`. Words of dti are looked at every {OURS[0]} steps, those of others after "
            f"{', '.join(map(str, THEIRS))}; > says that none of them was as good, and the figures are those of the last. "
            "*Rest* is what else the prompts ask for. On the model inside the package.",
            ("subject", "program", *quality.FIGURES, "steps", "CPU s", "times dti's"),
            tuple(rows[title]),
        )


def _reached(
    subject: str, program: str, found: quality.Stage, bars: Mapping[str, float], first: quality.Stage
) -> tuple[str, ...]:
    more = "" if found.reaches(bars) else "> "
    figures = [
        f"{100 * found.seen[name]:.0f} %" + (f" of {100 * bars[name]:.0f}" if name in bars else "")
        for name in quality.FIGURES
    ]
    return (
        subject,
        program,
        *figures,
        f"{more}{found.steps}",
        f"{more}{found.cpu:.0f}",
        f"{more}{found.cpu / first.cpu:.1f}",
    )


PARTS: dict[str, Callable[[Mapping[str, Sequence[str]]], Iterator[Table]]] = {
    "steps": steps,
    "growth": growth,
    "start": start,
    "generate": generate,
    "words": words,
    "quality": time_to_quality,
    "gradients": gradients,
}
