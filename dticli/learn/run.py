"""One training: from settings and checked photos to a word, recorded in its folder and continued exactly."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load as load_state
from safetensors.torch import save as save_state

from dticli import atomic, signals
from dticli.errors import EnvironmentProblem, NumericalError, Stopped, is_out_of_memory
from dticli.learn import checkpoint, initial_rows, run_identity, tracking, trainer
from dticli.learn.checkpoint import Checkpoint, Identity
from dticli.learn.previews import Drawn, Previews
from dticli.learn.run_folder import Log, RunFolder
from dticli.learn.trainer import Captions, Learner, StepReport, Task
from dticli.models import contents, devices, memory
from dticli.models.choice import Model
from dticli.models.embeddings import Table
from dticli.models.families import Family
from dticli.photos import albums, latents
from dticli.photos.albums import Album, Crop, Told
from dticli.photos.latents import Latents
from dticli.ranks import ALONE, Ranks
from dticli.settings import ModelSettings, TrainSettings, anchored, to_toml
from dticli.words import norms, placement, provenance, token_writing
from dticli.words.learned_word import Token
from dticli.words.norms import Summary
from dticli.words.placement import Placement

SMOOTHING = 0.98
STEP = "step"


@dataclass(frozen=True, eq=False)
class Run:
    """Everything loaded and encoded; only the steps are missing."""

    loaded: "FrozenModel"
    task: Task
    learner: Learner
    identity: Identity
    machine: Mapping[str, str]

    @property
    def settings(self) -> TrainSettings:
        return self.task.settings

    @property
    def device(self) -> torch.device:
        return self.task.latents.device

    def token(self, step: int) -> Token:
        """The word as it is now, after so many steps, with its provenance."""
        rows = {key: each.detach().float().cpu() for key, each in self.learner.learned.rows.items()}
        settings, loaded = run_identity.as_alone(self.task), self.loaded
        count = len(next(iter(rows.values())))
        metadata = provenance.of_training(
            settings.model_copy(update={"steps": step}),
            loaded.model,
            loaded.family,
            loaded.pipe,
            loaded.fingerprint,
            count,
        )
        return Token(self.settings.token, rows, metadata)


@dataclass(frozen=True)
class Progress:
    """A step that was done.

    Attributes:
        loss: the smoothed one after it.
        drawing: previews come next, and take their time.
    """

    report: StepReport
    loss: float
    drawing: bool


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A frozen model on the device of this process, to learn one word on or several."""

    model: Model
    family: Family
    pipe: Any
    device: torch.device
    ranks: Ranks

    @property
    def tables(self) -> Mapping[str, Table]:
        """Encoder key to vocabulary; not kept, because encoders may leave the device between words."""
        return placement.tables(self.pipe, self.family.encoders)

    @cached_property
    def vocabulary(self) -> Mapping[str, Summary]:
        """Encoder key to the lengths of its rows."""
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
    """Encode the photos, and set the word to its start.

    Args:
        told: hears how many crops are encoded, after each.
    """
    model, family, pipe, device = loaded.model, loaded.family, loaded.pipe, loaded.device
    for encoder in family.encoders:
        placement.require_new([settings.token], getattr(pipe, encoder.tokenizer))
    crops = albums.crops(album.photos, settings, family.multiple)
    with memory.fitting(model, settings, device):
        encoded = _encoded(loaded, settings, crops, told)
    learner = _learner(settings, pipe, family, loaded.vocabulary)
    task = Task(pipe, family, encoded, captions, settings, loaded.ranks)
    identity = run_identity.of_run(model, loaded.weights, task, learner, album)
    return Run(loaded, task, learner, identity, run_identity.machine(device))


def _encoded(loaded: FrozenModel, settings: TrainSettings, crops: Sequence[Crop], told: Told) -> Latents:
    """The photos as the autoencoder sees them; the pipeline is ready for the first step then."""
    pipe, family, device = loaded.pipe, loaded.family, loaded.device
    if not settings.low_memory:
        return latents.encode(pipe, family, crops, device, told)
    memory.set_aside(pipe)
    encoded = latents.encode_low_memory(pipe, family, crops, device, told)
    memory.economize(pipe, family, device)
    return encoded


def _learner(
    settings: TrainSettings, pipe: Any, family: Family, vocabulary: Mapping[str, Summary]
) -> Learner:
    """The word at its start: rows of the initialiser, brought to the magnitude asked for."""
    rows = initial_rows.rows(pipe, family, settings.init, settings.vectors, settings.seed)
    count = len(next(iter(rows.values())))
    magnitude = initial_rows.magnitudes(rows, vocabulary, settings.magnitude_rule)
    match settings.prior:
        case "none":
            prior = None
        case "init":
            prior = initial_rows.directions(rows)
        case phrase:
            prior = initial_rows.directions(initial_rows.rows(pipe, family, phrase, count, settings.seed))
    return trainer.learner(settings, rows, magnitude, prior)


def resume(run: Run, before: Checkpoint) -> tuple[str, ...]:
    """Bring the word to where a checkpoint left it.

    Returns:
        what differs about the machine, which may change the last bits of the result.

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
    """Bring every rank to the state of the first one; returns the steps that one has done."""
    # By name: an optimizer that has not stepped yet has less of a state than one that has.
    state = {name: each.detach().cpu().contiguous() for name, each in run.learner.state().items()}
    found = load_state(run.task.ranks.shared(save_state({**state, STEP: torch.tensor(step)})))
    step = int(found.pop(STEP))
    run.learner.restore(found)
    return step


def assist(run: Run, folder: RunFolder, step: int) -> None:
    """Take the same steps as rank 0, which writes log and checkpoints.

    Raises:
        Stopped: a signal came, to whichever rank.
        NumericalError: NaN or inf.
    """
    with signals.postponed() as request, trainer.placed(run.task, run.learner) as placed:
        for report in _explained(run, folder, placed, step):
            _stop_if(run, folder, report.step, run.task.ranks.largest(request.number or 0))


def advance(run: Run, folder: RunFolder, step: int, loss: float) -> Iterator[Progress | Drawn]:
    """Train to the end; every step is logged, and the state is saved, kept and drawn when it is time.

    Args:
        step: steps done before.
        loss: the smoothed loss after them, NaN for none.

    Raises:
        Stopped: a signal came; the state is saved.
        NumericalError: NaN or inf; the last good checkpoint stays.
    """
    settings = run.settings
    previews = Previews.of(run.task, run.loaded.model, folder)
    folder.start(to_toml(anchored(run_identity.as_alone(run.task))), run.machine, step)
    kept = _kept(settings)
    started = saved = time.monotonic()
    with (
        folder.appending() as log,
        signals.postponed() as request,
        tracking.opened(settings, folder, step) as tracked,
        trainer.placed(run.task, run.learner) as placed,
    ):

        def drawn(step: int) -> Drawn:
            with run.learner.as_written():
                new = previews.draw(step, run.token(step), lambda: bool(request.number))
            tracked.previews(step, new.files)
            return new

        if previews.due(step):
            yield drawn(step)
        for report in _explained(run, folder, placed, step):
            loss = _smoothed(loss, report)
            entry = _entry(report, loss, run.learner, time.monotonic() - started)
            log.append(entry)
            tracked.step(entry)
            asked = run.task.ranks.largest(request.number or 0)
            # Before the checkpoint: a run that continues from it must not lack the state.
            if report.step in kept:
                _keep(run, folder, report.step)
            if (
                asked
                or report.step == settings.steps
                or report.step % settings.checkpoint_steps == 0
                or time.monotonic() - saved >= settings.checkpoint_seconds
            ):
                _save(run, folder, log, report.step, loss)
                saved = time.monotonic()
            _stop_if(run, folder, report.step, asked)
            due = previews.due(report.step)
            yield Progress(report, loss, due)
            if due:
                yield drawn(report.step)


def _kept(settings: TrainSettings) -> frozenset[int]:
    """Steps after which the state is kept: evenly spread, the last one among them."""
    return frozenset(-(-settings.steps * index // settings.keep) for index in range(1, settings.keep + 1))


def _keep(run: Run, folder: RunFolder, step: int) -> None:
    """Write the word as it is now to the folder, for good."""
    target = folder.snapshot(step)
    atomic.make_folder(target.parent)
    token_writing.write(target, run.token(step), force=True)


def _smoothed(before: float, report: StepReport) -> float:
    """The mean of all steps at first, then their moving average: one noisy step must not look like a trend."""
    if math.isnan(before):
        return report.loss
    return before + (report.loss - before) * max(1 - SMOOTHING, 1 / report.step)


def _stop_if(run: Run, folder: RunFolder, step: int, asked: int) -> None:
    """Raise Stopped if a signal of that number, not 0, has asked for it."""
    if asked:
        raise Stopped(
            f"stopped at step {step} of {run.settings.steps}; its state is in {folder.path}: "
            "give the same command with --resume to continue",
            asked,
        )


def _save(run: Run, folder: RunFolder, log: Log, step: int, loss: float) -> None:
    log.sync()
    learner = run.learner
    folder.save(
        Checkpoint(step, loss, learner.state(), dict(learner.learned.rows), run.identity, run.machine)
    )


def _explained(run: Run, folder: RunFolder, placed: Placement, step: int) -> Iterator[StepReport]:
    """The steps; errors also say what is left of the run."""
    try:
        yield from trainer.fit(run.task, run.learner, placed, step)
    except NumericalError as error:
        raise type(error)(f"{error}; {_left(folder)}") from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    else:
        return
    # Outside of the clause above, the failed step, held by the error, has let go of its memory.
    raise EnvironmentProblem(f"out of memory on {run.device.type}: {_smaller(run)}; {_left(folder)}")


def _left(folder: RunFolder) -> str:
    kept = folder.checkpoints()
    return f"{kept[-1]} is the last good state" if kept else "no checkpoint was due yet"


def _smaller(run: Run) -> str:
    """Which option makes the run fit, found by trying."""
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    task, learner, settings = run.task, run.learner, run.settings
    option, size = "", trainer.largest_batch(task, learner)
    if not settings.low_memory:
        memory.economize(task.pipe, task.family, run.device)
        if trainer.fits(task, learner, settings.batch_size):
            return "--low-memory would fit, and learn the same; add it, and --resume to continue"
        if not size:
            option, size = "--low-memory ", trainer.largest_batch(task, learner)
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
