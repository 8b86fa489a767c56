"""`dti info`: shows the content of a token file, which programs can load it, and how its word is written there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import Debug, Json
from dticli.words.programs import PROGRAMS, SOLE, Verdict, verdict

if TYPE_CHECKING:
    from dticli.words.conversion import Source


@dataclass(frozen=True)
class Vectors:
    """A word's vectors in one encoder.

    Attributes:
        encoder: its key; None if neither the file nor the width determines it.
        file, tensor: names of the file and of the tensor in it.
        stored: dtype and shape there.
        norms: of each vector.
    """

    encoder: str | None
    file: str
    tensor: str
    stored: str
    count: int
    width: int
    norms: tuple[float, ...]

    def __str__(self) -> str:
        lengths = ", ".join(f"{norm:.4f}" for norm in self.norms[:8]) + (
            ", ..." if len(self.norms) > 8 else ""
        )
        count = f"{self.count} vector{'' if self.count == 1 else 's'}"
        return (
            f"{self.encoder or 'one encoder'}: {count} of width {self.width}, norm {lengths} "
            f"({self.stored} under {self.tensor} in {self.file})"
        )


@dataclass(frozen=True)
class Info:
    """A word and its files. Texts of the file, which is not trusted, are made printable.

    Attributes:
        families: possible model families; only the recorded one if there is one.
        learned_on: the recorded model; None if there is none.
        content_hash: SHA-256 of the vectors, as in `modelspec.hash_sha256`.
        repairs: made while reading, one phrase each.
        programs: whether and how each program can use it.
    """

    source: str
    token: str
    container: str
    vectors: tuple[Vectors, ...]
    families: tuple[str, ...]
    learned_on: str | None
    content_hash: str
    metadata: Mapping[str, str]
    repairs: tuple[str, ...]
    programs: tuple[Verdict, ...]

    def lines(self) -> Iterator[str]:
        yield f"{self.source}: {self.token}, a {self.container} file"
        yield from (f"  {each}" for each in self.vectors)
        yield from (f"  repaired: {each}" for each in self.repairs)
        yield f"  family: {' or '.join(self.families) or 'unknown'}{'' if 'dti.family' in self.metadata else ' (guessed)'}"
        if self.learned_on:
            yield f"  learned on: {self.learned_on}"
        yield f"  content: sha256:{self.content_hash}"
        yield from (f"  {key}: {value}" for key, value in self.metadata.items())
        yield f"in dti: {self.token}"
        yield from (f"in {each}" for each in self.programs)


def command(
    file: Annotated[
        str,
        typer.Argument(
            help="Token file of any tool, folder with one, or hub id.",
            autocompletion=completion.token_files,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="Model the word is for, if the file does not say.", autocompletion=completion.models
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never contact the hub.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a token file contains, where it comes from, which programs can load it and how to write the word in them.

    Example: dti info dog.safetensors
    """
    from dticli.words import repositories

    source = repositories.read(file, offline=offline)
    if model:
        source = source.of_family(_family(model, offline))
    console.show(_info(file, source), as_json=json)


def _family(model: str, offline: bool) -> str:
    """The name of a model's family."""
    from dticli.models import choice, contents

    return contents.family(choice.choose(model, offline=offline)).name


def _info(name: str, source: "Source") -> Info:
    from dticli.words import token_writing

    token = source.token
    described = source.described()
    metadata = {_plain(key): _plain(value) for key, value in sorted(token.metadata.items())}
    return Info(
        source=_plain(name),
        token=token.name,
        container=described.container,
        vectors=tuple(_vectors(source)),
        families=source.families,
        learned_on=metadata.get("dti.model"),
        content_hash=token_writing.content_hash(token),
        metadata=metadata,
        repairs=tuple(map(_plain, source.repairs)),
        programs=tuple(verdict(each, described, source.families) for each in PROGRAMS),
    )


def _vectors(source: "Source") -> Iterator[Vectors]:
    from dticli.words import learned_word

    stored = [(file, each) for file, layout in source.layouts.items() for each in layout.tensors.values()]
    for (key, rows), (file, each) in zip(source.token.rows.items(), stored, strict=True):
        yield Vectors(
            encoder=None if key == SOLE else key,
            file=_plain(file),
            tensor=_plain(each.name),
            stored=f"{each.dtype} {list(each.shape)}",
            count=len(rows),
            width=rows.shape[1],
            norms=tuple(learned_word.lengths(rows).tolist()),
        )


def _plain(text: str) -> str:
    return console.printable(text)
