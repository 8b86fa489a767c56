"""`dti report`: writes an HTML page about a word and its run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import Debug, Force, Json
from dticli.errors import UsageError


@dataclass(frozen=True)
class Written:
    """Pages that were written."""

    files: tuple[Path, ...]

    def lines(self) -> Iterator[str]:
        yield from (f"{file}: open it in any browser" for file in self.files)


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, token files, hub ids, or states like dog.run@200.",
            autocompletion=completion.words,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="HTML file, or a folder for several words; default: report.html in each run."
        ),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Output of dti evaluate --json, to include its scores.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never contact the hub.")] = False,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an HTML report about a word: photos, previews, loss, nearest words, norms, settings. It needs no network.

    Example: dti report dog.run --out report.html
    """
    with console.busy("loading"):
        from dticli import atomic
        from dticli.report import gathering, page

    targets = [_target(word, out, many=len(words) > 1) for word in words]
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice:
        raise UsageError(f"two reports would be {twice}: expected different words; name each once")
    atomic.require_writable(targets, force=force)
    for word, target in zip(words, targets, strict=True):
        report = gathering.gather(word, evaluation, offline=offline)
        atomic.write_text(target, page.html(report))
    console.show(Written(tuple(targets)), as_json=json)


def _target(word: str, out: Path | None, *, many: bool) -> Path:
    """The file of a word's page.

    Raises:
        UsageError: `out` does not end in .html or .htm.
    """
    path = Path(word)
    if out is None:
        return path / "report.html" if os.path.isdir(path) else Path(f"{path.stem}.html")
    if many:
        return out / f"{path.stem}.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"cannot write {out}: expected a name ending in .html; choose another name")
    return out
