"""What our training step costs beyond the model's own work, and how long the commands take to start.

    python tests/benchmarks/step.py [--rounds 20] [--batch-size 4]

Both loops alternate in one process, so that whatever else the machine does hits both. The bare loop runs the same modules
forward and backward to one embedding row, on prepared tensors: no draws, no captions, no tokenizer, no optimizer, no report.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dticli import bundled
from dticli.learn import initial_rows, trainer
from dticli.learn.trainer import Lane, Learner, Task
from dticli.models import choice, contents, loading
from dticli.photos import albums, captions, latents
from dticli.settings import TrainSettings, resolve
from dticli.words import norms, placement

CPU = torch.device("cpu")


def training(batch_size: int, name: str = "dog", pipe: Any = None) -> tuple[Task, Learner]:
    """A training of an example subject on the bundled model, ready to go.

    Args:
        pipe: the model, where it is loaded already.
    """
    model = choice.choose(bundled.MODEL_NAME)
    family = contents.family(model)
    own = {"token": f"<{name}>", "init": bundled.subject(name).class_word, "steps": 10**6}
    own |= {"batch_size": batch_size, "resolution": 64}
    settings = resolve(TrainSettings, own, vars(family.defaults))
    pipe = pipe or loading.load(model, CPU, torch.float32, safety_checker=False)
    album = [photo for path in bundled.photos(name) for photo in albums.read(path).photos]
    crops = albums.crops(album, albums.Cropping.of(settings, family.multiple))
    encoded = latents.encode(pipe, family, crops, CPU)
    texts = dict.fromkeys(encoded.paths, captions.from_templates(captions.OBJECT_TEMPLATES, settings.token))
    rows = initial_rows.rows(pipe, family, settings.init, 1, 0)
    vocabulary = {key: norms.summary(table) for key, table in placement.tables(pipe, family.encoders).items()}
    lengths = initial_rows.magnitudes(rows, vocabulary, "mean")
    return Task(pipe, family, encoded, texts, settings), trainer.learner(
        settings, rows, lengths, initial_rows.directions(rows)
    )


def bare(task: Task) -> Callable[[], None]:
    """One forward and backward pass of the same modules, for the same number of pictures."""
    pipe, size = task.pipe, task.settings.batch_size
    row = placement.table(pipe, task.family.encoders[0])[1].clone().requires_grad_()
    text = pipe.tokenizer(["a photo of dog"] * size, padding="max_length", return_tensors="pt").input_ids
    noisy, target = torch.randn(2, size, *task.latents.mean[0].shape)
    level = torch.full((size,), 500)

    def step() -> None:
        handle = pipe.text_encoder.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output + 0 * row
        )
        states = pipe.text_encoder(text)[0]
        handle.remove()
        prediction = pipe.unet(noisy, level, states, return_dict=False)[0]
        torch.nn.functional.mse_loss(prediction, target).backward()
        row.grad = None

    return step


def timed(step: Callable[[], object], times: int) -> float:
    """Seconds a call, over `times` calls."""
    started = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - started) / times


def steps(rounds: int, batch_size: int) -> Iterator[str]:
    """The table of both loops, with the spread of their ratio over the rounds."""
    task, learner = training(batch_size)
    lane = Lane(task, learner)
    with trainer.placed([lane]) as placed:
        reports = trainer.fit([lane], placed)
        ours, floor = (lambda: next(reports)), bare(task)
        timed(ours, 3), timed(floor, 3)
        pairs = [(timed(ours, 3), timed(floor, 3)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    yield f"dti step    {1000 * statistics.median(a for a, _ in pairs):8.1f} ms"
    yield f"bare step   {1000 * statistics.median(b for _, b in pairs):8.1f} ms"
    yield f"ratio       {middle:8.3f}  (quartiles {low:.3f} ... {high:.3f}, {rounds} rounds of 3, batch {batch_size})"


def _process(arguments: list[str]) -> Callable[[], object]:
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def start_up(times: int = 7) -> Iterator[str]:
    """Wall time of a warm `dti ...` process, against a bare interpreter."""
    for arguments in (["-c", ""], ["-m", "dticli", "--help"], ["-m", "dticli", "train", "--help"]):
        seconds = [timed(_process(arguments), 1) for _ in range(times)]
        yield f"{'python ' + ' '.join(arguments):<32} {1000 * min(seconds[1:]):6.0f} ms"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    for line in (*steps(options.rounds, options.batch_size), *start_up()):
        print(line)
