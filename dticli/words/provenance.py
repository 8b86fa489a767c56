"""What a token file says about itself: metadata for programs (`modelspec.*`) and for dti (`dti.*`). Never a path."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dticli.version import __version__
from dticli.words import programs

if TYPE_CHECKING:
    from torch import Tensor

    from dticli.models.choice import Model
    from dticli.models.families import Family


def of_training(
    recorded: Mapping[str, str],
    rows: "Mapping[str, Tensor]",
    side: int,
    model: "Model",
    family: "Family",
    pipe: Any,
    tables: str,
) -> dict[str, str]:
    """Metadata of a freshly learned word.

    Args:
        recorded: settings it was learned with, by name; the word is `token`.
        rows: encoder key to (vectors, width).
        side: of the pictures it was learned from, in pixels.
        tables: fingerprint of the embedding tables it was learned beside.
    """
    widths, count = {key: each.shape[1] for key, each in rows.items()}, len(next(iter(rows.values())))
    spaced = any(encoder.spaced for encoder in family.encoders)
    return (
        programs.modelspec(recorded["token"], family.name, widths, count, family.code.architecture(pipe))
        | {"modelspec.resolution": f"{side}x{side}", "dti.lstrip": str(spaced).lower()}
        | {f"dti.{name}": value for name, value in recorded.items()}
        | of_model(model, family, tables)
        | versions()
    )


def of_model(model: "Model", family: "Family", tables: str) -> dict[str, str]:
    """Which model a word belongs to."""
    return {
        "dti.model": model.label,
        "dti.model_kind": model.kind,
        "dti.family": family.name,
        "dti.tables": tables,
    }


def versions() -> dict[str, str]:
    """What computed it."""
    import diffusers
    import torch
    import transformers

    return {
        "dti.version": __version__,
        "dti.torch": torch.__version__,
        "dti.diffusers": diffusers.__version__,
        "dti.transformers": transformers.__version__,
    }
