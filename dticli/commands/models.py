"""`dti models`: lists the supported families, or describes a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import Base, Debug, Json
from dticli.models import families
from dticli.models.families import Family

if TYPE_CHECKING:
    from dticli.models.footprint import Weights


@dataclass(frozen=True)
class Known:
    """All families."""

    families: tuple[Family, ...]

    def lines(self) -> Iterator[str]:
        for family in self.families:
            yield from _lines(family)


@dataclass(frozen=True)
class FamilyDescription:
    """The description of a model.

    Attributes:
        parameters: number of stored elements by component; components in files other than safetensors are left out.
        weights: memory of the weights in every precision; empty if components are left out.
    """

    model: str
    family: Family
    parameters: Mapping[str, int]
    weights: "tuple[Weights, ...]"

    def lines(self) -> Iterator[str]:
        yield f"{self.model} belongs to"
        yield from _lines(self.family)
        if self.parameters:
            yield "  parameters: " + ", ".join(f"{name} {_short(n)}" for name, n in self.parameters.items())
        yield from (f"  weights: {weights}" for weights in self.weights)
        if self.weights:
            yield "  activations come on top"


@dataclass(frozen=True)
class Descriptions:
    """All requested models."""

    models: tuple[FamilyDescription, ...]

    def lines(self) -> Iterator[str]:
        for described in self.models:
            yield from described.lines()


def command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models to describe (hub id, folder, file, 'stickers'); default: all families.",
            autocompletion=completion.models,
        ),
    ] = None,
    base: Base = None,
    variant: Annotated[str | None, typer.Option(help="Weight files to count, such as fp16.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never contact the hub.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the supported model families: encoders, default settings, what was verified.

    Example: dti models stickers
    """
    if not targets:
        console.show(Known(families.TABLE), as_json=json)
        return
    described = tuple(_describe(target, base, variant, offline) for target in targets)
    console.show(Descriptions(described), as_json=json)


def _describe(target: str, base: str | None, variant: str | None, offline: bool) -> FamilyDescription:
    from dticli.models import choice, contents
    from dticli.settings import model_layer

    model = choice.choose(target, base=base, variant=variant, offline=offline)
    family = contents.family(model)
    from dticli.models import footprint

    own = {
        name: value
        for name, value in model_layer(model.folder, "train").items()
        if hasattr(family.defaults, name)
    }
    family = replace(family, defaults=replace(family.defaults, **own))
    shapes = contents.shapes(model)
    return FamilyDescription(
        model.label, family, contents.parameter_counts(shapes), footprint.table(model, family, shapes)
    )


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
