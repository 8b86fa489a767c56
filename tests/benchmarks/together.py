"""Several words learned together against one at a time, on the bundled model, and what a bare loop gains by its batch.

All take turns in one process, so that whatever else the machine does hits all. What counts is the time of the steps: loading
and encoding are the same for all.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import torch

from dticli import bundled
from dticli.learn import hyperparameters, initial_rows, trainer
from dticli.learn.hyperparameters import Batches, Optimisation, Start
from dticli.learn.trainer import Lane, Learner, Outcomes, Task
from dticli.models import choice, contents, loading
from dticli.photos import albums, captions, latents
from dticli.settings import TrainSettings, model_layer, resolve
from dticli.words import norms, placement
from tests.benchmarks import bare
from tests.benchmarks.gated import Seconds

CPU = torch.device("cpu")


def training(batch_size: int, name: str = "dog", pipe: Any = None) -> tuple[Task, Learner]:
    """A training of an example subject on the bundled model at its defaults but for the batch, ready to go; it never ends.

    Args:
        pipe: the model, where it is loaded already.
    """
    model = choice.choose(bundled.MODEL_NAME)
    family = contents.family(model)
    own = {"token": f"<{name}>", "init": bundled.subject(name).class_word, "steps": 10**6}
    own |= {"batch_size": batch_size}
    settings = resolve(TrainSettings, own, model_layer(model.folder, "train"), vars(family.defaults))
    pipe = pipe or loading.load(model, CPU, torch.float32, safety_checker=False)
    album = [photo for path in bundled.photos(name) for photo in albums.read(path).photos]
    crops = albums.crops(album, hyperparameters.cropping(settings, family.multiple))
    encoded = latents.encode(pipe, family, crops, CPU)
    said = captions.from_templates(hyperparameters.captioning(settings).templates, settings.token)
    texts = dict.fromkeys(encoded.paths, said)
    vocabulary = {key: norms.summary(table) for key, table in placement.tables(pipe, family.encoders).items()}
    start, how = Start.of(settings), Optimisation.of(settings)
    return Task(pipe, family, encoded, texts, Batches.of(settings), how), trainer.learner(
        settings.token, how, *initial_rows.begin(pipe, family, start, vocabulary)
    )


def measure(words: int, batch_size: int, steps: int, rounds: int) -> list[tuple[Seconds, Seconds]]:
    """What a step of all words takes together, and one word after the other; a pair each round."""
    names = [each.name for each in bundled.subjects()][:words]
    first = training(batch_size, names[0])
    trainings = [first, *(training(batch_size, name, first[0].pipe) for name in names[1:])]
    pairs = []
    for _ in range(rounds):
        with trainer.placed(lanes := [Lane(*each) for each in trainings]) as placed:
            together = _timed(trainer.fit(lanes, placed), steps)
        alone = Seconds(0.0, 0.0)
        for each in trainings:
            with trainer.placed([lane := Lane(*each)]) as placed:
                taken = _timed(trainer.fit([lane], placed), steps)
                alone = Seconds(alone.wall + taken.wall, alone.cpu + taken.cpu)
        pairs.append((together, alone))
    return pairs


def curve(batches: Sequence[int], size: int, steps: int, rounds: int) -> dict[int, list[Seconds]]:
    """What a step of a bare loop takes by its batch, each round.

    Args:
        size: pixels of a side.
    """
    task, _ = training(1)
    latents = torch.stack(
        [task.family.code.to_latents(task.pipe, mean[None])[0] for mean in task.latents.mean]
    )
    taken: dict[int, list[Seconds]] = {batch: [] for batch in batches}
    for _ in range(rounds):
        for batch in batches:
            with closing(bare.steps(task.pipe, latents, batch, size)) as own:
                taken[batch].append(_timed(own, steps))
    return taken


def _timed(reports: Iterator[Outcomes] | Iterator[None], steps: int) -> Seconds:
    """A step, after one that is not counted."""
    next(reports)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(reports)
    return Seconds((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps)
