"""Step `check`: sample prompts with held-out combinations, judge the pictures by both judges, and compare with the bars."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np

from dticli.bundled import judge
from dticli.bundled.judge import DualEncoder, Observer
from dticli.bundled.world import elements, grammar
from dticli.bundled.world.elements import CLASSES
from dticli.bundled.world.scenes import Scene

from . import assembly, autoencoder, cache, sampling, shards
from .training import RecipeLog

PSNR_BAR = 27.0
PSNR_PICTURES = 500

# Bar to (least acceptable lower bound, the judged element).
BARS: dict[str, tuple[float, str]] = {
    "noun": (0.80, "noun"),
    "background": (0.90, "setting"),
    "style": (0.90, "style"),
    "second noun": (0.60, "second noun"),
    "accessory": (0.60, "accessory"),
    "relation": (0.75, "layout"),
}
DIRECTIONS = ("left", "right", "above", "below")


@dataclass(frozen=True)
class Recall:
    """How often a requested element was seen."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Share of right answers in [0, 1]; NaN if nothing was asked."""
        return self.right / self.asked if self.asked else math.nan

    @property
    def lower(self) -> float:
        """Lower end of the Wilson 95 % interval."""
        return wilson_lower(self.right, self.asked)

    def passes(self, bar: str) -> bool:
        """Whether the lower end reaches the bar of this name."""
        return self.lower >= BARS[bar][0]


@dataclass(frozen=True)
class CheckReport:
    """Results of `run`: the autoencoder's PSNR in dB, and judge to bar to recall."""

    samples: int
    psnr: float
    judged: dict[str, dict[str, Recall]]


def wilson_lower(right: int, asked: int, z: float = 1.959964) -> float:
    """Lower end of the Wilson score interval for `right` of `asked`; 0 if nothing was asked."""
    if not asked:
        return 0.0
    share = right / asked
    centre = share + z * z / (2 * asked)
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return max(0.0, (centre - spread) / (1 + z * z / asked))


def counts(bar: str, scene: Scene, found: Mapping[str, bool]) -> bool:
    """Whether a scene counts for a bar.

    A direction counts only if both things are seen (conditional VISOR: Gokhale et al., arXiv:2212.10015). The bars of nouns
    measure whether they are, and 75 % of directions could not be reached otherwise with 60 % of second nouns.

    Args:
        found: the scene's elements, and whether each was seen.
    """
    first = scene.things[0]
    single = len(scene.things) == 1
    plain_look = scene.style not in ("sketch", "pixel")
    return {
        "noun": single and scene.count == 1 and not first.size and plain_look,
        "background": scene.style != "sketch",
        "style": True,
        "second noun": plain_look,
        "accessory": True,
        "relation": scene.relation in DIRECTIONS and found["noun"] and found["second noun"],
    }[bar]


def recalls(scenes: list[Scene], seen: dict[str, list[str]]) -> dict[str, Recall]:
    """Recall of each bar: the elements that a judge saw, compared with those of the scenes."""
    answers = [
        elements.answers(scene, {name: seen[name][place] for name in CLASSES})
        for place, scene in enumerate(scenes)
    ]
    table = {}
    for bar, (_, element) in BARS.items():
        asked = [
            found[element]
            for scene, found in zip(scenes, answers, strict=True)
            if element in found and counts(bar, scene, found)
        ]
        table[bar] = Recall(sum(asked), len(asked))
    return table


def unseen(count: int, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes with held-out combinations, and a caption for each, always with its background."""
    random = Random(f"unseen {seed}")
    scenes = [grammar.unseen_scene(random) for _ in range(count)]
    return scenes, [grammar.caption(scene, random) for scene in scenes]


def load_judges(model: Path | None) -> tuple[DualEncoder, Observer]:
    """Judges A and B: those of the recipe for its own model (None), and those of the package for others."""
    files = (None, None) if model else (assembly.judge_a(), assembly.judge_b())
    return judge.load_a(files[0]), judge.load_b(files[1])


def run(samples: int, seed: int, model: Path | None, log: RecipeLog) -> CheckReport:
    """Measure every bar, log it, and write `check.json` into the cache folder."""
    pipeline = assembly.load(model)
    scenes, prompts = unseen(samples, seed)
    drawn = autoencoder.to_tensor(np.stack(shards.draw(scenes[:PSNR_PICTURES], seed)))
    psnr = autoencoder.psnr(drawn, autoencoder.rebuild(pipeline.vae, drawn))
    log(
        f"check: autoencoder {psnr:.2f} dB on {len(drawn)} pictures, bar {PSNR_BAR:g}: {verdict(psnr >= PSNR_BAR)}"
    )
    pictures = sampling.sample(pipeline, prompts, seed)
    tower, observer = load_judges(model)
    judged = {
        "a": recalls(scenes, judge.names(tower, pictures)),
        "b": recalls(scenes, judge.names(observer, pictures)),
    }
    for name, table in judged.items():
        for bar, recall in table.items():
            log(
                f"check: judge {name}: {bar} {recall.share:.1%} of {recall.asked}, at least {recall.lower:.1%}, "
                f"bar {BARS[bar][0]:.0%}: {verdict(recall.passes(bar))}"
            )
    report = CheckReport(samples, psnr, judged)
    cache.write_bytes(cache.folder("check") / "check.json", json.dumps(asdict(report), indent=1).encode())
    sampling.save_sheet(pictures[:100], cache.folder("check") / "sheet.png")
    return report


def verdict(passed: bool) -> str:
    """A verdict for tables and logs."""
    return "passed" if passed else "FAILED"
