"""Runs a training from its start, or from a checkpoint, to its files, with a progress line: shared by `train` and plans."""

import math
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dticli import console
from dticli.errors import DtiError, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from dticli.learn.checkpoint import Checkpoint
    from dticli.learn.jobs import Job
    from dticli.learn.previews import Drawn
    from dticli.learn.run import Attempt, FrozenModel, Progress, Run
    from dticli.models.choice import Model
    from dticli.ranks import Ranks
    from dticli.words.norms import Neighbour

    Load = Callable[[], FrozenModel]


@dataclass(frozen=True)
class Trained:
    """A word that was learned.

    Attributes:
        folder: settings, log and last state of the run.
        exports: files for the program asked for.
        model_options: what `generate` must be told to draw with the same model; empty where the token file says it.
        seconds: training time of this command; earlier parts of a resumed run do not count.
        norm, vocabulary_norm: mean row norm of the word, and of the vocabulary, by encoder.
        angle: mean angle between the word and its start, in degrees.
        cosine_to_init: mean over vectors, by encoder.
        nearest: words with their cosines, by encoder.
    """

    file: Path
    folder: Path
    exports: tuple[Path, ...]
    token: str
    model: str
    model_options: tuple[str, ...]
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
        # A file or folder cannot be found again by what the token file says of it: that is never a path.
        yield " ".join(
            [
                f'use it: dti generate "a photo of {self.token}" -t {shlex.quote(str(self.file))}',
                *self.model_options,
            ]
        )


@dataclass(frozen=True)
class How:
    """What may be continued or overwritten, and how much is printed."""

    resume: bool
    force: bool
    quiet: bool


def learn(job: "Job", load: "Load", how: How) -> Trained:
    """Learn one word by itself, as the process that writes the files.

    Raises:
        DtiError: as `together` returns it.
    """
    _tell([job])
    ((_, result),) = together([job], load, how)
    if isinstance(result, DtiError):
        raise result
    return result


def together(jobs: "Sequence[Job]", load: "Load", how: How) -> "Iterator[tuple[Job, Trained | DtiError]]":
    """Learn words of one model in the same batches, as the process that writes the files.

    Args:
        load: loads the jobs' model; other words of that model may share it.

    Yields:
        each job with its result as soon as it is known: the word, once its files are written, or the error that ended it; in
        that case the state so far is kept in the run folder.

    Raises:
        Stopped: a signal came; the states are saved.
    """
    with ExitStack() as locks:
        begun: dict[Attempt, Job] = {}
        changes: list[str] = []
        for job in jobs:
            try:
                locks.enter_context(job.folder.locked())
                attempt, changed = _begin(job, load, how)
            except DtiError as error:
                yield job, error
            else:
                begun[attempt] = job
                changes += changed
        for line in _begun(begun):
            console.notice(line)
        if changes:
            console.warn(f"{'; '.join(dict.fromkeys(changes))}: the result may differ in its last bits")
        started = time.monotonic()
        for attempt, problem in _follow(list(begun), how.quiet) if begun else ():
            yield begun[attempt], problem or _finished(begun[attempt], attempt, time.monotonic() - started)


def several(
    jobs: "Sequence[Job]",
    count: int,
    ranks: "Ranks",
    how: How,
    begin: "Callable[[Sequence[Job]], None]" = lambda jobs: None,
) -> "Iterator[tuple[Job, Trained | DtiError]]":
    """Learn words of one model, `count` at a time; yields and raises as `together`.

    Args:
        begin: called with the words that start next.
    """
    _tell(jobs)
    load = None
    for start in range(0, len(jobs), count):
        next_ones = jobs[start : start + count]
        begin(next_ones)
        load = load or loader(next_ones[0], ranks, quiet=how.quiet)
        for job, result in together(next_ones, load, how):
            if isinstance(result, EnvironmentProblem):
                load = None  # what was tried to make it fit would stay with the next words
            # No more of an error than this: its frames hold the model.
            yield job, type(result)(str(result)) if isinstance(result, DtiError) else result
            del result


def _finished(job: "Job", attempt: "Attempt", seconds: float) -> "Trained | DtiError":
    """The learned word, once its files are written, or the error that prevented that."""
    try:
        exports = _write(job, attempt.run)
        return _result(job, attempt, seconds, exports)
    except DtiError as error:
        return error


def _tell(jobs: "Sequence[Job]") -> None:
    """Warn of problems with photos and captions, once where words share them; with several folders, name each."""
    from dticli.photos import albums

    several = len({job.settings.photos for job in jobs}) > 1
    told = set()
    for job in jobs:
        folders, remark = albums.in_folders(job.album.photos), job.captions.remark
        complaints = [*albums.complaints(job.album.skipped), *([remark] if remark else [])]
        lines = [
            *((console.warn, each) for each in complaints),
            *([(console.notice, folders)] if folders else []),
        ]
        for say, text in lines:
            line = f"{job.settings.photos}: {text}" if several else text
            if line not in told:
                told.add(line)
                say(line)


def require_free(job: "Job", how: How) -> None:
    """Raise UsageError if a token file or a run folder exists already, and no option says what to do with it."""
    from dticli import atomic

    atomic.require_writable([job.target], force=how.force)
    if (taken := job.folder.taken()) and not how.force:
        ways = "choose another --out, continue it with --resume, or start again with --force"
        raise UsageError(f"{job.folder.path} holds {taken}: {ways}")


def _before(job: "Job", how: How) -> "Checkpoint | None":
    """The state to continue from, or None to begin.

    Raises:
        UsageError: as `require_free`.
    """
    from dticli import atomic

    if how.resume and (before := job.folder.newest()):
        return before
    if how.resume:
        atomic.require_writable([job.target], force=how.force)
    else:
        require_free(job, how)
    return None


def loader(job: "Job", ranks: "Ranks", *, quiet: bool = True) -> "Load":
    """Loads the job's model when it is first called, and says so; words of one file share it."""
    from dticli.learn import run

    model, family = job.opened.model, job.opened.family

    @cache
    def load() -> "FrozenModel":
        with console.busy(f"loading {model.label}", quiet=quiet):
            return run.load(job.settings, model, family, ranks)

    return load


def prepare(job: "Job", load: "Load", *, quiet: bool = True) -> "Run":
    """Everything loaded and encoded, for the steps to begin."""
    from dticli.learn import run

    loaded = load()
    with console.counting("photos encoded", quiet=quiet) as told:
        return run.prepare(loaded, job.settings, job.album, job.captions.texts, told)


def _exports(job: "Job", prepared: "Run") -> "dict[Path, bytes]":
    from dticli.words import conversion

    return conversion.files(prepared.token(job.settings.steps), job.program, job.target.parent)


def _begin(job: "Job", load: "Load", how: How) -> "tuple[Attempt, tuple[str, ...]]":
    """Load and encode everything, and bring all processes to the same start or checkpoint.

    Returns:
        also what differs about the machine, as `run.resume` does.

    Raises:
        DtiError: something is wrong with the word, its photos or the files to write.
    """
    from dticli import atomic
    from dticli.learn import run

    before = _before(job, how)
    # Before the first step: a program that cannot use the word, or a file in the way, must not cost a training.
    prepared = prepare(job, load, quiet=how.quiet)
    overwrite = how.force or before is not None
    atomic.require_writable(_exports(job, prepared), force=overwrite)
    if before is None:
        return run.Attempt(prepared, job.folder, run.agree(prepared, 0)), ()
    changes = run.resume(prepared, before)
    return run.Attempt(prepared, job.folder, run.agree(prepared, before.step), before.loss), changes


def _begun(attempts: "Iterable[Attempt]") -> Iterator[str]:
    """Where the runs are kept, and after which steps they continue; a line for all that have that in common."""
    alike: dict[tuple[int, int], list[Path]] = {}
    for each in attempts:
        alike.setdefault((each.step, each.run.settings.steps), []).append(each.folder.path)
    for (step, steps), paths in alike.items():
        several = len(paths) > 1
        # All of a command are in one folder.
        where = paths[0].parent if several else paths[0]
        if step:
            words = f" {len(paths)} words" if several else ""
            yield f"continuing{words} after step {step} of {steps}, from {where}"
        else:
            yield f"the runs are kept in {where}" if several else f"the run is kept in {where}"


def _write(job: "Job", prepared: "Run") -> tuple[Path, ...]:
    """The token file, and the files of the program asked for; returns the latter."""
    from dticli import atomic
    from dticli.words import token_writing

    token_writing.write(job.target, prepared.token(job.settings.steps), force=True)
    exports = _exports(job, prepared)
    for path, content in exports.items():
        atomic.write_bytes(path, content)
    job.folder.finish()
    return tuple(exports)


def _result(job: "Job", attempt: "Attempt", seconds: float, exports: tuple[Path, ...]) -> Trained:
    from dticli.words import norms

    prepared = attempt.run
    learner, rows = prepared.learner, prepared.token(job.settings.steps).rows
    return Trained(
        file=job.target,
        folder=job.folder.path,
        exports=exports,
        token=job.settings.token,
        model=job.opened.model.label,
        model_options=_model_options(job.opened.model),
        steps=job.settings.steps,
        seconds=round(seconds, 1),
        loss=attempt.loss,
        angle=math.degrees(learner.angle()),
        norm=learner.norm(),
        vocabulary_norm={key: each.mean for key, each in prepared.loaded.vocabulary.items()},
        cosine_to_init=learner.cosine_to_start(),
        nearest={
            key: norms.position(rows[key][0], table, k=5).nearest
            for key, table in prepared.loaded.tables.items()
        },
    )


def _model_options(model: "Model") -> tuple[str, ...]:
    options = dict(model.settings)
    if model.kind in ("bundled", "hub"):
        # Found again by what the token file says.
        del options["model"]
    if model.layout.variant:
        options["variant"] = model.layout.variant
    return tuple(f"--{name} {shlex.quote(value)}" for name, value in options.items())


def _follow(attempts: "Sequence[Attempt]", quiet: bool) -> "Iterator[tuple[Attempt, DtiError | None]]":
    """Run trainings to their ends with a progress line; yields each one when it ends, with its error, if any."""
    from dticli.learn.previews import Drawn
    from dticli.learn.run import Ended, advance

    longest = max(attempts, key=lambda each: each.run.settings.steps - each.step)
    done = first = longest.step
    steps = longest.run.settings.steps
    started = time.monotonic()
    with console.progress(steps, first=first, every=max(1, steps // 10), quiet=quiet) as line:
        for event in advance(attempts):
            if isinstance(event, Ended):
                if not event.error:
                    _worry(event.attempt, several=len(attempts) > 1)
                yield event.attempt, event.error
            elif isinstance(event, Drawn):
                _show(event, quiet)
            else:
                done += 1
                if line:
                    rate = (done - first) / (time.monotonic() - started)
                    line.update(done, *_status(event.words, f"{done}/{steps}", rate))


def _worry(attempt: "Attempt", *, several: bool) -> None:
    """Warn of signs that nothing was learned."""
    from dticli.learn.outcome import concerns

    word, lr = attempt.run.settings.token, attempt.run.settings.lr
    for concern in concerns(attempt.folder, word, lr):
        console.warn(f"{word}: {concern}" if several else concern)


def _show(drawn: "Drawn", quiet: bool) -> None:
    """Print where previews are, and show them if the terminal can."""
    from dticli.draw import pictures, terminal

    if not quiet and drawn.files:
        console.notice(f"previews of step {drawn.step}: {drawn.files[0].parent}")
        if console.terminal() and terminal.is_able():
            fitting = max(1, console.width() // terminal.COLUMNS)
            images = [pictures.read(file) for file in drawn.files[:fitting]]
            sheet = pictures.grid(images, columns=len(images))
            console.raw(terminal.shown(sheet, min(console.width(), terminal.COLUMNS * len(images))))


def _status(words: "Mapping[Attempt, Progress]", step: str, rate: float) -> Iterator[str]:
    """The parts of the progress line, the most important first; averages if there are several words."""
    reports = [each.report for each in words.values()]
    run = next(iter(words)).run
    norms = [statistics.fmean(report.norm[key] for report in reports) for key in reports[0].norm]
    if any(each.drawing for each in words.values()):
        yield "drawing previews"
    yield f"loss {statistics.fmean(each.loss for each in words.values()):.4f}"
    yield f"{run.settings.token if len(words) == 1 else f'{len(words)} words'} step {step}"
    yield f"angle {math.degrees(statistics.fmean(report.angle for report in reports)):.1f} deg"
    yield f"norm {' '.join(f'{norm:.3f}' for norm in norms)}"
    yield f"{rate:.1f} steps/s"
    if run.device.type == "cuda":
        import torch

        yield f"{torch.cuda.max_memory_allocated(run.device) / 2**30:.1f} GiB"
