"""Step `ceilings`: words learned with the defaults, compared with lower and upper bounds.

Lower bound: the class word. In between: the look described in words. Upper bound of a single word: a trained name, with its own
look. Upper bound of the autoencoder: the prompts' scenes, drawn as training pictures are, and decoded from their latents. Upper
bounds of the judge: the same pictures as drawn, and the example photos.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from dticli import bundled
from dticli.bundled.judge import DualEncoder, Observer
from dticli.bundled.world import grammar, looks, names
from dticli.bundled.world.looks import Look
from dticli.bundled.world.scenes import Background, Scene, Thing
from dticli.errors import ModelError
from dticli.evaluation import measure, stickers
from dticli.evaluation.measure import Mean
from dticli.evaluation.prompt import Prompt
from dticli.evaluation.trials import weights_mark

from . import art, assembly, autoencoder, cache, check, drawing, sampling, shards
from .photos import lay_captions, lay_masks
from .training import RecipeLog

FIGURES = ("identified", "look", "noun", "rest")
# Kind to figure to least acceptable lower end of its interval.
BARS = {
    "class word": {"noun": 0.90, "rest": 0.97},
    "learned word": {"identified": 0.65, "look": 0.75, "noun": 0.85, "rest": 0.97},
    "trained name": {"identified": 0.85, "look": 0.85, "noun": 0.90, "rest": 0.97},
}


AIDS = ("-captions", "-masks")
"""Suffixes of the names of words that were learned with more than photos."""


@dataclass(frozen=True)
class Target:
    """A noun and look that a picture should show, and `said`, the words for them in a prompt."""

    noun: str
    look: Look
    said: str


@dataclass(frozen=True)
class CeilingsReport:
    """Judge to kind to figure: means over things with their intervals, for each of FIGURES that is defined."""

    judged: dict[str, dict[str, dict[str, Mean]]]


def run(seed: int, model: Path | None, log: RecipeLog) -> CeilingsReport:
    """Learn, draw and judge; log and write `ceilings.json` and `words.png`, one row per subject."""
    pipeline = assembly.load(model)
    tower, observer = check.load_judges(model)
    judges: dict[str, DualEncoder | Observer] = {"a": tower, "b": observer}
    judged: dict[str, dict[str, dict[str, Mean]]] = {name: {} for name in judges}
    rows: dict[str, list[list[Image.Image]]] = {}

    def note(kind: str, shown: Mapping[Target, list[Image.Image]]) -> None:
        for name, eyes in judges.items():
            judged[name][kind] = _means([figures(eyes, target, own) for target, own in shown.items()])
            log(f"ceilings, judge {name}: {kind}: {_line(judged[name][kind])}")

    icons = art.load()
    for subject, _ in reporting():
        for aid, options in ({"": ()} | _aids(subject, icons)).items():
            name = f"{subject.name}{aid}"
            file = learned("ceilings", name, subject, model or assembly.built(), log, *options)
            pipeline.load_textual_inversion(str(file), token=f"<{name}>")
    for kind, asked in (targets() | _aided()).items():
        shown = {target: _drawn(pipeline, target, seed) for target in asked}
        rows[kind] = list(shown.values())
        note(kind, shown)
    scenes = {target: _by_hand(target, icons) for target in targets()["learned word"]}
    rebuilt = {
        target: images(autoencoder.rebuild(pipeline.vae, autoencoder.to_tensor(pictures)).clamp(-1, 1))
        for target, pictures in scenes.items()
    }
    drawn = {
        target: [Image.fromarray(picture) for picture in pictures] for target, pictures in scenes.items()
    }
    note("drawn, rebuilt", rebuilt)
    note("drawn", drawn)
    for name, eyes in judges.items():
        judged[name]["photos"] = _means([alone(eyes, each, photos(each)) for each, _ in reporting()])
        log(f"ceilings, judge {name}: photos: {_line(judged[name]['photos'])}")
    _sheet(rows["learned word"], rows["class word"], cache.folder("ceilings") / "words.png")
    report = CeilingsReport(judged)
    cache.write_bytes(
        cache.folder("ceilings") / "ceilings.json", json.dumps(asdict(report), indent=1).encode()
    )
    return report


def _aids(subject: bundled.Subject, icons: art.Art) -> dict[str, tuple[str, ...]]:
    """Suffix of AIDS to options of `dti train` that separate the subject from its background."""
    folder = cache.folder("ceilings")
    captions = lay_captions(subject, folder / f"{subject.name}.jsonl")
    masks = lay_masks(subject, icons, folder / "masks" / subject.name)
    return dict(zip(AIDS, (("--captions-file", str(captions)), ("--masks", str(masks))), strict=True))


def _aided() -> dict[str, list[Target]]:
    return {
        f"learned word, {aid.removeprefix('-')}": [
            Target(subject.class_word, look, f"<{subject.name}{aid}>") for subject, look in reporting()
        ]
        for aid in AIDS
    }


def learned(
    step: str, name: str, subject: bundled.Subject, model: Path, log: RecipeLog, *options: str
) -> Path:
    """The word of an example subject, learned by `dti train`; cached for the same weights, and resumed if it was stopped.

    Args:
        step: the word is in its cache folder, under `name`.
        options: further options of the command.

    Raises:
        ModelError: the command failed.
    """
    file = cache.folder(step) / weights_mark(model) / f"{name}.safetensors"
    if file.is_file():
        return file
    file.parent.mkdir(exist_ok=True)
    folder = bundled.photos(subject.name)[0].parent
    named = ("--token", f"<{subject.name}>", "--init", subject.class_word, "--model", str(model))
    resumed = ("--resume",) if file.with_suffix(".run").is_dir() else ()
    done = subprocess.run(
        [sys.executable, "-m", "dticli", "train", str(folder), *named, "-o", str(file), "--quiet", *options, *resumed],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise ModelError(f"dti train ended with exit code {done.returncode}: expected 0; see above")
    log(f"{step}: learned {name}")
    return file


SCENES = (1, 3, 11)
"""Indices of the prompts in a sheet; the class word is shown for the first one."""


def _sheet(drawn: Sequence[list[Image.Image]], plain: Sequence[list[Image.Image]], target: Path) -> None:
    """Write a row per subject: a photo, the learned word in three scenes, and the class word."""
    rows = []
    for row, (subject, _) in enumerate(reporting()):
        rows.append([photos(subject)[0], *(drawn[row][place] for place in SCENES), plain[row][SCENES[0]]])
    save_rows(rows, target)


def save_rows(rows: Sequence[Sequence[Image.Image]], target: Path) -> None:
    """Write rows of pictures as one PNG, at twice their size."""
    side = 2 * shards.SIDE
    sheet = Image.new("RGB", (len(rows[0]) * side, len(rows) * side), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x * side, y * side))
    cache.write(target, lambda out: sheet.save(out, format="PNG"))


def reporting() -> list[tuple[bundled.Subject, Look]]:
    """The subjects with looks on which results are reported, in the order of their file."""
    return [(each, each.look) for each in bundled.subjects() if each.look and each.role == "reporting"]


def targets() -> dict[str, list[Target]]:
    """Kind to targets, one for each of `reporting`; a trained name has its own look."""
    kinds = ("class word", "look in words", "learned word", "trained name")
    found: dict[str, list[Target]] = {kind: [] for kind in kinds}
    spent: set[str] = set()
    for subject, look in reporting():
        noun = subject.class_word
        found["class word"].append(Target(noun, look, noun))
        found["look in words"].append(Target(noun, look, grammar.in_words(noun, look)))
        found["learned word"].append(Target(noun, look, f"<{subject.name}>"))
        own = [name for name in names.of(noun) if name.word not in spent]
        nearest = min(own, key=lambda name: looks.distance(name.look, look))
        spent.add(nearest.word)
        found["trained name"].append(Target(noun, nearest.look, nearest.word))
    return found


def prompts(target: Target) -> tuple[Prompt, ...]:
    """The prompts of `stickers-complex`, with the target's look."""
    return stickers.asking(stickers.complex(), target.look)


def _drawn(pipeline: StableDiffusionPipeline, target: Target, seed: int) -> list[Image.Image]:
    return images(sampling.sample(pipeline, [prompt.of(target.said) for prompt in prompts(target)], seed))


def _by_hand(target: Target, icons: art.Art) -> np.ndarray:
    """The prompts' scenes drawn as training pictures are, (prompts, SIDE, SIDE, 3) uint8."""
    pictures = []
    for place, prompt in enumerate(prompts(target)):
        assert prompt.scene
        first, *others = prompt.scene.things
        look = replace(first.look or target.look, hand=target.look.hand)
        scene = replace(prompt.scene, things=(replace(first, noun=target.noun, look=look), *others))
        random = Random(f"{target.said} {place}")
        pictures.append(np.asarray(drawing.draw(scene, icons, random, shards.SIDE)))
    return np.stack(pictures)


def images(pictures: Tensor) -> list[Image.Image]:
    """Convert (count, 3, 64, 64) in [-1, 1] to images."""
    pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]


def figures(eyes: DualEncoder | Observer, target: Target, shown: Sequence[Image.Image]) -> dict[str, float]:
    """FIGURES according to a judge, for one picture of each of `prompts`."""
    reader = stickers.StickerReader(eyes)
    readings = [
        reader.read([image], prompt, target.noun)
        for image, prompt in zip(shown, prompts(target), strict=True)
    ]
    shares = measure.elements(
        [measure.PromptScore("", 0.0, 0.0, reading.elements, reading.leakage) for reading in readings]
    )
    rest = float(np.mean([score for reading in readings for score in reading.scores]))
    return {name: shares[name] for name in ("noun", "identified", "look")} | {"rest": rest}


def photos(subject: bundled.Subject) -> list[Image.Image]:
    """The example photos of a subject."""
    return [Image.open(file).convert("RGB") for file in bundled.photos(subject.name)]


def alone(
    eyes: DualEncoder | Observer, subject: bundled.Subject, shown: Sequence[Image.Image]
) -> dict[str, float]:
    """FIGURES except the rest, according to a judge, for pictures that show only a subject."""
    prompt = stickers.asking([Prompt("{}", Scene((Thing("{}", accessory=""),), Background()))], subject.look)[
        0
    ]
    reading = stickers.StickerReader(eyes).read(shown, prompt, subject.class_word)
    return {name: reading.elements[name] for name in ("noun", "identified", "look")}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    return {name: measure.mean([row[name] for row in rows]) for name in FIGURES if name in rows[0]}


def _line(means: Mapping[str, Mean]) -> str:
    return ", ".join(f"{name} {mean}" for name, mean in means.items())
