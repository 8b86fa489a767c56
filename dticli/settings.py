"""What a run is: settings of the command line, a config file, the model folder and the family, merged and checked.

The first layer that names a setting wins: command line > config file > the model folder's `dti.toml` > the family's row
> the defaults below. Unknown keys are refused, and all problems are reported at once.
"""

import builtins
import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dticli.errors import UsageError

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """Base: frozen, strict about names, and numbers must be finite.

    Each field's description is its help text; every field is an option of the command unless excluded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Settings):
    """Which model, where it computes, and in what precision."""

    model: str | None = Field(
        None, description="Hub id (with @revision), folder in diffusers layout, or 'stickers'."
    )
    variant: str | None = Field(None, description="Weight files to load, such as fp16.")
    offline: bool = Field(False, description="Never ask the hub.")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="Where to compute.")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="Of the frozen weights; auto: bf16 or fp16 on CUDA, fp32 elsewhere."
    )
    deterministic: bool = Field(False, description="Same bytes on every run, on CUDA too; slower.")


class TrainSettings(ModelSettings):
    """Everything that decides what `dti train` learns."""

    token: str = Field(description="The new word, in brackets: <dog>.")
    init: str = Field(
        description="Class word or phrase to start from, a token file, random, mean, or cross:WORD (the encoder's output)."
    )
    method: Literal["dti", "ti"] = Field(
        "dti", description="dti learns the direction; ti is ordinary Textual Inversion with a free norm."
    )
    steps: Positive = Field(description="Optimizer steps.")
    batch_size: Positive = Field(description="Pictures a step sees at once.")
    accumulate: Positive = Field(1, description="Batches gathered before each step.")
    lr: Annotated[float, Field(gt=0)] = Field(
        description="Tangent length of one step: each turns the direction by atan(lr) radians. For ti, AdamW's rate."
    )
    kappa: Annotated[float, Field(ge=0)] = Field(description="Strength of the prior (von Mises-Fisher).")
    prior: str = Field("init", description="What the prior pulls towards: init, none, or a WORD.")
    magnitude: str | None = Field(
        None,
        description="Norm of the rows: mean (dti's default), median, min or max of the vocabulary, a number, 10x the mean, "
        "or init (ti's default): that of the init row.",
    )
    train_magnitude: bool = Field(False, description="Learn the magnitude too.")
    optimizer: Literal["rsgd", "adamw"] = Field(
        "rsgd", description="Of the direction; adamw is retracted each step."
    )
    beta: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Memory of the gradient's length.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(1e-2, description="For --method ti.")
    vectors: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Rows the word gets; default: as many as the init phrase has pieces."
    )
    property: Literal["object", "style"] = Field(
        "object", description="What the photos share: picks the templates."
    )
    captions: Literal["templates", "sidecar"] = Field(
        "templates", description="Built-in sentences, or the .txt file beside each photo."
    )
    captions_file: str | None = Field(None, description='JSON lines {"file": ..., "text": ...}, one a photo.')
    templates: tuple[str, ...] | None = Field(None, exclude=True)
    resolution: Positive = Field(description="Side of the square crops, in pixels.")
    crops: Annotated[int, Field(ge=1, le=256)] = Field(1, description="Crops of each photo; one is centred.")
    flip: bool = Field(False, description="Learn from mirror images too.")
    seed: Seed = Field(0, description="Of every random draw.")

    @builtins.property  # the setting called property hides it here
    def magnitude_rule(self) -> str:
        """`magnitude`, or what the method starts from."""
        return self.magnitude or ("init" if self.method == "ti" else "mean")

    @field_validator("templates")
    @classmethod
    def _templates_hold_the_word(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for template in templates or ():
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} needs exactly one {{}} for the word")
        return templates


class GenerateSettings(ModelSettings):
    """How pictures are drawn; None leaves the pipeline's own default."""

    negative: str | None = Field(None, description="What should not be in the picture.")
    steps: Positive | None = Field(None, description="Denoising steps; default: the pipeline's.")
    guidance: Annotated[float, Field(ge=0)] | None = Field(
        None, description="How strongly to follow the prompt; default: the pipeline's."
    )
    scheduler: str | None = Field(
        None, description="ddim, euler, euler-a, dpm++, unipc, ...; default: the model's."
    )
    size: Annotated[str, Field(pattern=r"^\d+(x\d+)?$")] | None = Field(
        None, description="HEIGHTxWIDTH or SIDE in pixels; default: the model's."
    )
    seed: Seed = Field(0, description="Picture i starts from noise of seed + i.")
    batch_size: Positive = Field(1, description="Pictures drawn at once.")

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` in numbers."""
        if self.size is None:
            return None
        height, _, width = self.size.partition("x")
        return int(height), int(width or height)


S = TypeVar("S", bound=Settings)


def resolve(kind: type[S], *layers: Mapping[str, Any]) -> S:
    """Merge layers, first wins, and check the result.

    Args:
        kind: the settings to make.
        layers: settings by name; None means not set.

    Raises:
        UsageError: names every unknown key, wrong type and value out of range in one line.
    """
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged |= {name: value for name, value in layer.items() if value is not None}
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        problems = "; ".join(_describe(kind, problem) for problem in error.errors())
        raise UsageError(f"{problems}; see dti --help") from None


def _describe(kind: type[Settings], problem: Any) -> str:
    """One pydantic error in a user's words."""
    name = str(problem["loc"][0]) if problem["loc"] else "settings"
    match problem["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(name, list(kind.model_fields), n=1)
            return f"unknown setting {name!r}" + (f", did you mean {near[0]!r}?" if near else "")
        case "missing":
            return f"--{name.replace('_', '-')} is missing"
        case _:
            message = problem["msg"].removeprefix("Value error, ")
            return f"{name} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested dicts.

    Raises:
        UsageError: missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; pass a TOML file with settings of dti train"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}; correct it") from None


def model_layer(folder: Path | None, verb: str) -> dict[str, Any]:
    """What a model's own `dti.toml` says about `verb` (`train` or `generate`); empty if it says nothing."""
    if folder is None or not (folder / "dti.toml").is_file():
        return {}
    return read_toml(folder / "dti.toml").get(verb, {})
