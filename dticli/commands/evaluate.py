"""`dti evaluate`: token files and photos in, figures out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import console
from dticli.errors import UsageError
from dticli.options import Debug, Force, Json, Quiet, with_settings
from dticli.settings import GenerateSettings, model_layer, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from dticli.evaluation.judges import Alignment, Likeness
    from dticli.evaluation.measure import Mean, PromptScore
    from dticli.sampler import Picture, Shot
    from dticli.token_file import Token


@dataclass(frozen=True)
class Evaluated:
    """A word, judged.

    Attributes:
        noun: what stood in the word's place in the sentences the judge read.
        likeness, alignment: means over prompts.
    """

    source: str
    token: str
    noun: str
    pictures: int
    likeness: "Mean"
    alignment: "Mean"
    prompts: "tuple[PromptScore, ...]"


@dataclass(frozen=True)
class Evaluation:
    """All words, beside each other.

    Attributes:
        photos: how many the pictures were compared with.
    """

    model: str
    image_judge: str
    text_judge: str
    photos: int
    words: tuple[Evaluated, ...]

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.model}; likeness to {self.photos} photos by {self.image_judge}, fit to the prompt by {self.text_judge}; "
            "means over prompts with their 95 % bootstrap intervals"
        )
        for word in self.words:
            yield (
                f"{word.source}: {word.token} as {word.noun!r}, {word.pictures} pictures: "
                f"likeness {word.likeness}, alignment {word.alignment}"
            )
            for each in word.prompts:
                yield f"  likeness {each.likeness:.3f}, alignment {each.alignment:.3f}: {each.prompt}"


@with_settings(GenerateSettings)
def command(
    given: dict[str, Any],
    files: Annotated[
        list[str],
        typer.Argument(help="Token files, folders or hub ids; all are compared with the same photos."),
    ],
    photos: Annotated[
        Path, typer.Option(help="Folder with photos of the thing; best some that were not learned from.")
    ],
    masks: Annotated[
        str | None,
        typer.Option(help="Folder with a mask for each photo, or alpha: only the subject is compared."),
    ] = None,
    prompt_set: Annotated[
        str,
        typer.Option(
            help="simple, complex (context first), or a file with a prompt a line, {} for the word."
        ),
    ] = "simple",
    noun: Annotated[
        str | None,
        typer.Option(help="What the thing is, for the judge; default: the word it was learned from."),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures a prompt.")] = 4,
    image_judge: Annotated[str, typer.Option(help="Vision model: dinov2, a hub id or a folder.")] = "dinov2",
    text_judge: Annotated[str, typer.Option(help="siglip, clip, a hub id or a folder.")] = "siglip",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Keep the pictures in this folder.")] = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Judge learned words: how like the photos their pictures are, and how well they follow the prompt.

    Example: dti evaluate dog.safetensors --photos ./more-photos --prompt-set complex
    """
    from dticli import atomic, models, sampler, session
    from dticli import photos as albums
    from dticli.evaluation import judges, prompts

    templates = prompts.read(prompt_set)
    tokens = [session.read_token(each, offline=bool(given["offline"])) for each in files]
    nouns = [noun or _noun(source, token) for source, token in zip(files, tokens, strict=True)]
    album = albums.read(photos, masks)
    opened = session.open_model(given, tokens)
    settings = resolve(GenerateSettings, given, model_layer(opened.model.folder, "generate"))
    device = models.pick_device(settings.device)
    shots = [_shots(token.name, templates, settings.seed, count) for token in tokens]
    kept = [_files(out, index, each) for index, each in enumerate(shots)]
    # Before the first picture: a file in the way, or a judge that is not there, must not cost the drawing.
    atomic.require_writable([file for each in kept for file in each], force=force)
    eyes = judges.likeness(image_judge, device, offline=settings.offline)
    reader = judges.alignment(text_judge, device, offline=settings.offline)
    wanted = eyes.features([albums.whole(photo) for photo in album.photos])
    pipe = session.pipeline(opened, settings)
    results = []
    for index, token in enumerate(tokens):
        # Each by itself: words of different pooling can be compared, and company changes no figure.
        loaded = session.with_words(pipe, opened, settings, [token])
        sampler.require_words_seen(pipe, opened.family, loaded.words, [shot.prompt for shot in shots[index]])
        every = max(1, len(shots[index]) // 10)
        drawn = session.draw(
            loaded, opened, shots[index], settings, files=kept[index], every=every, quiet=quiet
        )
        results.append(
            _judged(files[index], token.name, nouns[index], templates, drawn, wanted, eyes, reader)
        )
    console.show(
        Evaluation(opened.model.label, image_judge, text_judge, len(album.photos), tuple(results)),
        as_json=json,
    )


def _noun(source: str, token: "Token") -> str:
    """The word a token was learned from, if it was one."""
    init = token.metadata.get("dti.init", "")
    if not init or init in ("random", "mean") or ":" in init or Path(init).suffix:
        raise UsageError(
            f"{source} does not say what {token.name} is: expected a noun for the judge; name it with --noun"
        )
    return init


def _shots(name: str, templates: Sequence[str], seed: int, count: int) -> "tuple[Shot, ...]":
    from dticli import sampler

    return sampler.shots([template.replace("{}", name) for template in templates], seed, count)


def _files(out: Path | None, index: int, shots: "Sequence[Shot]") -> list[Path]:
    """Where the pictures of a word are kept; empty if they are not."""
    from dticli import pictures

    return (
        [out / str(index) / pictures.file_name(place, shot) for place, shot in enumerate(shots)]
        if out
        else []
    )


def _judged(
    source: str,
    name: str,
    noun: str,
    templates: Sequence[str],
    drawn: "Sequence[Picture]",
    photos: "Tensor",
    eyes: "Likeness",
    reader: "Alignment",
) -> Evaluated:
    """The figures of one word; `drawn` holds as many pictures of each template, in order."""
    from dticli.evaluation import measure

    each = len(drawn) // len(templates)
    scores = []
    for index, template in enumerate(templates):
        images = [picture.image for picture in drawn[index * each : (index + 1) * each]]
        text = template.replace("{}", noun)
        scores.append(measure.score(template, images, text, photos, eyes, reader))
    return Evaluated(
        source=source,
        token=name,
        noun=noun,
        pictures=len(drawn),
        likeness=measure.mean([score.likeness for score in scores]),
        alignment=measure.mean([score.alignment for score in scores]),
        prompts=tuple(scores),
    )
