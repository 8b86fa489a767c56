"""`dti train`: photos in, token file out."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import console, families
from dticli.options import Debug, Force, Json, Quiet, with_settings
from dticli.settings import TrainSettings, model_layer, read_toml, resolve

if TYPE_CHECKING:
    import torch

    from dticli.families import Family
    from dticli.models import Model
    from dticli.norms import Neighbour, Summary
    from dticli.photos import Album
    from dticli.trainer import Captions, Learner, StepReport

SMOOTHING = 0.98


@dataclass(frozen=True)
class Trained:
    """A word that was learned.

    Attributes:
        norm, vocabulary_norm: mean row length of the word, and mean norm of the vocabulary, by encoder.
        angle: mean degrees turned from where it began.
        cosine_to_init: mean over vectors, by encoder.
        nearest: words with their cosines, by encoder.
    """

    file: Path
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
        yield f'use it: dti generate "a photo of {self.token}" -t {self.file}'


@dataclass(frozen=True)
class Checked:
    """What a run would use."""

    photos: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    crops: int
    resolution: int
    enlarged: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        yield f"{len(self.photos)} photos, {self.crops} crops of {self.resolution} px"
        yield from (f"skipped {name}: {reason}" for name, reason in self.skipped)
        yield from (f"{name} is smaller than {self.resolution} px and is enlarged" for name in self.enlarged)


def _family_defaults() -> dict[str, str]:
    """Defaults as help shows them: the first family's value, and which families differ."""
    shown = {}
    for name in families.TABLE[0].defaults.__dataclass_fields__:
        values = {family.name: getattr(family.defaults, name) for family in families.TABLE}
        common = next(iter(values.values()))
        others = [f"{family} {value}" for family, value in values.items() if value != common]
        shown[name] = "; ".join([str(common), *others])
    return shown


@with_settings(TrainSettings, defaults=_family_defaults())
def command(
    given: dict[str, Any],
    photos: Annotated[Path, typer.Argument(help="Folder of photos, or one photo.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Token file; default: the token's name.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Report on the photos and stop.")] = False,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Learn a word from photos and write it to a token file.

    Example: dti train ./photos --token "<dog>" --init dog
    """
    from dticli import atomic, models, token_file
    from dticli.photos import read

    file_layer = read_toml(config) if config else {}
    model = models.choose(
        given["model"] or file_layer.get("model"),
        variant=given["variant"] or file_layer.get("variant"),
        offline=bool(given["offline"] or file_layer.get("offline")),
        device=given["device"] or file_layer.get("device", "auto"),
    )
    console.notice(models.announcement(model))
    family = models.family(model)
    settings = resolve(
        TrainSettings, given, file_layer, model_layer(model.folder, "train"), vars(family.defaults)
    )
    token_file.check_name(settings.token)
    models.require_multiple((settings.resolution, settings.resolution), family)
    target = out or Path(f"{settings.token.strip('<>')}.safetensors")
    album = read(photos)
    for skipped in album.skipped:
        console.warn(f"skipped {skipped.path.name}: {skipped.reason}")
    if check:
        console.show(_check(album, settings), as_json=json)
        return
    atomic.require_writable([target], force=force)
    console.show(_train(settings, model, family, album, target, force, quiet), as_json=json)


def _check(album: "Album", settings: TrainSettings) -> Checked:
    return Checked(
        photos=tuple(photo.path.name for photo in album.photos),
        skipped=tuple((each.path.name, each.reason) for each in album.skipped),
        crops=len(album.photos) * settings.crops * (2 if settings.flip else 1),
        resolution=settings.resolution,
        enlarged=tuple(p.path.name for p in album.photos if min(p.size) < settings.resolution),
    )


def _train(
    settings: TrainSettings,
    model: "Model",
    family: "Family",
    album: "Album",
    target: Path,
    force: bool,
    quiet: bool,
) -> Trained:
    from dticli import concept, latents, models, norms, provenance, token_file, trainer
    from dticli.photos import crops

    captions = _captions(album, settings)
    if settings.deterministic:
        models.make_deterministic()
    device = models.pick_device(settings.device)
    pipe = models.load(model, device, models.pick_dtype(settings.precision, device), safety_checker=False)
    tables = concept.tables(pipe, family.encoders)
    vocabulary = {key: norms.summary(table) for key, table in tables.items()}
    learner = _learner(settings, pipe, family, vocabulary)
    size = (settings.resolution, settings.resolution)
    windows = [
        crop
        for photo in album.photos
        for crop in crops(photo, size, settings.crops, settings.seed, flip=settings.flip)
    ]
    task = trainer.Task(pipe, family, latents.encode(pipe, family, windows, device), captions, settings)
    started = time.monotonic()
    report, loss = _follow(trainer.fit(task, learner), settings, device, quiet)
    rows = {key: each.detach().float().cpu() for key, each in learner.word.rows.items()}
    metadata = provenance.of_training(settings, model, family, pipe, norms.fingerprint(tables.values()))
    token_file.write(target, token_file.Token(settings.token, rows, metadata), force=force)
    return Trained(
        file=target,
        token=settings.token,
        model=model.label,
        steps=report.step,
        seconds=round(time.monotonic() - started, 1),
        loss=loss,
        angle=math.degrees(report.angle),
        norm=report.norm,
        vocabulary_norm={key: each.mean for key, each in vocabulary.items()},
        cosine_to_init=learner.cosine_to_start(),
        nearest={key: norms.position(rows[key][0], table, k=5).nearest for key, table in tables.items()},
    )


def _captions(album: "Album", settings: TrainSettings) -> "Captions":
    """Each photo's captions: one of its own, or all templates."""
    from dticli import captions

    paths = [photo.path for photo in album.photos]
    if settings.captions_file:
        own = captions.from_file(Path(settings.captions_file), paths, settings.token)
    elif settings.captions == "sidecar":
        own = captions.from_sidecars(paths, settings.token)
    else:
        templates = settings.templates or captions.TEMPLATES[settings.property]
        return dict.fromkeys(paths, captions.from_templates(templates, settings.token))
    return {path: (text,) for path, text in own.items()}


def _learner(
    settings: TrainSettings, pipe: Any, family: "Family", vocabulary: "Mapping[str, Summary]"
) -> "Learner":
    """The word at its start: rows of the initialiser, brought to the magnitude asked for."""
    from dticli import initial, trainer

    rows = initial.rows(pipe, family, settings.init, settings.vectors, settings.seed)
    count = len(next(iter(rows.values())))
    magnitude = initial.magnitudes(rows, vocabulary, settings.magnitude_rule)
    match settings.prior:
        case "none":
            prior = None
        case "init":
            prior = initial.directions(rows)
        case phrase:
            prior = initial.directions(initial.rows(pipe, family, phrase, count, settings.seed))
    return trainer.learner(settings, rows, magnitude, prior)


def _follow(
    reports: "Iterator[StepReport]", settings: TrainSettings, device: "torch.device", quiet: bool
) -> "tuple[StepReport, float]":
    """Run the training to its end under a live line; returns the last report and the smoothed loss."""
    started, smooth = time.monotonic(), None
    with console.progress(settings.steps, every=max(1, settings.steps // 10), quiet=quiet) as line:
        for report in reports:
            smooth = report.loss if smooth is None else SMOOTHING * smooth + (1 - SMOOTHING) * report.loss
            if line:
                line.update(
                    report.step, _status(report, smooth, settings.steps, time.monotonic() - started, device)
                )
    assert smooth is not None, "settings allow no run without steps"
    return report, smooth


def _status(report: "StepReport", smooth: float, steps: int, seconds: float, device: "torch.device") -> str:
    rate = report.step / seconds
    norms = " ".join(f"{norm:.3f}" for norm in report.norm.values())
    parts = [
        f"step {report.step}/{steps}",
        f"loss {smooth:.4f}",
        f"angle {math.degrees(report.angle):.1f} deg",
        f"norm {norms}",
        f"{rate:.1f} steps/s",
        f"{(steps - report.step) / rate:.0f} s left",
    ]
    if device.type == "cuda":
        import torch

        parts.append(f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    return "  ".join(parts)
