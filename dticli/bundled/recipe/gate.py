"""Step `gate`: whether a larger row norm harms the rest of the prompt; if not, the model cannot show the benefit of DTI.

Nothing is learned: the rows of class words are scaled. Their positions and rotations are probed in the encoder. The elements of
the prompt are classified from the pooled text state by judge A's text side, which takes seconds, and from sampled pictures by
judge B. The largest possible loss is measured with a word's state that contains nothing about its prompt.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import StableDiffusionPipeline
from transformers.modeling_outputs import BaseModelOutput

from dticli.bundled import judge, subjects
from dticli.bundled.world import elements, grammar
from dticli.bundled.world.elements import CLASSES
from dticli.bundled.world.scenes import Scene

from . import assembly, cache, check, probes, sampling
from .training import RecipeLog

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
WATCHED = (8.0, 16.0)
LEAST_LOSS = 0.10


@dataclass(frozen=True)
class Tally:
    """Number of right answers and of questions, for an element at a scale."""

    right: int
    asked: int


@dataclass(frozen=True)
class GateReport:
    """Results of `run`.

    Attributes:
        samples: number of prompts.
        encoder: scale to figures of the probes.
        states, pictures: scale to element to its tally, from pooled text states and from pictures.
        alone: element to its tally from pictures, with the word's unscaled state from a prompt without other elements.
    """

    samples: int
    encoder: dict[float, dict[str, float]]
    states: dict[float, dict[str, Tally]]
    pictures: dict[float, dict[str, Tally]]
    alone: dict[str, Tally]

    @property
    def passed(self) -> bool:
        """Whether, at a scale of WATCHED, others lose at least LEAST_LOSS while the subject is seen at least half as often."""
        seen = {scale: tallies["noun"].right for scale, tallies in self.pictures.items()}
        return any(
            others(self.pictures[1.0]) - others(self.pictures[scale]) >= LEAST_LOSS
            and 2 * seen[scale] >= seen[1.0]
            for scale in WATCHED
            if scale in seen
        )


def others(tallies: Mapping[str, Tally]) -> float:
    """Share of right answers over all elements except the subject's noun."""
    rest = [tally for element, tally in tallies.items() if element != "noun"]
    return sum(tally.right for tally in rest) / sum(tally.asked for tally in rest)


def run(samples: int, seed: int, model: Path | None, log: RecipeLog) -> GateReport:
    """Sample the same prompts with the same noise at every scale; log and write `gate.json`."""
    pipeline = assembly.load(model)
    tower, observer = check.load_judges(model)
    scenes, prompts = prompts_on_subjects(samples, seed)
    report = GateReport(samples, {}, {}, {}, {})

    def tally(what: str, named: dict[str, list[str]]) -> dict[str, Tally]:
        tallies = _tally(scenes, named)
        line = "  ".join(
            f"{element} {100 * found.right / found.asked:.0f}" for element, found in tallies.items()
        )
        log(f"gate {what} (% right, of {samples} prompts): {line}")
        return tallies

    def pictures() -> dict[str, list[str]]:
        return judge.names(observer, sampling.sample(pipeline, prompts, seed))

    encoder = pipeline.text_encoder
    slots = _slots(pipeline, [scene.things[0].noun for scene in scenes], prompts)
    trained = probes.train(encoder, slots, _live(pipeline), seed)
    for scale in SCALES:
        with _scaled(pipeline, scale):
            inside = report.encoder[scale] = probes.report(encoder, slots, trained)
            log(
                f"gate encoder x{scale:g}: {'  '.join(f'{name} {value:.2f}' for name, value in inside.items())}"
            )
    for scale in SCALES:
        with _scaled(pipeline, scale):
            report.states[scale] = tally(f"states x{scale:g}", read_states(pipeline, tower, prompts))
    with _alone(pipeline):
        report.alone.update(tally("pictures, word alone", pictures()))
    for scale in SCALES:
        with _scaled(pipeline, scale):
            report.pictures[scale] = tally(f"pictures x{scale:g}", pictures())
        cache.write_bytes(cache.folder("gate") / "gate.json", json.dumps(asdict(report), indent=1).encode())
    log(f"gate: {check.verdict(report.passed)}")
    return report


def _slots(pipeline: StableDiffusionPipeline, words: list[str], prompts: list[str]) -> probes.Slots:
    """The position of each prompt's word."""
    ids = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    own = torch.tensor(_rows(pipeline, words))
    return probes.Slots(ids, (ids == own[:, None]).int().argmax(dim=1))


def _rows(pipeline: StableDiffusionPipeline, words: list[str]) -> list[int]:
    """The id of each word; each must be a single token."""
    return [ids[0] for ids in pipeline.tokenizer(words, add_special_tokens=False).input_ids]


def _class_words() -> list[str]:
    return [subject.class_word for subject in subjects()]


def _live(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """Ids of nonzero rows, those that captions use."""
    return pipeline.text_encoder.get_input_embeddings().weight.norm(dim=1).nonzero().flatten()


@torch.no_grad()
def read_states(
    pipeline: StableDiffusionPipeline, tower: judge.DualEncoder, prompts: list[str]
) -> dict[str, list[str]]:
    """The most likely class of every element according to the pooled text states: element to names, by prompt."""
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
    """Held-out scenes and captions in which the first thing, and no other, has the class word of an example subject."""
    random = Random(f"gate {seed}")
    classes = set(_class_words())
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
    """In the context, the class words' rows are multiplied by `scale`."""

    def __init__(self, pipeline: StableDiffusionPipeline, scale: float):
        self.rows = _rows(pipeline, _class_words())
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


class _alone:
    """In the context, a class word's last state is that in "a photo of a WORD", which contains nothing about its prompt."""

    def __init__(self, pipeline: StableDiffusionPipeline):
        self.encoder = pipeline.text_encoder
        self.rows = _rows(pipeline, _class_words())
        slots = _slots(pipeline, _class_words(), [f"a photo of a {word}" for word in _class_words()])
        with torch.no_grad():
            self.states = slots.of(self.encoder(slots.ids).last_hidden_state)

    def __enter__(self) -> None:
        self.hook = self.encoder.register_forward_hook(self._put)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _put(self, _: torch.nn.Module, given: tuple[torch.Tensor, ...], found: BaseModelOutput) -> None:
        for row, state in zip(self.rows, self.states, strict=True):
            found.last_hidden_state[given[0] == row] = state.to(found.last_hidden_state)


def _tally(scenes: list[Scene], seen: dict[str, list[str]]) -> dict[str, Tally]:
    """Element to its tally, for each element that a scene asks for, including described parts of looks."""
    tallies: dict[str, Tally] = {}
    for place, scene in enumerate(scenes):
        for element, answer in elements.answers(scene, {name: seen[name][place] for name in CLASSES}).items():
            before = tallies.get(element, Tally(0, 0))
            tallies[element] = Tally(before.right + answer, before.asked + 1)
    return tallies
