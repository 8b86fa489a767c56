"""Chooses a model."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dticli import bundled, hub
from dticli.errors import ModelError, UsageError
from dticli.models import devices, single_file
from dticli.models.single_file import PREDICTIONS, Shapes, SingleFile

DEFAULT_ON_CUDA = "stabilityai/stable-diffusion-xl-base-1.0"
ENVIRONMENT_VARIABLE = "DTI_MODEL"


@dataclass(frozen=True)
class Model:
    """A model that was chosen but not loaded.

    Attributes:
        name: as recorded and shown: hub id, name of a folder or file, or bundled name; never a path.
        kind: of its location.
        location: hub id, or path of a folder in diffusers layout or of a file.
        why: reason of the choice, for messages.
        option: command-line option that chooses it, for messages.
        file: the single file with its weights; None for other models.
        base: of a single file: the model whose index, configs, tokenizers and further weights it uses.
        prediction: prediction type, `epsilon` or `v`, which overrides that in the files; None for that in the files.
    """

    name: str
    kind: Literal["bundled", "folder", "hub", "file"]
    location: str
    why: str
    revision: str | None = None
    variant: str | None = None
    offline: bool = False
    option: str = "--model"
    file: SingleFile | None = None
    base: "Model | None" = None
    prediction: str | None = None

    @property
    def label(self) -> str:
        """Name with revision, if it has one."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def folder(self) -> Path | None:
        """Its local folder; None for single files and models on the hub."""
        return Path(self.location) if self.kind in ("bundled", "folder") else None

    @property
    def layout(self) -> "Model":
        """The model in diffusers layout: itself, or a single file's base."""
        return self.base or self

    @property
    def stored(self) -> dict[str, Shapes]:
        """Component to name to shape of its tensors, for the components in the single file."""
        return self.file.components if self.file else {}

    @property
    def noise(self) -> dict[str, Any]:
        """Entries that replace those of its scheduler's config in diffusers layout."""
        said = self.file.noise if self.file else {}
        if self.prediction is None:
            return said
        kind = PREDICTIONS[self.prediction]
        return (said if said.get("prediction_type") == kind else {}) | {"prediction_type": kind}

    @property
    def settings(self) -> dict[str, str]:
        """Settings that choose the same model from any folder."""
        again = {"bundled": self.name, "hub": self.label}.get(self.kind, self.location)
        found = {
            "model": again,
            "base": self.base and self.base.settings["model"],
            "prediction": self.prediction,
        }
        return {name: value for name, value in found.items() if value}


def choose(
    option: str | None,
    *,
    recorded: str | None = None,
    base: str | None = None,
    variant: str | None = None,
    prediction: str | None = None,
    offline: bool = False,
    device: str = "auto",
) -> Model:
    """Choose the model: `--model` > that of the token file > DTI_MODEL > SDXL if CUDA is available, else the bundled one.

    Args:
        option: hub id (with `@revision`), folder, single file or bundled name.
        recorded: the model that a token file records.
        base: for a single file: a model of its kind; None for the public one.
        prediction: prediction type of the denoiser; None for that in the files.

    Raises:
        ModelError: the folder does not exist or is not in diffusers layout, or the file is not a supported checkpoint.
        UsageError: a base for a model that is not a single file.
    """
    environment = os.environ.get(ENVIRONMENT_VARIABLE)
    candidates = (
        (option, "as chosen"),
        (recorded, "the token file was learned on it"),
        (environment, f"chosen by {ENVIRONMENT_VARIABLE}"),
    )
    name, why = next(((name, why) for name, why in candidates if name), None) or _default(device)
    if single_file.is_named(name):
        found = _locate_file(Path(os.path.expanduser(name)), why, base, variant=variant, offline=offline)
    elif base:
        raise UsageError(
            f"--base {base} cannot be combined with the model {name}: expected it only for a single .safetensors file; leave "
            f"it out"
        )
    else:
        found = _locate(name, why, "--model", variant=variant, offline=offline)
    return replace(found, prediction=prediction)


def _default(device: str) -> tuple[str, str]:
    """The default model, and the reason."""
    if device in ("auto", "cuda") and devices.has_cuda():
        return DEFAULT_ON_CUDA, "the default where CUDA is available"
    return bundled.MODEL_NAME, "the default without CUDA, bundled with dti"


def _locate_file(path: Path, why: str, base: str | None, *, variant: str | None, offline: bool) -> Model:
    devices.quiet_libraries()
    file = single_file.read(path)
    reason = "chosen with --base" if base else "the usual one of its kind"
    layout = _locate(base or file.usual_base, reason, "--base", variant=variant, offline=offline)
    return Model(path.name, "file", str(path.resolve()), why, file=file, base=layout)


def _locate(name: str, why: str, option: str, *, variant: str | None, offline: bool) -> Model:
    if name == bundled.MODEL_NAME:
        return Model(name, "bundled", str(bundled.model_folder()), why, option=option)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        if not os.path.isfile(path / "model_index.json"):
            raise ModelError(
                f"{name} holds no model_index.json: expected a folder in diffusers layout; pass its top folder"
            )
        return Model(path.resolve().name, "folder", str(path.resolve()), why, None, variant, option=option)
    repository, _, revision = name.partition("@")
    if path.is_absolute() or not hub.ID.fullmatch(repository):
        raise ModelError(
            f"no model {name} ({why}): expected a folder in diffusers layout, a hub id like user/name, "
            f"or {bundled.MODEL_NAME!r}; check {option}"
        )
    return Model(repository, "hub", repository, why, revision or None, variant, offline, option)
