"""What each step's name runs."""

import argparse

from dticli.errors import DtiError

from . import cache
from .training import Log


def run(arguments: argparse.Namespace) -> int:
    """Run one step and return the exit code."""
    name = arguments.step
    log = Log(cache.folder("logs") / f"{name}.log")
    try:
        _STEPS[name](arguments, log)
    except DtiError as error:
        log(f"error: {error}")
        return error.exit_code
    return 0


def _art(arguments: argparse.Namespace, log: Log) -> None:
    from . import art

    art.fetch()
    log("art: four sets ready")


def _photos(arguments: argparse.Namespace, log: Log) -> None:
    from . import photos

    photos.make()
    log("photos: drawn")


def _world(arguments: argparse.Namespace, log: Log) -> None:
    from . import grammar, world

    world.make("pictures", grammar.PICTURES, arguments.pictures, arguments.seed, log)
    world.make("reading", grammar.READING, arguments.pictures, arguments.seed, log)


def _autoencoder(arguments: argparse.Namespace, log: Log) -> None:
    from . import autoencoder

    autoencoder.run(_minutes(arguments), arguments.seed, log, arguments.start)


def _text_encoder(arguments: argparse.Namespace, log: Log) -> None:
    from . import text_encoder

    text_encoder.run(_minutes(arguments), arguments.seed, log)


def _minutes(arguments: argparse.Namespace) -> float:
    from .__main__ import MINUTES

    return arguments.minutes or MINUTES[arguments.step]


_STEPS = {"art": _art, "photos": _photos, "world": _world, "text-encoder": _text_encoder, "autoencoder": _autoencoder}
