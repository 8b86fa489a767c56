"""Reads the files of a model without loading it: index, family, tables, tokenizers, shapes and sizes."""

import inspect
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dticli import bundled, files, hub, mistaken
from dticli.errors import ModelError, UsageError, boundary
from dticli.models import families, single_file
from dticli.models.choice import Model
from dticli.models.embeddings import Table, read_json, read_tables, read_tokenizer
from dticli.models.families import Family
from dticli.models.single_file import ZERO_SNR, Shapes

if TYPE_CHECKING:
    from dticli.models.families.shape import Process

COMPONENT = re.compile(r"(text_encoder|tokenizer)(_\d+)?|unet|transformer|vae|scheduler")
MAX_LAYERS = 1000
"""Most layers of a component; the deepest text-to-image models have about a hundred."""
DENOISERS = ("unet", "transformer")


def index(model: Model) -> dict[str, Any]:
    """The model's `model_index.json`; downloads that one file from the hub.

    Raises:
        ModelError: it cannot be read, or the entry of a component is malformed.
        EnvironmentProblem: the hub cannot be reached.
    """
    model = model.layout
    path = model.folder / "model_index.json" if model.folder else Path(_from_hub(model, "model_index.json"))
    return {
        name: _entry(model, name, value)
        for name, value in read_json(path, f"{model.name}: download the model again").items()
    }


def _entry(model: Model, name: str, value: Any) -> Any:
    """Check an entry of the index: a component is [library, class], or [null, null] if it is left out; settings are anything.

    Raises:
        ModelError: a component has another value.
    """
    match value:
        case [str() | None, str() | None]:
            return value
        case _ if not COMPONENT.fullmatch(name):
            return value
    raise ModelError(
        f"{model.name}: model_index.json says {name} is {ascii(value)[:60]}: expected a library and a class; "
        "download the model again"
    )


def family(model: Model) -> Family:
    """The family of a model, without loading weights.

    Raises:
        ModelError: it is of no family, or a single file and its base are of different families.
        EnvironmentProblem: the hub cannot be reached.
    """
    found = families.of_index(index(model), model.layout.name)
    if model.file:
        single_file.require_family(model.file, found.name, model.layout.label)
    return found


def scheduler(model: Model) -> Any:
    """The model's scheduler, from its config in diffusers layout and `Model.noise`.

    Raises:
        ModelError: the config is missing or unusable.
        EnvironmentProblem: the hub cannot be reached.
        UsageError: a prediction type was given for a flow-matching model.
    """
    import diffusers

    from dticli.models.families.shape import is_flow

    layout, name = model.layout, "scheduler/scheduler_config.json"
    path = layout.folder / name if layout.folder else Path(_from_hub(layout, name))

    def unusable(reason: str) -> ModelError:
        return ModelError(f"{layout.name}: {name} is unusable ({reason}); download the model again")

    with boundary(unusable):
        said = read_json(path, f"{layout.name}: download the model again")
        found = getattr(diffusers, said["_class_name"]).from_config(said)
    if model.prediction and is_flow(found):
        raise UsageError(
            f"--prediction {model.prediction} does not suit the flow-matching model {model.name}; leave it out"
        )
    if not model.noise or is_flow(found):
        return found
    kind = type(found)
    if ZERO_SNR in model.noise and ZERO_SNR not in inspect.signature(kind).parameters:
        # Not every scheduler supports a last step without any signal.
        kind = diffusers.DDIMScheduler
    return kind.from_config(said | model.noise)


def process(model: Model, family: Family) -> "Process":
    """The noise process that the model was trained with, from its scheduler.

    Raises:
        ModelError: it is not supported, such as EDM, or as of `scheduler`.
        EnvironmentProblem, UsageError: as of `scheduler`.
    """
    return family.code.process(scheduler(model))


def tables(model: Model) -> tuple[Table, ...]:
    """The embedding table of each text encoder; downloads only text encoders and tokenizers from the hub.

    Raises:
        ModelError: a file is missing or damaged.
        EnvironmentProblem: the hub cannot be reached.
    """
    patterns = ["model_index.json", "tokenizer*/*", "text_encoder*/*.json", "text_encoder*/*.safetensors"]
    folder = model.layout.folder or snapshot(model, patterns)
    return read_tables(folder, model.file.tables if model.file else {})


def tokenizers(model: Model, family: Family) -> list[Any]:
    """The tokenizers of the encoders in which a word is learned; downloads only these from the hub.

    Raises:
        ModelError: one is missing or broken.
        EnvironmentProblem: the hub cannot be reached.
    """
    patterns = ["model_index.json", "tokenizer*/*"]
    parts, folder = index(model), model.layout.folder or snapshot(model, patterns)
    names = dict.fromkeys(encoder.tokenizer for encoder in family.encoders)
    for name in names:
        if not isinstance(parts.get(name), list):
            raise ModelError(f"{model.name} names no {name}: expected one; download the model again")
    return [read_tokenizer(folder / name, parts[name][1]) for name in names]


def text_limit(model: Model) -> float:
    """The default maximum of tokens that the model's pipeline reads of a text; infinity if only its tokenizers limit it."""
    import diffusers

    from dticli.models.families.shape import call_defaults

    kind = getattr(diffusers, index(model)["_class_name"])
    return call_defaults(kind).get("max_sequence_length") or math.inf


def snapshot(model: Model, patterns: list[str]) -> Path:
    """Download the files of a hub model, or of a single file's base, that match; returns their local folder.

    Weights of components that the single file has are not downloaded, nor those of other variants.
    """
    from huggingface_hub import snapshot_download

    layout = model.layout
    other = [] if layout.variant else ["*.fp16.safetensors", "*.fp16-*.safetensors"]
    with hub_errors(layout):
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

    Only headers are read from the hub; with `--offline`, only local files are read. Components in other formats are left
    out.

    Raises:
        ModelError: the hub has no such model, or a file is damaged.
        EnvironmentProblem: the hub cannot be reached.
    """
    layout, whole = model.layout, index(model)
    there = whole.keys() - absent(whole).keys()
    # Text encoders may have been downloaded without the denoiser; of a base, only what the file lacks is needed.
    needed = there & set(model.file.lacking if model.file else DENOISERS)
    components = {name: whole[name] for name in (needed if model.file else there)}
    found = _merged(_headers(layout, components))
    if layout.kind == "hub" and not layout.offline and not found.keys() >= needed:
        found = _merged(_remote_headers(layout, components))
    stored = {name: tensors for name, tensors in model.stored.items() if name in there}
    return dict(sorted((found | stored).items()))


def _merged(headers: Iterator[tuple[str, Shapes]]) -> dict[str, Shapes]:
    """Merge the shapes of all files of each component."""
    found: dict[str, Shapes] = {}
    for component, tensors in headers:
        found[component] = found.get(component, {}) | tensors
    return found


def _headers(model: Model, components: Mapping[str, Any]) -> Iterator[tuple[str, Shapes]]:
    """Component, and name to shape, of each local file that would be loaded."""
    folder = model.folder or Path(_from_hub(model, "model_index.json")).parent
    for path in sorted(folder.glob("*/*.safetensors")):
        if path.parent.name in components and not _other_variant(path.name, model.variant):
            yield path.parent.name, _shapes_in(path, model)


def _shapes_in(path: Path, model: Model) -> Shapes:
    def damaged(reason: str) -> ModelError:
        what = mistaken.known_file(path) or f"damaged ({reason}); download the model again"
        return ModelError(f"{model.name}: {path.parent.name}/{path.name} is {what}")

    with boundary(damaged):
        return single_file.header(path)


def _remote_headers(model: Model, components: Mapping[str, Any]) -> Iterator[tuple[str, Shapes]]:
    """Component, and name to shape, of each file on the hub that would be loaded."""
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(model):
        for file in api.list_repo_files(model.location, revision=model.revision):
            component, _, name = file.partition("/")
            wanted = re.fullmatch(r"[^/]+\.safetensors", name) and not _other_variant(name, model.variant)
            if wanted and component in components:
                header = api.parse_safetensors_file_metadata(model.location, file, revision=model.revision)
                yield component, {key: tuple(each.shape) for key, each in header.tensors.items()}


def mistaken_file(model: Model) -> str | None:
    """Description of a file in a local folder that is not what its name says, such as a Git LFS pointer; None if none is."""
    for path in sorted(model.folder.glob("*/*") if model.folder else ()):
        if os.path.isfile(path) and (what := mistaken.known_file(path)):
            return f"{path.parent.name}/{path.name} is {what}"
    return None


def require_sane(model: Model) -> None:
    """Check the files of a local model before a library reads them; does nothing for a model on the hub.

    Raises:
        ModelError: a config is not JSON or has more than MAX_LAYERS layers, which would take too long to build, or a file is a
            pipe, a device or a socket, which would block.
    """
    folder = model.layout.folder
    if folder is None:
        return
    files.require_regular(folder, ModelError, "expected files of a model; download it again")
    for path in sorted(folder.glob("*/*config.json")):
        config = read_json(path, f"{model.name}: download the model again")
        if deep := next(_deep(config), None):
            raise ModelError(
                f"{model.name}: {path.parent.name}/{path.name} asks for {deep}: expected at most {MAX_LAYERS}; "
                "download the model again"
            )


def _deep(config: Any, name: str = "") -> Iterator[str]:
    """Entries of a config and its nested configs that ask for more than MAX_LAYERS layers, as `name = number`."""
    match config:
        case dict():
            for key, value in config.items():
                yield from _deep(value, str(key))
        case list():
            for value in config:
                yield from _deep(value, name)
        case int() | float() if config > MAX_LAYERS and re.search(
            r"(layers?|blocks?|depth)$|layers_per_", name
        ):
            yield f"{name} = {config}"


def parameter_counts(shapes: Mapping[str, Shapes]) -> dict[str, int]:
    """Number of elements that each component stores."""
    return {
        component: sum(math.prod(shape) for shape in tensors.values())
        for component, tensors in shapes.items()
    }


def announcement(model: Model, part: str = "") -> str:
    """A line with the model, the reason of its choice, and the size of the download.

    Args:
        part: count only folders whose names start with it, such as `text_encoder`.

    Raises:
        ModelError: the hub has no such model.
        EnvironmentProblem: the hub cannot be reached.
    """
    base = f"; base: {model.base.label}, {model.base.why}" if model.base else ""
    predicts = f"; predicts {model.noise['prediction_type']}" if model.noise else ""
    return f"model: {model.label} ({model.why}{base}{predicts}{_download_note(model, part)})"


def _download_note(model: Model, part: str) -> str:
    layout = model.layout
    if layout.kind != "hub" or layout.offline or _is_cached(layout):
        return ""
    from huggingface_hub import HfApi

    with hub_errors(layout):
        info = HfApi().model_info(layout.location, revision=layout.revision, files_metadata=True)
        wanted = [
            sibling
            for sibling in info.siblings or ()
            if re.fullmatch(rf"{part}[^/]*/[^/]+\.(json|txt|model|safetensors)", sibling.rfilename)
            and not _other_variant(sibling.rfilename, layout.variant)
            and not _is_stored(sibling.rfilename, model)
        ]
        size = sum(int(sibling.size or 0) for sibling in wanted)
    return f"; up to {size / 1e9:.1f} GB to download"


def _is_stored(filename: str, model: Model) -> bool:
    """Whether a file of the base has weights of a component that is in the single file."""
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

    with hub_errors(model):
        return hf_hub_download(
            model.location, filename, revision=model.revision, local_files_only=model.offline
        )


def hub_errors(model: Model) -> AbstractContextManager[None]:
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


def absent(index: Mapping[str, Any]) -> dict[str, None]:
    """Components without which a model was saved, each with None; diffusers requires that they are passed as None."""
    return {name: None for name, entry in index.items() if isinstance(entry, list) and entry[:1] == [None]}


def require_multiple(size: tuple[int, int], family: Family) -> None:
    """Raise UsageError unless (height, width) are multiples of `family.multiple`."""
    fitting = tuple(max(family.multiple, round(side / family.multiple) * family.multiple) for side in size)
    if fitting != size:
        found, nearest = (
            str(width) if width == height else f"{width}x{height}" for height, width in (size, fitting)
        )
        raise UsageError(
            f"size {found} does not suit {family.name}: expected multiples of {family.multiple}; try {nearest}"
        )
