"""Carries out a plan: learns words, draws pictures and judges them. Results are kept, and reused by later calls."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL.Image import Image

from dticli import atomic
from dticli.dataclass_json import to_json
from dticli.draw import pictures, pipeline
from dticli.draw.pipeline import ShowProgress
from dticli.draw.sampler import Shot
from dticli.durations import Countdown
from dticli.errors import DtiError, InputError, NumericalError, Stopped, UsageError
from dticli.evaluation import drawing, judges, passages, records, summary, trials
from dticli.evaluation.measure import Eyes, Reader
from dticli.evaluation.passages import Passage
from dticli.evaluation.plan import Plan, Trial, Way
from dticli.evaluation.summary import Outcome, PlanResult
from dticli.learn import jobs, lifecycle
from dticli.learn.jobs import Job
from dticli.models import contents, devices, embeddings
from dticli.ranks import ALONE
from dticli.settings import GenerateSettings, ModelSettings, first_said, model_layer, resolve
from dticli.words import base_model, mixing, norms, token_reading
from dticli.words.base_model import Opened
from dticli.words.learned_word import Token
from dticli.words.norms import Summary

LOG = logging.getLogger(__name__)
FORCED = "without --force what is there is kept, with it all is done again"


def carry_out(
    plan: Plan,
    given: Mapping[str, Any],
    folder: Path,
    *,
    together: int,
    force: bool,
    quiet: bool,
    progress: ShowProgress,
) -> PlanResult:
    """Learn, draw and judge what is missing in the folder; results.json, results.md and results.svg are updated after each.

    Args:
        given: settings of the model and the machine, which take precedence over the plan's.
        together: number of words that are learned at the same time.
        force: do everything again.
        quiet: no progress of training and loading.
        progress: shows progress of drawing.

    Raises:
        DtiError: of the class of the first failure, after everything else was done; errors of model and machine at once.
    """
    opened, settings = _opened(plan, given)
    results = [folder / "results.json", folder / "results.md"]
    atomic.require_writable(results, force=force or records.read(results[0], _Written, {}) is not None)
    # Before anything is learned, so that a missing judge is not found only afterwards.
    stage = _stage(
        plan, opened, settings, folder, together=together, force=force, quiet=quiet, progress=progress
    )
    for place in ("words", "pictures", "trials"):
        atomic.make_folder(folder / place)
    words = {trial.name: _job(stage, trial, given) for trial in plan.trials}
    failed = _learn_all(stage, _missing(stage, words))
    problems = {name: failed[job.target] for name, job in words.items() if job and job.target in failed}
    for result in _judged(stage, words, problems):
        atomic.write_text(folder / "results.json", to_json(result))
        atomic.write_text(folder / "results.md", result.markdown())
        if result.arms:
            atomic.write_text(folder / "results.svg", result.chart())
    if problems:
        first = next(iter(problems.values()))
        others = f"; the others are in {folder / 'results.md'}" if result.outcomes else ""
        raise type(first)(
            f"{len(problems)} trials or ways failed{others}: correct the plan, or delete a damaged file and it is made again, "
            "and give the same command"
        )
    return result


def carried_out(plan: Plan, given: Mapping[str, Any], folder: Path) -> PlanResult | None:
    """The result of a plan that was carried out with the current model; None if a trial or a way is missing.

    Loads the judges, but learns, draws, judges and writes nothing.

    Args:
        given: as for `carry_out`.
    """
    opened, settings = _opened(plan, given)
    stage = _stage(
        plan, opened, settings, folder, together=1, force=False, quiet=True, progress=pipeline.unseen
    )
    words = {trial.name: _job(stage, trial, given) for trial in plan.trials}
    result = next(_judged(stage, words, {}))
    ways = sum(each.pairs for each in result.passages)
    return result if (result.done, ways) == (len(plan.trials), len(plan.ways)) else None


def _opened(plan: Plan, given: Mapping[str, Any]) -> tuple[Opened, GenerateSettings]:
    """The model of a plan, and its settings of drawing."""
    layers = [given, plan.file.generate, {"model": plan.file.model}]
    opened = base_model.open_model(first_said(layers), ())
    return opened, resolve(GenerateSettings, *layers, model_layer(opened.model.folder, "generate"))


@dataclass(frozen=True)
class _Written:
    """Fields of results of a plan, which may be replaced, unlike other files of the same name."""

    plan: str
    arms: list[dict[str, Any]]
    outcomes: list[dict[str, Any]]


@dataclass(frozen=True)
class _Stage:
    """What all trials of a plan share.

    Attributes:
        vocabulary: norms of the embedding tables, by encoder.
        pipe: the pipeline to draw with, loaded by the first call.
        weights: mark of the model's weights.
        together: number of words that are learned at the same time.
        force: ignore kept results.
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
    together: int
    force: bool
    quiet: bool
    progress: ShowProgress


def _stage(
    plan: Plan,
    opened: Opened,
    settings: GenerateSettings,
    folder: Path,
    *,
    together: int,
    force: bool,
    quiet: bool,
    progress: ShowProgress,
) -> _Stage:
    pipeline.require_drawable(opened, settings)
    device = devices.pick_device(settings.device)
    if not quiet:
        LOG.info("loading judges ...")
    file = plan.file
    eyes, reader = judges.load(file.image_judge, file.text_judge, device, offline=settings.offline)
    for subject in plan.subjects:
        try:
            reader.require(plan.prompts, subject.noun)
        except UsageError as error:
            raise UsageError(f"[subjects.{subject.name}] {error}") from None
    tables = embeddings.by_key(contents.tables(opened.model), opened.family.encoders)
    vocabulary = {key: norms.summary(table) for key, table in tables.items()}
    trials.require_magnitudes(plan.arms, vocabulary)

    @cache
    def pipe() -> Any:
        if not quiet:
            LOG.info(f"loading {opened.model.label} to draw with ...")
        return pipeline.without_words(opened, settings, safety_checker=False)

    return _Stage(
        plan=plan,
        opened=opened,
        settings=settings,
        folder=folder,
        eyes=eyes,
        reader=reader,
        vocabulary=vocabulary,
        pipe=pipe,
        weights=trials.model_mark(opened.model),
        together=together,
        force=force,
        quiet=quiet,
        progress=progress,
    )


# ------------------------------------------------------------------------- learning


def _job(stage: _Stage, trial: Trial, given: Mapping[str, Any]) -> Job | None:
    """The job that learns a trial's word; None for the untrained class word."""
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


def _missing(stage: _Stage, words: Mapping[str, Job | None]) -> dict[str, Job]:
    """Jobs of missing words, under the first trial that needs each, because arms may share a word."""
    first: dict[Path, tuple[str, Job]] = {}
    for name, job in words.items():
        if job:
            first.setdefault(job.target, (name, job))
    return {name: job for name, job in first.values() if stage.force or not os.path.isfile(job.target)}


def _learn_all(stage: _Stage, missing: Mapping[str, Job]) -> dict[Path, DtiError]:
    """Learn words with one loaded model; returns the errors of those that failed, by target file."""
    failed: dict[Path, DtiError] = {}
    names = {job.target: name for name, job in missing.items()}
    how = lifecycle.How(resume=not stage.force, force=True, quiet=stage.quiet)
    countdown = Countdown(len(missing))

    def begin(jobs: Sequence[Job]) -> None:
        named = "; ".join(names[job.target] for job in jobs)
        LOG.info(f"word{'s' * (len(jobs) > 1)} {countdown.next(len(jobs))}: {named}")

    try:
        for job, result in lifecycle.several(tuple(missing.values()), stage.together, ALONE, how, begin):
            if isinstance(result, DtiError):
                failed[job.target] = _told(names[job.target], result)
    except Stopped as stopped:
        advice = FORCED if stage.force else "give the same command to continue"
        raise Stopped(f"stopped; {advice}", stopped.exit_code - 128) from None
    return failed


def _told(name: str, error: DtiError) -> DtiError:
    """Log an error, and return a copy without its traceback, whose frames would keep the model in memory."""
    LOG.error(f"{name}: {error}")
    return type(error)(str(error))


# -------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class _Piece:
    """A trial or a way between words, to be judged.

    Attributes:
        words: names of the trials whose words it shows.
        kept: reads the kept result; None if there is none.
        judge: draws what is missing, judges it, and keeps the result.
    """

    name: str
    words: tuple[str, ...]
    kept: Callable[[], Outcome | Passage | None]
    judge: Callable[[], Outcome | Passage]


def _judged(
    stage: _Stage, words: Mapping[str, Job | None], problems: dict[str, DtiError]
) -> Iterator[PlanResult]:
    """Yield the result of what is kept, and again after each piece that is judged; pieces with failed words are left out.

    Args:
        problems: errors of words, by trial; those of pieces are added.
    """
    plan = stage.plan
    pieces = [
        *(_trial(stage, trial, words[trial.name]) for trial in plan.trials),
        *(_way(stage, way, [words[trial.name] for trial in way.ends]) for way in plan.ways),
    ]
    pieces = [piece for piece in pieces if problems.keys().isdisjoint(piece.words)]
    kept = {} if stage.force else {piece.name: piece.kept() for piece in pieces}
    found = {name: record for name, record in kept.items() if record}

    def known() -> PlanResult:
        judged = [found[piece.name] for piece in pieces if piece.name in found]
        outcomes = [each for each in judged if isinstance(each, Outcome)]
        passages = [each for each in judged if isinstance(each, Passage)]
        reasons = [f"{name}: {error}" for name, error in problems.items()]
        return summary.summarise(plan, stage.opened.model.label, outcomes, reasons, passages)

    yield known()
    missing = [piece for piece in pieces if piece.name not in found]
    countdown = Countdown(len(missing))
    for piece in missing:
        LOG.info(f"judging {countdown.next()}: {piece.name}")
        try:
            found[piece.name] = piece.judge()
        except (UsageError, InputError, NumericalError) as error:
            problems[piece.name] = _told(piece.name, error)
        yield known()


def _trial(stage: _Stage, trial: Trial, job: Job | None) -> _Piece:
    plan = stage.plan
    drawn = trials.pictures_mark(plan, trial, job, stage.settings, stage.weights)
    record = stage.folder / "trials" / f"{trials.outcome_mark(plan, trial, drawn)}.json"

    def judge() -> Outcome:
        token = _token(stage, trial, job)
        asked = drawing.shots(token.name, plan.prompts, trial.seed * plan.file.count, plan.file.count)
        files = drawing.files(stage.folder / "pictures" / drawn, asked)
        images = _pictures(stage, files, lambda: _draw(stage, token, asked, files))
        each = drawing.by_prompt(images, len(plan.prompts))
        outcome = trials.outcome(plan, trial, token, stage.vocabulary, each, stage.eyes, stage.reader)
        records.write(record, outcome)
        return outcome

    return _Piece(trial.name, (trial.name,), lambda: summary.read_outcome(record, trial), judge)


def _way(stage: _Stage, way: Way, ends: Sequence[Job | None]) -> _Piece:
    drawn = trials.frames_mark(stage.plan, way, ends, stage.settings, stage.weights)
    record = stage.folder / "trials" / f"{trials.passage_mark(stage.plan, way, drawn)}.json"

    def judge() -> Passage:
        tokens = [_token(stage, trial, job) for trial, job in zip(way.ends, ends, strict=True)]
        places = [(frame, seed) for frame in range(way.how.frames) for seed in range(way.how.count)]
        files = [stage.folder / "pictures" / drawn / f"{frame:03d}-{seed}.png" for frame, seed in places]
        images = _pictures(stage, files, lambda: _draw_frames(stage, way, tokens, files))
        turn = mixing.degrees(*(token.vectors for token in tokens))
        passage = trials.passage(way, sum(turn.values()) / len(turn), images, stage.eyes)
        records.write(record, passage)
        return passage

    names = tuple(trial.name for trial in way.ends)
    return _Piece(way.name, names, lambda: passages.read(record, way.names, way.how.frames), judge)


def _pictures(stage: _Stage, files: Sequence[Path], draw: Callable[[], object]) -> list[Image]:
    """The pictures in the files, all drawn first if one is missing."""
    if stage.force or not all(map(os.path.isfile, files)):
        draw()
    return [pictures.read(file) for file in files]


def _draw(stage: _Stage, token: Token, asked: Sequence[Shot], files: Sequence[Path]) -> None:
    drawing.draw(stage.pipe(), stage.opened, stage.settings, token, asked, files, progress=stage.progress)


def _draw_frames(stage: _Stage, way: Way, ends: Sequence[Token], files: Sequence[Path]) -> None:
    how = way.how
    loaded = pipeline.with_words(stage.pipe(), stage.opened, stage.settings, ends)
    seeds = [way.first.seed * how.count + index for index in range(how.count)]
    along = mixing.along(2, mixing.even(how.frames))
    pipeline.draw_mixes(
        loaded, stage.opened, along, way.path, [how.prompt], seeds, stage.settings,
        files=files, every=len(files), progress=stage.progress,
    )  # fmt: skip


def _token(stage: _Stage, trial: Trial, job: Job | None) -> Token:
    """The word of a trial, scaled as its arm says."""
    word = (
        token_reading.read(job.target)
        if job
        else trials.untrained(stage.plan, trial, stage.pipe(), stage.opened.family)
    )
    return trials.at_length(word, trial.arm, stage.vocabulary)
