"""One trial of a plan: the names of its files, and its figures.

Each file's name contains a mark, a hash of everything its content depends on, so only what has changed is done again.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from dticli import paths
from dticli.bundled import judge
from dticli.evaluation import measure, passages, stickers
from dticli.evaluation.measure import Eyes, Reader
from dticli.evaluation.passages import Passage
from dticli.evaluation.plan import Arm, Plan, Trial, Way
from dticli.evaluation.summary import Outcome
from dticli.learn import initial_rows
from dticli.learn.jobs import Job
from dticli.models import devices
from dticli.models.choice import Model
from dticli.models.families import Family
from dticli.photos import albums
from dticli.settings import GenerateSettings, ModelSettings, Trait
from dticli.words import norms, token_reading
from dticli.words.learned_word import Token
from dticli.words.norms import Summary

SCORING = 4
"""Version of the figures; increased whenever the same pictures would get other figures."""
WEIGHTS = (".safetensors", ".bin", ".pt")
SAMPLE = 2**16
"""Number of bytes at each end of a weight file that are hashed."""


# --------------------------------------------------------------------------- marks


def mark(*parts: object) -> str:
    """A short hash of the `repr` of all parts."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:12]


def weights_mark(place: Path) -> str:
    """Hash of names, sizes and both ends of the weight files in a folder, or of one file."""
    files = [place] if os.path.isfile(place) else _weight_files(place)
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(
                f"{file.name} {file.stat().st_size}".encode("utf-8", "surrogateescape") + content.read(SAMPLE)
            )
            content.seek(max(0, file.stat().st_size - SAMPLE))
            digest.update(content.read())
    return digest.hexdigest()[:12]


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a model, also behind links; other formats only in folders without safetensors."""
    found: list[Path] = []
    for place, _, names in os.walk(folder, followlinks=True):
        own = [each for each in names if each.endswith(".safetensors")]
        found += [Path(place, each) for each in own or names if each.endswith(WEIGHTS)]
    return sorted(found)


def model_mark(model: Model) -> str:
    """Mark of a model's weights and of its base's; of a model that is not local, its label."""
    place = Path(model.location)
    own = weights_mark(place) if os.path.exists(place) else model.label
    return mark(own, model.variant, model.base and model_mark(model.base))


def judge_mark(name: str) -> str:
    """Mark of a judge's weights; of a judge on the hub, of its name."""
    place = judge.weights(stickers.JUDGES[name]) if name in stickers.JUDGES else Path(name)
    return weights_mark(place) if os.path.exists(place) else mark(name)


def word_mark(job: Job, model: str) -> str:
    """Mark of everything that a learned word depends on."""
    settings = job.settings
    chosen = settings.model_dump(exclude={*settings.named(Trait.INCIDENTAL)} - {"steps"}) | _precision(
        settings
    )
    # Files by content: the same plan means the same from any folder.
    named = {
        name: weights_mark(token_reading.located(chosen[name]))
        for name in sorted(settings.named(Trait.WORD_OR_FILE))
        if paths.names_token_file(chosen[name])
    }
    return mark(
        model,
        sorted((chosen | named).items()),
        settings.templates,
        [(photo.name, photo.fingerprint, job.captions.texts[photo.path]) for photo in job.album.photos],
    )


def pictures_mark(plan: Plan, trial: Trial, job: Job | None, settings: GenerateSettings, model: str) -> str:
    """Mark of everything that the pictures of a trial depend on."""
    return mark(
        model, *_rows_of(plan, trial, job, model), trial.seed, plan.file.count,
        [prompt.template for prompt in plan.prompts], _drawing(settings),
    )  # fmt: skip


def frames_mark(
    plan: Plan, way: Way, jobs: Sequence[Job | None], settings: GenerateSettings, model: str
) -> str:
    """Mark of everything that the frames of a way depend on; `jobs` learn the words at its ends."""
    ends = [
        _rows_of(plan, trial, job, model) for trial, job in zip((way.first, way.second), jobs, strict=True)
    ]
    how = way.how
    return mark(model, ends, way.path, way.first.seed, how.frames, how.count, how.prompt, _drawing(settings))


def passage_mark(plan: Plan, way: Way, drawn: str) -> str:
    """Mark of everything that the figures of a way depend on."""
    pair = [trial.subject.album for trial in (way.first, way.second)]
    seen = [[photo.fingerprint for photo in album.photos] for album in pair]
    return mark(SCORING, drawn, judge_mark(plan.file.image_judge), seen)


def _rows_of(plan: Plan, trial: Trial, job: Job | None, model: str) -> tuple[object, object]:
    """What a trial's rows depend on: the word, and the arm's magnitude."""
    word = word_mark(job, model) if job else (trial.subject.noun, plan.file.train.get("pooling"))
    return word, trial.arm.magnitude


def _drawing(settings: GenerateSettings) -> list[tuple[str, Any]]:
    return sorted(
        (
            settings.model_dump(exclude={*settings.named(Trait.INCIDENTAL), "seed"}) | _precision(settings)
        ).items(),
        key=str,
    )


def _precision(settings: ModelSettings) -> dict[str, str]:
    """The precision that `auto` means on the device, because words and pictures depend on it."""
    return {"precision": devices.pick_precision(settings.precision, devices.pick_device(settings.device))}


def outcome_mark(plan: Plan, trial: Trial, drawn: str) -> str:
    """Mark of everything that the figures of a trial depend on."""
    judges = [judge_mark(name) for name in (plan.file.image_judge, plan.file.text_judge)]
    return mark(
        SCORING, drawn, judges, trial.subject.noun, trial.subject.look,
        [prompt.scene for prompt in plan.prompts],
        [photo.fingerprint for photo in trial.subject.album.photos],
    )  # fmt: skip


# ---------------------------------------------------------------------------- words


def untrained(plan: Plan, trial: Trial, pipe: Any, family: Family) -> Token:
    """The untrained class word as a token with the subject's name and the plan's pooling."""
    rows = initial_rows.rows(pipe, family, trial.subject.noun, None, 0)
    pooling = plan.file.train.get("pooling")
    return Token.of(
        trial.subject.token,
        {key: each.float().cpu() for key, each in rows.items()},
        {"dti.pooling": str(pooling)} if pooling else {},
    )


def at_length(token: Token, arm: Arm, vocabulary: Mapping[str, Summary]) -> Token:
    """The token with rows scaled to the arm's magnitude; unchanged if the arm has none."""
    if arm.magnitude is None:
        return token
    lengths = initial_rows.magnitudes(token.vectors, vocabulary, arm.magnitude)
    directions = initial_rows.directions(token.vectors)
    return token.with_vectors({key: lengths[key] * directions[key] for key in directions})


def require_magnitudes(arms: Sequence[Arm], vocabulary: Mapping[str, Summary]) -> None:
    """Raise UsageError unless the magnitude of every arm is valid."""
    for arm in arms:
        for summary in vocabulary.values() if arm.magnitude else ():
            norms.magnitude(summary, str(arm.magnitude))


# -------------------------------------------------------------------------- figures


def outcome(
    plan: Plan,
    trial: Trial,
    token: Token,
    vocabulary: Mapping[str, Summary],
    images: Sequence[Sequence[Image]],
    eyes: Eyes,
    reader: Reader,
) -> Outcome:
    """Judge a trial's pictures, which are given by prompt."""
    noun = trial.subject.noun
    prompts = stickers.asking(plan.prompts, trial.subject.look)
    scores = measure.scores(prompts, images, noun, _photos(trial, eyes), eyes, reader)
    lengths = [rows.norm(dim=1).mean().item() / vocabulary[key].mean for key, rows in token.vectors.items()]
    return Outcome(
        **trial.names,
        norm=sum(lengths) / len(lengths),
        likeness=float(np.mean([score.likeness for score in scores])),
        alignment=float(np.mean([score.alignment for score in scores])),
        chance=measure.chance(plan.prompts, images, noun, reader),
        elements=measure.elements(scores),
        leakage=measure.leakage(scores),
    )


def passage(way: Way, degrees: float, images: Sequence[Image], eyes: Eyes) -> Passage:
    """Judge a way's pictures, which are in the order of frames, equally many for each."""
    features = eyes.features(images)
    to_first, to_second = (
        passages.likenesses(features, _photos(trial, eyes), way.how.frames)
        for trial in (way.first, way.second)
    )
    return Passage(**way.names, degrees=degrees, to_first=to_first, to_second=to_second)


def _photos(trial: Trial, eyes: Eyes) -> Tensor:
    """Features of the photos of a trial's subject."""
    return eyes.features([albums.whole(photo) for photo in trial.subject.album.photos])
