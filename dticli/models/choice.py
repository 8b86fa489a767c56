"""Which model, where from, and loaded how: the one place that decides device and dtype and moves weights."""

import dataclasses
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError

from dticli import bundled, hub
from dticli.errors import EnvironmentProblem, ModelError, UsageError
from dticli.models import families, single_file
from dticli.models.families import Family
from dticli.models.single_file import Base, Shapes, SingleFile

if TYPE_CHECKING:
    from dticli.models.embeddings import Table

DEFAULT_ON_CUDA = "stabilityai/stable-diffusion-xl-base-1.0"
ENVIRONMENT_VARIABLE = "DTI_MODEL"
DENOISERS = ("unet", "transformer")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Model:
    """A model that was chosen but not loaded.

    Attributes:
        name: what is recorded and shown: hub id, name of a folder or file, or bundled name; never a path.
        kind: where it lives.
        location: hub id, or path of a folder in diffusers layout or of a file.
        why: why this one, for the first line printed.
        option: that chooses it.
        file: the single file with its weights.
        base: of a single file: the model whose index, configs and tokenizers it uses, and weights it lacks.
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

    @property
    def label(self) -> str:
        """Name with revision."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def folder(self) -> Path | None:
        """Where its files are, if they are a local folder."""
        return Path(self.location) if self.kind in ("bundled", "folder") else None

    @property
    def layout(self) -> "Model":
        """The model in diffusers layout: itself, or a single file's base."""
        return self.base or self

    @property
    def stored(self) -> dict[str, Shapes]:
        """Components whose weights are in the single file."""
        return self.file.components if self.file else {}

    @property
    def settings(self) -> dict[str, str]:
        """The settings that choose it again, from any folder."""
        again = {"bundled": self.name, "hub": self.label}.get(self.kind, self.location)
        return {"model": again} | ({"base": self.base.settings["model"]} if self.base else {})


def choose(
    option: str | None,
    *,
    recorded: str | None = None,
    base: str | None = None,
    variant: str | None = None,
    offline: bool = False,
    device: str = "auto",
) -> Model:
    """Pick the model: `--model` > the token file's own > DTI_MODEL > SDXL where CUDA is available, else the bundled one.

    Args:
        option: hub id (with `@revision`), folder, single file or bundled name.
        recorded: what a token file says it was learned on.
        base: for a single file: a model of its kind; None for the usual one.

    Raises:
        ModelError: the folder does not exist or is not in diffusers layout, or the file is no checkpoint.
        UsageError: a base for what is no single file.
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
    if single_file.is_named(name):
        return _locate_file(Path(name).expanduser(), why, base, variant=variant, offline=offline)
    if base:
        raise UsageError(
            f"--base {base} beside the model {name}: expected it for a single .safetensors file only; leave it out"
        )
    return _locate(name, why, "--model", variant=variant, offline=offline)


def _locate_file(path: Path, why: str, base: str | None, *, variant: str | None, offline: bool) -> Model:
    quiet_libraries()
    file = single_file.read(path)
    reason = "chosen with --base" if base else "the usual one of its kind"
    layout = _locate(base or file.usual_base, reason, "--base", variant=variant, offline=offline)
    return Model(path.name, "file", str(path.resolve()), why, file=file, base=layout)


def _locate(name: str, why: str, option: str, *, variant: str | None, offline: bool) -> Model:
    if name == bundled.MODEL_NAME:
        return Model(name, "bundled", str(bundled.model_folder()), why, option=option)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
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


def index(model: Model) -> dict[str, Any]:
    """The model's `model_index.json`; downloads that one file from the hub.

    Raises:
        ModelError: unreadable.
        EnvironmentProblem: the hub cannot be reached.
    """
    model = model.layout
    path = model.folder / "model_index.json" if model.folder else Path(_from_hub(model, "model_index.json"))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model.name}: model_index.json is unreadable ({error}); download the model again"
        ) from None


def family(model: Model) -> Family:
    """The family of a model, without loading weights.

    Raises:
        ModelError: there is none, or a single file is not of its base's.
    """
    found = families.of_index(index(model), model.layout.name)
    if model.file:
        single_file.require_family(model.file, found.name, model.layout.label)
    return found


def tables(model: Model) -> "tuple[Table, ...]":
    """The embedding table of each text encoder; downloads only text encoders and tokenizers from the hub.

    Raises:
        ModelError: a file is missing or damaged.
        EnvironmentProblem: the hub cannot be reached.
    """
    from dticli.models.embeddings import read_tables

    patterns = ["model_index.json", "tokenizer*/*", "text_encoder*/*.json", "text_encoder*/*.safetensors"]
    folder = model.layout.folder or _snapshot(model, patterns)
    return read_tables(folder, model.file.tables if model.file else {})


def tokenizers(model: Model, family: Family) -> list[Any]:
    """The tokenizer of each encoder a word is learned in; downloads only these from the hub.

    Raises:
        ModelError: one is missing or broken.
        EnvironmentProblem: the hub cannot be reached.
    """
    from dticli.models.embeddings import read_tokenizer

    patterns = ["model_index.json", "tokenizer*/*"]
    parts, folder = index(model), model.layout.folder or _snapshot(model, patterns)
    names = dict.fromkeys(encoder.tokenizer for encoder in family.encoders)
    return [read_tokenizer(folder / name, parts[name][1]) for name in names]


def _snapshot(model: Model, patterns: list[str]) -> Path:
    """A local folder with the files of a hub's model, or a base there, that match; without weights a single file has."""
    from huggingface_hub import snapshot_download

    layout = model.layout
    other = [] if layout.variant else ["*.fp16.safetensors", "*.fp16-*.safetensors"]
    with _hub_errors(layout):
        return Path(
            snapshot_download(
                layout.location,
                revision=layout.revision,
                local_files_only=layout.offline,
                allow_patterns=patterns,
                ignore_patterns=[*other, *(f"{component}/*.safetensors" for component in model.stored)],
            )
        )


def shapes(model: Model) -> dict[str, Shapes]:
    """Component to name to shape of every tensor it stores, from the headers of its safetensors files.

    Of a model that is not on this machine, the hub sends the headers alone; with `--offline` it is not asked. Components
    saved in another format are left out.

    Raises:
        ModelError: the hub has no such model.
        EnvironmentProblem: the hub cannot be reached.
    """
    layout, whole = model.layout, index(model)
    there = whole.keys() - _absent(whole).keys()
    # Text encoders may have been fetched without the denoiser; of a base, only what the file lacks is of interest.
    needed = there & set(model.file.lacking if model.file else DENOISERS)
    components = {name: whole[name] for name in (needed if model.file else there)}
    found = _merged(_headers(layout, components))
    if layout.kind == "hub" and not layout.offline and not found.keys() >= needed:
        found = _merged(_remote_headers(layout, components))
    stored = {name: tensors for name, tensors in model.stored.items() if name in there}
    return dict(sorted((found | stored).items()))


def _merged(headers: Iterator[tuple[str, Shapes]]) -> dict[str, Shapes]:
    """One mapping a component, of all its files."""
    found: dict[str, Shapes] = {}
    for component, tensors in headers:
        found[component] = found.get(component, {}) | tensors
    return found


def _headers(model: Model, components: Mapping[str, Any]) -> Iterator[tuple[str, Shapes]]:
    """Component, and name to shape, of each file on this machine that would be loaded."""
    folder = model.folder or Path(_from_hub(model, "model_index.json")).parent
    for path in sorted(folder.glob("*/*.safetensors")):
        if path.parent.name in components and not _other_variant(path.name, model.variant):
            yield path.parent.name, _shapes_in(path, model)


def _shapes_in(path: Path, model: Model) -> Shapes:
    try:
        return single_file.header(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{model.name}: {path.parent.name}/{path.name} is damaged ({error}); download the model again"
        ) from None


def _remote_headers(model: Model, components: Mapping[str, Any]) -> Iterator[tuple[str, Shapes]]:
    """Component, and name to shape, of each file on the hub that would be loaded."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(model):
        for file in api.list_repo_files(model.location, revision=model.revision):
            component, _, name = file.partition("/")
            wanted = re.fullmatch(r"[^/]+\.safetensors", name) and not _other_variant(name, model.variant)
            if wanted and component in components:
                header = api.parse_safetensors_file_metadata(model.location, file, revision=model.revision)
                yield component, {key: tuple(each.shape) for key, each in header.tensors.items()}


def parameter_counts(shapes: Mapping[str, Shapes]) -> dict[str, int]:
    """How many numbers each component stores."""
    return {
        component: sum(math.prod(shape) for shape in tensors.values())
        for component, tensors in shapes.items()
    }


def announcement(model: Model, part: str = "") -> str:
    """The line that says which model, why, and how much would be downloaded.

    Args:
        part: start of the names of the only folders that are wanted, such as `text_encoder`.
    """
    base = f"; base: {model.base.label}, {model.base.why}" if model.base else ""
    return f"model: {model.label} ({model.why}{base}{_download_note(model, part)})"


def _download_note(model: Model, part: str) -> str:
    layout = model.layout
    if layout.kind != "hub" or layout.offline or _is_cached(layout):
        return ""
    from huggingface_hub import HfApi

    with _hub_errors(layout):
        info = HfApi().model_info(layout.location, revision=layout.revision, files_metadata=True)
    wanted = [
        sibling
        for sibling in info.siblings or ()
        if re.fullmatch(rf"{part}[^/]*/[^/]+\.(json|txt|model|safetensors)", sibling.rfilename)
        and not _other_variant(sibling.rfilename, layout.variant)
        and not _is_stored(sibling.rfilename, model)
    ]
    return f"; up to {sum(sibling.size or 0 for sibling in wanted) / 1e9:.1f} GB to download"


def _is_stored(filename: str, model: Model) -> bool:
    """Whether a file of the base has weights that are in the single file."""
    return filename.endswith(".safetensors") and filename.partition("/")[0] in model.stored


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
    return hub.errors(
        model.name,
        model.revision,
        kind="model",
        error=ModelError,
        option=model.option,
        lacks=f"model_index.json: expected a model in diffusers layout; choose another {model.option}",
        instead=f"check the network, pass {model.option} FOLDER, or use --model {bundled.MODEL_NAME}",
        offline=model.offline,
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


def pick_precision(precision: str, device: torch.device) -> str:
    """Name of the dtype that `pick_dtype` picks."""
    dtype = pick_dtype(precision, device)
    return next(name for name, each in DTYPES.items() if each == dtype)


def load(
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    *,
    safety_checker: bool = True,
    quantization: Any = None,
) -> Any:
    """Load the pipeline, frozen, on `device`.

    Args:
        safety_checker: False leaves out the picture filter of pipelines that ship one; training never draws.
        quantization: a `PipelineQuantizationConfig`; None loads every weight in `dtype`.

    Raises:
        ModelError: files are missing or broken.
        EnvironmentProblem: the hub cannot be reached, or memory is out.
        UsageError: a single file, quantised.
    """
    quiet_libraries()
    from diffusers import DiffusionPipeline

    if model.file and quantization:
        raise UsageError(
            f"--quantize for the single file {model.name}: expected a model in diffusers layout; leave one of them out"
        )
    source = _brought(model) if model.file else model
    left_out: dict[str, Any] = _absent(index(source)) | dict.fromkeys(model.stored)
    # diffusers leaves the filter out of single files, which never have it.
    if (model.file or not safety_checker) and "safety_checker" in index(source):
        left_out |= WITHOUT_SAFETY_CHECKER
    with _hub_errors(source):
        try:
            pipe = DiffusionPipeline.from_pretrained(
                source.location,
                dtype=dtype,
                revision=source.revision,
                variant=source.variant,
                local_files_only=source.offline or source.kind != "hub",
                quantization_config=quantization,
                **left_out,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, ConnectionError | torch.OutOfMemoryError):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{source.name} cannot be loaded: {reason}; download the model again") from error
    if model.file:
        pipe = single_file.fill(model.file, pipe, _as_base(source), dtype)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval()
            _without_cache(module)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _brought(model: Model) -> Model:
    """A single file's base as a folder, with everything that the file itself does not have."""
    assert model.file
    layout = model.layout
    patterns = ["*.json", "tokenizer*/*", *(f"{component}/*.safetensors" for component in model.file.lacking)]
    folder = layout.folder or _snapshot(model, patterns)
    brought = dataclasses.replace(layout, kind="folder", location=str(folder))
    single_file.require_fit(model.file, _as_base(brought))
    return brought


def _as_base(model: Model) -> Base:
    return Base(model.label, Path(model.location), index(model))


def _without_cache(module: torch.nn.Module) -> None:
    """Language models keep keys and values for the next token, and as encoders there is none."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "get_text_config"):
        config.get_text_config().use_cache = False


def _absent(index: Mapping[str, Any]) -> dict[str, None]:
    """Components a model was saved without: the library insists that they are named as None."""
    return {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}


NOISY = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""Loggers that tell, as soon as diffusers imports them, which of their kernels this machine lacks."""

WITHOUT_SAFETY_CHECKER = {"safety_checker": None, "requires_safety_checker": False}


def quiet_libraries() -> None:
    """Notes and progress bars of the libraries stay off the user's screen; errors still raise."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
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
