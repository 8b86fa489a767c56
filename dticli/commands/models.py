"""`dti models`: the families dti can teach, and what a given model is made of."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

from dticli import console, families
from dticli.families import Family
from dticli.options import Debug, Json

BYTES = {"fp32": 4, "bf16 or fp16": 2}


@dataclass(frozen=True)
class Known:
    """Every family."""

    families: tuple[Family, ...]

    def lines(self) -> Iterator[str]:
        for family in self.families:
            yield from _lines(family)


@dataclass(frozen=True)
class Described:
    """One model.

    Attributes:
        parameters: numbers stored for each component; empty where the files are not on this machine.
        weights: gigabytes these take by precision; activations and gradients come on top.
    """

    model: str
    family: Family
    parameters: Mapping[str, int]
    weights: Mapping[str, float]

    def lines(self) -> Iterator[str]:
        yield f"{self.model} belongs to"
        yield from _lines(self.family)
        if self.parameters:
            yield "  parameters: " + ", ".join(f"{name} {_short(n)}" for name, n in self.parameters.items())
            sizes = ", ".join(f"{size:.2f} GB in {precision}" for precision, size in self.weights.items())
            yield f"  weights: {sizes}; activations and gradients come on top"


@dataclass(frozen=True)
class Descriptions:
    """All models asked about."""

    models: tuple[Described, ...]

    def lines(self) -> Iterator[str]:
        for described in self.models:
            yield from described.lines()


def command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Models to describe (hub id, folder, 'stickers'); none: all families."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Weight files to count, such as fp16.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the hub.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the families of models a word can be learned on: encoders, settings they start from, what was verified.

    Example: dti models stickers
    """
    if not targets:
        console.show(Known(families.TABLE), as_json=json)
        return
    described = tuple(_describe(target, variant, offline) for target in targets)
    console.show(Descriptions(described), as_json=json)


def _describe(target: str, variant: str | None, offline: bool) -> Described:
    from dticli import models

    model = models.choose(target, variant=variant, offline=offline)
    parameters = models.parameter_counts(model)
    weights = {name: size * sum(parameters.values()) / 1e9 for name, size in BYTES.items() if parameters}
    return Described(model.label, models.family(model), parameters, weights)


def _lines(family: Family) -> Iterator[str]:
    defaults = family.defaults
    pictures = defaults.batch_size * defaults.accumulate
    yield f"{family.name}: {', '.join(family.pipelines)}"
    yield f"  encoders: {', '.join(encoder.key for encoder in family.encoders)}"
    yield (
        f"  defaults: {defaults.resolution} px, {defaults.steps} steps of {pictures} pictures "
        f"({defaults.batch_size} at once), lr {defaults.lr:g}, kappa {defaults.kappa:g}; from {family.source}"
    )
    yield f"  verified: {'; '.join(family.verified)}"


def _short(count: int) -> str:
    """A count in thousands, millions or billions."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
