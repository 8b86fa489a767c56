"""Step `pairs`: two learned words in one prompt, and interpolation between two words.

In one prompt: whether each thing has its own look. In between: whether pictures show a thing, with a look between the two.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from dticli import api
from dticli.bundled import judge
from dticli.bundled.judge import DualEncoder, Observer
from dticli.bundled.world import elements, looks, words
from dticli.bundled.world.scenes import Background, Scene, Thing
from dticli.evaluation import measure
from dticli.evaluation.measure import Mean
from dticli.settings import PathKind
from dticli.words import mixing
from dticli.words.learned_word import Token

from . import assembly, cache, ceilings, check, sampling
from .ceilings import Target
from .training import RecipeLog

Pair = tuple[Target, Target]
Seen = Sequence[Mapping[str, str]]
"""For each picture, the most likely class of every element."""
Figures = Mapping[str, float]
FRAMES = 7
INNER = slice(2, 5)
"""Frames in which neither word has more than two thirds of the weight."""
PATHS: tuple[PathKind, ...] = ("slerp", "lerp")
PLAIN = ("a photo of {}", "a photo of a {}", "{} in the snow", "a {} on the beach")
BESIDE = [relation for relation in words.RELATIONS if relation != "beside"]


@dataclass(frozen=True)
class PairsReport:
    """Means over pairs of subjects with their intervals.

    Attributes:
        together: judge to kind to figure of two things in one prompt; see `_of_two`.
        between: judge to path to figure of words between two; see `_of_way`.
    """

    together: dict[str, dict[str, dict[str, Mean]]]
    between: dict[str, dict[str, dict[str, Mean]]]


def run(seed: int, model: Path | None, log: RecipeLog) -> PairsReport:
    """Learn the words, draw and judge; log and write `pairs.json`."""
    pipeline = assembly.load(model)
    tower, observer = check.load_judges(model)
    eyes: dict[str, DualEncoder | Observer] = {"a": tower, "b": observer}
    learned = {
        f"<{subject.name}>": api.load_word(
            ceilings.learned("ceilings", subject.name, subject, model or assembly.built(), log)
        )
        for subject, _ in ceilings.reporting()
    }

    def seen(prompts: list[str]) -> dict[str, Seen]:
        pictures = sampling.sample(pipeline, prompts, seed)
        return {name: _by_picture(judge.names(one, pictures)) for name, one in eyes.items()}

    together: dict[str, dict[str, list[Figures]]] = {name: {} for name in eyes}
    between: dict[str, dict[str, list[Figures]]] = {name: {} for name in eyes}
    with api.place(pipeline, *learned.values()):
        for kind, targets in ceilings.targets().items():
            for pair in zip(targets[::2], targets[1::2], strict=True):
                scenes, prompts = _asking(pair)
                for name, found in seen(prompts).items():
                    together[name].setdefault(kind, []).append(_of_two(scenes, found))
            log(f"pairs: two of {kind} in one prompt")
    for path in PATHS:
        for pair in _ways():
            ends = [learned[each.said] for each in pair]
            frames: dict[str, list[Seen]] = {name: [] for name in eyes}
            row = [_mixed(ends, share, path) for share in mixing.even(FRAMES)]
            for word in row:
                with api.place(pipeline, word):
                    for name, found in seen([prompt.format(word.name) for prompt in PLAIN]).items():
                        frames[name].append(found)
            shortest = {"length in the middle": _length(row[FRAMES // 2]) / _length(row[0])}
            for name, found_by_frame in frames.items():
                between[name].setdefault(path, []).append(_of_way(pair, found_by_frame) | shortest)
        log(f"pairs: between words by {path}")
    report = PairsReport(_means(together), _means(between))
    cache.write_bytes(cache.folder("pairs") / "pairs.json", json.dumps(asdict(report), indent=1).encode())
    return report


def _by_picture(names: Mapping[str, Sequence[str]]) -> Seen:
    return [dict(zip(names, each, strict=True)) for each in zip(*names.values(), strict=True)]


def _means(rows: Mapping[str, Mapping[str, Sequence[Figures]]]) -> dict[str, dict[str, dict[str, Mean]]]:
    """Means over pairs; NaN, such as for the looks of things that are never seen, is left out."""
    return {
        name: {
            kind: {
                figure: measure.mean(values)
                for figure in own[0]
                if (values := [row[figure] for row in own if not np.isnan(row[figure])])
            }
            for kind, own in kinds.items()
        }
        for name, kinds in rows.items()
    }


# -------------------------------------------------------------------- in one prompt


def _asking(pair: Pair) -> tuple[list[Scene], list[str]]:
    """Scenes and prompts of both orders in every relation except `beside`, with a place for each relation."""
    scenes, prompts = [], []
    for index, relation in enumerate(BESIDE):
        place = list(words.PLACES)[index]
        for first, second in (pair, pair[::-1]):
            things = tuple(Thing(each.noun, each.look) for each in (first, second))
            scenes.append(Scene(things, Background(place=place), relation=relation))
            said = words.RELATIONS[relation][0]
            prompts.append(f"a {first.said} {said} a {second.said} {words.PLACES[place][0]}")
    return scenes, prompts


def _of_two(scenes: Sequence[Scene], seen: Seen) -> dict[str, float]:
    """Figures of two things in one prompt.

    `both`: share of pictures in which both nouns are seen. In those: `own`, share of things with a main hue within
    looks.NEAR_HUE degrees of their own; `other's`, of the other's; `look`, how much of hue, pattern and build is kept.
    """
    right, wrong = [], []
    for scene, one in zip(scenes, seen, strict=True):
        if {one["noun"], one["second noun"]} == {each.noun for each in scene.things}:
            parts = elements.seen_of_two(scene, one)
            own = [each.look for each in scene.things if each.look]
            right += [elements.kept(look, part) for look, part in zip(own, parts, strict=True)]
            wrong += [elements.kept(look, part) for look, part in zip(own[::-1], parts, strict=True)]
    return {
        "both": len(right) / 2 / len(scenes),
        "own": _mean([each["hue"] for each in right]),
        "other's": _mean([each["hue"] for each in wrong]),
        "look": _mean([kept for each in right for kept in each.values()]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


# -------------------------------------------------------------------------- between


def _ways() -> Iterator[Pair]:
    """Pairs of neighbouring learned words, then all pairs with the same noun."""
    learned = ceilings.targets()["learned word"]
    yield from zip(learned[::2], learned[1::2], strict=True)
    yield from (pair for pair in combinations(learned, 2) if pair[0].noun == pair[1].noun)


def _mixed(ends: Sequence[Token], share: float, path: PathKind) -> Token:
    rows = [word.vectors for word in ends]
    return ends[0].with_vectors(mixing.mixed(rows, (1 - share, share), path))


def _length(word: Token) -> float:
    return float(np.mean([np.linalg.norm(rows, axis=-1).mean() for rows in word.rows.values()]))


def _of_way(pair: Pair, frames: Sequence[Seen]) -> dict[str, float]:
    """Figures of pictures on the path between two words.

    `thing at the ends`, `thing in between`: share in which the noun of either word is seen. In between: `hue`, share with a
    main hue on the shorter arc between the two looks, extended by looks.NEAR_HUE degrees at both ends, and `hue by chance`,
    that arc's share of the circle; `build`, share with a build from the one to the other.
    """
    nouns = {each.noun for each in pair}
    ends, inner = [*frames[0], *frames[-1]], [one for frame in frames[INNER] for one in frame]
    first, second = (each.look for each in pair)
    arc = looks.apart(first.hue, second.hue)
    reach = arc + 2 * looks.NEAR_HUE
    builds = sorted(looks.BUILDS.index(looks.build_word(each.build)) for each in (first, second))

    def on_arc(hue: float) -> bool:
        # Distances from a point on the arc to its ends sum to the arc; d degrees beyond an end, the sum is larger by 2 d.
        return looks.apart(first.hue, hue) + looks.apart(second.hue, hue) <= reach

    return {
        "thing at the ends": _mean([one["noun"] in nouns for one in ends]),
        "thing in between": _mean([one["noun"] in nouns for one in inner]),
        "hue": _mean([on_arc(float(one["hue"])) for one in inner]),
        "hue by chance": reach / 360,
        "build": _mean([builds[0] <= looks.BUILDS.index(one["build"]) <= builds[1] for one in inner]),
    }
