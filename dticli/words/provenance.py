"""What a token file says about itself: metadata for programs (`modelspec.*`) and for dti (`dti.*`). Never a path."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dticli.paths import names_token_file
from dticli.version import __version__
from dticli.words import programs

if TYPE_CHECKING:
    from dticli.models.choice import Model
    from dticli.models.families import Family
    from dticli.settings import TrainSettings


def of_training(
    settings: "TrainSettings", model: "Model", family: "Family", pipe: Any, tables: str, count: int
) -> dict[str, str]:
    """Metadata of a freshly learned word.

    Args:
        tables: fingerprint of the embedding tables it was learned beside.
        count: of its vectors.
    """
    from dticli.settings import Trait

    made = {f"dti.{name}": str(getattr(settings, name)) for name in settings.named(Trait.RECORDED)}
    made["dti.magnitude"] = settings.magnitude_rule
    # The prior and the initialiser may be files: their names say enough, and say nothing about the machine.
    sources = {"dti.init": _name(settings.init), "dti.prior": _name(settings.prior)}
    spaced = any(encoder.spaced for encoder in family.encoders)
    return (
        _modelspec(settings, family, pipe, count)
        | made
        | sources
        | of_model(model, family, tables)
        | {"dti.token": settings.token, "dti.lstrip": str(spaced).lower(), "dti.pooling": settings.pooling}
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


def _modelspec(settings: "TrainSettings", family: "Family", pipe: Any, count: int) -> dict[str, str]:
    from dticli.words import placement

    widths = {encoder.key: placement.table(pipe, encoder).shape[1] for encoder in family.encoders}
    size = f"{settings.resolution}x{settings.resolution}"
    architecture = family.code.architecture(pipe)
    return programs.modelspec(settings.token, family.name, widths, count, architecture) | {
        "modelspec.resolution": size
    }


def _name(source: str) -> str:
    return Path(source).name if names_token_file(source) else source
