"""How long a program takes to learn a word that is nearly as good as dti's at its defaults, on the bundled model.

The clock is the CPU time of the program from its start, up to the step of a word that it saved; drawing and judging are
no part of it.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dticli import api, bundled
from dticli.bundled.judge import load_b
from dticli.bundled.recipe import assembly, ceilings, sampling
from tests.benchmarks.gated import Gated

SHARE = 0.9
WORD = "<w>"
FIGURES = ("look", "identified", "noun", "rest")


@dataclass(frozen=True)
class Stage:
    """A word along a run: after how many steps, how much CPU time from the start, and the FIGURES that it draws."""

    steps: int
    cpu: float
    seen: Mapping[str, float]

    def reaches(self, bars: Mapping[str, float]) -> bool:
        """Whether every one of the figures that has a bar is at least as high."""
        return all(self.seen[name] >= bar for name, bar in bars.items())


@dataclass(frozen=True)
class Viewer:
    """Draws words of a subject and judges what it sees; `pipe` is the bundled model."""

    pipe: Any
    judge: Any
    subject: bundled.Subject

    @classmethod
    def of(cls, name: str) -> "Viewer":
        return cls(assembly.load(bundled.model_folder()), load_b(), bundled.subject(name))

    def seen(self, source: Path | str) -> dict[str, float]:
        """FIGURES of judge B for pictures of `stickers-complex` with the word of a file."""
        assert self.subject.look
        target = ceilings.Target(self.subject.class_word, self.subject.look, WORD)
        with api.place(self.pipe, api.load_word(source)) as there:
            said = [there.expand(prompt.of(target.said)) for prompt in ceilings.prompts(target)]
            pictures = ceilings.images(sampling.sample(self.pipe, said, 0))
        return ceilings.figures(self.judge, target, pictures)


def stages(
    name: str,
    command: Sequence[str],
    places: Sequence[int],
    saved: Callable[[int], Path | str],
    viewer: Viewer,
) -> Iterator[Stage]:
    """The words of a program that trains, as it goes on: it stands still while they are judged.

    Args:
        places: steps after which it saves a word, growing.
        saved: where, by their number.
    """
    with Gated(name, command) as run:
        done = 1
        for place in places:
            if place > done:
                run.steps(place - done)
            cpu = run.cpu
            # what a step brought is written once the program goes on
            run.steps(1)
            done = place + 1
            yield Stage(place, cpu, viewer.seen(saved(place)))


def ours(photos: Path, noun: str, places: Sequence[int], viewer: Viewer) -> Iterator[Stage]:
    """Words of dti at its defaults; its last step is one more, after which it does not end before it is looked at."""
    every = places[0]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "w.safetensors"
        steps = places[-1] + every
        kept = ("--steps", str(steps), "--keep", str(steps // every), "--quiet")
        named = ("--token", WORD, "--init", noun, "--model", str(bundled.model_folder()), "-o", str(out))
        command = ("-m", "dticli", "train", str(photos), *named, *kept)
        yield from stages("dti", command, places, lambda place: f"{out.with_suffix('.run')}@{place}", viewer)


def theirs(
    name: str, command: Sequence[str], filled: dict[str, str], places: Sequence[int], viewer: Viewer
) -> Iterator[Stage]:
    """Words of a peer, of files whose names end with the number of the step."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        given = [each.format(out=out, **filled) for each in command]
        yield from stages(name, given, places, lambda place: next(out.glob(f"*-{place}.safetensors")), viewer)


def bars(best: Stage, names: Sequence[str]) -> dict[str, float]:
    """SHARE of some figures of a word."""
    return {name: SHARE * best.seen[name] for name in names}


def until(stages: Iterator[Stage], bars: Mapping[str, float]) -> list[Stage]:
    """The words of a run, as far as to the first that reaches the bars."""
    looked_at = []
    for stage in stages:
        looked_at.append(stage)
        if stage.reaches(bars):
            break
    return looked_at


def reached(looked_at: Sequence[Stage], bars: Mapping[str, float]) -> Stage:
    """The first word that reaches the bars, or the last one."""
    return next((stage for stage in looked_at if stage.reaches(bars)), looked_at[-1])
