"""Which model, where from, and loaded how: the one place that decides device and dtype and moves weights."""

import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from dticli import bundled, families, hub
from dticli.errors import EnvironmentProblem, ModelError, UsageError
from dticli.families import Family

DEFAULT_ON_CUDA = "stabilityai/stable-diffusion-xl-base-1.0"
ENVIRONMENT_VARIABLE = "DTI_MODEL"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Model:
    """A model that was chosen but not loaded.

    Attributes:
        name: what is recorded and shown: hub id, folder name or bundled name; never a path.
        kind: where it lives.
        location: hub id, or path of a folder in diffusers layout.
        why: why this one, for the first line printed.
    """

    name: str
    kind: Literal["bundled", "folder", "hub"]
    location: str
    why: str
    revision: str | None = None
    variant: str | None = None
    offline: bool = False

    @property
    def label(self) -> str:
        """Name with revision."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def folder(self) -> Path | None:
        """Where its files are, if they are local."""
        return None if self.kind == "hub" else Path(self.location)


def choose(
    option: str | None,
    *,
    recorded: str | None = None,
    variant: str | None = None,
    offline: bool = False,
    device: str = "auto",
) -> Model:
    """Pick the model: `--model` > the token file's own > DTI_MODEL > SDXL where CUDA is available, else the bundled one.

    Args:
        option: hub id (with `@revision`), folder or bundled name.
        recorded: what a token file says it was learned on.

    Raises:
        ModelError: the folder does not exist or is not in diffusers layout.
    """
    environment = os.environ.get(ENVIRONMENT_VARIABLE)
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    candidates = (
        (option, "chosen with --model"),
        (recorded, "the token file was learned on it"),
        (environment, f"chosen by {ENVIRONMENT_VARIABLE}"),
        (DEFAULT_ON_CUDA if cuda else None, "the default where CUDA is available"),
        (bundled.MODEL_NAME, "the default without CUDA, bundled with dti"),
    )
    name, why = next((name, why) for name, why in candidates if name)
    return _locate(name, why, variant=variant, offline=offline)


def _locate(name: str, why: str, *, variant: str | None, offline: bool) -> Model:
    if name == bundled.MODEL_NAME:
        return Model(name, "bundled", str(bundled.model_folder()), why)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ModelError(
                f"{name} holds no model_index.json: expected a folder in diffusers layout; pass its top folder"
            )
        return Model(path.resolve().name, "folder", str(path.resolve()), why, variant=variant)
    repository, _, revision = name.partition("@")
    if path.is_absolute() or not hub.ID.fullmatch(repository):
        raise ModelError(
            f"no model {name} ({why}): expected a folder in diffusers layout, a hub id like user/name, "
            f"or {bundled.MODEL_NAME!r}; check --model"
        )
    return Model(repository, "hub", repository, why, revision or None, variant, offline)


def index(model: Model) -> dict[str, Any]:
    """The model's `model_index.json`; downloads that one file from the hub.

    Raises:
        ModelError: unreadable.
        EnvironmentProblem: the hub cannot be reached.
    """
    path = model.folder / "model_index.json" if model.folder else Path(_from_hub(model, "model_index.json"))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model.name}: model_index.json is unreadable ({error}); download the model again"
        ) from None


def family(model: Model) -> Family:
    """The family of a model, without loading weights."""
    return families.of_index(index(model), model.name)


def text_folder(model: Model) -> Path:
    """A local folder with the model's tokenizers, text encoders and index; downloads only these from the hub."""
    if model.folder:
        return model.folder
    patterns = ["model_index.json", "tokenizer*/*", "text_encoder*/*.json", "text_encoder*/*.safetensors"]
    return _snapshot(model, patterns)


def tokenizers(model: Model, family: Family) -> list[Any]:
    """The tokenizer of each encoder a word is learned in; downloads only these from the hub.

    Raises:
        ModelError: one is missing or broken.
        EnvironmentProblem: the hub cannot be reached.
    """
    from dticli.norms import read_tokenizer

    parts, folder = index(model), model.folder or _snapshot(model, ["model_index.json", "tokenizer*/*"])
    names = dict.fromkeys(encoder.tokenizer for encoder in family.encoders)
    return [read_tokenizer(folder / name, parts[name][1]) for name in names]


def _snapshot(model: Model, patterns: list[str]) -> Path:
    """A local folder with the files of a hub's model that match."""
    from huggingface_hub import snapshot_download

    with _hub_errors(model):
        return Path(
            snapshot_download(
                model.location,
                revision=model.revision,
                local_files_only=model.offline,
                allow_patterns=patterns,
                ignore_patterns=["*.fp16.safetensors"] if not model.variant else None,
            )
        )


def parameter_counts(model: Model) -> dict[str, int]:
    """How many numbers each component stores, from the headers of its safetensors files.

    Empty where these are not in a local folder; components saved in another format are left out.
    """
    counts: dict[str, int] = {}
    for path in sorted(model.folder.glob("*/*.safetensors")) if model.folder else ():
        if _other_variant(path.name, model.variant):
            continue
        with safe_open(path, framework="pt") as file:
            size = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        counts[path.parent.name] = counts.get(path.parent.name, 0) + size
    return counts


def announcement(model: Model, part: str = "") -> str:
    """The line that says which model, why, and how much would be downloaded.

    Args:
        part: start of the names of the only folders that are wanted, such as `text_encoder`.
    """
    return f"model: {model.label} ({model.why}{_download_note(model, part)})"


def _download_note(model: Model, part: str) -> str:
    if model.kind != "hub" or model.offline or _is_cached(model):
        return ""
    from huggingface_hub import HfApi

    with _hub_errors(model):
        info = HfApi().model_info(model.location, revision=model.revision, files_metadata=True)
    wanted = [
        sibling
        for sibling in info.siblings or ()
        if re.fullmatch(rf"{part}[^/]*/[^/]+\.(json|txt|model|safetensors)", sibling.rfilename)
        and not _other_variant(sibling.rfilename, model.variant)
    ]
    return f"; up to {sum(sibling.size or 0 for sibling in wanted) / 1e9:.1f} GB to download"


def _other_variant(filename: str, variant: str | None) -> bool:
    """Whether a weight file belongs to a variant other than the wanted one."""
    match = re.search(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$", filename)
    return filename.endswith(".safetensors") and (match[1] if match else None) != variant


def _is_cached(model: Model) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(
        try_to_load_from_cache(model.location, "model_index.json", revision=model.revision), str
    )


def _from_hub(model: Model, filename: str) -> str:
    from huggingface_hub import hf_hub_download

    with _hub_errors(model):
        return hf_hub_download(
            model.location, filename, revision=model.revision, local_files_only=model.offline
        )


def _hub_errors(model: Model) -> AbstractContextManager[None]:
    """Turn the hub client's errors into ours."""
    why = "--offline was given" if model.offline else "the hub cannot be reached"
    return hub.errors(
        model.name,
        model.revision,
        kind="model",
        error=ModelError,
        option="--model",
        lacks="model_index.json: expected a model in diffusers layout; choose another --model",
        instead=f"{why}: check the network, pass a folder, or use --model {bundled.MODEL_NAME}",
    )


def pick_device(wanted: str) -> torch.device:
    """The device for `auto`, `cuda`, `mps` or `cpu`.

    Raises:
        EnvironmentProblem: that kind of device is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wanted]:
        raise EnvironmentProblem(
            f"no {wanted} device: torch {torch.__version__} sees none; install the build of torch for it, or use --device cpu"
        )
    return torch.device(wanted)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the frozen weights; `auto` is bf16 or fp16 on CUDA, fp32 elsewhere."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load(model: Model, device: torch.device, dtype: torch.dtype, *, safety_checker: bool = True) -> Any:
    """Load the pipeline, frozen, on `device`.

    Args:
        safety_checker: False leaves out the picture filter of pipelines that ship one; training never draws.

    Raises:
        ModelError: files are missing or broken.
        EnvironmentProblem: the hub cannot be reached, or memory is out.
    """
    from diffusers import DiffusionPipeline

    left_out: dict[str, Any] = _absent(index(model))
    if not safety_checker and "safety_checker" in index(model):
        left_out |= WITHOUT_SAFETY_CHECKER
    _quiet_libraries()
    with _hub_errors(model):
        try:
            pipe = DiffusionPipeline.from_pretrained(
                model.location,
                dtype=dtype,
                revision=model.revision,
                variant=model.variant,
                local_files_only=model.offline or model.kind != "hub",
                **left_out,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, ConnectionError):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{model.name} cannot be loaded: {reason}; download the model again") from error
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval()
            _without_cache(module)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _without_cache(module: torch.nn.Module) -> None:
    """Language models keep keys and values for the next token, and as encoders there is none."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "get_text_config"):
        config.get_text_config().use_cache = False


def _absent(index: Mapping[str, Any]) -> dict[str, None]:
    """Components a model was saved without: the library insists that they are named as None."""
    return {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}


WITHOUT_SAFETY_CHECKER = {"safety_checker": None, "requires_safety_checker": False}


def _quiet_libraries() -> None:
    """Notes and progress bars of the libraries stay off the user's screen; errors still raise."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def make_deterministic() -> None:
    """Ask torch for the same bytes on every run, on CUDA too; ops without such a version raise."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def require_multiple(size: tuple[int, int], family: Family) -> None:
    """Raise UsageError unless (height, width) suit the family."""
    for side in size:
        if side % family.multiple:
            nearest = max(family.multiple, round(side / family.multiple) * family.multiple)
            raise UsageError(
                f"size {side} does not suit {family.name}: expected multiples of {family.multiple}; try {nearest}"
            )
