"""`dti mix`: writes a mix of words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import Debug, Force, Json
from dticli.errors import UsageError
from dticli.settings import PathKind

# Metadata that a mix takes from the first word: about its model, not about its training.
KEPT = frozenset(
    {"dti.model", "dti.model_kind", "dti.family", "dti.tables", "dti.lstrip", "dti.magnitude"}
    | {f"modelspec.{name}" for name in ("sai_model_spec", "architecture", "implementation", "resolution")}
)


@dataclass(frozen=True)
class MixedWord:
    """One of the mixed words.

    Attributes:
        share: its weight; all weights sum to 1.
        degrees: its angle to the mix by encoder, mean over vectors.
    """

    source: str
    token: str
    share: float
    degrees: Mapping[str, float]

    def __str__(self) -> str:
        turned = ", ".join(f"{key} {value:.1f} degrees" for key, value in self.degrees.items())
        return f"{self.share:.1%} {self.token} of {self.source}: {turned} away"


@dataclass(frozen=True)
class Mixed:
    """The word that was written."""

    file: Path
    token: str
    parts: tuple[MixedWord, ...]

    def lines(self) -> Iterator[str]:
        yield from map(str, self.parts)
        yield f"{self.file}: {self.token}; use it with dti generate -t {self.file}"


def command(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Two or more token files of one model.",
            autocompletion=completion.token_files,
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(help="Weight of each word, such as 2,1,1; default: equal weights."),
    ] = None,
    token: Annotated[str, typer.Option(help="Name of the new word.")] = "<mix>",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Token file; default: the token's name.")
    ] = None,
    path: Annotated[
        PathKind, typer.Option(help="slerp: mean of the directions on the sphere; lerp: mean of the vectors.")
    ] = "slerp",
    pooling: Annotated[
        Literal["stock", "eos"] | None,
        typer.Option(
            help="Where CLIP's pooled state is read, if the words were learned with different settings."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never contact the hub.")] = False,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a new word between learned ones: the weighted mean of their directions on the sphere.

    Example: dti mix dog.safetensors cat.safetensors fox.safetensors --weights 2,1,1 --token "<mix>"
    """
    from dticli.words import base_model, learned_word, mixing, programs, token_writing
    from dticli.words import pooling as poolings

    token = learned_word.named(token)
    if len(files) < 2:
        raise UsageError("one token file: expected two or more to mix; name another")
    shares = mixing.shares(_weights(weights, len(files)))
    words = [base_model.read_token(each, offline=offline) for each in files]
    if len({word.metadata.get("dti.tables") for word in words} - {None}) > 1:
        console.warn(
            "the words were learned on models whose vocabularies differ: what lies between them may mean nothing"
        )
    chosen = pooling or poolings.recorded([(word.name, word.metadata) for word in words])
    ends = [word.vectors for word in words]
    mixing.require_alike(ends)
    rows = mixing.mixed(ends, shares, path)
    kept = {key: value for key, value in words[0].metadata.items() if key in KEPT}
    origin = {
        "dti.token": token,
        "dti.method": path,
        "dti.weights": ",".join(f"{share:g}" for share in shares),
        "dti.pooling": chosen,
        "dti.between": ", ".join(
            f"{word.name} sha256:{token_writing.content_hash(word)[:16]}" for word in words
        ),
    }
    target = out or Path(f"{programs.stem_of(token)}.safetensors")
    token_writing.write(target, learned_word.Token.of(token, rows, kept | origin), force=force)
    parts = [
        MixedWord(source, word.name, share, mixing.degrees(rows, word.vectors))
        for source, word, share in zip(files, words, shares, strict=True)
    ]
    console.show(Mixed(target, token, tuple(parts)), as_json=json)


def _weights(text: str | None, count: int) -> list[float]:
    """The weights on the command line; equal weights by default.

    Raises:
        UsageError: there are not `count` numbers.
    """
    if text is None:
        return [1.0] * count
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count:
        raise UsageError(
            f"--weights {text} for {count} token files: expected a number for each, such as {','.join('2' + '1' * (count - 1))}"
        )
    return weights
