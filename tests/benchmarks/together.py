"""Words per hour: several together against one at a time, on the bundled model; `python -m tests.benchmarks.together`.

Both take turns in one process, so that whatever else the machine does hits both. What counts is the time of the steps: loading
and encoding are the same for both. CPU time stands beside wall time, because other programs may run.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from dticli import bundled
from dticli.learn import trainer
from dticli.learn.trainer import Lane, Outcomes
from tests.benchmarks.step import training


class Seconds(NamedTuple):
    """What something took."""

    wall: float
    cpu: float


def timed(reports: Sequence[Iterator[Outcomes]], steps: int) -> Seconds:
    """So many steps of each."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        for each in reports:
            next(each)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def table(words: int, batch_size: int, steps: int, rounds: int) -> Iterator[str]:
    """Seconds that a step of all words takes either way, and their ratio over the rounds."""
    names = [each.name for each in bundled.subjects()][:words]
    first = training(batch_size, names[0])
    trainings = [first, *(training(batch_size, name, first[0].pipe) for name in names[1:])]
    pairs = []
    for _ in range(rounds):
        with trainer.placed(lanes := [Lane(*each) for each in trainings]) as placed:
            reports = [trainer.fit(lanes, placed)]
            timed(reports, 1)
            together = timed(reports, steps)
        alone = Seconds(0.0, 0.0)
        for each in trainings:
            with trainer.placed([lane := Lane(*each)]) as placed:
                reports = [trainer.fit([lane], placed)]
                timed(reports, 1)
                alone = Seconds(*(a + b for a, b in zip(alone, timed(reports, steps), strict=True)))
        pairs.append((together, alone))
    yield f"{len(names)} words, batch {batch_size}, {torch.get_num_threads()} threads, {rounds} rounds of {steps} steps"
    yield f"{'seconds a step of all words':<30}{'together':>10}{'one by one':>12}{'ratio':>8}"
    for kind in Seconds._fields:
        ours, theirs = ([getattr(pair[which], kind) / steps for pair in pairs] for which in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        yield f"{kind:<30}{statistics.median(ours):>10.3f}{statistics.median(theirs):>12.3f}{ratio:>8.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--words", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for line in table(options.words, options.batch_size, options.steps, options.rounds):
        print(line)
