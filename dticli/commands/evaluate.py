"""`dti evaluate`: judges pictures of words, or carries out a plan of methods, subjects and seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import bundled, console
from dticli.commands import completion
from dticli.commands.options import Debug, Force, Json, Noun, Quiet, Together, drawing_settings, with_settings
from dticli.errors import UsageError
from dticli.evaluation import COUNT, IMAGE_JUDGE, PROMPT_SET, TEXT_JUDGE
from dticli.settings import GenerateSettings, Group

if TYPE_CHECKING:
    from dticli.evaluation.measure import Mean, PromptScore
    from dticli.evaluation.summary import PlanResult


@dataclass(frozen=True)
class Evaluated:
    """The figures of a word.

    Attributes:
        noun: replaced the word in the prompts for the judge.
        pictures: number of its pictures.
        likeness, alignment: means over prompts.
        elements: share of pictures that show each element; empty if the judge does not look for elements.
        leakage: how often one of two things shows the other's colour; None if that is not applicable.
    """

    source: str
    token: str
    noun: str
    pictures: int
    likeness: "Mean"
    alignment: "Mean"
    elements: Mapping[str, float]
    leakage: float | None
    prompts: "tuple[PromptScore, ...]"


@dataclass(frozen=True)
class Evaluation:
    """The figures of all words.

    Attributes:
        photos: number of photos that the pictures were compared with.
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
            if word.elements:
                # Alignment excludes the word's own noun, which does not show that the rest of a prompt is followed.
                shares = ", ".join(f"{name} {share:.0%}" for name, share in word.elements.items())
                leaked = (
                    ""
                    if word.leakage is None
                    else f"; a thing shows the other's colour in {word.leakage:.0%}"
                )
                yield f"  seen in its pictures: {shares}{leaked}; alignment is the mean share of all but noun"
            for each in word.prompts:
                yield f"  likeness {each.likeness:.3f}, alignment {each.alignment:.3f}: {each.prompt}"


@with_settings(GenerateSettings)
def command(
    given: dict[str, Any],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Token files, folders or hub ids.",
            autocompletion=completion.token_files,
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(help="Folder of photos, preferably not the training photos."),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            help="Folder with a mask for each photo, or alpha: only the subject is compared.",
            rich_help_panel=Group.PHOTOS,
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="TOML file with arms to compare, or a plan of dti such as stickers; finished work is kept.",
            autocompletion=completion.plans,
        ),
    ] = None,
    prompt_set: Annotated[
        str | None,
        typer.Option(
            help=f"simple, complex, stickers, stickers-complex, or a file with one prompt per line. Default: {PROMPT_SET}.",
            autocompletion=completion.prompt_sets,
        ),
    ] = None,
    noun: Noun = None,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help=f"Pictures per prompt. Default: {COUNT}."),
    ] = None,
    image_judge: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=Group.METHOD,
            help=f"Vision model: dinov2, stickers-a, stickers-b, a hub id or a folder. Default: {IMAGE_JUDGE}.",
        ),
    ] = None,
    text_judge: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=Group.METHOD,
            help=f"siglip, clip, stickers-a, stickers-b, a hub id or a folder. Default: {TEXT_JUDGE}.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the pictures, or for all files of a plan."),
    ] = None,
    together: Together = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate learned words: likeness to photos, and alignment with prompts.

    Example: dti evaluate dog.safetensors --photos ./more-photos
    """
    if plan is None:
        if together:
            raise UsageError(
                f"--together {together} without --plan: expected a plan, since nothing is learned otherwise; leave it out"
            )
        if not files or not photos:
            raise UsageError("nothing to judge: expected token files and --photos, or --plan; add them")
        how = _How(
            prompt_set or PROMPT_SET,
            count or COUNT,
            image_judge or IMAGE_JUDGE,
            text_judge or TEXT_JUDGE,
            quiet,
        )
        console.show(_words(given, files, photos, masks, noun, how, out, force), as_json=json)
        return
    beside = {
        "FILES": files, "--photos": photos, "--masks": masks, "--noun": noun, "--prompt-set": prompt_set, "--count": count,
        "--image-judge": image_judge, "--text-judge": text_judge, "--seed": given["seed"],
    }  # fmt: skip
    if misplaced := [name for name, value in beside.items() if value is not None]:
        raise UsageError(
            f"--plan cannot be combined with {', '.join(misplaced)}: expected these in the plan's file; leave them out"
        )
    console.show(_planned(given, plan, out, together or 1, force, quiet), as_json=json)


@dataclass(frozen=True)
class _How:
    """How words are judged."""

    prompt_set: str
    count: int
    image_judge: str
    text_judge: str
    quiet: bool


def _words(
    given: Mapping[str, Any],
    files: Sequence[str],
    folder: Path,
    masks: str | None,
    noun: str | None,
    how: _How,
    out: Path | None,
    force: bool,
) -> Evaluation:
    with console.busy("loading", quiet=how.quiet):
        from dticli import atomic
        from dticli.evaluation import drawing, prompts, stickers
        from dticli.evaluation.jury import Jury
        from dticli.models import devices
        from dticli.photos import albums
        from dticli.words import base_model

    known = bundled.subject_of(folder)
    asked = stickers.asking(prompts.read(how.prompt_set), known.look if known else None)
    tokens = [base_model.read_token(each, offline=bool(given["offline"])) for each in files]
    nouns = [noun or drawing.noun(source, token) for source, token in zip(files, tokens, strict=True)]
    album = albums.read(folder, masks)
    opened = base_model.open_model(given, tokens)
    settings = drawing_settings(given, opened)
    device = devices.pick_device(settings.device)
    shots = [drawing.shots(token.name, asked, settings.seed, how.count) for token in tokens]
    kept = [drawing.files(out / str(index), each) if out else [] for index, each in enumerate(shots)]
    # Existing files and missing judges are found before the first picture is drawn.
    atomic.require_writable([file for each in kept for file in each], force=force)
    with console.busy(f"loading judges and {opened.model.label}", quiet=how.quiet):
        jury = Jury.load(
            opened, settings, asked, album.photos, nouns, device,
            image_judge=how.image_judge, text_judge=how.text_judge,
        )  # fmt: skip
    results = []
    for index, token in enumerate(tokens):
        scores = jury.scores(
            token,
            nouns[index],
            shots[index],
            kept[index],
            progress=partial(console.progress, quiet=how.quiet),
        )
        results.append(_evaluated(files[index], token.name, nouns[index], len(shots[index]), scores))
    return Evaluation(opened.model.label, how.image_judge, how.text_judge, len(album.photos), tuple(results))


def _evaluated(
    source: str, name: str, noun: str, pictures: int, scores: "tuple[PromptScore, ...]"
) -> Evaluated:
    from dticli.evaluation import measure

    return Evaluated(
        source=source,
        token=name,
        noun=noun,
        pictures=pictures,
        likeness=measure.mean([score.likeness for score in scores]),
        alignment=measure.mean([score.alignment for score in scores]),
        elements=measure.elements(scores),
        leakage=measure.leakage(scores),
        prompts=scores,
    )


def _planned(
    given: Mapping[str, Any], name: str, out: Path | None, together: int, force: bool, quiet: bool
) -> "PlanResult":
    from dticli.evaluation import plan as plans

    plan = plans.read(name)
    with console.busy("loading", quiet=quiet):
        from dticli.evaluation import execution

    return execution.carry_out(
        plan,
        given,
        out or Path(f"{plan.name}-results"),
        together=together,
        force=force,
        quiet=quiet,
        progress=partial(console.progress, quiet=quiet),
    )
