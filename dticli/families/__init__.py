"""The model families: what differs between them is data in one table row and a few functions in one file.

The table is readable without torch, so that `dti train --help` can show defaults. The functions of a family live in the
module its row names; `shape.FamilyCode` says which functions and what they take.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dticli.errors import ModelError

if TYPE_CHECKING:
    from dticli.families.shape import FamilyCode


@dataclass(frozen=True)
class Encoder:
    """A text encoder the word is learned in.

    Attributes:
        key: name of its tensor in token files, as ComfyUI and A1111 spell it.
        component: attribute of the pipeline that holds the encoder.
        tokenizer: attribute of the pipeline that holds its tokenizer.
        lstrip: added tokens swallow the space before them. Tokenizers of language models mark word starts with that
            space, and would leave it behind as a token of its own.
    """

    key: str
    component: str
    tokenizer: str
    lstrip: bool = False


@dataclass(frozen=True)
class Defaults:
    """Training settings a family starts from; `lr` is the tangent length of one step."""

    resolution: int
    steps: int = 500
    lr: float = 0.02
    kappa: float = 1e-4
    batch_size: int = 4


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: how messages and token files call it.
        pipelines: names of diffusers pipeline classes that belong to it.
        encoders: every encoder the word is learned in.
        module: file under `dticli/families/` with its functions.
        defaults: training settings.
        multiple: picture sides must be multiples of this many pixels.
    """

    name: str
    pipelines: tuple[str, ...]
    encoders: tuple[Encoder, ...]
    module: str
    defaults: Defaults
    multiple: int = 8

    @property
    def code(self) -> "FamilyCode":
        """The family's functions; imports torch."""
        return cast("FamilyCode", importlib.import_module(f"dticli.families.{self.module}"))


CLIP_L = Encoder("clip_l", "text_encoder", "tokenizer")
CLIP_G = Encoder("clip_g", "text_encoder_2", "tokenizer_2")

TABLE: tuple[Family, ...] = (
    Family("sd", ("StableDiffusionPipeline",), (CLIP_L,), "sd", Defaults(resolution=512)),
    Family("sdxl", ("StableDiffusionXLPipeline",), (CLIP_L, CLIP_G), "sdxl", Defaults(resolution=768)),
)


def of_index(index: Mapping[str, Any], model: str) -> Family:
    """The family of a model, from its `model_index.json`.

    Raises:
        ModelError: no family uses that pipeline class.
    """
    pipeline = index.get("_class_name")
    for family in TABLE:
        if pipeline in family.pipelines:
            return family
    known = ", ".join(name for family in TABLE for name in family.pipelines)
    raise ModelError(f"{model} is a {pipeline}: expected one of {known}; choose another --model")


def of_name(name: str) -> Family | None:
    """The family with this name, or None."""
    return next((family for family in TABLE if family.name == name), None)
