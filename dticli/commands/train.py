"""`dti train`: photos in, token file out."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import console, families
from dticli.errors import UsageError
from dticli.formats import Target
from dticli.options import Debug, Force, Json, Quiet, with_settings
from dticli.settings import TrainSettings, model_layer, read_config, resolve

if TYPE_CHECKING:
    from dticli.checkpoint import Checkpoint
    from dticli.families import Family
    from dticli.models import Model
    from dticli.norms import Neighbour
    from dticli.photos import Album
    from dticli.run import Progress, Run
    from dticli.run_folder import RunFolder


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
    """

    photos: tuple[Framed, ...]
    skipped: tuple[tuple[str, str], ...]
    others: int
    crops: int
    resolution: int
    problems: tuple[str, ...]
    cut: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        yield f"{len(self.photos)} photos, {self.crops} crops of about {self.resolution} px"
        for photo in self.photos:
            yield from photo.lines()
        yield from (f"skipped {name}: {reason}" for name, reason in self.skipped)
        if self.others:
            yield f"{self.others} other files are no pictures"
        yield from (f"cut off: {text}" for text in self.cut)
        yield from (f"problem: {text}" for text in self.problems)


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
        Path | None, typer.Option("--out", "-o", help="Token file; default: the token's name.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with any of these settings, such as a run's run.toml.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Report on photos and captions and stop.")] = False,
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
    from dticli import atomic, captions
    from dticli.photos import read
    from dticli.run_folder import RunFolder

    settings, model, family = _settings(given, config, photos)
    target = out or Path(f"{settings.token.strip('<>')}.safetensors")
    assert settings.photos
    album = read(Path(settings.photos), settings.masks)
    said = captions.read(album.photos, settings)
    if check:
        report = _check(album, said, settings, model, family)
        console.show(report, as_json=json)
        said.require_usable()
        return
    for skipped in album.skipped:
        console.warn(f"skipped {skipped.name}: {skipped.reason}")
    said.require_usable()
    atomic.require_writable([target], force=True)
    if target.suffix != ".safetensors":
        raise UsageError(
            f"cannot write {target}: expected a name ending in .safetensors; choose another name"
        )
    folder = RunFolder.beside(target)
    with folder.locked():
        before = _before(folder, target, resume, force)
        overwrite = force or before is not None
        result = _train(
            settings, model, family, album, said, target, folder, before, quiet, format, overwrite
        )
    console.show(result, as_json=json)


def _settings(
    given: dict[str, Any], config: Path | None, photos: Path | None
) -> "tuple[TrainSettings, Model, Family]":
    """All layers of settings, and the model that brings two of them."""
    from dticli import models, token_file

    file_layer = read_config(TrainSettings, config) if config else {}
    model = models.choose(
        given["model"] or file_layer.get("model"),
        variant=given["variant"] or file_layer.get("variant"),
        offline=bool(given["offline"] or file_layer.get("offline")),
        device=given["device"] or file_layer.get("device", "auto"),
    )
    console.notice(models.announcement(model))
    family = models.family(model)
    own = {"photos": str(photos) if photos else None, "model": str(model.folder or model.label)}
    if model.kind == "bundled":
        own["model"] = model.name
    defaults = vars(family.defaults)
    settings = resolve(TrainSettings, given | own, file_layer, model_layer(model.folder, "train"), defaults)
    if settings.photos is None:
        raise UsageError("no photos: expected a folder; write dti train ./photos --token ... --init ...")
    token_file.check_name(settings.token)
    models.require_multiple((settings.resolution, settings.resolution), family)
    return settings, model, family


def _check(album: "Album", said: Any, settings: TrainSettings, model: "Model", family: "Family") -> Checked:
    from dticli import captions, models
    from dticli.photos import crops

    windows = crops(album.photos, settings, family.multiple)
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
        problems=said.problems,
        cut=captions.cut(said, models.tokenizers(model, family), settings.token),
    )


def _before(folder: "RunFolder", target: Path, resume: bool, force: bool) -> "Checkpoint | None":
    """The state to continue from, or None to begin.

    Raises:
        UsageError: there is an unfinished run or a token file, and no option says what to do with it.
    """
    from dticli import atomic

    before = folder.newest() if resume else None
    if before:
        return before
    if resume:
        console.notice(f"nothing to continue in {folder.path}: starting afresh")
    elif folder.checkpoints() and not force:
        raise UsageError(
            f"{folder.path} holds an unfinished run: continue it with --resume, or start again with --force"
        )
    atomic.require_writable([target], force=force)
    return None


def _train(
    settings: TrainSettings,
    model: "Model",
    family: "Family",
    album: "Album",
    said: Any,
    target: Path,
    folder: "RunFolder",
    before: "Checkpoint | None",
    quiet: bool,
    program: Target | None,
    overwrite: bool,
) -> Trained:
    from dticli import atomic, exchange, norms, run, token_file

    prepared = run.prepare(settings, model, family, album, said.texts)
    # Before the first step: a program that cannot use the word, or a file in the way, must not cost a training.
    atomic.require_writable(exchange.files(prepared.token(), program, target.parent), force=overwrite)
    if before:
        changes = run.resume(prepared, before)
        console.notice(f"continuing after step {before.step} of {settings.steps}, from {folder.path}")
        if changes:
            console.warn(f"{'; '.join(changes)}: the result may differ in its last bits")
    else:
        console.notice(f"the run is kept in {folder.path}")
    started = time.monotonic()
    loss = _follow(prepared, folder, before, quiet)
    token = prepared.token()
    token_file.write(target, token, force=True)
    exports = exchange.files(token, program, target.parent)
    for path, content in exports.items():
        atomic.write_bytes(path, content)
    folder.finish()
    learner = prepared.learner
    return Trained(
        file=target,
        folder=folder.path,
        exports=tuple(exports),
        token=settings.token,
        model=model.label,
        steps=settings.steps,
        seconds=round(time.monotonic() - started, 1),
        loss=loss,
        angle=math.degrees(learner.angle()),
        norm=learner.norm(),
        vocabulary_norm={key: each.mean for key, each in prepared.vocabulary.items()},
        cosine_to_init=learner.cosine_to_start(),
        nearest={
            key: norms.position(token.vectors[key][0], table, k=5).nearest
            for key, table in prepared.tables.items()
        },
    )


def _follow(run: "Run", folder: "RunFolder", before: "Checkpoint | None", quiet: bool) -> float:
    """Run the training to its end under a live line; returns the smoothed loss."""
    from dticli.run import advance, concerns

    steps, first = run.settings.steps, before.step if before else 0
    loss = before.loss if before else math.nan
    started = time.monotonic()
    with console.progress(steps, every=max(1, steps // 10), quiet=quiet) as line:
        for progress in advance(run, folder, before):
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
        f"step {report.step}/{steps}",
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
