"""Prompts and judges of the bundled model's world, in which every element of a prompt can be looked for in the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle
from random import Random
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dticli.bundled import judge, subjects
from dticli.bundled.judge import SIDE, DualEncoder, Observer
from dticli.bundled.world import elements, grammar, looks, words
from dticli.bundled.world.looks import Look
from dticli.bundled.world.scenes import Background, Scene, Thing
from dticli.errors import UsageError
from dticli.evaluation.prompt import Prompt, Reading

JUDGES: Mapping[str, Literal["a", "b"]] = {"stickers-a": "a", "stickers-b": "b"}
OTHERS = words.OTHERS
_NOTHING = Background()
_WORD = "{}"


# -------------------------------------------------------------------------- prompts


@cache
def simple() -> tuple[Prompt, ...]:
    """Prompts with one element besides the word: each place, four colours of the background, two styles, two colours of
    the word and two accessories.
    """
    places = [Scene((Thing(_WORD),), Background(place=place)) for place in words.PLACES]
    plain = [Scene((Thing(_WORD),), Background(colours=(colour,))) for colour in list(words.COLOURS)[:8:2]]
    styled = [Scene((Thing(_WORD),), _NOTHING, style=style) for style in ("sketch", "pixel")]
    tinted = [Scene((_coloured(_WORD, colour),), _NOTHING) for colour in ("blue", "golden")]
    dressed = [Scene((Thing(_WORD, accessory=worn),), _NOTHING) for worn in ("crown", "flower")]
    random = Random("simple prompts")
    return tuple(
        Prompt(_caption(scene, random), scene) for scene in (*places, *plain, *styled, *tinted, *dressed)
    )


@cache
def complex() -> tuple[Prompt, ...]:
    """Prompts with every place twice and one to three more elements; the word is in the second half of the text.

    Every fifth prompt gives the word a colour.
    """
    random = Random("complex prompts")
    relations = cycle(relation for relation in words.RELATIONS if relation != "beside")
    styles = cycle(("pixel", "sketch", "icon"))
    scenes = []
    for index, place in enumerate(2 * tuple(words.PLACES)):
        own, other = random.sample(tuple(looks.HUES), 2)
        first = _coloured(_WORD, own) if index % 5 == 0 else Thing(_WORD)
        behind = Background(place=place)
        if (index + index // len(words.PLACES)) % 2:  # each place once with two things, once with one
            pair = (first, _coloured(random.choice(OTHERS), other))
            scenes.append(Scene(pair, behind, relation=next(relations)))
        elif index % 4 in (1, 2):
            worn = random.choice(tuple(words.ACCESSORIES))
            scenes.append(Scene((replace(first, accessory=worn),), behind))
        else:
            scenes.append(Scene((first,), behind, style=next(styles)))
    return tuple(Prompt(_late(scene, random), scene) for scene in scenes)


def _coloured(noun: str, colour: str) -> Thing:
    hue = looks.HUES[colour]
    return Thing(noun, Look(hue, sum(looks.LIGHT) / 2, "plain", hue, 1.0, looks.HANDS[0]), told=("colour",))


def _caption(scene: Scene, random: Random) -> str:
    return grammar.caption(scene, random, background=scene.background != _NOTHING)


def _late(scene: Scene, random: Random) -> str:
    """A caption with the word in its second half."""
    while (text := _caption(scene, random)).index(_WORD) < len(text) / 2:
        pass
    return text


def asking(prompts: Sequence[Prompt], look: Look | None) -> tuple[Prompt, ...]:
    """The prompts, with the look of the subject where neither a colour nor the sketch style contradicts it."""
    return tuple(_asking(prompt, look) for prompt in prompts)


def _asking(prompt: Prompt, look: Look | None) -> Prompt:
    if prompt.scene is None or look is None:
        return prompt
    first, *others = prompt.scene.things
    if first.told or prompt.scene.style == "sketch":
        return prompt
    return replace(prompt, scene=replace(prompt.scene, things=(replace(first, look=look), *others)))


# ------------------------------------------------------------------------- identity

CANDIDATES = 24
NEAR_MISSES = 6


@cache
def candidates(noun: str, look: Look) -> tuple[tuple[str, Look], ...]:
    """Nouns and looks among which a thing is identified, itself first.

    The reporting subjects, then near misses until there are CANDIDATES: the same noun with the nearest distinguishable
    looks, and other nouns with the same look.
    """
    reporting = [
        (each.class_word, each.look) for each in subjects() if each.look and each.role == "reporting"
    ]
    away = sorted(
        (
            each
            for _, each in reporting
            if looks.distance(replace(each, hand=look.hand), look) >= looks.MARGIN
        ),
        key=lambda each: looks.distance(each, look),
    )
    others = [each for each in words.LOOKED if each != noun]
    start = words.LOOKED.index(noun)
    misses = [(noun, each) for each in away[:NEAR_MISSES]]
    misses += [(others[(start + step) % len(others)], look) for step in range(len(others))]
    found = dict.fromkeys([(noun, look), *reporting])
    for each in misses:
        if len(found) < CANDIDATES:
            found.setdefault(each)
    return tuple(found)


# --------------------------------------------------------------------------- judges


@dataclass(frozen=True)
class StickerEyes:
    """Likeness by a judge of stickers: the same noun with the same look; backgrounds have no effect."""

    judge: DualEncoder | Observer

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit rows, (pictures, (nouns + 1) x hues x patterns x builds): square roots of the judge's probabilities.

        The extra noun stands for all nouns without a look. The cosine of two rows is the affinity of their distributions
        (Bhattacharyya, 1943).
        """
        likely = judge.likely(self.judge, _pixels(images))
        joint = likely["noun"][:, LOOKED]
        joint = torch.cat([joint, 1 - joint.sum(dim=1, keepdim=True)], dim=1).clamp(min=0)
        for element in ("hue", "pattern", "build"):
            joint = (joint[:, :, None] * likely[element][:, None, :]).flatten(1)
        return joint.sqrt()


LOOKED = [elements.CLASSES["noun"].index(noun) for noun in words.LOOKED]
UNLIKELY = 1e-4


@dataclass(frozen=True)
class StickerReader:
    """Alignment as element recall: the share of the requested elements, without the word's noun, that the judge sees."""

    judge: DualEncoder | Observer

    def require(self, prompts: Sequence[Prompt], noun: str) -> None:
        """Raise UsageError unless every prompt has a scene and the judge knows the noun."""
        for prompt in prompts:
            _scene(prompt, noun)

    def read(self, images: Sequence[Image.Image], prompt: Prompt, noun: str) -> Reading:
        """Judge the pictures of one prompt; see `require`.

        If the prompt's scene gives the word a look, `elements` has also *identified*, the share of pictures in which it is
        picked out of `candidates`, and *look*, the mean share of hue, pattern and build that is kept.
        """
        scene = _scene(prompt, noun)
        likely = judge.likely(self.judge, _pixels(images))
        each = [
            _names({element: row[index] for element, row in likely.items()}) for index in range(len(images))
        ]
        answers = [elements.answers(scene, one) for one in each]
        shares = {element: float(np.mean([answer[element] for answer in answers])) for element in answers[0]}
        leaks = [leak for one in each for leak in elements.leaks(scene, one)]
        others = [[right for element, right in answer.items() if element != "noun"] for answer in answers]
        return Reading(
            scores=tuple(float(np.mean(right)) if right else 1.0 for right in others),
            elements=shares | self._identity(scene, each, likely),
            leakage=float(np.mean(leaks)) if leaks else None,
        )

    def _identity(
        self, scene: Scene, seen: Sequence[Mapping[str, str]], likely: Mapping[str, Tensor]
    ) -> dict[str, float]:
        thing = scene.things[0]
        if thing.look is None or thing.told:
            return {}
        kept, identified = [], []
        for index, one in enumerate(seen):
            prefix = elements.where(scene, one)
            kept.append(elements.kept(thing.look, one, prefix))
            known = candidates(thing.noun, thing.look)
            fits = [
                fit({element: row[index] for element, row in likely.items()}, noun, look, prefix)
                for noun, look in known
            ]
            identified.append(fits.index(max(fits)) == 0)
        parts = {f"kept {part}": float(np.mean([each[part] for each in kept])) for part in kept[0]}
        return {
            "identified": float(np.mean(identified)),
            "look": float(np.mean(list(parts.values()))),
            **parts,
        }


def fit(likely: Mapping[str, Tensor], noun: str, look: Look, prefix: str = "") -> float:
    """Log probability of a noun and a look under a judge's distributions, (classes,) by element.

    A hue's class counts together with both neighbours, because a hue may be at the border of a class.
    """
    hues = [(round(look.hue / elements.HUE_STEP) + step) % len(elements.HUES) for step in (-1, 0, 1)]
    nouns = elements.CLASSES[f"{prefix}noun"]
    probabilities = [
        likely[f"{prefix}noun"][nouns.index(noun)],
        likely[f"{prefix}hue"][hues].sum(),
        likely[f"{prefix}pattern"][looks.PATTERNS.index(look.pattern)],
        likely[f"{prefix}build"][looks.BUILDS.index(looks.build_word(look.build))],
    ]
    if look.pattern != "plain":
        second = [(round(look.second / elements.HUE_STEP) + step) % len(elements.HUES) for step in (-1, 0, 1)]
        probabilities.append(likely[f"{prefix}pattern hue"][second].sum())
    # Clamped, so that one of a judge's rare confident errors does not decide.
    return float(torch.stack(probabilities).clamp(min=UNLIKELY).log().sum())


def _names(likely: Mapping[str, Tensor]) -> dict[str, str]:
    return {element: elements.CLASSES[element][int(row.argmax())] for element, row in likely.items()}


def _scene(prompt: Prompt, noun: str) -> Scene:
    if prompt.scene is None:
        raise UsageError(
            f"prompt {prompt.template[:60]!r} does not say what a judge of stickers should look for: expected "
            "--prompt-set stickers or stickers-complex; or choose another --text-judge"
        )
    if noun not in words.LOOKED:
        known = ", ".join(words.LOOKED)
        raise UsageError(
            f"a judge of stickers does not know {noun!r}: expected {known}; name the noun with --noun, or in a plan with init"
        )
    first, *others = prompt.scene.things
    return replace(prompt.scene, things=(replace(first, noun=noun), *others))


def load(name: str) -> DualEncoder | Observer:
    """Load a judge of `JUDGES` from the package."""
    return judge.load_a() if JUDGES[name] == "a" else judge.load_b()


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pixels in [-1, 1], (pictures, 3, SIDE, SIDE) float32."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    values = torch.from_numpy(np.stack([np.asarray(image) for image in small]))
    return values.permute(0, 3, 1, 2).float() / 127.5 - 1
