"""`dti push`: uploads a word to the hub, with a card and pictures."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dticli import console, files
from dticli.commands import completion
from dticli.commands.options import Debug, Force, Json
from dticli.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from dticli.words.card import CardPicture

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_PICTURE = 16 * 2**20


@dataclass(frozen=True)
class Pushed:
    """A word that was uploaded.

    Attributes:
        files: in the repository.
        url: of the commit.
    """

    repository: str
    token: str
    files: tuple[str, ...]
    url: str

    def lines(self) -> Iterator[str]:
        yield f"{self.token} is at {self.url}: {', '.join(self.files)}"
        yield f'use it: dti generate "a photo of {self.token}" -t {self.repository}'


def command(
    file: Annotated[
        str,
        typer.Argument(
            help="Token file of any tool, or folder with one.", autocompletion=completion.token_files
        ),
    ],
    repository: Annotated[str, typer.Argument(help="Repository, user/name; created if it does not exist.")],
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            "--picture", "-p", help="Example picture for the card, such as one from generate; repeatable."
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Upload a word to the hub: dti's file, diffusers' files for each encoder, a model card made from the metadata, and pictures.

    Log in once with `hf auth login`, or set HF_TOKEN.

    Example: dti push dog.safetensors user/dog --picture pictures/0.png
    """
    from dticli.words import card, conversion, repositories

    named = repositories.Repository.named(repository)
    if named is None or named.revision or named.file:
        raise UsageError(
            f"no repository {repository!r}: expected user/name; write your own name before the slash"
        )
    token = conversion.described(conversion.read(Path(file)).token)
    contents = card.contents(named.name, token, _pictures(picture or []))
    url = repositories.push(
        named.name, contents, private=private, message=message or f"Add {token.name}", force=force
    )
    console.show(Pushed(named.name, token.name, tuple(sorted(contents)), url), as_json=json)


def _pictures(paths: Sequence[Path]) -> "list[CardPicture]":
    """Example pictures, with distinct names of plain characters."""
    pictures = []
    for number, path in enumerate(paths):
        pictures.append(_picture(path, number))
    return pictures


def _picture(path: Path, number: int) -> "CardPicture":
    from PIL import Image

    from dticli.photos.decoding import DAMAGED
    from dticli.words.card import CardPicture

    kind = SUFFIXES.get(path.suffix.lower())
    if not kind or files.problem(path):
        raise InputError(f"no picture {path}: expected {', '.join(SUFFIXES)}; check the path")
    if path.stat().st_size > MAX_PICTURE:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes: expected at most {MAX_PICTURE}; make it smaller"
        )
    try:
        with Image.open(path, formats=[kind]) as image:
            image.verify()
        with Image.open(path, formats=[kind]) as image:
            prompt = getattr(image, "text", {}).get("prompt")
            content = _without_exif(image, kind) or path.read_bytes()
    except DAMAGED as error:
        raise InputError(f"{path} is no {kind} picture ({error}): expected one; draw it again") from None
    stem = re.sub(r"[^a-z0-9-]+", "-", path.stem.lower()).strip("-")[:48]
    return CardPicture(f"{number}-{stem or 'picture'}{path.suffix.lower()}", content, prompt)


def _without_exif(image: "Image", kind: str) -> bytes | None:
    """The picture without its EXIF data, such as the location, rotated upright; None if it has none."""
    from PIL import ImageOps

    if not image.getexif():
        return None
    buffer = io.BytesIO()
    upright = ImageOps.exif_transpose(image)
    upright.info.clear()
    upright.save(buffer, kind, quality=95)
    return buffer.getvalue()
