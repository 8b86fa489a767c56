"""`dti convert`: writes token files for other programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date as calendar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import Base, Debug, Force, Json
from dticli.errors import UsageError
from dticli.words import programs
from dticli.words.programs import Target

if TYPE_CHECKING:
    from dticli.models.choice import Model
    from dticli.models.embeddings import Table
    from dticli.words.learned_word import Token


@dataclass(frozen=True)
class Rescaled:
    """The mean norm of a word's vectors in one encoder, before and after."""

    encoder: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.encoder}: norm {self.before:.4f} -> {self.after:.4f}"


@dataclass(frozen=True)
class Converted:
    """One word that was written.

    Attributes:
        typed: how the word is written in the program's prompts; None for dti.
        remark: what else to note there; None for nothing.
    """

    source: str
    token: str
    target: Target
    files: tuple[Path, ...]
    typed: str | None
    remark: str | None
    rescaled: tuple[Rescaled, ...] = ()

    def lines(self) -> Iterator[str]:
        title = "dti" if self.target == "dti" else programs.program(self.target).title
        yield from (f"{console.printable(str(file))}: {self.token} for {title}" for file in self.files)
        yield from (f"  {each}" for each in self.rescaled)
        if self.typed:
            yield f"  in prompts: {self.typed}{f' ({self.remark})' if self.remark else ''}"


@dataclass(frozen=True)
class Conversions:
    """All words that were written."""

    words: tuple[Converted, ...]

    def lines(self) -> Iterator[str]:
        for word in self.words:
            yield from word.lines()


def command(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Token files of any tool, folders that hold one, or hub ids.",
            autocompletion=completion.token_files,
        ),
    ],
    to: Annotated[Target, typer.Option("--to", help="Program to write for; dti: dti's own layout.")] = "dti",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: the program's name.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="New name of the word; with one file only.")
    ] = None,
    pick: Annotated[
        str | None, typer.Option(help="Name of the word to read from a file with several.")
    ] = None,
    rescale: Annotated[
        str | None,
        typer.Option(help="New norm of the vectors: mean or median of the model's vocabulary, 0.4, 2x."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model the words are for, if the files do not say.", autocompletion=completion.models
        ),
    ] = None,
    base: Base = None,
    variant: Annotated[str | None, typer.Option(help="Weight files to read, such as fp16.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never contact the hub.")] = False,
    title: Annotated[str | None, typer.Option(help="Title to record; default: the word.")] = None,
    author: Annotated[str | None, typer.Option(help="Author to record.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence to record, such as cc-by-4.0.")] = None,
    date: Annotated[str | None, typer.Option(help="Date to record, YYYY-MM-DD.")] = None,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write token files for other programs, and rescale inflated vectors to the vocabulary's norm.

    Example: dti convert dog.safetensors --to comfyui
    """
    from dticli import atomic
    from dticli.words import conversion, learned_word, repositories

    said = _descriptions(title=title, author=author, license=license, date=date)
    if token is not None:
        token = learned_word.named(token)
        if len(files) > 1:
            raise UsageError(f"--token {token} for {len(files)} files: expected one; convert them one by one")
    folder = out or Path(to)
    contents: dict[Path, bytes] = {}
    words = []
    for file in files:
        source = repositories.read(file, pick=pick, offline=offline)
        for repair in source.repairs:
            console.warn(f"{file}: {repair}")
        chosen = _model(source.token, model, base, variant, offline, needed=rescale is not None)
        word, rescaled = _prepared(source.token, chosen, token, rescale)
        written = {
            folder / name: data
            for name, data in conversion.export(conversion.described(word, said), to).items()
        }
        _require_distinct(contents, written, file)
        contents |= written
        words.append(_converted(file, word, to, tuple(written), rescaled))
        _warn(word, to, chosen)
    atomic.require_writable(contents, force=force)
    for path, data in contents.items():
        atomic.write_bytes(path, data)
    console.show(Conversions(tuple(words)), as_json=json)


def _descriptions(**given: str | None) -> dict[str, str]:
    """The descriptions that were given.

    Raises:
        UsageError: a text is not one printable line, or the date is invalid.
    """
    said = {name: text for name, text in given.items() if text}
    for name, text in said.items():
        if not text.isprintable():
            raise UsageError(f"--{name} holds line breaks or control characters: expected one line of text")
    try:
        calendar.fromisoformat(said.get("date", "2000-01-01"))
    except ValueError:
        raise UsageError(f"--date {said['date']!r}: expected a day such as 2025-12-31") from None
    return said


def _model(
    token: "Token", option: str | None, base: str | None, variant: str | None, offline: bool, *, needed: bool
) -> "Model | None":
    """The model of a word: the one on the command line, else the recorded one if it is needed, else None.

    Raises:
        UsageError: a model is needed, and there is none.
    """
    from dticli.models import choice, contents
    from dticli.words import base_model

    recorded = base_model.usable_model(token.metadata)
    if not option and not needed:
        return None
    if not option and not recorded:
        raise UsageError(
            f"{token.name} does not say which model it is for: expected one, because the norm depends on its vocabulary; name "
            f"it with --model"
        )
    chosen = choice.choose(option, recorded=recorded, base=base, variant=variant, offline=offline)
    console.notice(contents.announcement(chosen))
    return chosen


def _prepared(
    token: "Token", model: "Model | None", name: str | None, rule: str | None
) -> "tuple[Token, tuple[Rescaled, ...]]":
    """The word, renamed and rescaled, and the changes of its norms."""
    from dticli.models import contents, embeddings
    from dticli.words import conversion, learned_word, norms

    family = contents.family(model) if model else None
    word = conversion.of_family(token, family.name if family else None)
    if name:
        word = conversion.renamed(word, name)
    if not (rule and model and family):
        return word, ()
    tables: Mapping[str, Table] = embeddings.by_key(contents.tables(model), family.encoders)
    vocabulary = {key: norms.summary(table) for key, table in tables.items()}
    scaled = conversion.rescaled(word, vocabulary, rule)
    console.notice(f"{word.name}: {conversion.DIRECTION_ONLY}")
    before = learned_word.fit(word, conversion.widths(scaled))
    return scaled, tuple(
        Rescaled(key, *(float(learned_word.lengths(each).mean()) for each in (before.rows[key], rows)))
        for key, rows in scaled.rows.items()
    )


def _require_distinct(contents: Mapping[Path, bytes], written: Mapping[Path, bytes], file: str) -> None:
    twice = next((path for path in written if path in contents), None)
    if twice:
        raise UsageError(
            f"{file} and a file before it both become {twice}: expected words of different names; convert one with --token"
        )


def _converted(
    source: str, word: "Token", target: Target, files: tuple[Path, ...], rescaled: tuple[Rescaled, ...]
) -> Converted:
    from dticli.words import conversion

    if target == "dti":
        return Converted(source, word.name, target, files, None, None, rescaled)
    program = programs.program(target)
    family = programs.candidates(conversion.widths(word), word.metadata.get("dti.family"))[0]
    typed = programs.typed(program, word.name, programs.stem_of(word.name), family, conversion.count(word))
    return Converted(source, word.name, target, files, typed, program.remarks.get(family), rescaled)


def _warn(word: "Token", target: Target, model: "Model | None") -> None:
    """Warn if the word's name in the program is an everyday word, which many prompts contain."""
    from dticli.words import conversion

    stem = programs.stem_of(word.name)
    if target == "dti" or programs.program(target).typed != "{stem}":
        return
    if conversion.is_everyday(stem, word.metadata, _vocabularies(model)):
        console.warn(
            f"{stem} is an everyday word, and {programs.program(target).title} would use yours in every prompt that contains "
            f"it; rename it, for example with --token '<my-{stem}>'"
        )


def _vocabularies(model: "Model | None") -> "Sequence[Mapping[str, int]]":
    """Vocabularies of the tokenizers of the bundled model and, if there is one, of `model`."""
    from dticli import bundled
    from dticli.models import choice, contents

    at_hand = [choice.choose(bundled.MODEL_NAME), *([model] if model else [])]
    return [
        tokenizer.get_vocab()
        for each in at_hand
        for tokenizer in contents.tokenizers(each, contents.family(each))
    ]
