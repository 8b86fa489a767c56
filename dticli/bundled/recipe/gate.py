"""Step `gate`: does a longer embedding row cost the rest of the prompt? If not, this model cannot show what DTI is for.

Nothing is learned: the class word's own row is scaled. What becomes of its position and of its turning in the blocks is probed
in the encoder; what the prompt still says is read by the naming heads of the pretraining from the pooled text state, which
takes seconds, and by judge B from sampled pictures.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import StableDiffusionPipeline

from dticli.bundled import judge, subjects

from . import cache, check, elements, grammar, package, probes, sampling
from .elements import CLASSES
from .scenes import Scene
from .training import Log

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
WATCHED = (8.0, 16.0)
LEAST_LOSS = 0.10


@dataclass(frozen=True)
class Tally:
    """Right answers of those asked, for one element at one scale."""

    right: int
    asked: int


@dataclass(frozen=True)
class Report:
    """By scale: the encoder's probes, and what the states and the pictures still tell of each element."""

    samples: int
    encoder: dict[float, dict[str, float]]
    states: dict[float, dict[str, Tally]]
    pictures: dict[float, dict[str, Tally]]

    def others(self, scale: float) -> float:
        """Share of right answers in pictures over all elements but the subject itself, at a scale."""
        tallies = [tally for element, tally in self.pictures[scale].items() if element != "noun"]
        return sum(tally.right for tally in tallies) / sum(tally.asked for tally in tallies)

    @property
    def passed(self) -> bool:
        """Whether at one of WATCHED the others lose LEAST_LOSS while the subject is still seen half as often."""
        seen = {scale: tallies["noun"].right for scale, tallies in self.pictures.items()}
        return any(
            self.others(1.0) - self.others(scale) >= LEAST_LOSS and 2 * seen[scale] >= seen[1.0]
            for scale in WATCHED
            if scale in seen
        )


def run(samples: int, seed: int, model: Path | None, log: Log) -> Report:
    """Sample the same prompts and noises at every scale; log and write `gate.json`."""
    pipeline = package.load(model)
    tower, observer = check.load_judges(model)
    scenes, prompts = prompts_on_subjects(samples, seed)
    report = Report(samples, {}, {}, {})

    def note(kind: str, scale: float, named: dict[str, list[str]]) -> None:
        tallies = getattr(report, kind)[scale] = _tally(scenes, named)
        line = "  ".join(
            f"{element} {100 * tally.right / tally.asked:.0f}" for element, tally in tallies.items()
        )
        log(f"gate {kind} x{scale:g} (% right, of {samples} prompts): {line}")
        cache.write_bytes(cache.folder("gate") / "gate.json", json.dumps(asdict(report), indent=1).encode())

    encoder = pipeline.text_encoder
    slots = _slots(pipeline, scenes, prompts)
    trained = probes.train(encoder, slots, _live(pipeline), seed)
    for scale in SCALES:
        with _scaled(pipeline, scale):
            inside = report.encoder[scale] = probes.report(encoder, slots, trained)
            log(
                f"gate encoder x{scale:g}: {'  '.join(f'{name} {value:.2f}' for name, value in inside.items())}"
            )
    for scale in SCALES:
        with _scaled(pipeline, scale):
            note("states", scale, read_states(pipeline, tower, prompts))
    for scale in SCALES:
        with _scaled(pipeline, scale):
            note("pictures", scale, judge.names(observer, sampling.sample(pipeline, prompts, seed)))
    log(f"gate: {check.verdict(report.passed)}")
    return report


def _slots(pipeline: StableDiffusionPipeline, scenes: list[Scene], prompts: list[str]) -> probes.Slots:
    """Where each prompt's class word stands."""
    tokens = pipeline.tokenizer
    ids = tokens(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    nouns = [tokens(scene.things[0].noun, add_special_tokens=False).input_ids[0] for scene in scenes]
    return probes.Slots(ids, (ids == torch.tensor(nouns)[:, None]).int().argmax(dim=1))


def _live(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """Ids of rows that captions use."""
    return pipeline.text_encoder.get_input_embeddings().weight.norm(dim=1).nonzero().flatten()


@torch.no_grad()
def read_states(
    pipeline: StableDiffusionPipeline, tower: judge.DualEncoder, prompts: list[str]
) -> dict[str, list[str]]:
    """The most likely name of every element, read from the pooled text states alone."""
    pooled = []
    for start in range(0, len(prompts), 100):
        batch = prompts[start : start + 100]
        ids = pipeline.tokenizer(batch, padding="max_length", truncation=True, return_tensors="pt").input_ids
        pooled.append(pipeline.text_encoder(ids).pooler_output)
    logits = tower.text_namer(torch.cat(pooled))
    return {
        element: [known[index] for index in of_element.argmax(dim=1).tolist()]
        for (element, known), of_element in zip(CLASSES.items(), logits, strict=True)
    }


def prompts_on_subjects(count: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Unseen scenes whose first thing, and no other, is an example subject, named by its class word."""
    random = Random(f"gate {seed}")
    classes = {subject.class_word for subject in subjects()}
    scenes: list[Scene] = []
    prompts: list[str] = []
    while len(scenes) < count:
        scene = grammar.unseen_scene(random)
        prompt = grammar.caption(scene, random)
        subject, *others = (thing.noun for thing in scene.things)
        said = f" {subject} " in f" {prompt} ".replace(",", " ,")
        if said and subject in classes and not classes.intersection(others):
            scenes.append(scene)
            prompts.append(prompt)
    return scenes, prompts


class _scaled:
    """Within the block, the class words' rows are `scale` times as long."""

    def __init__(self, pipeline: StableDiffusionPipeline, scale: float):
        tokens = pipeline.tokenizer
        self.rows = [
            tokens(subject.class_word, add_special_tokens=False).input_ids[0] for subject in subjects()
        ]
        self.table = pipeline.text_encoder.get_input_embeddings().weight
        self.scale = scale

    def __enter__(self) -> None:
        self.kept = self.table.detach()[self.rows].clone()
        self._put(self.kept * self.scale)

    def __exit__(self, *_: object) -> None:
        self._put(self.kept)

    @torch.no_grad()
    def _put(self, rows: torch.Tensor) -> None:
        self.table[self.rows] = rows


def _tally(scenes: list[Scene], seen: dict[str, list[str]]) -> dict[str, Tally]:
    right, asked = dict.fromkeys(CLASSES, 0), dict.fromkeys(CLASSES, 0)
    for place, scene in enumerate(scenes):
        found = elements.answers(scene, {name: seen[name][place] for name in CLASSES})
        for element, answer in found.items():
            asked[element] += 1
            right[element] += answer
    return {element: Tally(right[element], asked[element]) for element in CLASSES if asked[element]}
