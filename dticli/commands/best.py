"""`dti best`: chooses the best kept state of a run, according to judges."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import bundled, console
from dticli.commands import completion
from dticli.commands.options import Debug, Json, Noun, Quiet, drawing_settings, with_settings
from dticli.evaluation import IMAGE_JUDGE, PROMPT_SET, TEXT_JUDGE
from dticli.settings import GenerateSettings, Group, TrainSettings, first_said, read_config

if TYPE_CHECKING:
    from dticli.evaluation.best import State

OF_STICKERS = ("stickers-b", "stickers-b", "stickers-complex")
"""Image judge, text judge and prompt set for the bundled model."""


@dataclass(frozen=True)
class Chosen:
    """The best state of a run.

    Attributes:
        step: of the best state.
        how: how it was chosen.
    """

    run: Path
    step: int
    how: str
    states: "tuple[State, ...]"

    def lines(self) -> Iterator[str]:
        for state in self.states:
            mark = (
                "best"
                if state.behind is None
                else "clearly worse"
                if state.is_clearly_worse
                else "within chance"
            )
            yield (
                f"step {state.step}: likeness {state.likeness}, alignment {state.alignment}, "
                f"their product {state.score}: {mark}"
            )
        yield f"{self.run}@best is step {self.step}: {self.how}"
        yield f"use it: dti generate ... -t {self.run}@best"


@with_settings(GenerateSettings)
def command(
    given: dict[str, Any],
    run: Annotated[
        Path,
        typer.Argument(help="Run folder with states (from train --keep).", autocompletion=completion.runs),
    ],
    photos: Annotated[
        Path | None, typer.Option(help="Photos to compare with; default: those learned from.")
    ] = None,
    prompt_set: Annotated[
        str | None,
        typer.Option(
            help=f"As for evaluate. Default: {PROMPT_SET}; for the bundled model, {OF_STICKERS[2]}.",
            autocompletion=completion.prompt_sets,
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures per prompt.")] = 1,
    image_judge: Annotated[
        str | None,
        typer.Option(
            help=f"As for evaluate. Default: {IMAGE_JUDGE}; for the bundled model, {OF_STICKERS[0]}.",
            rich_help_panel=Group.METHOD,
        ),
    ] = None,
    text_judge: Annotated[
        str | None,
        typer.Option(
            help=f"As for evaluate. Default: {TEXT_JUDGE}; for the bundled model, {OF_STICKERS[1]}.",
            rich_help_panel=Group.METHOD,
        ),
    ] = None,
    noun: Noun = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the best of a run's states: similar to the photos and faithful to the prompts. It can then be used as RUN@best.

    Example: dti best dog.run && dti generate "<dog> in the snow" -t dog.run@best
    """
    with console.busy("loading", quiet=quiet):
        from dticli.evaluation import best, drawing, prompts, stickers
        from dticli.evaluation.jury import Jury
        from dticli.learn.run_folder import SETTINGS
        from dticli.models import devices
        from dticli.photos import albums
        from dticli.words import base_model, token_reading

    kept = best.require_states(run)
    learned = read_config(TrainSettings, run / SETTINGS)
    folder = photos or Path(learned.get("photos", ""))
    tokens = {step: token_reading.read(file) for step, file in kept.items()}
    noun = noun or drawing.noun(str(run), tokens[max(tokens)])
    album = albums.read(folder, None if photos else learned.get("masks"))
    opened = base_model.open_model(first_said([given, learned]), [*tokens.values()])
    judged_by = OF_STICKERS if opened.model.kind == "bundled" else (IMAGE_JUDGE, TEXT_JUDGE, PROMPT_SET)
    image_judge, text_judge, prompt_set = (
        said or default
        for said, default in zip((image_judge, text_judge, prompt_set), judged_by, strict=True)
    )
    settings = drawing_settings(given, opened)
    known = bundled.subject_of(folder)
    asked = stickers.asking(prompts.read(prompt_set), known.look if known else None)
    device = devices.pick_device(settings.device)
    with console.busy(f"loading judges and {opened.model.label}", quiet=quiet):
        jury = Jury.load(
            opened, settings, asked, album.photos, [noun], device,
            image_judge=image_judge, text_judge=text_judge,
        )  # fmt: skip
    scores = {}
    for step, token in tokens.items():
        # The same noise for every state, so that only the word differs.
        shots = drawing.shots(token.name, asked, settings.seed, count)
        scores[step] = jury.scores(
            token, noun, shots, what=f"step {step}, picture", progress=partial(console.progress, quiet=quiet)
        )
    states = best.ranked(scores)
    (first,) = [state.step for state in states if state.behind is None]
    how = (
        f"the highest mean of likeness ({image_judge}) x alignment ({text_judge}) over {len(asked)} prompts "
        f"({prompt_set}), {count} pictures each, of {len(states)} states"
    )
    best.keep(run, first, how)
    console.show(Chosen(run, first, how, states), as_json=json)
