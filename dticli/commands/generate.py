"""`dti generate`: draws pictures of prompts with learned words."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import (
    Debug,
    Force,
    Json,
    Prompts,
    Quiet,
    drawing_settings,
    read_prompts,
    with_settings,
)
from dticli.errors import UsageError
from dticli.settings import GenerateSettings, Group, require_possible

if TYPE_CHECKING:
    from dticli.draw.sampler import Shot


@dataclass(frozen=True)
class DrawnFile:
    """A picture that was written."""

    file: Path
    prompt: str
    seed: int


@dataclass(frozen=True)
class Generated:
    """Pictures that were written."""

    model: str
    pictures: tuple[DrawnFile, ...]
    grid: Path | None

    def lines(self) -> Iterator[str]:
        yield from (str(drawn.file) for drawn in self.pictures)
        if self.grid:
            yield f"grid: {self.grid}"


@with_settings(GenerateSettings)
def command(
    given: dict[str, Any],
    prompt: Annotated[list[str] | None, typer.Argument(help="Prompts to draw, in order.")] = None,
    prompts: Prompts = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            "--tokens",
            "-t",
            autocompletion=completion.token_files,
            help="Token file, folder or hub id, or NAME=FILE to rename the word; repeatable.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="Pictures per prompt.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder, or a file for one picture.")] = Path(
        "pictures"
    ),
    grid: Annotated[
        Path | None,
        typer.Option(
            help="Also write a grid of all pictures, one row per prompt.", rich_help_panel=Group.OUTPUT
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw pictures with learned words.

    Example: dti generate "a photo of <dog> in the snow" -t dog.safetensors --count 4 --grid grid.png
    """
    texts = _prompts(prompt or [], prompts)
    require_possible(GenerateSettings, given)
    with console.busy("loading", quiet=quiet):
        from dticli import atomic
        from dticli.draw import pictures, sampler
        from dticli.words import base_model
        from dticli.words import texts as about

    tokens = [base_model.read_token(each, offline=bool(given["offline"])) for each in token or []]
    names = [each.name for each in tokens]
    spoken = [*texts, given["negative"]] if given["negative"] else texts
    about.require_used(names, texts, given["negative"])
    for complaint in about.complaints(names, spoken):
        console.warn(complaint)
    opened = base_model.open_model(given, tokens)
    settings = drawing_settings(given, opened)
    if settings.scheduler:
        sampler.require_scheduler(settings.scheduler)
    shots = sampler.shots(texts, settings.seed, count)
    if grid:
        pictures.require_image(grid)
    targets = _targets(out, shots, force=force)
    atomic.require_writable([*targets, *([grid] if grid else [])], force=force)
    with console.busy(f"loading {opened.model.label}", quiet=quiet):
        # This imports torch, so the command line is checked before.
        from dticli.draw import pipeline

        loaded = pipeline.load(opened, settings, tokens)
    shown = partial(console.progress, quiet=quiet)
    drawn = pipeline.draw(loaded, opened, shots, settings, files=targets, progress=shown, force=force)
    if grid:
        sheet = pictures.grid([picture.image for picture in drawn], columns=count)
        grid = pictures.save_image(grid, sheet, force=force)
    results = [DrawnFile(each.file, each.shot.prompt, each.shot.seed) for each in drawn if each.file]
    console.show(Generated(opened.model.label, tuple(results), grid), as_json=json)


def _targets(out: Path, shots: "Sequence[Shot]", *, force: bool) -> list[Path]:
    """A file for each picture: `out` itself for one picture if it has a suffix of pictures, else numbered files in that folder.

    Numbers continue after those of existing pictures unless `force` is set.

    Raises:
        UsageError: `out` names one file for several pictures, or cannot be written.
    """
    from dticli.draw import pictures

    if out.suffix.lower() in pictures.SUFFIXES and not os.path.isdir(out):
        if len(shots) == 1:
            pictures.require_image(out)
            return [out]
        raise UsageError(
            f"--out {out} for {len(shots)} pictures: expected a folder; name one, and --grid for one picture of all"
        )
    first = 0 if force else pictures.next_number(out)
    if first:
        console.notice(f"{out} holds pictures up to {first - 1:04d}: going on with {first:04d}")
    return [out / pictures.file_name(index, shot) for index, shot in enumerate(shots, start=first)]


def _prompts(given: Sequence[str], source: str | None) -> list[str]:
    """Prompts of the command line, then those of the file; at least one.

    Raises:
        UsageError: there are none, or as `read_prompts`.
    """
    texts = read_prompts(given, source)
    if not texts:
        raise UsageError(
            'no prompt: expected a sentence; try dti generate "a photo of <dog>" -t dog.safetensors'
        )
    return texts
