"""The model families. The differences between them are a table row and a few functions in one file each.

The table does not import torch, so `dti train --help` can show defaults. The functions of a family are in the module that its
row names, as one value `CODE`; `shape.FamilyCode` documents them.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dticli.errors import ModelError

if TYPE_CHECKING:
    from dticli.models.families.shape import FamilyCode


TINY = "tiny random pipelines on the CPU, not the public weights"


@dataclass(frozen=True)
class Theory:
    """Which arguments for a fixed norm hold in an encoder (arXiv:2512.13672, Lemmas 1 and 2, Proposition 1).

    Attributes:
        positional_attenuation: the effect of the added position is O(1/m) after normalising a row of norm m.
        residual_stagnation: every block adds a vector of bounded length to a state of norm m, so it rotates a longer row less.
        because: the property of the encoder that decides.
    """

    positional_attenuation: bool
    residual_stagnation: bool
    because: str

    def __str__(self) -> str:
        attenuation, stagnation = (
            "holds" if holds else "does not"
            for holds in (self.positional_attenuation, self.residual_stagnation)
        )
        return f"positional attenuation {attenuation}, residual stagnation {stagnation} ({self.because})"


ADDED_POSITIONS = Theory(True, True, "positions added to the rows, pre-norm blocks")
RELATIVE_POSITIONS = Theory(False, True, "positions in attention only, pre-norm blocks")
POST_NORM = Theory(True, False, "normalised right after the embeddings, post-norm blocks")


@dataclass(frozen=True)
class Encoder:
    """A text encoder in which a word is learned.

    Attributes:
        key: name of its tensor in token files, as ComfyUI and A1111 spell it.
        component: attribute of the pipeline that holds the encoder.
        tokenizer: attribute of the pipeline that holds its tokenizer, or a processor with it.
        theory: which of the paper's arguments apply to it.
        spaced: whether its tokenizer encodes the space before a word as part of the word, as those of language models do; then
            a new name is also added with a leading space, which would otherwise be a separate token.
    """

    key: str
    component: str
    tokenizer: str
    theory: Theory
    spaced: bool = False

    def tokenizer_of(self, pipe: Any) -> Any:
        """Its tokenizer in a pipeline."""
        return tokenizer_in(getattr(pipe, self.tokenizer))


def tokenizer_in(held: Any) -> Any:
    """A tokenizer, or the tokenizer of a processor for text and pictures."""
    return getattr(held, "tokenizer", held)


@dataclass(frozen=True)
class Defaults:
    """Default training settings of a family.

    Attributes:
        lr: length of the tangent step. The paper's values are multiplied by batch x accumulation, as its launcher does.
    """

    resolution: int
    steps: int = 500
    lr: float = 0.02
    kappa: float = 1e-4
    batch_size: int = 4
    accumulate: int = 1


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: in messages and token files.
        pipelines: names of its diffusers pipeline classes.
        encoders: all encoders in which a word is learned; those that a model was saved without are left out.
        module: file under `dticli/models/families/` with its `CODE`.
        published: embedding widths of all encoders, for each of its public models. Words with other widths are for a model that
            other programs do not have.
        defaults: training settings.
        source: origin of the defaults.
        multiple: picture sides must be multiples of this many pixels.
        paper: further settings of the paper, or its code, for this family.
        refused: entries of `model_index.json` of models with the same pipeline class that are trained differently.
        verified: what it was tested with.
    """

    name: str
    pipelines: tuple[str, ...]
    encoders: tuple[Encoder, ...]
    module: str
    published: tuple[tuple[int, ...], ...]
    defaults: Defaults
    source: str = "those of SDXL in the paper; not measured"
    multiple: int = 16
    paper: tuple[tuple[str, Any], ...] = ()
    refused: tuple[str, ...] = ()
    verified: tuple[str, ...] = (TINY,)

    @property
    def as_paper(self) -> dict[str, Any]:
        """Training settings of the paper, except the crop size, which depends on the model."""
        own = {name: value for name, value in vars(self.defaults).items() if name != "resolution"}
        return THE_PAPERS | own | dict(self.paper)

    @property
    def code(self) -> "FamilyCode":
        """The family's functions; imports torch."""
        return cast("FamilyCode", importlib.import_module(f"dticli.models.families.{self.module}").CODE)


CLIP_L = Encoder("clip_l", "text_encoder", "tokenizer", ADDED_POSITIONS)
CLIP_G = Encoder("clip_g", "text_encoder_2", "tokenizer_2", ADDED_POSITIONS)
T5_FIRST = Encoder("t5xxl", "text_encoder", "tokenizer", RELATIVE_POSITIONS)
T5_SECOND = Encoder("t5xxl", "text_encoder_2", "tokenizer_2", RELATIVE_POSITIONS)
T5_THIRD = Encoder("t5xxl", "text_encoder_3", "tokenizer_3", RELATIVE_POSITIONS)
UMT5 = Encoder("umt5xxl", "text_encoder", "tokenizer", RELATIVE_POSITIONS)
GEMMA_2 = Encoder("gemma2_2b", "text_encoder", "tokenizer", RELATIVE_POSITIONS, spaced=True)
QWEN_3 = Encoder("qwen3_4b", "text_encoder", "tokenizer", RELATIVE_POSITIONS, spaced=True)
QWEN_25 = Encoder("qwen25_7b", "text_encoder", "tokenizer", RELATIVE_POSITIONS, spaced=True)
QWEN_3_VL = Encoder("qwen3vl_4b", "text_encoder", "tokenizer", RELATIVE_POSITIONS, spaced=True)
GLM_4 = Encoder("glm4_9b", "text_encoder", "tokenizer", RELATIVE_POSITIONS, spaced=True)
MISTRAL_3 = Encoder("mistral3_24b", "text_encoder", "tokenizer", RELATIVE_POSITIONS, spaced=True)
PILE_T5 = Encoder("pile_t5xl", "text_encoder", "tokenizer", RELATIVE_POSITIONS)
BERT = Encoder("bert", "text_encoder", "tokenizer", POST_NORM)
MT5 = Encoder("mt5xl", "text_encoder_2", "tokenizer_2", RELATIVE_POSITIONS)

# Models of several billion parameters see one picture at a time, and as many a step as the others.
ONE_BY_ONE = {"batch_size": 1, "accumulate": 4}
PAPER = "arXiv:2512.13672"
THE_PAPERS: dict[str, Any] = {
    "method": "dti",
    "optimizer": "rsgd",
    "beta": 0.0,
    "schedule": "constant",
    "average": False,
    "prior": "init",
    "magnitude": "mean",
    "train_magnitude": False,
    "pooling": "stock",
    "zero_pad": False,
}
"""Settings of the paper that are the same for all families."""

TABLE: tuple[Family, ...] = (
    Family(
        "sd",
        ("StableDiffusionPipeline",),
        (CLIP_L,),
        "sd",
        ((768,), (1024,)),
        Defaults(resolution=512),
        multiple=8,
        verified=(TINY, "the bundled model on the CPU"),
    ),
    Family(
        "sdxl",
        ("StableDiffusionXLPipeline",),
        (CLIP_L, CLIP_G),
        "sdxl",
        ((768, 1280),),
        Defaults(resolution=768),
        source=PAPER,
        multiple=8,
    ),
    Family(
        "sana",
        ("SanaPipeline",),
        (GEMMA_2,),
        "sana",
        ((2304,),),
        Defaults(resolution=1024, steps=1000, lr=0.08, kappa=5e-5),
        source=PAPER,
        multiple=32,
        paper=(("zero_pad", True),),
    ),
    Family(
        "sd3",
        ("StableDiffusion3Pipeline",),
        (CLIP_L, CLIP_G, T5_THIRD),
        "sd3",
        ((768, 1280, 4096),),
        Defaults(resolution=1024, **ONE_BY_ONE),
    ),
    Family(
        "flux",
        ("FluxPipeline",),
        (CLIP_L, T5_SECOND),
        "flux",
        ((768, 4096),),
        Defaults(resolution=512, **ONE_BY_ONE),
    ),
    Family(
        "wan",
        ("WanPipeline",),
        (UMT5,),
        "wan",
        ((4096,),),
        Defaults(resolution=512, lr=0.04, kappa=5e-5, **ONE_BY_ONE),
        source=f"the code of {PAPER}",
        # Wan 2.2: two denoisers by noise level, or a noise level for each token.
        refused=("transformer_2", "boundary_ratio", "expand_timesteps"),
    ),
    Family(
        "flux2_klein",
        ("Flux2KleinPipeline",),
        (QWEN_3,),
        "flux2",
        ((2560,), (4096,)),
        Defaults(resolution=512, **ONE_BY_ONE),
    ),
    Family(
        "flux2",
        ("Flux2Pipeline",),
        (MISTRAL_3,),
        "flux2",
        ((5120,),),
        Defaults(resolution=512, **ONE_BY_ONE),
    ),
    Family(
        "z_image",
        ("ZImagePipeline",),
        (QWEN_3,),
        "z_image",
        ((2560,),),
        Defaults(resolution=512, **ONE_BY_ONE),
    ),
    Family(
        "qwen_image",
        ("QwenImagePipeline",),
        (QWEN_25,),
        "qwen_image",
        ((3584,),),
        Defaults(resolution=512, **ONE_BY_ONE),
    ),
    Family(
        "pixart_sigma",
        ("PixArtSigmaPipeline",),
        (T5_FIRST,),
        "pixart_sigma",
        ((4096,),),
        Defaults(resolution=1024),
    ),
    Family(
        "lumina2",
        ("Lumina2Pipeline",),
        (GEMMA_2,),
        "lumina2",
        ((2304,),),
        Defaults(resolution=1024, **ONE_BY_ONE),
    ),
    Family(
        "hunyuandit",
        ("HunyuanDiTPipeline",),
        (BERT, MT5),
        "hunyuandit",
        ((1024, 2048),),
        Defaults(resolution=1024, **ONE_BY_ONE),
    ),
    Family(
        "chroma",
        ("ChromaPipeline",),
        (T5_FIRST,),
        "chroma",
        ((4096,),),
        Defaults(resolution=512, **ONE_BY_ONE),
    ),
    Family(
        "auraflow",
        ("AuraFlowPipeline",),
        (PILE_T5,),
        "auraflow",
        ((2048,),),
        Defaults(resolution=1024, **ONE_BY_ONE),
    ),
    Family(
        "cogview4",
        ("CogView4Pipeline",),
        (GLM_4,),
        "cogview4",
        ((4096,),),
        Defaults(resolution=1024, **ONE_BY_ONE),
    ),
    Family(
        "sana_sprint",
        ("SanaSprintPipeline",),
        (GEMMA_2,),
        "sana_sprint",
        ((2304,),),
        Defaults(resolution=1024, steps=1000, lr=0.08, kappa=5e-5),
        source="those of SANA in the paper; not measured",
        multiple=32,
    ),
    Family(
        "krea2",
        ("Krea2Pipeline",),
        (QWEN_3_VL,),
        "krea2",
        ((2560,),),
        Defaults(resolution=512, **ONE_BY_ONE),
    ),
)


def of_index(index: Mapping[str, Any], model: str) -> Family:
    """The family of a model, from its `model_index.json`, with the encoders that model has.

    Raises:
        ModelError: no family uses that pipeline class, or the model is of a kind the family does not know.
    """
    pipeline = index.get("_class_name")
    family = next((family for family in TABLE if pipeline in family.pipelines), None)
    if family is None:
        known = ", ".join(name for family in TABLE for name in family.pipelines)
        raise ModelError(f"{model} is a {pipeline}: expected one of {known}; choose another --model")
    strange = next((name for name in family.refused if _is_there(index, name)), None)
    if strange:
        raise ModelError(
            f"{model} is a {pipeline} with {strange}: expected one without; "
            f"dti cannot train this kind of {family.name}, choose another --model"
        )
    there = tuple(each for each in family.encoders if _is_there(index, each.component, unsaid=True))
    return dataclasses.replace(family, encoders=there)


def _is_there(index: Mapping[str, Any], name: str, *, unsaid: bool = False) -> bool:
    """Whether an entry is set; components a model was saved without are a pair of nulls."""
    entry = index.get(name, unsaid)
    return bool(entry and entry[0]) if isinstance(entry, list | tuple) else bool(entry)


def of_name(name: str) -> Family | None:
    """The family with this name, or None."""
    return next((family for family in TABLE if family.name == name), None)
