"""Gathers the content of a report from a word's file, the folder of its run, its photos and its model's vocabulary."""

import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from dticli import files, paths
from dticli.durations import clock
from dticli.errors import DtiError, InputError
from dticli.learn import hyperparameters
from dticli.learn.run import SMOOTHING
from dticli.learn.run_folder import MACHINE, SETTINGS, RunFolder, read_log
from dticli.models import choice, contents, embeddings
from dticli.models.embeddings import Table
from dticli.photos import albums
from dticli.photos.decoding import DAMAGED
from dticli.report import charts
from dticli.report.charts import Line
from dticli.report.pictures import Embedded, embedded
from dticli.settings import TrainSettings, read_config, resolve, shareable
from dticli.version import __version__
from dticli.words import base_model, conversion, learned_word, norms, programs, repositories, token_reading
from dticli.words.conversion import Source
from dticli.words.learned_word import Token

LOG = logging.getLogger(__name__)
MULTIPLE = 8
"""Sides of pictures are multiples of this if the model cannot be read; that of most models' autoencoders."""
MOST_STATES = 24
"""Most states in a table of nearest words; more are thinned out."""


@dataclass(frozen=True)
class PhotoFrame:
    """A preview."""

    step: int
    image: Embedded


@dataclass(frozen=True)
class Strip:
    """Previews of one prompt from one noise, by step."""

    prompt: str
    seed: str
    frames: tuple[PhotoFrame, ...]


@dataclass(frozen=True)
class Window:
    """Position of a crop, in per cent of the photo's width and height."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class ShownPhoto:
    """A photo and its crops."""

    name: str
    image: Embedded
    crops: tuple[Window, ...]
    note: str


@dataclass(frozen=True)
class Chart:
    """A chart with a heading and an explanation."""

    title: str
    svg: Markup
    note: str


@dataclass(frozen=True)
class Report:
    """The content of the page; unknown parts are empty, and some have a `_note` that says why.

    Attributes:
        facts, settings, machine, metadata, evaluation: names with values.
        nearest: for each encoder, (step, words).
        programs: names, with how the word is written there.
        command: repeats the run.
    """

    token: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    strips: Sequence[Strip]
    photos: Sequence[ShownPhoto]
    photos_note: str
    charts: Sequence[Chart]
    nearest: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    nearest_note: str
    histograms: Sequence[Chart]
    evaluation: Sequence[tuple[str, str]]
    use: str
    programs: Sequence[tuple[str, str]]
    command: str
    settings: Sequence[tuple[str, str]]
    machine: Sequence[tuple[str, str]]
    metadata: Sequence[tuple[str, str]]

    @property
    def gallery(self) -> list[tuple[str, list[Strip]]]:
        """Strips by prompt."""
        prompts = dict.fromkeys(strip.prompt for strip in self.strips)
        return [(prompt, [each for each in self.strips if each.prompt == prompt]) for prompt in prompts]


def gather(source: str, evaluation: Path | None = None, *, offline: bool = False) -> Report:
    """Gather everything about a word.

    Args:
        source: a token file, hub id, state such as `dog.run@200`, or folder of a run.
        evaluation: file with the output of `dti evaluate --json`.

    Raises:
        InputError: there is no word, or the evaluation has no figures of it.
        DtiError: as `repositories.read`; UsageError if the run's settings are damaged.
    """
    run = _run_of(source)
    file = _word_of(run) if run and Path(source) == run.path else source
    word = repositories.read(str(file), offline=offline)
    token = word.token
    settings = _settings(run) if run else None
    entries = read_log(run.path) if run else []
    tables, multiple, problem = _vocabulary(token, settings, offline)
    described = word.described()
    return Report(
        token=token.name,
        subtitle=_subtitle(token),
        facts=[*_facts(str(file), word, entries, tables), *(_choice(run) if run else ())],
        notes=[f"{problem}; what needs the vocabulary is left out"] if problem else [],
        strips=_strips(run) if run else (),
        **_photos(settings, multiple),
        charts=list(_learning(entries)),
        nearest=_nearest(token, run, tables),
        nearest_note=_nearest_note(run) if tables else "",
        histograms=[_histogram(token, key, table) for key, table in tables.items()],
        evaluation=_evaluation(evaluation, token) if evaluation else (),
        use=f'dti generate "a photo of {token.name}" -t {shlex.quote(str(file))}',
        programs=[_program(programs.verdict(each, described)) for each in programs.PROGRAMS],
        command=_command(run) if run and settings else "",
        settings=[(name, str(value)) for name, value in shareable(settings).items()] if settings else (),
        machine=_machine(run) if run else (),
        metadata=sorted(token.metadata.items()),
    )


# ---------------------------------------------------------------------- what there is


def _run_of(source: str) -> RunFolder | None:
    """The folder of a word's run: the source itself, that beside the word, or that of a kept state; None without settings."""
    if kept := paths.SNAPSHOT.fullmatch(source):
        return RunFolder(Path(kept["run"]))
    path = Path(source)
    folder = RunFolder(path) if path.suffix == paths.RUN else RunFolder.beside(path)
    return folder if os.path.isfile(folder.path / SETTINGS) else None


def _word_of(run: RunFolder) -> Path:
    """The word beside a run, or the latest kept state if the run is not finished.

    Raises:
        InputError: there is neither.
    """
    finished = run.path.with_suffix(".safetensors")
    if os.path.isfile(finished):
        return finished
    kept = paths.snapshots(run.path)
    if not kept:
        raise InputError(
            f"no word of {run.path}: expected {finished.name} beside it, or states in it; finish the run with --resume"
        )
    return kept[max(kept)]


def _settings(run: RunFolder) -> TrainSettings:
    return resolve(TrainSettings, read_config(TrainSettings, run.path / SETTINGS))


def _vocabulary(
    token: Token, settings: TrainSettings | None, offline: bool
) -> tuple[dict[str, Table], int, str]:
    """Encoder to table of the word's model, the multiple of its pictures' sides, and the problem if tables are missing."""
    recorded = base_model.usable_model(token.metadata)
    named = settings.model if settings else None
    if not named and not recorded:
        return {}, MULTIPLE, "The file does not say which model the word belongs to"
    try:
        model = choice.choose(
            named,
            recorded=recorded,
            base=settings.base if settings else None,
            variant=settings.variant if settings else None,
            offline=offline,
        )
        family = contents.family(model)
        tables = embeddings.by_key(contents.tables(model), family.encoders)
    except DtiError as error:
        return {}, MULTIPLE, f"The model cannot be read: {error}"
    if token.metadata.get("dti.tables", "") != norms.fingerprint(tables.values()):
        problem = f"The vocabulary of {model.label} is not the one the word was learned in"
        return {}, family.multiple, problem
    return tables, family.multiple, ""


# --------------------------------------------------------------------------- the parts


def _subtitle(token: Token) -> str:
    said = token.metadata
    parts = [
        f"learned on {said['dti.model']}" if "dti.model" in said else "",
        f"{said['dti.steps']} steps" if "dti.steps" in said else "",
        f"from the word {said['dti.init']!r}" if "dti.init" in said else "",
        f"by {said['dti.method']}" if "dti.method" in said else "",
    ]
    return "; ".join([*filter(None, parts), f"report of dti {__version__}"])


def _facts(
    file: str, word: Source, entries: Sequence[Mapping[str, Any]], tables: Mapping[str, Table]
) -> Iterator[tuple[str, str]]:
    yield "file", Path(file).name
    for key, rows in word.token.rows.items():
        count = f"{len(rows)} vector{'' if len(rows) == 1 else 's'} of width {rows.shape[1]}"
        yield key, f"{count}, norm {', '.join(f'{norm:.4f}' for norm in learned_word.lengths(rows))}"
        if key in tables:
            place = norms.position(rows[0], tables[key])
            verdict = "in distribution" if place.in_distribution else "out of distribution"
            yield f"{key} in the vocabulary", f"percentile {place.percentile:.1f}, {verdict}"
    if entries:
        last = entries[-1]
        yield "angle", f"{last['angle']:.1f} degrees from where it began"
        yield "loss", f"{last['smoothed']:.4f}, smoothed"
        yield "time", f"{clock(last['seconds'])} since the run was started or resumed"


def _choice(run: RunFolder) -> Iterator[tuple[str, str]]:
    """The best kept state, if one was chosen."""
    if os.path.isfile(paths.best(run.path)):
        step, how = token_reading.chosen(run.path)
        yield "best state", f"step {step}: {how}"


def _strips(run: RunFolder) -> list[Strip]:
    """Previews by prompt and seed, from their metadata; those that cannot be read are left out with a warning."""
    found: dict[tuple[str, str], list[PhotoFrame]] = {}
    for path in sorted(run.previews.glob("*.png")):
        try:
            with Image.open(path) as image:
                image.load()
                said = {name: str(image.info.get(name, "")) for name in ("prompt", "seed", "step")}
                frame = PhotoFrame(int(said["step"]), embedded(image))
        except DAMAGED as error:
            LOG.warning(f"{path} cannot be read ({error}): left out")
            continue
        found.setdefault((said["prompt"], said["seed"]), []).append(frame)
    return [Strip(prompt, seed, tuple(frames)) for (prompt, seed), frames in found.items()]


def _photos(settings: TrainSettings | None, multiple: int) -> dict[str, Any]:
    """The photos with their crops, or the reason why they are missing."""
    if settings is None or settings.photos is None:
        return {"photos": (), "photos_note": ""}
    try:
        album = albums.read(Path(settings.photos), settings.masks)
    except InputError as error:
        return {"photos": (), "photos_note": f"The photos are no longer where they were: {error}"}
    windows = albums.crops(album.photos, hyperparameters.cropping(settings, multiple))
    shown = []
    for photo in album.photos:
        own = [crop for crop in windows if crop.photo is photo and not crop.flipped]
        (height, width), resized, size = photo.size, own[0].resized, own[0].size
        notes = [
            f"{width}x{height}",
            "" if resized == photo.size else f"scaled to {resized[1]}x{resized[0]}",
            "" if size == resized else f"cropped to {size[1]}x{size[0]}",
            "mirrored too" if settings.flip else "",
            "with a mask" if photo.mask else "",
            photo.note or "",
        ]
        shown.append(
            ShownPhoto(
                photo.name,
                embedded(albums.whole(photo)),
                tuple(_window(crop) for crop in own),
                ", ".join(filter(None, notes)),
            )
        )
    skipped = "; ".join(f"{each.name}: {each.reason}" for each in album.skipped)
    return {"photos": shown, "photos_note": f"Left out: {skipped}" if skipped else ""}


def _window(crop: albums.Crop) -> Window:
    height, width = crop.resized
    (top, left), (rows, columns) = crop.corner, crop.size
    return Window(
        *(round(100 * part, 3) for part in (left / width, top / height, columns / width, rows / height))
    )


def _learning(entries: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """Loss, angle and norm over the steps."""
    if not entries:
        return
    steps = [entry["step"] for entry in entries]
    yield Chart(
        "Loss",
        charts.lines([_loss(entries)], title="Loss over steps", x="step", y="loss"),
        "Smoothed; the band is its noise, two standard errors to each side. Single steps differ in photo, noise and level, "
        "and scatter far more.",
    )
    angle = Line("angle", list(zip(steps, (entry["angle"] for entry in entries), strict=True)))
    yield Chart(
        "Angle",
        charts.lines([angle], title="Angle over steps", x="step", y="degrees"),
        "How far the word has turned from where it began.",
    )
    lengths = [
        Line(key, [(entry["step"], entry["norm"][key]) for entry in entries]) for key in entries[0]["norm"]
    ]
    yield Chart(
        "Norm",
        charts.lines(lengths, title="Norm over steps", x="step", y="norm"),
        "Mean length of the word's vectors in each encoder.",
    )


def _loss(entries: Sequence[Mapping[str, Any]]) -> Line:
    """The smoothed loss with a band of two standard errors, from the variance of single steps.

    A moving average with factor s has the variance of a mean of (1 + s) / (1 - s) independent steps, or of all steps if they are
    fewer.
    """
    points, band, spread = [], [], 0.0
    for count, entry in enumerate(entries, start=1):
        weight = max(1 - SMOOTHING, 1 / count)
        spread += weight * ((entry["loss"] - entry["smoothed"]) ** 2 - spread)
        inside = min(count, (1 + SMOOTHING) / (1 - SMOOTHING))
        points.append((entry["step"], entry["smoothed"]))
        band.append(2 * (spread / inside) ** 0.5)
    return Line("loss", points, band)


def _nearest(
    token: Token, run: RunFolder | None, tables: Mapping[str, Table]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each encoder, the vocabulary's words nearest to the first vector, for kept states and for the word itself."""
    states = paths.snapshots(run.path) if run else {}
    every = -(-len(states) // MOST_STATES) or 1
    chosen = {step: file for index, (step, file) in enumerate(states.items(), 1) if index % every == 0}
    words = [(str(step), conversion.read(file).token) for step, file in chosen.items()]
    if not words or _differs(words[-1][1], token):
        words.append((token.metadata.get("dti.steps", "the file"), token))
    return [
        (key, [(step, _around(word, key, table)) for step, word in words]) for key, table in tables.items()
    ]


def _nearest_note(run: RunFolder | None) -> str:
    if run and paths.snapshots(run.path):
        return ""
    return "Of the word alone: dti train --keep keeps states along the run."


def _differs(one: Token, other: Token) -> bool:
    return any(not np.array_equal(one.rows[key], rows) for key, rows in other.rows.items())


def _around(word: Token, key: str, table: Table) -> str:
    near = norms.position(word.rows[key][0], table, k=6).nearest
    return ", ".join(f"{each.name} {each.cosine:.2f}" for each in near)


def _histogram(token: Token, key: str, table: Table) -> Chart:
    summary = norms.summary(table)
    lengths = learned_word.lengths(token.rows[key]).tolist()
    marks = [("mean", summary.mean), *((token.name, length) for length in lengths[:4])]
    return Chart(
        key,
        charts.histogram(summary.counts, summary.edges, marks, title=f"Norms in {key}", x="norm"),
        f"{sum(summary.counts)} rows of the vocabulary, mean {summary.mean:.4f}; "
        f"the word at {', '.join(f'{each:.4f}' for each in lengths)}.",
    )


def _evaluation(path: Path, token: Token) -> list[tuple[str, str]]:
    """Figures of the word from the output of `dti evaluate --json`.

    Raises:
        InputError: the file has none, or cannot be read.
    """
    text = files.read_text(path, InputError, "expected what dti evaluate --json printed; check --evaluation")
    try:
        content = json.loads(text)
        (own,) = [each for each in content["words"] if each["token"] == token.name]
        figures = {name: own[name] for name in ("likeness", "alignment")}
        rows = [(name, _interval(**each)) for name, each in figures.items()]
        rows += [(f"shows the {name}", f"{share:.0%}") for name, share in own["elements"].items()]
        judges = f"{content['image_judge']} and {content['text_judge']}"
        return [*rows, ("pictures", str(own["pictures"])), ("judges", judges), ("noun", str(own["noun"]))]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} holds no figures of {token.name} ({type(error).__name__}): expected what dti evaluate --json printed; "
            "run dti evaluate again"
        ) from None


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _program(verdict: programs.Verdict) -> tuple[str, str]:
    remark = f" ({verdict.remark})" if verdict.remark else ""
    return verdict.program, f"{verdict.typed or 'cannot use it'}{remark}"


def _command(run: RunFolder) -> str:
    again = run.path.with_name(f"{run.path.stem}-again.safetensors")
    return f"dti train --config {shlex.quote(str(run.path / SETTINGS))} --out {shlex.quote(str(again))}"


def _machine(run: RunFolder) -> list[tuple[str, str]]:
    try:
        content = json.loads((run.path / MACHINE).read_bytes())
        return [(str(name), str(value)) for name, value in content.items()]
    except (OSError, ValueError, AttributeError):
        # Optional: runs of earlier versions lack it, and files may have been deleted.
        return []
