"""`dti train`: photos in, token file out."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import console, families
from dticli.errors import DtiError, Stopped, UsageError
from dticli.formats import Target
from dticli.options import Debug, Force, Json, Quiet, with_settings
from dticli.settings import TrainSettings, first_said, read_config

if TYPE_CHECKING:
    from dticli.checkpoint import Checkpoint
    from dticli.jobs import Job
    from dticli.memory import Memory
    from dticli.norms import Neighbour
    from dticli.ranks import Ranks
    from dticli.run import Loaded, Progress, Run
    from dticli.run_folder import RunFolder

    Load = Callable[[], Loaded]


@dataclass(frozen=True)
class Trained:
    """A word that was learned.

    Attributes:
        folder: settings, log and last state of the run.
        exports: files for the program asked for.
        seconds: since this command began to train; earlier parts of a resumed run do not count.
        norm, vocabulary_norm: mean row length of the word, and mean norm of the vocabulary, by encoder.
        angle: mean degrees turned from where it began.
        cosine_to_init: mean over vectors, by encoder.
        nearest: words with their cosines, by encoder.
    """

    file: Path
    folder: Path
    exports: tuple[Path, ...]
    token: str
    model: str
    steps: int
    seconds: float
    loss: float
    angle: float
    norm: Mapping[str, float]
    vocabulary_norm: Mapping[str, float]
    cosine_to_init: Mapping[str, float]
    nearest: "Mapping[str, tuple[Neighbour, ...]]"

    def lines(self) -> Iterator[str]:
        yield f"{self.file}: {self.token}, {self.steps} steps in {self.seconds:.0f} s, {self.angle:.0f} degrees from its init"
        for key in self.norm:
            words = ", ".join(f"{each.name} {each.cosine:.2f}" for each in self.nearest[key])
            yield (
                f"{key}: norm {self.norm[key]:.4f} (vocabulary mean {self.vocabulary_norm[key]:.4f}), "
                f"cosine to init {self.cosine_to_init[key]:.3f}; nearest words: {words}"
            )
        yield from (f"for {path.relative_to(self.file.parent).parts[0]}: {path}" for path in self.exports)
        yield f"the run, with its settings and log: {self.folder}"
        yield f'use it: dti generate "a photo of {self.token}" -t {self.file}'


@dataclass(frozen=True)
class TrainedWords:
    """Several words that were learned."""

    words: tuple[Trained, ...]

    def lines(self) -> Iterator[str]:
        for word in self.words:
            yield from word.lines()


@dataclass(frozen=True)
class Framed:
    """How a photo is used.

    Attributes:
        size: (height, width) of the photo in pixels.
        resized: (height, width) it is scaled to.
        window: (height, width) of its crops there.
        enlarged: it is smaller than its crops.
    """

    name: str
    size: tuple[int, int]
    resized: tuple[int, int]
    window: tuple[int, int]
    crops: int
    enlarged: bool
    mask: str | None
    note: str | None

    def lines(self) -> Iterator[str]:
        height, width = self.size
        text = f"{self.name}: {width}x{height}"
        if self.resized != self.size:
            text += f", {'enlarged' if self.enlarged else 'reduced'} to {self.resized[1]}x{self.resized[0]}"
        if self.window != self.resized:
            text += f", cropped to {self.window[1]}x{self.window[0]}"
        yield ", ".join([text, *filter(None, [self.mask and f"mask {self.mask}", self.note])])


@dataclass(frozen=True)
class Checked:
    """What a run would use, and what stands in its way.

    Attributes:
        skipped: names with reasons.
        others: files that are no pictures.
        problems: photos without a usable caption.
        cut: captions longer than an encoder reads.
        memory: what the weights take; None where they are not safetensors files.
    """

    photos: tuple[Framed, ...]
    skipped: tuple[tuple[str, str], ...]
    others: int
    crops: int
    resolution: int
    problems: tuple[str, ...]
    cut: tuple[str, ...]
    memory: "Memory | None"

    def lines(self) -> Iterator[str]:
        yield f"{len(self.photos)} photos, {self.crops} crops of about {self.resolution} px"
        for photo in self.photos:
            yield from photo.lines()
        yield from (f"skipped {name}: {reason}" for name, reason in self.skipped)
        if self.others:
            yield f"{self.others} other files are no pictures"
        yield from self.memory.lines() if self.memory else ()
        yield from (f"cut off: {text}" for text in self.cut)
        yield from (f"problem: {text}" for text in self.problems)


@dataclass(frozen=True)
class CheckedWords:
    """What the runs of several words would use."""

    words: Mapping[str, Checked]

    def lines(self) -> Iterator[str]:
        for token, checked in self.words.items():
            yield f"{token}:"
            yield from checked.lines()


def _family_defaults() -> dict[str, str]:
    """Defaults as help shows them: the first family's value, and families with other values."""
    shown = {}
    for name in families.TABLE[0].defaults.__dataclass_fields__:
        by_value: dict[object, list[str]] = {}
        for family in families.TABLE:
            by_value.setdefault(getattr(family.defaults, name), []).append(family.name)
        common, *others = by_value
        parts = [f"{value} for {', '.join(by_value[value])}" for value in others]
        shown[name] = "; ".join([str(common), *parts])
    return shown


@with_settings(TrainSettings, defaults=_family_defaults())
def command(
    given: dict[str, Any],
    photos: Annotated[
        Path | None, typer.Argument(help="Folder of photos, or one photo; a config file may name it too.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Token file, or with --subjects the folder for them; default: the token's name.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with any of these settings, such as a run's run.toml.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Report on photos, captions and memory, and stop.")
    ] = False,
    subjects: Annotated[
        Path | None,
        typer.Option(help="TOML file with a table for each of several words: photos, init, any setting."),
    ] = None,
    format: Annotated[
        Target | None,
        typer.Option("--format", help="Also write the word for this program, in a folder of its name."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run, or begin if there is none.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Learn a word from photos and write it to a token file.

    Example: dti train ./photos --token "<dog>" --init dog
    """
    from dticli import ranks

    team = ranks.launched()
    if not team.first and (check or not subjects):
        console.only_errors()
    jobs = _jobs(given, photos, out, config, subjects, format)
    _require_known(jobs)
    if check:
        console.show(_checks(jobs, many=subjects is not None), as_json=json)
    for job in jobs:
        job.captions.require_usable()
    if check:
        return
    how = How(resume=resume, force=force, quiet=quiet)
    for job in jobs:
        job.require_writable()
        if not resume:
            _require_free(job, how)
    with ranks.joined(team):
        if subjects:
            _each(jobs, team, how, json)
        elif result := _together(jobs[0], team, how):
            console.show(result, as_json=json)


@dataclass(frozen=True)
class How:
    """What may be continued or overwritten, and how much is said."""

    resume: bool
    force: bool
    quiet: bool


def _jobs(
    given: dict[str, Any],
    photos: Path | None,
    out: Path | None,
    config: Path | None,
    subjects: Path | None,
    program: Target | None,
) -> "tuple[Job, ...]":
    """Every word asked for, on one model."""
    from dticli import jobs, session

    file_layer = read_config(TrainSettings, config) if config else {}
    if subjects is None:
        layers = [given | {"photos": str(photos) if photos else None}, file_layer]
        return (jobs.one(session.open_model(first_said(layers), ()), layers, out, program),)
    if photos or given["token"]:
        raise UsageError(
            f"--subjects {subjects} beside {'PHOTOS' if photos else '--token'}: expected these in the file's tables; leave it out"
        )
    words = jobs.read_subjects(subjects)
    opened = session.open_model(first_said([given, words.shared, file_layer]), ())
    return jobs.many(opened, given, words, file_layer, out, program)


def _require_known(jobs: "Sequence[Job]") -> None:
    """Find words the model does not know before it is loaded; one of the hub is asked once it is here."""
    from dticli import initial

    model, family = jobs[0].opened.model, jobs[0].opened.family
    if model.folder:
        initial.require_known(
            model, family, [text for job in jobs for text in (job.settings.init, job.settings.prior)]
        )


# ----------------------------------------------------------------------- looking only


def _checks(jobs: "tuple[Job, ...]", *, many: bool) -> "Checked | CheckedWords":
    from dticli import memory, models

    # All words share the model and its settings.
    model, family = jobs[0].opened.model, jobs[0].opened.family
    tokenizers = models.tokenizers(model, family)
    weights = memory.estimate(model, family, jobs[0].settings)
    checked = tuple(_check(job, tokenizers, weights) for job in jobs)
    if not many:
        return checked[0]
    return CheckedWords({job.settings.token: each for job, each in zip(jobs, checked, strict=True)})


def _check(job: "Job", tokenizers: Sequence[Any], memory: "Memory | None") -> Checked:
    from dticli import captions
    from dticli.photos import crops

    album, settings = job.album, job.settings
    windows = crops(album.photos, settings, job.opened.family.multiple)
    framed = []
    for photo in album.photos:
        own = [crop for crop in windows if crop.photo is photo]
        mask = photo.mask.name if photo.mask else None
        framed.append(
            Framed(
                name=photo.name,
                size=photo.size,
                resized=own[0].resized,
                window=own[0].size,
                crops=len(own),
                enlarged=own[0].resized > photo.size,
                mask="its transparency" if photo.mask == photo.path else mask,
                note=photo.note,
            )
        )
    return Checked(
        photos=tuple(framed),
        skipped=tuple((each.name, each.reason) for each in album.skipped),
        others=album.others,
        crops=len(windows),
        resolution=settings.resolution,
        problems=job.captions.problems,
        cut=captions.cut(job.captions, tokenizers, settings.token),
        memory=memory,
    )


# ---------------------------------------------------------------------------- learning


def _each(jobs: "tuple[Job, ...]", team: "Ranks", how: How, json: bool) -> None:
    """Learn and show this process's share of the words; a word that fails does not stop the others.

    Raises:
        DtiError: of the class of the first failure, after all words were tried.
    """
    from dticli.ranks import Ranks

    load = loader(jobs[0], Ranks(local=team.local))
    trained, failed = [], []
    for job in jobs[team.rank :: team.size]:
        try:
            trained.append(learn(job, load, how))
        except Stopped:
            raise
        except DtiError as error:
            console.error(f"{job.settings.token}: {error}")
            failed.append((job.settings.token, type(error)))
            # What was tried to make it fit would stay with the next word.
            load = loader(job, Ranks(local=team.local))
    if trained:
        console.show(TrainedWords(tuple(trained)), as_json=json)
    # A launcher ends all processes when one fails: those that still learn are waited for.
    team.largest(len(failed))
    if failed:
        names = ", ".join(token for token, _ in failed)
        others = ", the others are written" if trained else ""
        raise failed[0][1](
            f"{len(failed)} of {len(trained) + len(failed)} words failed: {names}{others}; "
            "correct the cause and give the same command with --resume"
        )


def _together(job: "Job", team: "Ranks", how: How) -> Trained | None:
    """Learn one word with all processes; the result is the first one's."""
    from dticli import run

    load = loader(job, team)
    if team.first:
        return learn(job, load, how)
    prepared = _prepare(job, load)
    run.assist(prepared, job.folder, run.agree(prepared, 0))
    return None


def learn(job: "Job", load: "Load", how: How) -> Trained:
    """Learn a word as the process that writes.

    Args:
        load: loads the job's model; words of one model may share it.
    """
    from dticli import atomic

    for skipped in job.album.skipped:
        console.warn(f"skipped {skipped.name}: {skipped.reason}")
    with job.folder.locked():
        before = _before(job, how)
        # Before the first step: a program that cannot use the word, or a file in the way, must not cost a training.
        prepared = _prepare(job, load)
        overwrite = how.force or before is not None
        atomic.require_writable(_exports(job, prepared), force=overwrite)
        step, loss = _begin(job, prepared, before)
        started = time.monotonic()
        loss = _follow(prepared, job.folder, step, loss, how.quiet)
        exports = _write(job, prepared)
        return _result(job, prepared, loss, time.monotonic() - started, exports)


def _require_free(job: "Job", how: How) -> None:
    """Raise UsageError where an unfinished run or a token file is in the way, and no option says what to do with it."""
    from dticli import atomic

    if job.folder.checkpoints() and not how.force:
        raise UsageError(
            f"{job.folder.path} holds an unfinished run: continue it with --resume, or start again with --force"
        )
    atomic.require_writable([job.target], force=how.force)


def _before(job: "Job", how: How) -> "Checkpoint | None":
    """The state to continue from, or None to begin.

    Raises:
        UsageError: as `_require_free`.
    """
    if how.resume and (before := job.folder.newest()):
        return before
    if how.resume:
        console.notice(f"nothing to continue in {job.folder.path}: starting afresh")
    _require_free(job, how)
    return None


def loader(job: "Job", ranks: "Ranks") -> "Load":
    """Loads the job's model when it is first called; words of one file share it."""
    from dticli import run

    opened = job.opened
    return cache(lambda: run.load(job.settings, opened.model, opened.family, ranks))


def _prepare(job: "Job", load: "Load") -> "Run":
    from dticli import run

    return run.prepare(load(), job.settings, job.album, job.captions.texts)


def _exports(job: "Job", prepared: "Run") -> "dict[Path, bytes]":
    from dticli import exchange

    return exchange.files(prepared.token(), job.program, job.target.parent)


def _begin(job: "Job", prepared: "Run", before: "Checkpoint | None") -> tuple[int, float]:
    """Bring all processes to the state before; returns its step and smoothed loss."""
    from dticli import run

    if before is None:
        console.notice(f"the run is kept in {job.folder.path}")
        return run.agree(prepared, 0), math.nan
    changes = run.resume(prepared, before)
    console.notice(f"continuing after step {before.step} of {job.settings.steps}, from {job.folder.path}")
    if changes:
        console.warn(f"{'; '.join(changes)}: the result may differ in its last bits")
    return run.agree(prepared, before.step), before.loss


def _write(job: "Job", prepared: "Run") -> tuple[Path, ...]:
    """The token file, and the files of the program asked for; returns the latter."""
    from dticli import atomic, token_file

    token_file.write(job.target, prepared.token(), force=True)
    exports = _exports(job, prepared)
    for path, content in exports.items():
        atomic.write_bytes(path, content)
    job.folder.finish()
    return tuple(exports)


def _result(job: "Job", prepared: "Run", loss: float, seconds: float, exports: tuple[Path, ...]) -> Trained:
    from dticli import norms

    learner, vectors = prepared.learner, prepared.token().vectors
    return Trained(
        file=job.target,
        folder=job.folder.path,
        exports=exports,
        token=job.settings.token,
        model=job.opened.model.label,
        steps=job.settings.steps,
        seconds=round(seconds, 1),
        loss=loss,
        angle=math.degrees(learner.angle()),
        norm=learner.norm(),
        vocabulary_norm={key: each.mean for key, each in prepared.vocabulary.items()},
        cosine_to_init=learner.cosine_to_start(),
        nearest={
            key: norms.position(vectors[key][0], table, k=5).nearest for key, table in prepared.tables.items()
        },
    )


def _follow(run: "Run", folder: "RunFolder", first: int, loss: float, quiet: bool) -> float:
    """Run the training to its end under a live line; returns the smoothed loss."""
    from dticli.run import advance, concerns

    steps = run.settings.steps
    started = time.monotonic()
    with console.progress(steps, every=max(1, steps // 10), quiet=quiet) as line:
        for progress in advance(run, folder, first, loss):
            loss = progress.loss
            if line:
                done = progress.report.step
                rate = (done - first) / (time.monotonic() - started)
                line.update(done, _status(run, progress, rate))
    for concern in concerns(folder, run.settings):
        console.warn(concern)
    return loss


def _status(run: "Run", progress: "Progress", rate: float) -> str:
    report, steps = progress.report, run.settings.steps
    norms = " ".join(f"{norm:.3f}" for norm in report.norm.values())
    parts = [
        f"{run.settings.token} step {report.step}/{steps}",
        f"loss {progress.loss:.4f}",
        f"angle {math.degrees(report.angle):.1f} deg",
        f"norm {norms}",
        f"{rate:.1f} steps/s",
        f"{(steps - report.step) / rate:.0f} s left",
    ]
    if run.device.type == "cuda":
        import torch

        parts.append(f"{torch.cuda.max_memory_allocated(run.device) / 2**30:.1f} GiB")
    return "  ".join(parts)
