"""`dti compare`: draws words, states of a run and rescaled copies in one grid."""

import os
from collections.abc import Iterator
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
    read_templates,
    with_settings,
)
from dticli.errors import UsageError
from dticli.settings import GenerateSettings, require_possible

if TYPE_CHECKING:
    from dticli.words.learned_word import Token

PROMPTS = ("a photo of {}", "a painting of {}", "{} in the snow")


@dataclass(frozen=True)
class Compared:
    """A grid that was written.

    Attributes:
        columns: labels of the words.
        rows: labels of prompts and seeds.
    """

    file: Path
    model: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        yield f"{self.file}: {len(self.rows)} rows, and columns {', '.join(self.columns)}"


@with_settings(GenerateSettings)
def command(
    given: dict[str, Any],
    words: Annotated[
        list[str],
        typer.Argument(
            help="Token files, hub ids, states like dog.run@200 or dog.run@best, NAME=FILE, or run folders for all their "
            "states.",
            autocompletion=completion.words,
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Sentence with {} where the word goes; repeatable. Default: a few."),
    ] = None,
    prompts: Prompts = None,
    rescale: Annotated[
        list[str] | None,
        typer.Option(help="Also draw each word rescaled to this norm: mean, 2x, a number; repeatable."),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Rows per prompt, each with different noise.")
    ] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path("comparison.png"),
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw words side by side, with the same prompt and noise in each row.

    Example: dti compare dog.run@100 dog.run@400 ti-dog.safetensors --prompt "{} in the snow" --out grid.png
    """
    texts = read_templates(prompt or [], prompts, PROMPTS)
    require_possible(GenerateSettings, given)
    with console.busy("loading", quiet=quiet):
        from dticli import atomic, paths
        from dticli.draw import pictures, sampler, sheets
        from dticli.words import base_model
        from dticli.words import texts as about

    for complaint in about.complaints([], [*texts, *filter(None, [given["negative"]])]):
        console.warn(complaint)
    named = [source for word in words for source in _states(word)]
    labels = paths.told_apart(named, _label)
    tokens = [base_model.read_token(each, offline=bool(given["offline"])) for each in named]
    pictures.require_image(out)
    atomic.require_writable([out], force=force)
    opened = base_model.open_model(given, tokens)
    settings = drawing_settings(given, opened)
    with console.busy(f"loading {opened.model.label}", quiet=quiet):
        from dticli.draw import pipeline

        pipe = pipeline.without_words(opened, settings)
    shown = partial(console.progress, quiet=quiet)
    columns = [*_with_twins(pipe, opened.family, list(zip(labels, tokens, strict=True)), rescale or [])]
    drawn = []
    for label, token in columns:
        # One at a time, so that words with equal names or different pooling can be compared.
        loaded = pipeline.with_words(pipe, opened, settings, [token])
        own = [text.replace("{}", token.name) for text in texts]
        shots = sampler.shots(own, settings.seed, count)
        found = pipeline.draw(loaded, opened, shots, settings, what=f"{label}, picture", progress=shown)
        drawn.append([picture.image for picture in found])
    seeds = [settings.seed + index for index in range(count)]
    rows = [text if count == 1 else f"{text}, seed {seed}" for text in texts for seed in seeds]
    names = [label for label, _ in columns]
    out = pictures.save_image(out, sheets.labelled(list(zip(*drawn, strict=True)), names, rows), force=force)
    console.show(Compared(out, opened.model.label, tuple(names), tuple(rows)), as_json=json)


def _states(word: str) -> list[str]:
    """The word itself, or all kept states of a run folder.

    Raises:
        UsageError: the run keeps no states.
    """
    from dticli import paths

    path = Path(word)
    if path.suffix != paths.RUN or not os.path.isdir(path):
        return [word]
    kept = paths.snapshots(path)
    if not kept:
        raise UsageError(
            f"{word} keeps no states: expected a run of dti train --keep; name token files instead"
        )
    return [f"{path}@{step}" for step in kept]


def _with_twins(
    pipe: Any, family: Any, words: "list[tuple[str, Token]]", rules: list[str]
) -> "Iterator[tuple[str, Token]]":
    """Each word with its label, followed by its rescaled copies."""
    from dticli.words import conversion, norms, placement

    vocabulary = (
        {key: norms.summary(table) for key, table in placement.tables(pipe, family.encoders).items()}
        if rules
        else {}
    )
    for label, token in words:
        yield label, token
        for rule in rules:
            yield f"{label}, norm {rule}", conversion.rescaled(token, vocabulary, rule)


def _label(source: str) -> str:
    """The label of a column: NAME of NAME=FILE, or the file's name without folder and suffix, with the step of a state."""
    name, equals, _ = source.partition("=")
    if equals and not os.path.exists(source):
        return name
    return Path(source).name.removesuffix(".safetensors")
