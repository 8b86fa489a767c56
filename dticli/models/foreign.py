"""The one door by which libraries load what others made: code that comes with it is not run, and nobody is asked about it."""

from collections.abc import Callable
from typing import Any, TypeVar

Loaded = TypeVar("Loaded")


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
