"""`dti train`: learns a word from photos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import Debug, Force, Json, Quiet, Together, with_settings
from dticli.durations import Countdown
from dticli.errors import DtiError, UsageError
from dticli.learn import lifecycle
from dticli.learn.lifecycle import How, Trained
from dticli.models import families
from dticli.settings import Group, TrainSettings, first_said, read_config, require_possible
from dticli.words import texts
from dticli.words.programs import Target

if TYPE_CHECKING:
    from dticli.learn.jobs import Job
    from dticli.models.footprint import Memory
    from dticli.ranks import Ranks


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
        resized: (height, width) after scaling.
        window: (height, width) of its crops.
        crops: number of its crops.
        enlarged: whether it is scaled up.
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
    """The photos, captions and memory of a run, and its problems.

    Attributes:
        skipped: names of files, with reasons.
        others: number of files that are not pictures.
        folders: a sentence about photos in subfolders; None without.
        crops: number of all crops.
        problems: photos without a usable caption.
        unused: a remark about caption files that are not used; None without.
        cut: captions that are longer than an encoder reads.
        memory: estimate for weights and activations; None if weights are not safetensors files.
    """

    photos: tuple[Framed, ...]
    skipped: tuple[tuple[str, str], ...]
    others: int
    folders: str | None
    crops: int
    resolution: int
    problems: tuple[str, ...]
    unused: str | None
    cut: tuple[str, ...]
    memory: "Memory | None"

    def lines(self) -> Iterator[str]:
        yield f"{len(self.photos)} photos, {self.crops} crops of about {self.resolution} px"
        for photo in self.photos:
            yield from photo.lines()
        if self.folders:
            yield self.folders
        yield from (f"skipped {name}: {reason}" for name, reason in self.skipped)
        if self.others:
            yield f"{self.others} other files are no pictures"
        yield from self.memory.lines() if self.memory else ()
        yield from [self.unused] if self.unused else []
        yield from (f"cut off: {text}" for text in self.cut)
        yield from (f"problem: {text}" for text in self.problems)


@dataclass(frozen=True)
class CheckedWords:
    """The checks of several words."""

    words: Mapping[str, Checked]

    def lines(self) -> Iterator[str]:
        for token, checked in self.words.items():
            yield f"{token}:"
            yield from checked.lines()


def _family_defaults() -> dict[str, str]:
    """Defaults to show in help: the values of all families, which `dti models` lists by family."""
    shown = {}
    for name in families.TABLE[0].defaults.__dataclass_fields__:
        *others, last = sorted({getattr(family.defaults, name) for family in families.TABLE})
        shown[name] = f"{', '.join(map(str, others))} or {last}, by family" if others else str(last)
    return shown


@with_settings(TrainSettings, defaults=_family_defaults())
def command(
    given: dict[str, Any],
    photos: Annotated[Path | None, typer.Argument(help="Folder of photos, or one photo.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Token file, or folder with --subjects; default: the token's name.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with any of these settings and photos, such as a run's run.toml.",
            autocompletion=completion.settings_files,
            rich_help_panel=Group.OUTPUT,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Report on photos and memory without training.")
    ] = False,
    subjects: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with a table for each of several words: photos, init, other settings.",
            autocompletion=completion.settings_files,
            rich_help_panel=Group.OUTPUT,
        ),
    ] = None,
    together: Together = None,
    format: Annotated[
        Target | None,
        typer.Option(
            "--format",
            help="Also write the word for this program, in a folder of its name.",
            rich_help_panel=Group.OUTPUT,
        ),
    ] = None,
    preset: Annotated[
        Literal["8gb", "12gb", "24gb"] | None,
        typer.Option(
            help="Choose batch size, --low-memory, --precision and --quantize so that the memory estimate fits a card of this "
            "size.",
            rich_help_panel=Group.MODEL,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run, or start it.")
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

    if together and not subjects:
        raise UsageError(
            f"--together {together} without --subjects: expected several words; name a file with a table for each"
        )
    if preset and subjects:
        raise UsageError(
            f"--preset {preset} cannot be combined with --subjects: expected one word; run it for one of them, and use the "
            f"options that it prints"
        )
    team = ranks.launched()
    if not team.first and (check or not subjects):
        console.only_errors()
    jobs = _jobs(given, photos, out, config, subjects, format, check=check, quiet=quiet)
    if given["token"] and given["token"] != jobs[0].settings.token:
        console.notice(f"the word is {jobs[0].settings.token}")
    how = How(resume=resume, force=force, quiet=quiet)
    if not check:
        _require_ready(jobs, how)
        if resume and team.first:
            _tell_fresh(jobs)
    # This imports torch, so files and settings are checked before.
    with console.busy("loading", quiet=quiet):
        _require_known(jobs)
    if preset:
        jobs = (_fitted(jobs[0], preset, given),)
    if check:
        console.show(_checks(jobs, many=subjects is not None), as_json=json)
        for job in jobs:
            job.captions.require_usable()
    if complaint := texts.unread(text for job in jobs for text in job.texts()):
        console.warn(complaint)
    if check:
        return
    with ranks.joined(team):
        if subjects:
            _each(jobs, together or 1, team, how, json)
        elif result := _one(jobs[0], team, how):
            console.show(result, as_json=json)


ANY_WORD = {"token": "<word>", "init": "photo"}
"""Settings of --check without a word; photos depend on neither, and every vocabulary contains `photo`."""


def _jobs(
    given: dict[str, Any],
    photos: Path | None,
    out: Path | None,
    config: Path | None,
    subjects: Path | None,
    program: Target | None,
    *,
    check: bool,
    quiet: bool,
) -> "tuple[Job, ...]":
    """The jobs of all words, on one model."""
    with console.busy("loading", quiet=quiet):
        from dticli.learn import jobs
        from dticli.words import base_model

    file_layer = read_config(TrainSettings, config) if config else {}
    if subjects is None:
        layers = [given | {"photos": str(photos) if photos else None}, file_layer, ANY_WORD if check else {}]
        require_possible(TrainSettings, *layers)
        opened = base_model.open_model(first_said(layers), ())
        with console.counting("photos checked", quiet=quiet) as told:
            return (jobs.one(opened, layers, out, program, told),)
    if photos or given["token"]:
        raise UsageError(
            f"--subjects {subjects} cannot be combined with {'PHOTOS' if photos else '--token'}: expected it in the file's "
            f"tables; leave it out"
        )
    words = jobs.read_subjects(subjects)
    opened = base_model.open_model(first_said([given, words.shared, file_layer]), ())
    with console.counting("photos checked", quiet=quiet) as told:
        return jobs.many(opened, given, words, file_layer, out, program, told)


def _require_ready(jobs: "Sequence[Job]", how: How) -> None:
    """Raise an error if captions are missing, or files exist or cannot be written."""
    for job in jobs:
        job.captions.require_usable()
        job.require_writable()
        if not how.resume:
            lifecycle.require_free(job, how)


def _tell_fresh(jobs: "Sequence[Job]") -> None:
    """Tell which words have no run to continue, because their name may be misspelled."""
    from dticli.photos.albums import listed

    if fresh := [str(job.folder.path) for job in jobs if not job.folder.states()]:
        console.notice(f"nothing to continue in {listed(fresh)}: starting from the beginning")


def _require_known(jobs: "Sequence[Job]") -> None:
    """Raise an error if the noise process is not supported, or the model does not know a word, before it is loaded.

    Words are checked only for local models; for models on the hub, after the download.
    """
    from dticli.learn import initial_rows
    from dticli.models import contents

    model, family = jobs[0].opened.model, jobs[0].opened.family
    contents.process(model, family)
    if model.folder:
        initial_rows.require_known(
            model,
            family,
            [text for job in jobs for text in (job.settings.init, job.settings.prior)],
            [job.settings.token for job in jobs],
        )


def _fitted(job: "Job", preset: str, given: Mapping[str, Any]) -> "Job":
    """The job with the settings that the preset changes, which are printed."""
    from dticli.models import footprint

    said = [name for name, value in given.items() if value is not None]
    found = footprint.fitted(job.opened.model, job.opened.family, job.settings, preset, said)
    console.notice(f"preset {preset}: {found}")
    return replace(job, settings=found.settings)


# ----------------------------------------------------------------------- looking only


def _checks(jobs: "tuple[Job, ...]", *, many: bool) -> "Checked | CheckedWords":
    from dticli.models import contents, footprint
    from dticli.words import placement

    # All words share the model and its settings.
    model, family = jobs[0].opened.model, jobs[0].opened.family
    tokenizers = contents.tokenizers(model, family)
    for tokenizer in tokenizers:
        placement.require_new([job.settings.token for job in jobs], tokenizer)
    settings = jobs[0].settings
    size = (settings.resolution, settings.resolution)
    needed = footprint.estimate(model, family, settings, size, settings.batch_size)
    checked = tuple(_check(job, tokenizers, needed) for job in jobs)
    if not many:
        return checked[0]
    return CheckedWords({job.settings.token: each for job, each in zip(jobs, checked, strict=True)})


def _check(job: "Job", tokenizers: Sequence[Any], memory: "Memory | None") -> Checked:
    from dticli.learn import hyperparameters, initial_rows
    from dticli.models import contents
    from dticli.photos import captions
    from dticli.photos.albums import crops, in_folders

    album, settings = job.album, job.settings
    windows = crops(album.photos, hyperparameters.cropping(settings, job.opened.family.multiple))
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
        folders=in_folders(album.photos),
        crops=len(windows),
        resolution=settings.resolution,
        problems=job.captions.problems,
        unused=job.captions.remark,
        cut=captions.cut(
            job.captions,
            tokenizers,
            settings.token,
            initial_rows.count(tokenizers, settings.init, settings.vectors),
            contents.text_limit(job.opened.model),
        ),
        memory=memory,
    )


# ---------------------------------------------------------------------------- learning


def _each(jobs: "tuple[Job, ...]", together: int, team: "Ranks", how: How, json: bool) -> None:
    """Learn this process's share of the words and print the results; the others continue after a word has failed.

    Args:
        together: number of words that are learned at the same time.

    Raises:
        DtiError: of the class of the first failure, after all words were tried.
    """
    from dticli.ranks import Ranks

    alone, own = Ranks(local=team.local), jobs[team.rank :: team.size]
    trained, failed = [], []
    countdown = Countdown(len(own))

    def begin(next_ones: "Sequence[Job]") -> None:
        tokens = ", ".join(job.settings.token for job in next_ones)
        console.notice(f"word{'s' * (len(next_ones) > 1)} {countdown.next(len(next_ones))}: {tokens}")

    for job, result in lifecycle.several(own, together, alone, how, begin):
        if isinstance(result, DtiError):
            console.error(f"{job.settings.token}: {result}")
            failed.append((job.settings.token, type(result)))
        else:
            _report(job)
            trained.append(result)
    if trained:
        console.show(TrainedWords(tuple(trained)), as_json=json)
    # A launcher stops all processes when one fails, so wait for the others.
    team.largest(len(failed))
    if failed:
        names = ", ".join(token for token, _ in failed)
        others = ", the others are written" if trained else ""
        raise failed[0][1](
            f"{len(failed)} of {len(trained) + len(failed)} words failed: {names}{others}; "
            "correct the cause and give the same command with --resume"
        )


def _report(job: "Job") -> None:
    """Write the report of a learned word if previews were drawn."""
    if job.settings.preview:
        from dticli import atomic
        from dticli.report import gathering, page

        target = job.folder.path / "report.html"
        try:
            report = gathering.gather(str(job.target), offline=True)
            atomic.write_text(target, page.html(report))
        except DtiError as error:
            # The word is written, and the report can be made again.
            console.warn(f"no report: {error}")
        else:
            console.notice(f"report: {target}")


def _one(job: "Job", team: "Ranks", how: How) -> Trained | None:
    """Learn one word with all processes; the first one returns the result, and others None."""
    from dticli.learn import run

    load = lifecycle.loader(job, team, quiet=how.quiet)
    if team.first:
        trained = lifecycle.learn(job, load, how)
        _report(job)
        return trained
    prepared = lifecycle.prepare(job, load, quiet=how.quiet)
    run.assist(prepared, job.folder, run.agree(prepared, 0))
    return None
