"""The one door by which libraries load what others made: code that comes with it is not run, and nobody is asked about it."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Loaded = TypeVar("Loaded")

_REPORTS = "transformers.modeling_utils"
"""The logger to which transformers reports what a file lacks; it makes up these weights and goes on."""
_LACKING = re.compile(r"^(\S+)\s*\|[^|]*MISSING", re.MULTILINE)
_HEADS = re.compile(r"(^|\.)(lm_head|pooler)\.")
"""Behind the states that a pipeline uses of an encoder."""


@contextmanager
def gathering_lacks() -> Iterator[list[str]]:
    """Gather the names of weights that the files of text encoders loaded meanwhile lack."""
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
    """What a loader of diffusers or transformers, such as `AutoModel.from_pretrained`, makes of a folder, a file or a hub id.

    Raises:
        Exception: whatever the loader raises; ValueError where the files cannot be used without their own code.
    """
    from transformers import dynamic_module_utils

    # diffusers does not hand the option on to a pipeline's parts, for which transformers would ask on the terminal:
    # with no time for an answer it refuses.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    return loader(*arguments, trust_remote_code=False, **options)
