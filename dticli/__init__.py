"""dti: teach a text-to-image model a new word by Directional Textual Inversion (arXiv:2512.13672).

`load_word`, `place`, `slerp`, `train` and `vocabulary_norms` are its Python interface; docs/api.md shows how to use them.
"""

from typing import TYPE_CHECKING, Any

from dticli.version import __version__

if TYPE_CHECKING:
    from dticli.api import load_word, place, slerp, train, vocabulary_norms

__all__ = ["__version__", "load_word", "place", "slerp", "train", "vocabulary_norms"]


def __getattr__(name: str) -> Any:
    """Import functions on first use, so that importing the package does not import torch (PEP 562)."""
    if name in __all__:
        from dticli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
