"""A plan carried out: words learned, pictures drawn and judged; each is kept, and what is there is not done again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL.Image import Image

from dticli import atomic, console, jobs, learning, models, norms, pictures, sampler, session
from dticli.errors import DtiError, InputError, Stopped, UsageError
from dticli.evaluation import drawing, judges, passages, records, summary, trials
from dticli.evaluation.measure import Eyes, Reader
from dticli.evaluation.passages import Passage
from dticli.evaluation.plan import Plan, Trial, Way
from dticli.evaluation.summary import Outcome, PlanResult
from dticli.jobs import Job
from dticli.norms import Summary
from dticli.ranks import ALONE
from dticli.session import Opened
from dticli.settings import GenerateSettings, ModelSettings, first_said, model_layer, resolve
from dticli.token_file import Token


def carry_out(plan: Plan, given: Mapping[str, Any], folder: Path, *, force: bool, quiet: bool) -> PlanResult:
    """Learn, draw and judge what is not in the folder yet; results.json and results.md are written after every trial.

    Args:
        given: settings of model and machine that go before the plan's.
        force: do again what is there.

    Raises:
        DtiError: of the class of the first failure, after everything else was done.
    """
    layers = [given, plan.file.generate, {"model": plan.file.model}]
    opened = session.open_model(first_said(layers), ())
    settings = resolve(GenerateSettings, *layers, model_layer(opened.model.folder, "generate"))
    # Before anything is learned: what the judging needs must not be found missing after it.
    stage = _stage(plan, opened, settings, folder, force=force, quiet=quiet)
    for place in ("words", "pictures", "trials"):
        atomic.make_folder(folder / place)
    atomic.require_writable([folder / "results.md"], force=True)
    words = {trial: _job(stage, trial, given) for trial in plan.trials}
    failed = _learn_all(stage, _missing(stage, words))
    problems = {
        trial.name: failed[job.target] for trial, job in words.items() if job and job.target in failed
    }
    result = summary.summarise(plan, opened.model.label, ())
    for result in _judged(stage, words, problems):
        atomic.write_bytes(folder / "results.json", console.to_json(result).encode())
        atomic.write_bytes(folder / "results.md", result.markdown().encode())
    if problems:
        first = next(iter(problems.values()))
        others = f"; the others are in {folder / 'results.md'}" if result.outcomes else ""
        raise type(first)(
            f"{len(problems)} trials or ways failed{others}: correct the plan and give the same command"
        )
    return result


@dataclass(frozen=True)
class _Stage:
    """What all trials of a plan share.

    Attributes:
        pipe: loads the pipeline to draw with when it is first called.
        weights: mark of the model's.
        force: nothing kept is good enough.
    """

    plan: Plan
    opened: Opened
    settings: GenerateSettings
    folder: Path
    eyes: Eyes
    reader: Reader
    vocabulary: Mapping[str, Summary]
    pipe: Callable[[], Any]
    weights: str
    force: bool
    quiet: bool


def _stage(
    plan: Plan, opened: Opened, settings: GenerateSettings, folder: Path, *, force: bool, quiet: bool
) -> _Stage:
    session.require_drawable(opened, settings)
    device = models.pick_device(settings.device)
    eyes = judges.likeness(plan.file.image_judge, device, offline=settings.offline)
    reader = judges.alignment(plan.file.text_judge, device, offline=settings.offline)
    for subject in plan.subjects:
        try:
            reader.require(plan.prompts, subject.noun)
        except UsageError as error:
            raise UsageError(f"[subjects.{subject.name}] {error}") from None
    keys = {encoder.component: encoder.key for encoder in opened.family.encoders}
    tables = models.tables(opened.model)
    vocabulary = {keys[table.encoder]: norms.summary(table) for table in tables if table.encoder in keys}
    trials.require_magnitudes(plan.arms, vocabulary)
    return _Stage(
        plan, opened, settings, folder, eyes, reader, vocabulary,
        cache(lambda: session.pipeline(opened, settings, safety_checker=False)), trials.model_mark(opened.model),
        force, quiet,
    )  # fmt: skip


# ------------------------------------------------------------------------- learning


def _job(stage: _Stage, trial: Trial, given: Mapping[str, Any]) -> Job | None:
    """What learns a trial's word; None for the untrained class word."""
    arm = stage.plan.source(trial)
    if arm is None:
        return None
    subject = trial.subject
    own = {"token": subject.token, "init": subject.noun, "seed": trial.seed} | dict(subject.source)
    machine = {name: given[name] for name in ModelSettings.model_fields if name != "model"}
    words = stage.folder / "words"
    job = jobs.one(
        stage.opened,
        [machine, arm.settings(subject.noun), stage.plan.file.train, own],
        words / "word.safetensors",
        None,
    )
    job.captions.require_usable()
    mark = trials.word_mark(job, stage.weights)
    return replace(job, target=words / f"{subject.name}-{trial.seed}-{mark}.safetensors")


def _missing(stage: _Stage, words: Mapping[Trial, Job | None]) -> dict[Trial, Job]:
    """Jobs whose words are not there, each once: arms may share a word."""
    first: dict[Path, tuple[Trial, Job]] = {}
    for trial, job in words.items():
        if job:
            first.setdefault(job.target, (trial, job))
    return {trial: job for trial, job in first.values() if stage.force or not job.target.is_file()}


def _learn_all(stage: _Stage, missing: Mapping[Trial, Job]) -> dict[Path, DtiError]:
    """Learn words on one loaded model; returns why some could not be."""
    failed: dict[Path, DtiError] = {}
    load = None
    how = learning.How(resume=not stage.force, force=True, quiet=stage.quiet)
    for place, (trial, job) in enumerate(missing.items()):
        console.notice(f"word {place + 1} of {len(missing)}: {trial.name}")
        load = load or learning.loader(job, ALONE)
        try:
            learning.learn(job, load, how)
        except Stopped as stopped:
            raise Stopped("stopped; give the same command to continue", stopped.exit_code - 128) from None
        except DtiError as error:
            console.error(f"{trial.name}: {error}")
            failed[job.target] = error
            load = None  # what was tried to make it fit would stay with the next word
    return failed


# -------------------------------------------------------------------------- judging


def _judged(
    stage: _Stage, words: Mapping[Trial, Job | None], problems: dict[str, DtiError]
) -> Iterator[PlanResult]:
    """What is known after each trial, and after each way between words, that no failed word is part of.

    Args:
        problems: why words failed, by trial; ways that fail are added.
    """
    outcomes: list[Outcome] = []
    found: list[Passage] = []

    def known() -> PlanResult:
        reasons = [f"{name}: {error}" for name, error in problems.items()]
        return summary.summarise(stage.plan, stage.opened.model.label, outcomes, reasons, found)

    for trial, job in words.items():
        if trial.name not in problems:
            outcomes.append(_outcome(stage, trial, job))
            yield known()
    by_name = {trial.name: job for trial, job in words.items()}
    for way in stage.plan.ways:
        ends = (way.first.name, way.second.name)
        if problems.keys().isdisjoint(ends):
            try:
                found.append(_passage(stage, way, [by_name[end] for end in ends]))
            except InputError as error:  # words of different size
                console.error(f"{way.name}: {error}")
                problems[way.name] = error
            yield known()


def _outcome(stage: _Stage, trial: Trial, job: Job | None) -> Outcome:
    """What came of a trial: kept, or else judged now."""
    plan = stage.plan
    drawn = trials.pictures_mark(plan, trial, job, stage.settings, stage.weights)
    kept = stage.folder / "trials" / f"{trials.outcome_mark(plan, trial, drawn)}.json"
    if not stage.force and (outcome := summary.read_outcome(kept, trial)):
        return outcome
    console.notice(f"judging {trial.name}")
    token = _token(stage, trial, job)
    asked = drawing.shots(token.name, plan.prompts, trial.seed * plan.file.count, plan.file.count)
    files = drawing.files(stage.folder / "pictures" / drawn, asked)

    def draw() -> None:
        drawing.draw(stage.pipe(), stage.opened, stage.settings, token, asked, files, quiet=stage.quiet)

    images = drawing.by_prompt(_pictures(stage, files, draw), len(plan.prompts))
    outcome = trials.outcome(plan, trial, token, stage.vocabulary, images, stage.eyes, stage.reader)
    records.write(kept, outcome)
    return outcome


def _passage(stage: _Stage, way: Way, ends: Sequence[Job | None]) -> Passage:
    """What the frames of a way are like: kept, or else judged now."""
    drawn = trials.frames_mark(stage.plan, way, ends, stage.settings, stage.weights)
    kept = stage.folder / "trials" / f"{trials.passage_mark(stage.plan, way, drawn)}.json"
    if not stage.force and (passage := passages.read(kept, way.names, way.how.frames)):
        return passage
    console.notice(f"judging {way.name}")
    tokens = [_token(stage, trial, job) for trial, job in zip((way.first, way.second), ends, strict=True)]
    places = [(frame, seed) for frame in range(way.how.frames) for seed in range(way.how.count)]
    files = [stage.folder / "pictures" / drawn / f"{frame:03d}-{seed}.png" for frame, seed in places]
    images = _pictures(stage, files, lambda: _draw_frames(stage, way, tokens, files))
    (turn,) = sampler.turns([token.vectors for token in tokens])
    passage = trials.passage(way, sum(turn.values()) / len(turn), images, stage.eyes)
    records.write(kept, passage)
    return passage


def _pictures(stage: _Stage, files: Sequence[Path], draw: Callable[[], object]) -> list[Image]:
    """What the files show, drawn first where one is not there."""
    if stage.force or not all(file.is_file() for file in files):
        draw()
    return [pictures.read(file) for file in files]


def _draw_frames(stage: _Stage, way: Way, ends: Sequence[Token], files: Sequence[Path]) -> None:
    how = way.how
    loaded = session.with_words(stage.pipe(), stage.opened, stage.settings, ends)
    seeds = [way.first.seed * how.count + index for index in range(how.count)]
    session.draw_way(
        loaded, stage.opened, way.path, how.frames, how.prompt, seeds, stage.settings,
        files=files, every=len(files), quiet=stage.quiet,
    )  # fmt: skip


def _token(stage: _Stage, trial: Trial, job: Job | None) -> Token:
    """The word of a trial at the length its arm wants."""
    if job:
        return trials.learned(job, trial.arm, stage.vocabulary)
    word = trials.untrained(stage.plan, trial, stage.pipe(), stage.opened.family)
    return trials.at_length(word, trial.arm, stage.vocabulary)
