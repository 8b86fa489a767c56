"""Chooses the model for words, from the command line or their files, and announces it."""

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dticli.errors import UsageError
from dticli.models import choice, contents
from dticli.models.choice import Model
from dticli.models.families import Family
from dticli.words import learned_word, repositories
from dticli.words.learned_word import Token

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A chosen model whose index was read, but not its weights."""

    model: Model
    family: Family


def read_token(source: str, *, offline: bool = False) -> Token:
    """Read the word of a file, folder or hub repository, or `NAME=SOURCE` under another name."""
    name, equals, rest = source.partition("=")
    if not equals or os.path.exists(source):
        return repositories.read(source, offline=offline).token
    name = learned_word.named(name)
    return dataclasses.replace(repositories.read(rest, offline=offline).token, name=name)


def open_model(given: Mapping[str, Any], tokens: Sequence[Token]) -> Opened:
    """Choose the model that the command line, or else the tokens, ask for, and announce it.

    Raises:
        UsageError: tokens of several models, and none was named.
    """
    recorded = list(dict.fromkeys(filter(None, (usable_model(token.metadata) for token in tokens))))
    if len(recorded) > 1 and not given["model"]:
        raise UsageError(
            f"the tokens were learned on {' and '.join(recorded)}: expected one model; choose it with --model"
        )
    model = choice.choose(
        given["model"],
        recorded=recorded[0] if recorded else None,
        base=given["base"],
        variant=given["variant"],
        prediction=given["prediction"],
        offline=bool(given["offline"]),
        device=given["device"] or "auto",
    )
    LOG.info(contents.announcement(model))
    if not given["model"]:
        for each in strangers(tokens, model):
            LOG.warning(each)
    return Opened(model, contents.family(model))


def usable_model(metadata: Mapping[str, str]) -> str | None:
    """The recorded model, if its name is enough to find it again, unlike the name of a folder."""
    return metadata.get("dti.model") if metadata.get("dti.model_kind") in ("hub", "bundled") else None


def strangers(tokens: Iterable[Token], model: Model) -> Iterator[str]:
    """A warning for each word that was learned on a folder or file of another name: such a model cannot be found by its name."""
    for token in tokens:
        home = token.metadata.get("dti.model")
        if home and home != model.label and not usable_model(token.metadata):
            yield f"{token.name} was learned on {home}, but this model is {model.label}; name the right one with --model"
