"""`dti interpolate`: the way from one learned word to another, as pictures, an animation, or a word of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dticli import console
from dticli.commands.options import Debug, Force, Json, Quiet, with_settings
from dticli.errors import UsageError
from dticli.settings import GenerateSettings, model_layer, resolve

if TYPE_CHECKING:
    from dticli.words.learned_word import Token

# What a word between two words still shares with the first: its model, not how it was learned.
KEPT = frozenset(
    {"dti.model", "dti.model_kind", "dti.family", "dti.tables", "dti.lstrip", "dti.magnitude"}
    | {f"modelspec.{name}" for name in ("sai_model_spec", "architecture", "implementation", "resolution")}
)


@dataclass(frozen=True)
class Interpolated:
    """What was written.

    Attributes:
        file: pictures, or the token file of the word in between.
        model: that drew the pictures; None for a token file.
        degrees: angle between neighbouring words, by encoder, mean over vectors.
    """

    file: Path
    model: str | None
    frames: int
    degrees: tuple[dict[str, float], ...]

    def lines(self) -> Iterator[str]:
        for leg in self.degrees:
            yield "angle between the words: " + ", ".join(
                f"{key} {value:.1f} degrees" for key, value in leg.items()
            )
        yield (
            f"{self.file}: {self.frames} frames"
            if self.model
            else f"{self.file}: use it with dti generate -t {self.file}"
        )


@with_settings(GenerateSettings)
def command(
    given: dict[str, Any],
    tokens: Annotated[
        list[str], typer.Argument(help="Two or more token files of one model, in the order to visit.")
    ],
    prompt: Annotated[str, typer.Option(help="Sentence with {} where the word goes.")] = "a photo of {}",
    frames: Annotated[int, typer.Option("--frames", "-n", min=2, help="Pictures, ends included.")] = 9,
    path: Annotated[
        Literal["slerp", "lerp"], typer.Option(help="slerp turns the direction; lerp is a straight line.")
    ] = "slerp",
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".gif, .webp or .mp4 moves; .png is a strip.")
    ] = Path("interpolation.png"),
    seconds: Annotated[float, typer.Option(min=0.1, help="How long an animation lasts.")] = 3.0,
    save: Annotated[
        Path | None, typer.Option(help="Write the word at --at to this token file instead of pictures.")
    ] = None,
    at: Annotated[float, typer.Option(min=0.0, max=1.0, help="Where on the way --save takes it.")] = 0.5,
    token: Annotated[str, typer.Option(help="What --save calls it.")] = "<mix>",
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw the way from one learned word to another, with the same noise in every frame.

    Example: dti interpolate dog.safetensors cat.safetensors --prompt "a photo of {}" --frames 9 --out morph.gif
    """
    from dticli import atomic
    from dticli.draw import pictures, pipeline, sampler
    from dticli.words import base_model

    if len(tokens) < 2:
        raise UsageError("one token file: expected two or more to go between; name another")
    read = [base_model.read_token(each, offline=bool(given["offline"])) for each in tokens]
    if save:
        console.show(_save(save, read, at, path, token, given["pooling"], force), as_json=json)
        return
    if "{}" not in prompt:
        raise UsageError(
            f"the prompt {prompt!r} has no {{}}: expected it where the word goes; write 'a photo of {{}}'"
        )
    pictures.require_animation(out)
    atomic.require_writable([out], force=force)
    opened = base_model.open_model(given, read)
    settings = resolve(GenerateSettings, given, model_layer(opened.model.folder, "generate"))
    loaded = pipeline.load(opened, settings, read)
    drawn = pipeline.draw_way(loaded, opened, path, frames, prompt, [settings.seed], settings, quiet=quiet)
    pictures.save_animation(out, [picture.image for picture in drawn], seconds)
    turns = sampler.turns([word.rows for word in loaded.words])
    console.show(Interpolated(out, opened.model.label, frames, turns), as_json=json)


def _save(
    target: Path, tokens: "Sequence[Token]", at: float, path: str, name: str, pooled: str | None, force: bool
) -> Interpolated:
    """Write the word at `at` as a token file that remembers where it came from; warns where words are of several models."""
    from dticli.draw import sampler
    from dticli.words import learned_word, pooling, token_writing

    if len({token.metadata.get("dti.tables") for token in tokens} - {None}) > 1:
        console.warn(
            "the words were learned on models whose vocabularies differ: what lies between them may mean nothing"
        )
    pooled = pooled or pooling.recorded([(token.name, token.metadata) for token in tokens])

    stops = [token.vectors for token in tokens]
    (rows,) = sampler.way(stops, [at], path)
    kept = {key: value for key, value in tokens[0].metadata.items() if key in KEPT}
    origin = {
        "dti.token": name,
        "dti.method": path,
        "dti.at": str(at),
        "dti.pooling": pooled,
        "dti.between": ", ".join(
            f"{token.name} sha256:{token_writing.content_hash(token)[:16]}" for token in tokens
        ),
    }
    token_writing.write(target, learned_word.Token(name, rows, kept | origin), force=force)
    return Interpolated(target, None, 1, sampler.turns(stops))
