"""Training runs: from settings and checked photos to words, recorded in their folders and resumed exactly."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from safetensors.torch import load as load_state
from safetensors.torch import save as save_state

from dticli import atomic, signals
from dticli.errors import DtiError, EnvironmentProblem, NumericalError, Stopped, is_out_of_memory
from dticli.learn import checkpoint, hyperparameters, initial_rows, run_identity, tracking, trainer
from dticli.learn.checkpoint import Checkpoint, Identity
from dticli.learn.hyperparameters import Batches, Optimisation, Previewing, Start
from dticli.learn.previews import Drawn, Previews
from dticli.learn.run_folder import Log, RunFolder
from dticli.learn.tracking import Tracking
from dticli.learn.trainer import Captions, Lane, Learner, Outcomes, StepReport, Task
from dticli.models import contents, devices, memory
from dticli.models.choice import Model
from dticli.models.embeddings import Table
from dticli.models.families import Family
from dticli.photos import albums, latents
from dticli.photos.albums import Album, Crop, Told
from dticli.photos.latents import Latents
from dticli.ranks import ALONE, Ranks
from dticli.settings import ModelSettings, TrainSettings, anchored, shareable, to_toml
from dticli.words import norms, placement, provenance, token_writing
from dticli.words.learned_word import Token
from dticli.words.norms import Summary
from dticli.words.placement import Placement

SMOOTHING = 0.98
STEP = "step"


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that a training needs, loaded and encoded; only the steps are missing."""

    loaded: "FrozenModel"
    settings: TrainSettings
    task: Task
    learner: Learner
    identity: Identity
    machine: Mapping[str, str]

    @property
    def device(self) -> torch.device:
        return self.task.latents.device

    def token(self, step: int) -> Token:
        """The word as it is now, after so many steps, with its provenance."""
        rows = {key: each.detach().float().cpu() for key, each in self.learner.learned.rows.items()}
        settings, loaded = self.as_alone.model_copy(update={"steps": step}), self.loaded
        metadata = provenance.of_training(
            settings.recorded,
            rows,
            settings.resolution,
            loaded.model,
            loaded.family,
            loaded.pipe,
            loaded.fingerprint,
        )
        return Token.of(settings.token, rows, metadata)

    @property
    def as_alone(self) -> TrainSettings:
        """The settings with which one process takes the steps of all."""
        return run_identity.as_alone(self.settings, self.task.ranks)


@dataclass(eq=False)
class Attempt:
    """A run in progress.

    Attributes:
        step: steps done.
        loss: the smoothed loss after them; NaN before the first step.
    """

    run: Run
    folder: RunFolder
    step: int = 0
    loss: float = math.nan


@dataclass(frozen=True)
class Progress:
    """A step that was done.

    Attributes:
        loss: the smoothed loss after it.
        drawing: previews are drawn next.
    """

    report: StepReport
    loss: float
    drawing: bool


@dataclass(frozen=True, eq=False)
class Advanced:
    """A step of every word that is still being trained."""

    words: Mapping[Attempt, Progress]


@dataclass(frozen=True, eq=False)
class Ended:
    """The end of a training: the last state is saved, or there is an error."""

    attempt: Attempt
    error: DtiError | None = None


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A frozen model on the device of this process, for training one or several words."""

    model: Model
    family: Family
    pipe: Any
    device: torch.device
    ranks: Ranks

    @property
    def tables(self) -> Mapping[str, Table]:
        """Encoder key to vocabulary; not cached, because encoders may be moved between words."""
        return placement.tables(self.pipe, self.family.encoders)

    @cached_property
    def vocabulary(self) -> Mapping[str, Summary]:
        """Encoder key to statistics of its row norms."""
        return {key: norms.summary(table) for key, table in self.tables.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Of the embedding tables."""
        return norms.fingerprint(self.tables.values())

    @cached_property
    def weights(self) -> str:
        """A fingerprint of all weights, from a sample of each."""
        return run_identity.weights(self.pipe)


def load(settings: ModelSettings, model: Model, family: Family, ranks: Ranks = ALONE) -> FrozenModel:
    """Load the model.

    Raises:
        ModelError, EnvironmentProblem: as `contents.process` and `memory.load`.
    """
    contents.process(model, family)
    if settings.deterministic:
        devices.make_deterministic()
    device = ranks.own(devices.pick_device(settings.device))
    pipe = memory.load(model, family, settings, device, safety_checker=False)
    return FrozenModel(model, family, pipe, device, ranks)


def prepare(
    loaded: FrozenModel,
    settings: TrainSettings,
    album: Album,
    captions: Captions,
    told: Told = lambda done, total: None,
) -> Run:
    """Encode the photos, and initialise the word.

    Args:
        told: called with the number of encoded crops after each one.
    """
    model, family, pipe, device = loaded.model, loaded.family, loaded.pipe, loaded.device
    for encoder in family.encoders:
        placement.require_new([settings.token], encoder.tokenizer_of(pipe))
    crops = albums.crops(album.photos, hyperparameters.cropping(settings, family.multiple))
    with memory.fitting(model, settings, device), devices.explaining_determinism():
        encoded = _encoded(loaded, crops, told, low_memory=settings.low_memory)
    start, how = Start.of(settings), Optimisation.of(settings)
    learner = trainer.learner(
        settings.token, how, *initial_rows.begin(pipe, family, start, loaded.vocabulary)
    )
    prompts, ranks = settings.preview_prompts, loaded.ranks
    task = Task(pipe, family, encoded, captions, Batches.of(settings), how, prompts, ranks)
    alone = run_identity.as_alone(settings, ranks)
    identity = run_identity.of_run(alone, model, loaded.weights, task, learner, album)
    return Run(loaded, settings, task, learner, identity, run_identity.machine(device))


def _encoded(loaded: FrozenModel, crops: Sequence[Crop], told: Told, *, low_memory: bool) -> Latents:
    """Encode the photos; afterwards the pipeline is ready for the first step."""
    pipe, family, device = loaded.pipe, loaded.family, loaded.device
    if not low_memory:
        return latents.encode(pipe, family, crops, device, told)
    memory.set_aside(pipe)
    encoded = latents.encode_low_memory(pipe, family, crops, device, told)
    memory.economize(pipe, family, device)
    return encoded


def resume(run: Run, before: Checkpoint) -> tuple[str, ...]:
    """Restore the state of a checkpoint.

    Returns:
        differences between the machines, which may change the last bits of the result.

    Raises:
        UsageError: the checkpoint is of another run; names every difference.
    """
    checkpoint.require_same(before, run.identity, run.settings.steps)
    run.learner.restore(before.state)
    return tuple(
        f"{name} was {before.machine.get(name, 'unknown')} and is {now}"
        for name, now in run.machine.items()
        if before.machine.get(name) != now
    )


def agree(run: Run, step: int) -> int:
    """Bring every rank to the state of rank 0; returns the number of steps done."""
    # By name: an optimizer that has not stepped yet has less of a state than one that has.
    state = {name: each.detach().cpu().contiguous() for name, each in run.learner.state().items()}
    found = load_state(run.task.ranks.shared(save_state({**state, STEP: torch.tensor(step)})))
    step = int(found.pop(STEP))
    run.learner.restore(found)
    return step


def assist(run: Run, folder: RunFolder, step: int) -> None:
    """Take the same steps as rank 0, which writes log and checkpoints.

    Raises:
        Stopped: any rank received a signal.
        DtiError: as the first rank's run ends.
    """
    attempt = Attempt(run, folder, step)
    lane = Lane(run.task, run.learner, step)
    with signals.postponed() as request, trainer.placed([lane]) as placed:
        for outcomes in _explained({lane: attempt}, placed):
            for _, outcome in outcomes:
                if isinstance(outcome, DtiError):
                    raise outcome
            attempt.step = lane.step
            _stop_if([attempt], run.task.ranks.largest(request.number or 0))


def advance(attempts: Sequence[Attempt]) -> Iterator[Advanced | Drawn | Ended]:
    """Train words together to their ends; logs every step, and saves, keeps and previews states when they are due.

    An error of one word ends only that word.

    Raises:
        Stopped: a signal came; the states are saved.
    """
    lanes = {Lane(each.run.task, each.run.learner, each.step): each for each in attempts}
    ranks = attempts[0].run.task.ranks
    ends: list[Ended] = []

    @contextmanager
    def ending(lane: Lane, steps: int | None = None) -> Iterator[None]:
        """End a lane after so many steps, or with the error that is raised inside."""
        try:
            yield
        except DtiError as error:
            lane.over = True
            ends.append(Ended(lanes[lane], error))
        else:
            if lane.step == steps:
                lane.over = True
                ends.append(Ended(lanes[lane]))

    with ExitStack() as opened, signals.postponed() as request, trainer.placed(list(lanes)) as placed:

        def drawn(lane: Lane) -> Iterator[Drawn | Ended]:
            with ending(lane, lanes[lane].run.settings.steps):
                yield from books[lane].drawn(lambda: bool(request.number))

        books: dict[Lane, _Books] = {}
        for lane, attempt in lanes.items():
            with ending(lane):
                books[lane] = opened.enter_context(_Books.opened(attempt, placed))
        for lane in books:
            yield from drawn(lane)
        for outcomes in _explained(lanes, placed):
            done: dict[Lane, Progress] = {}
            for lane, outcome in outcomes:
                with ending(lane):
                    done[lane] = books[lane].enter(outcome)
            # Not after an error: other ranks have ended with it too, and would not answer.
            asked = ranks.largest(request.number or 0) if done else 0
            for lane in list(done):
                with ending(lane):
                    books[lane].save(asked=bool(asked))
            yield from _taken(ends)
            _stop_if([lanes[lane] for lane in done if not lane.over] or attempts, asked)
            if done:
                yield Advanced({lanes[lane]: each for lane, each in done.items()})
            for lane in done:
                if not lane.over:
                    yield from drawn(lane)
            yield from _taken(ends)
        yield from _taken(ends)


def _taken(ends: list[Ended]) -> list[Ended]:
    """What is in the list, which is empty afterwards."""
    taken, ends[:] = ends[:], []
    return taken


@dataclass(eq=False)
class _Books:
    """Everything that is written during a run: log, tracker, previews, checkpoints and kept states.

    Attributes:
        kept: steps after which the state is kept: evenly spaced, including the last one.
        started, saved: when the attempt started, and when its state was last saved.
    """

    attempt: Attempt
    placed: Placement
    log: Log
    tracked: Tracking
    previews: Previews
    kept: frozenset[int]
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    @contextmanager
    def opened(cls, attempt: Attempt, placed: Placement) -> "Iterator[_Books]":
        run, folder, settings = attempt.run, attempt.folder, attempt.run.settings
        previews = Previews(Previewing.of(settings), run.task, run.loaded.model, folder)
        folder.start(to_toml(anchored(run.as_alone)), run.machine, attempt.step)
        kept = (-(-settings.steps * index // settings.keep) for index in range(1, settings.keep + 1))
        with (
            folder.appending() as log,
            tracking.opened(
                settings.tracker, shareable(settings), folder, attempt.step, offline=settings.offline
            ) as tracked,
        ):
            yield cls(attempt, placed, log, tracked, previews, frozenset(kept))

    def enter(self, outcome: StepReport | DtiError) -> Progress:
        """Log a step, or raise its error."""
        if isinstance(outcome, DtiError):
            raise outcome
        attempt = self.attempt
        attempt.step, attempt.loss = outcome.step, _smoothed(attempt.loss, outcome)
        seconds = time.monotonic() - self.started
        entry = _entry(outcome, attempt.loss, attempt.run.learner, seconds)
        self.log.append(entry)
        self.tracked.step(entry)
        return Progress(outcome, attempt.loss, self.previews.due(outcome.step))

    def save(self, *, asked: bool) -> None:
        """Keep and save the state, if it is due or `asked` for."""
        run, folder, step = self.attempt.run, self.attempt.folder, self.attempt.step
        settings = run.settings
        # Before the checkpoint: a run that continues from it must not lack the state.
        if step in self.kept:
            target = folder.snapshot(step)
            atomic.make_folder(target.parent)
            token_writing.write(target, run.token(step), force=True)
        if (
            asked
            or step == settings.steps
            or step % settings.checkpoint_steps == 0
            or time.monotonic() - self.saved >= settings.checkpoint_seconds
        ):
            self.log.sync()
            state, rows = run.learner.state(), dict(run.learner.learned.rows)
            folder.save(Checkpoint(step, self.attempt.loss, state, rows, run.identity, run.machine))
            self.saved = time.monotonic()

    def drawn(self, stop: Callable[[], bool]) -> Iterator[Drawn]:
        """Previews, if they are due."""
        run, step = self.attempt.run, self.attempt.step
        if self.previews.due(step):
            addressed = partial(self.placed.addressed, word=run.learner.word)
            with run.learner.as_written():
                new = self.previews.draw(step, run.token(step), addressed, stop)
            self.tracked.previews(step, new.files)
            yield new


def _smoothed(before: float, report: StepReport) -> float:
    """The mean of the first steps, then an exponential moving average."""
    if math.isnan(before):
        return report.loss
    return before + (report.loss - before) * max(1 - SMOOTHING, 1 / report.step)


def _stop_if(attempts: Sequence[Attempt], asked: int) -> None:
    """Raise Stopped if `asked` is the number of a signal; 0 means none."""
    if not asked:
        return
    first, *others = attempts
    state = f"its state is in {first.folder.path}"
    if others:
        state = f"the states of the words are in {', '.join(str(each.folder.path) for each in attempts)}"
    raise Stopped(
        f"stopped at step {first.step} of {first.run.settings.steps}; {state}: "
        "give the same command with --resume to continue",
        asked,
    )


def _explained(lanes: Mapping[Lane, Attempt], placed: Placement) -> Iterator[Outcomes]:
    """The outcomes of `trainer.fit`; errors also name the last saved state, and running out of memory becomes an error."""
    try:
        with devices.explaining_determinism():
            for outcomes in trainer.fit(list(lanes), placed):
                yield [(lane, _with_left(each, lanes[lane].folder)) for lane, each in outcomes]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return
    # Outside of the clause above, the failed step, held by the error, has let go of its memory.
    going = [lane for lane in lanes if not lane.over]
    advice = _smaller(going, lanes[going[0]].run, placed)
    device = lanes[going[0]].run.device.type
    yield [
        (lane, EnvironmentProblem(f"out of memory on {device}: {advice}; {_left(lanes[lane].folder)}"))
        for lane in going
    ]


def _with_left(outcome: StepReport | DtiError, folder: RunFolder) -> StepReport | DtiError:
    if isinstance(outcome, NumericalError):
        return type(outcome)(f"{outcome}; {_left(folder)}")
    return outcome


def _left(folder: RunFolder) -> str:
    kept = folder.checkpoints()
    return f"{kept[-1]} is the last good state" if kept else "no checkpoint was due yet"


def _smaller(lanes: Sequence[Lane], run: Run, placed: Placement) -> str:
    """Which option would make the runs fit into memory, found by trying; `run` is the first of them."""
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    if count := trainer.most_together(lanes, placed):
        return f"--together {count} would fit, and learn the same; add it, and --resume to continue"
    task, settings, lane = run.task, run.settings, lanes[0]
    option, size = "", trainer.largest_batch(lane, placed)
    if not settings.low_memory:
        memory.economize(task.pipe, task.family, run.device)
        if trainer.fits([lane], placed):
            return "--low-memory would fit, and learn the same; add it, and --resume to continue"
        if not size:
            option, size = "--low-memory ", trainer.largest_batch(lane, placed)
    if size:
        more = settings.accumulate * settings.batch_size // size
        return (
            f"{option}--batch-size {size} --accumulate {more} would fit, and learn the same; "
            "start again with --force"
        )
    ways = {
        f"lower --resolution (now {settings.resolution})": True,
        "try --precision bf16": task.dtype == torch.float32,
        "try --quantize 8bit": settings.quantize == "none" and run.loaded.model.file is None,
    }
    return "not even one picture fits at a time, with --low-memory or without; " + ", or ".join(
        way for way, helps in ways.items() if helps
    )


def _entry(report: StepReport, smooth: float, learner: Learner, seconds: float) -> dict[str, Any]:
    """A line of the log; angles in degrees, seconds since the run was started or resumed."""
    return {
        "step": report.step,
        "loss": report.loss,
        "smoothed": smooth,
        "angle": math.degrees(report.angle),
        "cosine_to_init": learner.cosine_to_start(),
        "norm": dict(report.norm),
        "gradient": {key: list(each) for key, each in report.gradient.items()},
        "seconds": round(seconds, 3),
    }
