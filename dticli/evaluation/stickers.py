"""Prompts and judges of the bundled model's world, in which every element a prompt asks for can be looked for in the picture."""

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

from dticli.bundled import judge
from dticli.bundled.judge import SIDE, DualEncoder, Observer
from dticli.bundled.recipe import elements, grammar, words
from dticli.bundled.recipe.scenes import Background, Scene, Thing
from dticli.errors import UsageError
from dticli.evaluation.prompts import Prompt, Reading

JUDGES: Mapping[str, Literal["a", "b"]] = {"stickers-a": "a", "stickers-b": "b"}
HANDS = tuple(elements.CLASSES["style"].index(style) for style in elements.LOOKS.values())
OTHERS = ("banana", "balloon", "cactus", "gift", "apple", "umbrella")
_NOTHING = Background()
_WORD = "{}"


# -------------------------------------------------------------------------- prompts


@cache
def simple() -> tuple[Prompt, ...]:
    """One element beside the word: each place, four colours, two styles, two tints and two accessories."""
    places = [Scene((Thing(_WORD),), Background(place=place), "") for place in words.PLACES]
    plain = [
        Scene((Thing(_WORD),), Background(colours=(colour,)), "") for colour in list(words.COLOURS)[:8:2]
    ]
    styled = [Scene((Thing(_WORD),), _NOTHING, "", style=style) for style in ("sketch", "pixel")]
    tinted = [Scene((Thing(_WORD, tint=tint),), _NOTHING, "") for tint in ("blue", "golden")]
    dressed = [Scene((Thing(_WORD, accessory=worn),), _NOTHING, "") for worn in ("crown", "flower")]
    random = Random("simple prompts")
    return tuple(
        Prompt(_caption(scene, random), scene) for scene in (*places, *plain, *styled, *tinted, *dressed)
    )


@cache
def complex() -> tuple[Prompt, ...]:
    """Every place twice, named before the word, with one to three elements more; the word stands in the second half."""
    random = Random("complex prompts")
    relations = cycle(relation for relation in words.RELATIONS if relation != "beside")
    styles = cycle(("pixel", "sketch"))
    scenes = []
    for index, place in enumerate(2 * tuple(words.PLACES)):
        own, other = random.sample(tuple(words.TINTS), 2)
        behind = Background(place=place)
        if (index + index // len(words.PLACES)) % 2:  # each place once with two things, once with one
            pair = (Thing(_WORD, tint=own), Thing(random.choice(OTHERS), tint=other))
            scenes.append(Scene(pair, behind, "", relation=next(relations)))
        elif index % 4 in (1, 2):
            worn = random.choice(tuple(words.ACCESSORIES))
            scenes.append(Scene((Thing(_WORD, tint=own, accessory=worn),), behind, ""))
        else:
            scenes.append(Scene((Thing(_WORD),), behind, "", style=next(styles)))
    return tuple(Prompt(_late(scene, random), scene) for scene in scenes)


def _caption(scene: Scene, random: Random) -> str:
    return grammar.caption(scene, random, background=scene.background != _NOTHING)


def _late(scene: Scene, random: Random) -> str:
    """A caption with the word in its second half."""
    while (text := _caption(scene, random)).index(_WORD) < len(text) / 2:
        pass
    return text


# --------------------------------------------------------------------------- judges


@dataclass(frozen=True)
class Eyes:
    """Likeness as a judge of stickers sees it: the same thing, drawn by the same hand. Backgrounds count for nothing."""

    judge: DualEncoder | Observer

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit rows, (pictures, nouns x hands): square roots of what the judge thinks likely.

        The cosine of two is the affinity of their distributions (Bhattacharyya, 1943).
        """
        logits = dict(zip(elements.CLASSES, self.judge(_pixels(images)), strict=True))
        nouns = logits["noun"].softmax(dim=-1)
        hands = logits["style"][:, HANDS].softmax(dim=-1)
        return (nouns[:, :, None] * hands[:, None, :]).flatten(1).sqrt()


@dataclass(frozen=True)
class Reader:
    """Fit to the prompt as element recall: the share of what the prompt asks for, beside the word, that the judge sees."""

    judge: DualEncoder | Observer

    def require(self, prompts: Sequence[Prompt], noun: str) -> None:
        """Raise UsageError unless the prompts say what to look for and the judge knows the noun."""
        for prompt in prompts:
            _scene(prompt, noun)

    def read(self, images: Sequence[Image.Image], prompt: Prompt, noun: str) -> Reading:
        """Judge the pictures of one prompt; see `require`."""
        scene = _scene(prompt, noun)
        seen = judge.names(self.judge, _pixels(images))
        each = [{element: names[index] for element, names in seen.items()} for index in range(len(images))]
        answers = [elements.answers(scene, one) for one in each]
        shares = {element: float(np.mean([answer[element] for answer in answers])) for element in answers[0]}
        leaks = [leak for one in each for leak in elements.leaks(scene, one)]
        others = [[right for element, right in answer.items() if element != "noun"] for answer in answers]
        return Reading(
            scores=tuple(float(np.mean(right)) for right in others),
            elements=shares,
            leakage=float(np.mean(leaks)) if leaks else None,
        )


def _scene(prompt: Prompt, noun: str) -> Scene:
    if prompt.scene is None:
        raise UsageError(
            f"prompt {prompt.template[:60]!r} does not say what a judge of stickers should look for: expected "
            "--prompt-set stickers or stickers-complex; or choose another --text-judge"
        )
    if noun not in words.PICTURED or noun in OTHERS:
        known = ", ".join(each for each in words.PICTURED if each not in OTHERS)
        raise UsageError(
            f"a judge of stickers cannot tell {noun!r}: expected {known}; name the noun with --noun, or in a plan with init"
        )
    first, *others = prompt.scene.things
    return replace(prompt.scene, things=(replace(first, noun=noun), *others))


def load(name: str) -> DualEncoder | Observer:
    """A judge of `JUDGES`, from the package."""
    return judge.load_a() if JUDGES[name] == "a" else judge.load_b()


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """(pictures, 3, SIDE, SIDE) in [-1, 1]."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    values = torch.from_numpy(np.stack([np.asarray(image) for image in small]))
    return values.permute(0, 3, 1, 2).float() / 127.5 - 1
