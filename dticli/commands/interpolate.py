"""`dti interpolate`: draws the path between learned words, as pictures or an animation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import (
    Debug,
    Force,
    Json,
    Prompts,
    Quiet,
    drawing_settings,
    read_templates,
    with_settings,
)
from dticli.errors import UsageError
from dticli.settings import GenerateSettings, Group, PathKind, require_possible

if TYPE_CHECKING:
    from PIL.Image import Image

    from dticli.evaluation.measure import Eyes
    from dticli.words.mixing import Weights

Frame = TypeVar("Frame")
FRAMES, SIDE = 9, 5
PROMPT = "a photo of {}"


@dataclass(frozen=True)
class Spacing:
    """How evenly a path changes, according to a judge.

    Attributes:
        positions: of the frames on the path, 0 to 1.
        before, after: largest change between neighbouring frames as a multiple of the mean, in equal steps and as drawn.
    """

    judge: str
    positions: tuple[float, ...]
    before: float
    after: float


@dataclass(frozen=True)
class Interpolated:
    """An interpolation that was drawn.

    Attributes:
        frames: number of mixes, including the words themselves.
        degrees: for each pair of neighbouring words, the angle by encoder, mean over vectors.
    """

    file: Path
    model: str
    frames: int
    degrees: tuple[dict[str, float], ...]
    spacing: Spacing | None = None

    def lines(self) -> Iterator[str]:
        for leg in self.degrees:
            yield "angle between the words: " + ", ".join(
                f"{key} {value:.1f} degrees" for key, value in leg.items()
            )
        if self.spacing:
            yield (
                f"largest change between frames by {self.spacing.judge}: {self.spacing.before:.2f} x the mean in equal steps, "
                f"{self.spacing.after:.2f} x as drawn"
            )
        yield f"{self.file}: {self.frames} frames"


@with_settings(GenerateSettings)
def command(
    given: dict[str, Any],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Token files of one model, in order.",
            autocompletion=completion.token_files,
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Sentence with {{}} where the word goes; repeatable. Default: {PROMPT}.",
        ),
    ] = None,
    prompts: Prompts = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            "-n",
            min=2,
            max=10_000,
            help=f"Frames, ends included; along each edge with --grid. Default: {FRAMES}; {SIDE} with --grid.",
        ),
    ] = None,
    path: Annotated[
        PathKind,
        typer.Option(
            help="slerp: along the sphere; lerp: linear interpolation.", rich_help_panel=Group.DRAWING
        ),
    ] = "slerp",
    grid: Annotated[
        bool,
        typer.Option("--grid", help="Square between four words, or triangle between three."),
    ] = False,
    image_judge: Annotated[
        str | None,
        typer.Option(
            help="Space frames by the change that this judge sees (as for evaluate); draws twice.",
            rich_help_panel=Group.DRAWING,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".gif, .webp or .mp4: an animation; .png: a strip.")
    ] = Path("interpolation.png"),
    seconds: Annotated[
        float,
        typer.Option(min=0.1, max=600, help="Duration of an animation.", rich_help_panel=Group.OUTPUT),
    ] = 3.0,
    ping_pong: Annotated[
        bool,
        typer.Option(
            "--ping-pong",
            help="Append the frames in reverse, so that an animation loops smoothly.",
            rich_help_panel=Group.OUTPUT,
        ),
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw the path between learned words, with the same noise in every frame.

    Example: dti interpolate dog.safetensors cat.safetensors --out morph.gif
    """
    if len(files) < 2:
        raise UsageError("one token file: expected two or more to interpolate between; name another")
    if grid and (image_judge or ping_pong):
        raise UsageError(
            f"--grid cannot be combined with {'--image-judge' if image_judge else '--ping-pong'}: expected a path for that; "
            f"leave one out"
        )
    texts = read_templates(prompt or [], prompts, [PROMPT])
    require_possible(GenerateSettings, given)
    with console.busy("loading", quiet=quiet):
        from dticli import atomic
        from dticli.draw import pictures
        from dticli.models import devices
        from dticli.words import base_model, mixing
        from dticli.words import texts as about

    spoken = [*texts, *filter(None, [given["negative"]])]
    for complaint in about.complaints([], spoken):
        console.warn(complaint)
    tokens = [base_model.read_token(each, offline=bool(given["offline"])) for each in files]
    rows = (
        mixing.grid(len(files), frames or SIDE)
        if grid
        else [mixing.along(len(files), mixing.even(frames or FRAMES))]
    )
    if grid:
        pictures.require_image(out)
    else:
        pictures.require_animation(out, len(_shown(rows[0], ping_pong)), seconds)
    atomic.require_writable([out], force=force)
    opened = base_model.open_model(given, tokens)
    settings = drawing_settings(given, opened)
    shown = partial(console.progress, quiet=quiet)
    eyes = None
    if image_judge:
        from dticli.evaluation import judges

        eyes = judges.likeness(image_judge, devices.pick_device(settings.device), offline=settings.offline)
    with console.busy(f"loading {opened.model.label}", quiet=quiet):
        from dticli.draw import pipeline

        loaded = pipeline.load(opened, settings, tokens)

    def draw(way: "Sequence[Weights]") -> "list[list[Image]]":
        """For each mix, one picture per prompt."""
        drawn = pipeline.draw_mixes(
            loaded, opened, way, path, texts, [settings.seed], settings, progress=shown
        )
        images = [picture.image for picture in drawn]
        return [images[start : start + len(texts)] for start in range(0, len(images), len(texts))]

    drawn = draw([weights for row in rows for weights in row])
    spacing = None
    if eyes and image_judge:
        positions, before = _respaced(drawn, eyes)
        drawn = draw(mixing.along(len(files), positions))
        spacing = Spacing(image_judge, tuple(positions), before, _respaced(drawn, eyes)[1])
    columns = [pictures.grid(images, columns=1) for images in drawn]
    if grid:
        left = iter(columns)
        sheet = pictures.sheet([[next(left) for _ in row] for row in rows])
        out = pictures.save_image(out, sheet, force=force)
    else:
        out = pictures.save_animation(out, _shown(columns, ping_pong), seconds, force=force)
    turns = mixing.turns([word.rows for word in loaded.words])
    console.show(Interpolated(out, opened.model.label, len(columns), turns, spacing), as_json=json)


def _shown(frames: Sequence[Frame], ping_pong: bool) -> list[Frame]:
    """The frames of an animation in order; with `ping_pong`, also back to the second one."""
    return [*frames, *frames[-2:0:-1]] if ping_pong else list(frames)


def _respaced(frames: "Sequence[Sequence[Image]]", eyes: "Eyes") -> tuple[list[float], float]:
    """Positions in [0, 1] at which neighbouring frames would differ equally, and the largest change relative to the mean.

    Change is the angle between the judge's features, mean over prompts, and is interpolated linearly between frames.

    Raises:
        UsageError: the judge sees no change.
    """
    import numpy as np

    from dticli import sphere

    features = eyes.features([image for images in frames for image in images]).unflatten(0, (len(frames), -1))
    changes = sphere.angle(features[1:], features[:-1]).mean(dim=1).double().numpy()
    if not changes.any():
        raise UsageError(
            "the judge sees no change between the frames: expected words that draw differently; leave out --image-judge"
        )
    passed = np.concatenate([[0.0], changes.cumsum() / changes.sum()])
    even = np.linspace(0, 1, len(frames))
    # The ends are always the words themselves, even if nothing changes next to them.
    positions = [0.0, *np.interp(even[1:-1], passed, even).tolist(), 1.0]
    return positions, float(changes.max() / changes.mean())
