"""Settings of a run, merged from the command line, a config file, the model folder and the family, and checked.

The first layer that names a setting takes precedence: command line > config file > the model folder's `dti.toml` > the family's
row > the defaults below. Unknown keys are errors, and all problems are reported at once.
"""

import builtins
import difflib
import json
import os
import re
import secrets
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, ValidationInfo, field_validator

from dticli import files, spelling
from dticli.errors import UsageError
from dticli.paths import ALPHA, names_token_file

Positive = Annotated[int, Field(ge=1)]
MIN_SIDE, MAX_SIDE = 8, 8192
"""Limits of a picture's side in pixels; other sizes fail after a long time, or exhaust the memory."""
MAX_DRAWING_STEPS = 1000
"""Number of noise levels that models are trained with; schedulers support no more steps."""
MAX_BATCH = 4096
Seed = Annotated[int, Field(ge=0, lt=2**63)]
ANY_SEED = -1
"""Value that stands for a random seed."""
PathKind = Literal["slerp", "lerp"]
"""How words are mixed: on the sphere, or linearly."""


class Group(StrEnum):
    """Groups of options in help, in this order; a first run needs the first two."""

    REQUIRED = "Required"
    COMMON = "Common"
    PHOTOS = "Photos"
    METHOD = "Method"
    SEEING = "Previews and states along the run"
    DRAWING = "Drawing"
    MODEL = "Model and memory"
    OUTPUT = "Output and runs"


class Trait(StrEnum):
    """Properties of a setting, as part of its field's annotation; subclasses may annotate a setting differently."""

    INCIDENTAL = "does not decide what comes out, or is compared by its content instead of its name"
    OF_A_MODEL = "a model's own folder may say it: how it is best trained and drawn with"
    FILE = "names a file or folder"
    WORD_OR_FILE = "names a token file, if it ends as one"
    NAME_OR_FILE = "names a file or folder, if there is one of that name"
    RECORDED = "stands in the token file"
    SUBJECT = "a plan says it for each of its subjects"
    FOR_ALL_ARMS = "a plan's subjects and seeds decide it, or the command line, and no arm of its own"


class Settings(BaseModel):
    """Base of settings: frozen, without conversion of types, unknown names or non-finite numbers.

    The description of a field is its help text; every field is an option of the command unless it is excluded.
    """

    group: ClassVar[Group] = Group.COMMON
    """Group of the fields that do not name one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @classmethod
    def named(cls, *traits: Trait) -> frozenset[str]:
        """The settings with any of these traits."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(each, Trait) and each in traits for each in field.metadata)
        )

    @classmethod
    def may_name_file(cls, name: str, value: str) -> bool:
        """Whether the setting `name` can name a file or folder if it has this value."""
        if name in cls.named(Trait.WORD_OR_FILE):
            return names_token_file(value)
        return name in cls.named(Trait.FILE, Trait.NAME_OR_FILE)

    @classmethod
    def beside(cls, folder: Path, table: Mapping[str, Any]) -> dict[str, Any]:
        """A table of settings with paths that are relative to `folder` resolved."""
        return {
            name: str(folder / value) if cls._is_path(folder, name, value) else value
            for name, value in table.items()
        }

    @classmethod
    def _is_path(cls, folder: Path, name: str, value: Any) -> bool:
        if not isinstance(value, str) or not cls.may_name_file(name, value):
            return False
        if name in cls.named(Trait.NAME_OR_FILE):
            return os.path.exists(folder / value)
        return value != ALPHA

    @field_validator("*")
    @classmethod
    def _is_text(cls, value: Any, info: ValidationInfo) -> Any:
        # An empty path would mean the current folder, and an empty name the default.
        if value == "" and info.field_name in cls.named(Trait.FILE, Trait.NAME_OR_FILE, Trait.WORD_OR_FILE):
            raise ValueError("expected a name, not an empty text; leave it out")
        for each in value if isinstance(value, tuple) else (value,):
            flaw = spelling.flaw(each) if isinstance(each, str) else None
            # Names of files need not be UTF-8.
            if flaw and ("\0" in each or not cls.may_name_file(str(info.field_name), each)):
                raise ValueError(flaw)
        return value


class ModelSettings(Settings):
    """The model, its device, and its precision."""

    group = Group.MODEL

    model: Annotated[str | None, Group.COMMON, Trait.INCIDENTAL, Trait.NAME_OR_FILE] = Field(
        None,
        description="Hub id (with @revision), diffusers folder, .safetensors file, or 'stickers'.",
    )
    base: Annotated[str | None, Trait.INCIDENTAL, Trait.NAME_OR_FILE] = Field(
        None,
        description="For a single-file --model: folder or hub id in diffusers layout with the configs and tokenizers; "
        "default: the public model of its kind.",
    )
    variant: Annotated[str | None, Trait.INCIDENTAL] = Field(
        None, description="Weight files to load, such as fp16."
    )
    prediction: Literal["epsilon", "v"] | None = Field(
        None,
        description="Prediction type of the denoiser; default: what the model's files say.",
    )
    offline: Annotated[bool, Trait.INCIDENTAL] = Field(False, description="Never contact the hub.")
    device: Annotated[Literal["auto", "cuda", "mps", "cpu"], Trait.INCIDENTAL] = Field(
        "auto", description="Where to compute."
    )
    precision: Annotated[Literal["auto", "bf16", "fp16", "fp32"], Trait.OF_A_MODEL] = Field(
        "auto", description="Precision of the model's weights; auto: bf16 or fp16 on CUDA, fp32 elsewhere."
    )
    quantize: Literal["none", "8bit", "4bit"] = Field(
        "none", description="Quantize the large matrices to this many bits; less memory, less exact."
    )
    low_memory: Annotated[bool, Trait.INCIDENTAL] = Field(
        False, description="Keep on the device only what a step needs; slower."
    )
    deterministic: Annotated[bool, Trait.INCIDENTAL] = Field(
        False, description="Same bytes on every run, on CUDA too; slower."
    )


class TrainSettings(ModelSettings):
    """Settings of `dti train`."""

    group = Group.METHOD

    token: Annotated[str, Group.REQUIRED, Trait.RECORDED, Trait.FOR_ALL_ARMS] = Field(
        description="The new word, in brackets: <dog>."
    )
    init: Annotated[str, Group.REQUIRED, Trait.WORD_OR_FILE, Trait.RECORDED, Trait.SUBJECT] = Field(
        description="Class word or phrase to start from, a token file, random, mean, or cross:WORD (the encoder's output for "
        "WORD)."
    )
    method: Annotated[Literal["dti", "ti"], Trait.RECORDED] = Field(
        "dti", description="dti learns the direction; ti is ordinary Textual Inversion with a free norm."
    )
    steps: Annotated[Positive, Group.COMMON, Trait.INCIDENTAL, Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        description="Optimizer steps."
    )
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH), Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        description="Samples per batch on each device."
    )
    accumulate: Annotated[Positive, Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        1, description="Batches accumulated for each optimizer step."
    )
    lr: Annotated[float, Field(gt=0), Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        description="Step size: each step rotates the word by atan(lr) radians. For ti, AdamW's learning rate."
    )
    kappa: Annotated[float, Field(ge=0), Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        description="Concentration (strength) of the von Mises-Fisher prior; 0: no prior."
    )
    prior: Annotated[str, Trait.WORD_OR_FILE, Trait.RECORDED] = Field(
        "init", description="Direction that the prior pulls towards: init, none, or a WORD."
    )
    magnitude: Annotated[str | None, Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        None,
        description="Norm of the rows: mean (dti's default), median, min or max of the vocabulary, a number, a multiple of "
        "the mean such as 10x, or init (ti's default): that of the init row.",
    )
    pooling: Annotated[Literal["stock", "eos", "mixed"], Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        "stock",
        description="Where CLIP's pooled state is read: stock, at the word, as in diffusers; eos, at the end of the text, as "
        "in ComfyUI and kohya; mixed alternates, for both.",
    )
    train_magnitude: Annotated[bool, Trait.RECORDED] = Field(False, description="Learn the magnitude too.")
    optimizer: Annotated[Literal["rsgd", "adamw"], Trait.RECORDED] = Field(
        "rsgd",
        description="Optimizer of the direction: Riemannian SGD or, for comparison, AdamW with a retraction after each step.",
    )
    beta: Annotated[float, Field(ge=0, lt=1), Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        0.0,
        description="Decay of the moving average of squared gradient norms that normalizes steps; 0: each step by its own "
        "norm.",
    )
    schedule: Annotated[Literal["constant", "linear", "cosine"], Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        "constant",
        description="Step size over the run: constant at --lr, or decaying to 0, linearly or as a cosine.",
    )
    average: Annotated[bool, Trait.OF_A_MODEL, Trait.RECORDED] = Field(
        False, description="Write the mean over the last half of the steps."
    )
    weight_decay: Annotated[float, Field(ge=0), Trait.RECORDED] = Field(
        1e-2, description="Weight decay of --method ti."
    )
    as_paper: Annotated[bool, Trait.INCIDENTAL] = Field(
        False,
        description="Use the paper's settings (steps, batch size, step size, prior) instead of the model's and dti's; other "
        "options take precedence.",
    )
    vectors: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Number of vectors; default: as many as the init phrase has tokens."
    )
    property: Annotated[Literal["object", "style"], Group.PHOTOS, Trait.RECORDED] = Field(
        "object", description="What the photos have in common: selects the caption templates."
    )
    captions: Annotated[Literal["templates", "sidecar"], Group.PHOTOS] = Field(
        "templates",
        description="Built-in templates, or the .txt or .caption file beside each photo, one caption per line.",
    )
    captions_file: Annotated[str | None, Group.PHOTOS, Trait.INCIDENTAL, Trait.FILE] = Field(
        None, description='JSON lines {"file": ..., "text": ...}, or a CSV with the header file,text.'
    )
    zero_pad: Annotated[bool, Trait.RECORDED] = Field(
        False, description="Prepend 0 to 15 rows of zeros to captions, as the paper's code does for SANA."
    )
    templates: Annotated[Annotated[tuple[str, ...], Strict(False)] | None, Trait.OF_A_MODEL] = Field(
        None, exclude=True
    )
    photos: Annotated[str | None, Trait.INCIDENTAL, Trait.FILE, Trait.SUBJECT, Trait.FOR_ALL_ARMS] = Field(
        None, exclude=True
    )
    masks: Annotated[
        str | None, Group.PHOTOS, Trait.INCIDENTAL, Trait.FILE, Trait.SUBJECT, Trait.FOR_ALL_ARMS
    ] = Field(
        None,
        description="Folder with a mask for each photo, white on the subject, or alpha: use the photos' transparency.",
    )
    resolution: Annotated[Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)], Group.PHOTOS, Trait.OF_A_MODEL] = (
        Field(description="Side of the square crops, in pixels.")
    )
    crop: Annotated[Literal["center", "random", "none"], Group.PHOTOS, Trait.RECORDED] = Field(
        "center",
        description="Position of the crops; none uses whole photos, at the nearest of a few aspect ratios.",
    )
    crops: Annotated[Annotated[int, Field(ge=1, le=256)], Group.PHOTOS] = Field(
        1, description="Crops per photo; from the second on at random positions."
    )
    flip: Annotated[bool, Group.PHOTOS, Trait.RECORDED] = Field(
        False, description="Also learn from mirrored photos."
    )
    seed: Annotated[Seed, Trait.RECORDED, Trait.FOR_ALL_ARMS] = Field(
        0, description="Seed of all random draws."
    )
    checkpoint_steps: Annotated[Positive, Group.OUTPUT, Trait.INCIDENTAL] = Field(
        100, description="Save the state every N steps."
    )
    checkpoint_seconds: Annotated[Annotated[float, Field(gt=0)], Group.OUTPUT, Trait.INCIDENTAL] = Field(
        60.0, description="Also save the state every N seconds."
    )
    keep: Annotated[Annotated[int, Field(ge=0, le=1000)], Group.SEEING, Trait.INCIDENTAL] = Field(
        0,
        description="Keep N states along the run as token files: -t dog.run@200 is the state at step 200.",
    )
    preview: Annotated[Annotated[tuple[str, ...], Strict(False)], Group.SEEING, Trait.INCIDENTAL] = Field(
        (),
        description="Draw this prompt along the run, such as 'a {} in the snow' with {} for the word; repeatable.",
    )
    preview_every: Annotated[Positive, Group.SEEING, Trait.INCIDENTAL] = Field(
        100, description="Draw previews every N steps."
    )
    preview_count: Annotated[Annotated[int, Field(ge=1, le=64)], Group.SEEING, Trait.INCIDENTAL] = Field(
        1, description="Previews per prompt, each from different noise, which is the same at every step."
    )
    preview_negative: Annotated[str | None, Group.SEEING, Trait.INCIDENTAL] = Field(
        None, description="Negative prompt of the previews."
    )
    preview_steps: Annotated[Positive | None, Group.SEEING, Trait.INCIDENTAL] = Field(
        None, description="Denoising steps of a preview; default: the model's."
    )
    preview_share: Annotated[Annotated[float, Field(gt=0, le=1)], Group.SEEING, Trait.INCIDENTAL] = Field(
        0.2,
        description="Skip previews, except the first and last, when they would take more than this share of the run's time.",
    )

    tracker: Annotated[Literal["tensorboard", "wandb", "csv"] | None, Group.SEEING, Trait.INCIDENTAL] = Field(
        None, description="Also log metrics and previews for this program, in the run's folder."
    )

    @builtins.property  # the setting called property hides it here
    def magnitude_rule(self) -> str:
        """`magnitude`, or the method's default."""
        return self.magnitude or ("init" if self.method == "ti" else "mean")

    @builtins.property
    def recorded(self) -> dict[str, str]:
        """The settings that are recorded in the token file, by name."""
        said = {name: str(getattr(self, name)) for name in self.named(Trait.RECORDED)}
        # Names of files without their folders, which would tell about the user's machine.
        return {
            name: Path(value).name if self.may_name_file(name, value) else value
            for name, value in said.items()
        } | {"magnitude": self.magnitude_rule}

    @field_validator("crops")
    @classmethod
    def _whole_photos_are_one_crop(cls, crops: int, info: ValidationInfo) -> int:
        if crops > 1 and info.data.get("crop") == "none":
            raise ValueError("crop = 'none' takes photos whole: expected 1")
        return crops

    @field_validator("token", mode="before")
    @classmethod
    def _in_brackets(cls, token: Any) -> Any:
        return spelling.word(token) if isinstance(token, str) else token

    @field_validator("magnitude")
    @classmethod
    def _magnitude_is_a_length(cls, magnitude: str | None) -> str | None:
        if magnitude is not None and magnitude != "init":
            spelling.length(magnitude)
        return magnitude

    @field_validator("preview")
    @classmethod
    def _previews_show_the_word(cls, preview: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        token = info.data.get("token")
        for prompt in preview:
            # The token may be set by another layer.
            if token and "{}" not in prompt and token not in prompt:
                raise ValueError(f"{prompt!r} lacks the word: write {{}} or {token} where it should appear")
        return preview

    @builtins.property
    def preview_prompts(self) -> tuple[str, ...]:
        """`preview` with the word in place of {}."""
        return tuple(prompt.replace("{}", self.token) for prompt in self.preview)

    @field_validator("templates")
    @classmethod
    def _templates_hold_the_word(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for template in templates or ():
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} needs exactly one {{}} for the word")
        return templates


class GenerateSettings(ModelSettings):
    """Settings of drawing; None for the pipeline's own default."""

    group = Group.DRAWING

    negative: str | None = Field(None, description="Negative prompt.")
    steps: Annotated[Annotated[int, Field(ge=1, le=MAX_DRAWING_STEPS)] | None, Trait.OF_A_MODEL] = Field(
        None, description="Denoising steps; default: the pipeline's."
    )
    guidance: Annotated[Annotated[float, Field(ge=0)] | None, Trait.OF_A_MODEL] = Field(
        None, description="Guidance scale; default: the pipeline's."
    )
    pooling: Annotated[Literal["stock", "eos"] | None, Trait.OF_A_MODEL] = Field(
        None,
        description="Where CLIP's pooled state is read (see train); default: as the words were learned.",
    )
    scheduler: Annotated[str | None, Trait.OF_A_MODEL] = Field(
        None, description="ddim, euler, euler-a, dpm++, unipc, ...; default: the model's."
    )
    size: Annotated[Annotated[str, Field(pattern=r"^\d+(x\d+)?$")] | None, Group.COMMON, Trait.OF_A_MODEL] = (
        Field(
            None,
            description="WIDTHxHEIGHT or SIDE in pixels; default: the model's.",
            examples=["512", "768x512"],
        )
    )
    seed: Annotated[Annotated[int, Field(ge=ANY_SEED, lt=2**63)], Group.COMMON] = Field(
        0, description="Seed of the noise: picture i uses seed + i, frames use seed; -1: random."
    )
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH), Trait.OF_A_MODEL, Trait.INCIDENTAL] = Field(
        1, description="Pictures per batch."
    )

    @field_validator("size")
    @classmethod
    def _sides_are_within_reach(cls, size: str | None) -> str | None:
        sides = [float(side) for side in re.findall(r"\d+", size or "")]
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
            raise ValueError(f"expected sides of {MIN_SIDE} to {MAX_SIDE} pixels")
        return size

    @field_validator("size", mode="before")
    @classmethod
    def _of_any_mark(cls, size: Any) -> Any:
        return spelling.size(size) if isinstance(size, str) else size

    @field_validator("scheduler")
    @classmethod
    def _of_any_program(cls, scheduler: str | None) -> str | None:
        return scheduler and spelling.sampler(scheduler)

    @field_validator("seed")
    @classmethod
    def _drawn(cls, seed: int) -> int:
        return secrets.randbelow(2**32) if seed == ANY_SEED else seed

    @property
    def height_width(self) -> tuple[int, int] | None:
        """`size` as (height, width)."""
        if self.size is None:
            return None
        width, _, height = self.size.partition("x")
        return int(height or width), int(width)


S = TypeVar("S", bound=Settings)


def resolve(kind: type[S], *layers: Mapping[str, Any]) -> S:
    """Merge layers and check the result; earlier layers take precedence.

    Args:
        kind: class of the settings.
        layers: settings by name; None means not set.

    Raises:
        UsageError: settings are missing, unknown, of the wrong type or out of range; the message names all of them.
    """
    try:
        return kind.model_validate(_merged(layers))
    except ValidationError as error:
        raise _wrong(kind, error.errors()) from None


def require_possible(kind: type[Settings], *layers: Mapping[str, Any]) -> None:
    """Check the layers above the model's, before the model is read.

    Raises:
        UsageError: as `resolve`, except for missing settings that a model or its family may set.
    """
    try:
        kind.model_validate(_merged(layers))
    except ValidationError as error:
        others = kind.named(Trait.OF_A_MODEL)
        problems = [
            each for each in error.errors() if each["type"] != "missing" or each["loc"][0] not in others
        ]
        if problems:
            raise _wrong(kind, problems) from None


def _merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged |= {name: value for name, value in layer.items() if value is not None}
    return merged


def _wrong(kind: type[Settings], problems: Sequence[Any]) -> UsageError:
    return UsageError(f"{'; '.join(_describe(kind, problem) for problem in problems)}; see --help")


def first_said(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`ModelSettings` by name, each from the first layer that sets it; None if none does."""
    return {name: first_of(layers, name) for name in ModelSettings.model_fields}


def first_of(layers: Sequence[Mapping[str, Any]], name: str) -> Any:
    """A setting from the first layer that sets it; None if none does."""
    return next((layer[name] for layer in layers if layer.get(name) is not None), None)


def plain(message: str) -> str:
    """A message of pydantic, worded like other messages."""
    message = re.sub(r"^Value error, |, unable to parse string as an? \w+", "", message)
    message = message.replace("Input should be", "expected")
    return message[:1].lower() + message[1:]


def _describe(kind: type[Settings], problem: Any) -> str:
    """Describe an error of pydantic for users."""
    name = str(problem["loc"][0]) if problem["loc"] else "settings"
    match problem["type"]:
        case "extra_forbidden":
            near = _nearest(name, kind.model_fields)
            return f"unknown setting {_shown(name)}" + (
                f", did you mean {near!r}?" if near else ": expected an option's name, with _ for -"
            )
        case "missing":
            what = str(kind.model_fields[name].description).split(": ")[0].rstrip(".")
            return f"--{name.replace('_', '-')} is missing: expected {what[0].lower()}{what[1:]}"
        case "string_pattern_mismatch":
            examples = " or ".join(kind.model_fields[name].examples or ())
            return f"{name} = {_shown(problem['input'])}: expected a value such as {examples}"
        case "literal_error":
            options = _choices(kind.model_fields[name].annotation)
            near = _nearest(problem["input"], options)
            advice = f", did you mean {near!r}?" if near else ""
            return f"{name} = {_shown(problem['input'])}: expected {' or '.join(map(repr, options))}{advice}"
        case _:
            return f"{name} = {_shown(problem['input'])}: {plain(problem['msg'])}"


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, also if it is optional."""
    if isinstance(annotation, str):
        return [annotation]
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _nearest(given: object, names: Iterable[str]) -> str | None:
    """The most similar name; None if none is close."""
    spelled = str(given).lower().replace("-", "_")[:100]
    return next(iter(difflib.get_close_matches(spelled, list(names), n=1)), None)


def _shown(value: object) -> str:
    """A value from a file, on one line of bounded length."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_config(kind: type[Settings], path: Path) -> dict[str, Any]:
    """Read a settings file with any of the settings of `kind`.

    Raises:
        UsageError: it is missing or not TOML, or settings are unknown, of the wrong type or out of range.
    """
    layer = read_toml(path)
    require_valid(kind, layer, str(path))
    return layer


def read_layers(kind: type[Settings], path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Read a settings file with tables; returns the settings above the tables, and those of each table by name.

    Raises:
        UsageError: as `read_config`, for all tables at once.
    """
    content = read_toml(path)
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    above = {name: value for name, value in content.items() if name not in tables}
    problems = _problems(kind, above)
    problems += [f"[{name}] {each}" for name, table in tables.items() for each in _problems(kind, table)]
    if problems:
        raise UsageError(f"{path}: {'; '.join(problems)}; correct it")
    return above, tables


def require_valid(kind: type[Settings], layer: Mapping[str, Any], source: str) -> None:
    """Raise UsageError with all problems of a layer; settings may be missing, because other layers may set them."""
    problems = _problems(kind, layer)
    if problems:
        raise UsageError(f"{source}: {'; '.join(problems)}; correct it")


def _problems(kind: type[Settings], layer: Mapping[str, Any]) -> list[str]:
    """The problems of a layer by itself, except missing settings."""
    try:
        kind.model_validate(layer)
    except ValidationError as error:
        return [_describe(kind, problem) for problem in error.errors() if problem["type"] != "missing"]
    return []


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as nested dicts.

    Raises:
        UsageError: it is missing or not TOML.
    """
    text = files.read_text(path, UsageError, "pass a TOML file with settings of dti train")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # TOMLDecodeError, and numbers or nesting beyond Python's limits.
        raise UsageError(f"{path} is not valid TOML: {error}; correct it") from None


def model_layer(folder: Path | None, verb: Literal["train", "generate"]) -> dict[str, Any]:
    """The settings for `verb` in a model's own `dti.toml`; empty if there are none.

    Raises:
        UsageError: as `read_config`, or a setting that a model may not set.
    """
    if folder is None or not os.path.lexists(folder / "dti.toml"):
        return {}
    path = folder / "dti.toml"
    kinds: dict[str, type[Settings]] = {"train": TrainSettings, "generate": GenerateSettings}
    content = read_toml(path)
    for name, layer in content.items():
        if name not in kinds or not isinstance(layer, dict):
            raise UsageError(
                f"{path}: expected the tables [train] and [generate], not {_shown(name)}; correct it"
            )
        of_a_model = kinds[name].named(Trait.OF_A_MODEL)
        others = sorted(layer.keys() & kinds[name].model_fields.keys() - of_a_model)
        if others:
            raise UsageError(
                f"{path}: [{name}] sets {', '.join(others)}, which only users may set: expected some of "
                f"{', '.join(sorted(of_a_model))}; delete the others"
            )
    layer = content.get(verb, {})
    require_valid(kinds[verb], layer, str(path))
    return layer


# Settings to pass on


def shareable(settings: Settings) -> dict[str, bool | int | float | str]:
    """Settings that are set; absolute paths are shortened to names, because others should not learn the user's folders."""
    shown = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is None or value == ():
            continue
        if settings.may_name_file(name, value):
            value = Path(value).name if Path(value).is_absolute() else value
        shown[name] = "; ".join(value) if isinstance(value, tuple) else value
    return shown


# Settings as a file


def anchored(settings: TrainSettings) -> TrainSettings:
    """The same settings with absolute paths, so that they are valid in any folder."""
    named = {name: getattr(settings, name) for name in settings.named(Trait.FILE, Trait.WORD_OR_FILE)}
    return settings.model_copy(update=settings.beside(Path.cwd(), named))


def to_toml(settings: Settings) -> str:
    """Settings as the text of a TOML file for `read_config`; those that are None are left out."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    lines = [f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None]
    return "".join(lines)


def _toml(value: object) -> str:
    match value:
        case bool() | int() | float():
            return json.dumps(value)
        case str():
            # JSON strings are TOML strings, except for one control character.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            assert isinstance(value, tuple)
            return f"[{', '.join(map(_toml, value))}]"
