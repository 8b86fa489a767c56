"""The steps of the recipe by name."""

import argparse
from collections.abc import Callable, Collection, Sequence

from dticli.errors import DtiError, UsageError
from dticli.ranks import joined, launched

from . import cache
from .training import RecipeLog

MINUTES = {"text-encoder": 25.0, "autoencoder": 25.0, "diffusion": 600.0, "decoder": 30.0, "judges": 10.0}


def run(arguments: argparse.Namespace) -> int:
    """Run one step and return the exit code."""
    name = arguments.step
    log = RecipeLog(cache.folder("logs") / f"{name}.log", launched())
    try:
        with joined(log.ranks):
            _STEPS[name](arguments, log)
    except DtiError as error:
        log(f"error: {error}")
        return error.exit_code
    return 0


def _art(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import art

    art.fetch()
    log("art: four sets ready")


def _photos(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import photos

    photos.make()
    log("photos: drawn")


def _world(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import shards

    for kind in _known("kinds", arguments.kinds, shards.KINDS) or shards.KINDS:
        shards.make(kind, arguments.pictures, arguments.seed, log)


def _autoencoder(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import autoencoder

    autoencoder.run(_minutes(arguments), arguments.seed, log, arguments.start)


def _text_encoder(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import text_encoder

    text_encoder.run(_minutes(arguments), arguments.seed, log)


def _begin(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import begin

    begin.run(arguments.start, arguments.seed, log)


def _latents(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import diffusion

    diffusion.encode_pictures(log)


def _diffusion(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import diffusion

    diffusion.run(_minutes(arguments), arguments.seed, log, arguments.start, log.ranks)


def _decoder(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import decoder

    decoder.run(_minutes(arguments), arguments.seed, log)


def _judges(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import judges

    judges.run(_minutes(arguments), arguments.seed, log)


def _gate(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import gate

    gate.run(arguments.samples, arguments.seed, arguments.model, log)


def _check(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import check

    check.run(arguments.samples, arguments.seed, arguments.model, log)


def _ceilings(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import ceilings

    ceilings.run(arguments.seed, arguments.model, log)


def _diagnosis(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import diagnosis

    diagnosis.run(arguments.seed, arguments.model, log)


def _pairs(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import pairs

    pairs.run(arguments.seed, arguments.model, log)


def _package(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import package

    package.ship(log)


def _results(arguments: argparse.Namespace, log: RecipeLog) -> None:
    from . import results

    plans = _known("plans", arguments.plans, results.PLANS)
    parts = _known("parts", arguments.parts, results.PARTS)
    results.run(arguments.samples, arguments.seed, log, plans, parts or results.PARTS)


def _known(option: str, said: Sequence[str] | None, known: Collection[str]) -> Sequence[str]:
    """The values of an option; empty if it was not given.

    Raises:
        UsageError: a value is unknown.
    """
    if unknown := [each for each in said or () if each not in known]:
        raise UsageError(
            f"--{option} {' '.join(unknown)}: expected some of {', '.join(known)}; correct it, or leave it out for the default"
        )
    return said or ()


def _minutes(arguments: argparse.Namespace) -> float:
    return arguments.minutes or MINUTES[arguments.step]


_STEPS: dict[str, Callable[[argparse.Namespace, RecipeLog], None]] = {
    "art": _art,
    "photos": _photos,
    "world": _world,
    "begin": _begin,
    "text-encoder": _text_encoder,
    "autoencoder": _autoencoder,
    "latents": _latents,
    "diffusion": _diffusion,
    "decoder": _decoder,
    "judges": _judges,
    "gate": _gate,
    "check": _check,
    "ceilings": _ceilings,
    "diagnosis": _diagnosis,
    "pairs": _pairs,
    "package": _package,
    "results": _results,
}
