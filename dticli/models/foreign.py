"""Loads files of others with diffusers and transformers, without running code that comes with them and without prompts."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Loaded = TypeVar("Loaded")

_REPORTS = "transformers.modeling_utils"
"""The logger to which transformers reports missing weights, which it initialises randomly."""
_LACKING = re.compile(r"^(\S+)\s*\|[^|]*MISSING", re.MULTILINE)
_HEADS = re.compile(r"(^|\.)(lm_head|pooler)\.")
"""Weights of layers after the states of an encoder that a pipeline uses."""


@contextmanager
def gathering_lacks() -> Iterator[list[str]]:
    """Collect the names of missing weights of the text encoders that are loaded in the context."""
    names: list[str] = []

    class Gatherer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            names.extend(name for name in _LACKING.findall(record.getMessage()) if not _HEADS.search(name))

    log, gatherer = logging.getLogger(_REPORTS), Gatherer()
    before = log.level, log.propagate
    log.addHandler(gatherer)
    log.setLevel(logging.WARNING)
    log.propagate = False
    try:
        yield names
    finally:
        log.removeHandler(gatherer)
        log.setLevel(before[0])
        log.propagate = before[1]


def load(loader: Callable[..., Loaded], *arguments: Any, **options: Any) -> Loaded:
    """Call a loader of diffusers or transformers, such as `AutoModel.from_pretrained`, without trusting remote code.

    Raises:
        Exception: as the loader; ValueError if the files cannot be used without their own code.
    """
    from transformers import dynamic_module_utils

    # diffusers does not pass the option on to a pipeline's components, for which transformers would then ask on the terminal.
    # With a timeout of 0, it refuses instead.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    return loader(*arguments, trust_remote_code=False, **options)
