"""`dti example`: writes example photos."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dticli import atomic, bundled, console
from dticli.commands import completion
from dticli.commands.options import Debug, Force, Json
from dticli.errors import UsageError


@dataclass(frozen=True)
class Copied:
    """Photos that were written."""

    subject: str
    class_word: str
    files: tuple[Path, ...]

    def lines(self) -> Iterator[str]:
        folder = self.files[0].parent
        yield f"{len(self.files)} photos of a {self.subject} in {folder}"
        yield f'next: dti train {folder} --token "<{self.subject}>" --init {self.class_word} --model {bundled.MODEL_NAME}'


@dataclass(frozen=True)
class Listing:
    """Subjects with example photos."""

    subjects: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        yield from self.subjects


def command(
    folder: Annotated[Path | None, typer.Argument(help="Folder for the photos.")] = None,
    subject: Annotated[
        str,
        typer.Option(
            help="Subject of the photos.",
            autocompletion=completion.subjects,
        ),
    ] = "dog",
    listing: Annotated[bool, typer.Option("--list", help="List the subjects.")] = False,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write five example photos of a subject that the bundled model has never seen.

    Example: dti example ./photos --subject cat
    """
    if listing:
        console.show(Listing(tuple(known.name for known in bundled.subjects())), as_json=json)
        return
    if folder is None:
        raise UsageError("no folder given: expected where to write the photos; try dti example ./photos")
    known = {each.name: each for each in bundled.subjects()}
    sources = bundled.photos(subject)
    console.show(Copied(subject, known[subject].class_word, _copy(sources, folder, force)), as_json=json)


def _copy(sources: tuple[Path, ...], folder: Path, force: bool) -> tuple[Path, ...]:
    targets = tuple(folder / source.name for source in sources)
    atomic.require_writable(targets, force=force)
    for source, target in zip(sources, targets, strict=True):
        atomic.write_bytes(target, source.read_bytes())
    return targets
