"""Models that hardly fit: what their weights take, and how to make do with less.

Three ways, of which only the last changes what is learned: parts of the pipeline wait on the CPU until they are needed;
activations are computed twice instead of kept; matrices are rounded to fewer bits.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dticli.errors import EnvironmentProblem
from dticli.models import choice
from dticli.models.choice import Model
from dticli.models.families import Family
from dticli.models.single_file import Shapes
from dticli.settings import ModelSettings

if TYPE_CHECKING:
    from dticli.photos.albums import Crop
    from dticli.photos.latents import Latents

CPU = torch.device("cpu")


# Offloading and recomputation


def load(
    model: Model,
    family: Family,
    settings: ModelSettings,
    device: torch.device,
    *,
    safety_checker: bool = True,
) -> Any:
    """The pipeline as the settings want it: on `device`, or with `low_memory` on the CPU until `economize` or `offload`.

    Raises:
        ModelError, EnvironmentProblem: as `choice.load`, or it does not fit, or what would quantise is not installed.
    """
    dtype = choice.pick_dtype(settings.precision, device)
    with fitting(model, settings, device):
        return choice.load(
            model,
            CPU if settings.low_memory else device,
            dtype,
            safety_checker=safety_checker,
            quantization=quantization(choice.index(model), family, settings.quantize, device, dtype),
        )


@contextmanager
def fitting(model: Model, settings: ModelSettings, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory into an error that says what takes less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        options = [name for name, _ in _savings(settings, model, device)]
        advice = ", ".join([*options, "or a smaller --model"]) if options else "a smaller --model"
        raise EnvironmentProblem(
            f"{model.name} does not fit into the memory of {device.type}: expected more that is free; try {advice}"
        ) from None


def encode(pipe: Any, family: Family, crops: "Sequence[Crop]", device: torch.device) -> "Latents":
    """`latents.encode`; in tiles, which the autoencoder blends into nearly the same, where whole pictures do not fit."""
    from dticli.photos import latents

    with suppress(torch.OutOfMemoryError):
        return latents.encode(pipe, family, crops, device)
    tile(pipe.vae)
    try:
        return replace(latents.encode(pipe, family, crops, device), tiled=True)
    finally:
        untile(pipe.vae)


def tile(vae: Any) -> None:
    """Let an autoencoder work on large pictures piece by piece, and on several one by one, if it can."""
    _switch(vae, "enable")


def untile(vae: Any) -> None:
    """Let it see pictures whole again."""
    _switch(vae, "disable")


def _switch(vae: Any, to: str) -> None:
    for way in ("tiling", "slicing"):
        if hasattr(vae, f"use_{way}"):
            getattr(vae, f"{to}_{way}")()


def set_aside(pipe: Any) -> None:
    """Take everything off the device; `economize` brings back what a step needs."""
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.to(CPU)


def economize(pipe: Any, family: Family, device: torch.device) -> None:
    """Leave on the device what a training step needs, encoders and denoiser, and let these compute activations twice."""
    set_aside(pipe)
    for module in (family.code.denoiser(pipe), *(getattr(pipe, each.component) for each in family.encoders)):
        module.to(device)
        recompute(module)


def recompute(module: nn.Module) -> None:
    """Keep only the inputs of a model's layers for the backward pass, which then runs each layer again; same bits.

    Layers of text encoders do so only in training mode. That is set on the layers themselves and not on what they are
    made of: layers have no dropout of their own, and attention, feed-forward and dropout modules stay in evaluation mode.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if getattr(module, "_supports_gradient_checkpointing", False):
        module.enable_gradient_checkpointing()  # type: ignore[operator]
    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.training = True


def offload(pipe: Any, device: torch.device) -> None:
    """For drawing: every part of the pipeline is on the device only while it runs, and the autoencoder works in tiles."""
    tile(pipe.vae)
    if device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device)


# Quantisation

SMALL_ENCODERS = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection", "BertModel"})
"""Text encoders of less than a billion parameters: little is saved by rounding what the word's gradient comes through."""

TABLES = (
    *("token_embedding.weight", "shared.weight", "embed_tokens.weight", "word_embeddings.weight"),
    *("position_embedding.weight", "relative_attention_bias.weight", "lm_head.weight"),
)
"""Matrices of text encoders that are looked up in, or tied to those: never rounded."""

KEPT: Mapping[str, tuple[str, ...]] = {
    # transformers and diffusers keep these precise themselves, though not with every library: they overflow.
    "T5EncoderModel": ("wo", "wo.weight"),
    "UMT5EncoderModel": ("wo", "wo.weight"),
    "WanTransformer3DModel": ("time_embedder",),
    # It hands its weights on as plain matrices.
    "HunyuanDiT2DModel": ("pooler",),
}
"""Class of a component to the modules in it that stay as they are."""


@dataclass(frozen=True)
class Backend:
    """A library that stores matrices in fewer bits.

    Attributes:
        package: what is installed and imported.
        devices: kinds of device that diffusers lets it compute on.
        configs: setting to the config, made from the library of the component (diffusers or transformers), the dtype to
            compute in, and modules to leave as they are, None for the library's choice.
    """

    package: str
    devices: frozenset[str]
    configs: Mapping[str, Callable[[Any, torch.dtype, list[str] | None], Any]]


def _bitsandbytes_8bit(library: Any, dtype: torch.dtype, kept: list[str] | None) -> Any:
    return library.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)


def _bitsandbytes_4bit(library: Any, dtype: torch.dtype, kept: list[str] | None) -> Any:
    return library.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def _torchao_8bit(library: Any, dtype: torch.dtype, kept: list[str] | None) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return library.TorchAoConfig(Int8WeightOnlyConfig(version=2), modules_to_not_convert=kept)


BACKENDS = (
    Backend("bitsandbytes", frozenset({"cuda"}), {"8bit": _bitsandbytes_8bit, "4bit": _bitsandbytes_4bit}),
    Backend("torchao", frozenset({"cuda", "cpu"}), {"8bit": _torchao_8bit}),
)
"""The first one that is installed is taken."""


def quantization(
    index: Mapping[str, Any], family: Family, kind: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """What `from_pretrained` needs to round a model's large components; None for `none`.

    Args:
        index: of the model.
        kind: the setting `quantize`.

    Raises:
        EnvironmentProblem: no library for that is installed, or there is none for the device.
    """
    if kind == "none":
        return None
    choice.quiet_libraries()
    import diffusers
    import transformers

    config = _backend(kind, device).configs[kind]
    libraries = {"diffusers": diffusers, "transformers": transformers}
    mapping = {}
    for name in rounded(index, family):
        library, kept = index[name][0], KEPT.get(index[name][1])
        mapping[name] = config(libraries[library], dtype, list(kept) if kept else None)
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def rounded(index: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """Components that `--quantize` is for: the denoiser, and text encoders unless they are small."""
    encoders = [each.component for each in family.encoders if index[each.component][1] not in SMALL_ENCODERS]
    return (*(name for name in choice.DENOISERS if name in index), *encoders)


def _backend(kind: str, device: torch.device) -> Backend:
    able = _able_on(kind, device)
    if not able:
        raise EnvironmentProblem(
            f"--quantize {kind} does not work on {device.type}: expected {_devices(kind)}; leave it out, or use --low-memory"
        )
    found = next((each for each in able if importlib.util.find_spec(each.package)), None)
    if found is None:
        raise EnvironmentProblem(
            f"--quantize {kind} needs {' or '.join(each.package for each in able)}: expected it to be installed; "
            f"pip install {able[0].package}"
        )
    return found


def _devices(kind: str) -> str:
    """Devices on which something can round so."""
    return " or ".join(
        sorted({device for each in BACKENDS if kind in each.configs for device in each.devices})
    )


def _able_on(kind: str, device: torch.device) -> list[Backend]:
    """The libraries that can round so on a device, installed or not."""
    return [each for each in BACKENDS if kind in each.configs and device.type in each.devices]


def stored(parameter: Tensor) -> list[Tensor]:
    """The plain tensors that hold a parameter: itself, unless it is one that torchao has rounded."""
    if hasattr(parameter, "__tensor_flatten__"):
        names, _ = parameter.__tensor_flatten__()
        return [getattr(parameter, name) for name in names]
    return [parameter]


# What weights take

BITS = {"none": 16, "8bit": 8, "4bit": 4}
"""Of a number in a large matrix, at least, by the setting `quantize`."""

OWN_MEMORY = frozenset({"cuda"})
"""Devices on which nothing weighs what waits on the CPU."""


@dataclass(frozen=True)
class Weights:
    """What a model's weights take while a word is learned, in gigabytes (10^9 bytes); activations come on top.

    Of layers that the libraries keep in float32 for themselves (Wan's embedding of time; in fp16, a part of T5), headers do
    not tell: they count like the rest.

    Attributes:
        precision, quantize: how they are stored.
        components: by name.
        at_once: on the device, at most: all, the autoencoder in the float32 it encodes in.
        low_memory: the same with `--low-memory`: the autoencoder, and after it encoders and denoiser.
    """

    precision: str
    quantize: str
    components: Mapping[str, float]
    total: float
    at_once: float
    low_memory: float

    def __str__(self) -> str:
        bits = "" if self.quantize == "none" else f", large matrices in {self.quantize}"
        return (
            f"{_shown(self.total)} in {self.precision}{bits}; on the device at once {_shown(self.at_once)}, "
            f"{_shown(self.low_memory)} with --low-memory"
        )


def _shown(gigabytes: float) -> str:
    return f"{gigabytes:.2f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.0f} MB"


@dataclass(frozen=True)
class Memory:
    """The weights of a run beside the memory there is, in gigabytes; what activations take is not known before the run.

    Attributes:
        needed: for weights, on the device at once, with the settings as they are.
        free: on the device now.
        options: what would bring the weights under `free`; empty where they are, or nothing would.
    """

    device: str
    weights: Weights
    needed: float
    free: float
    options: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        yield f"weights: {self.weights}"
        beside = f"{_shown(self.needed)} of weights, {_shown(self.free)} free on {self.device}"
        if self.needed <= self.free:
            yield f"{beside}: they fit; activations come on top, and are not known before the first step"
        elif self.options:
            yield f"{beside}: they do not fit; they would with {' '.join(self.options)}"
        else:
            yield f"{beside}: they do not fit, and no option would make them; choose a smaller --model"


def estimate(model: Model, family: Family, settings: ModelSettings) -> Memory | None:
    """What the weights of a training take, from the headers of their files; None where these are not safetensors.

    Raises:
        ModelError, EnvironmentProblem: as `choice.shapes`, or the device is not there, or nothing can quantise as asked.
    """
    device = choice.pick_device(settings.device)
    if settings.quantize != "none":
        _backend(settings.quantize, device)
    index, shapes = choice.index(model), choice.shapes(model)
    if not _complete(shapes, family):
        return None
    shapes.pop("safety_checker", None)  # training does without

    def needed(settings: ModelSettings) -> float:
        weights = _as_set(shapes, index, family, settings, device)
        economical = settings.low_memory and device.type in OWN_MEMORY
        return weights.low_memory if economical else weights.at_once

    room = free(device) / 1e9
    return Memory(
        device=device.type,
        weights=_as_set(shapes, index, family, settings, device),
        needed=needed(settings),
        free=room,
        options=_options(settings, model, device, needed, room),
    )


def table(model: Model, family: Family, shapes: Mapping[str, Shapes]) -> tuple[Weights, ...]:
    """What a model's weights take in every precision; empty where they are not all safetensors.

    Args:
        shapes: of `choice.shapes`.
    """
    index = choice.index(model)
    if not _complete(shapes, family):
        return ()
    ways = (("fp32", "none"), ("bf16", "none"), ("bf16", "8bit"), ("bf16", "4bit"))
    return tuple(_weigh(shapes, index, family, precision, quantize) for precision, quantize in ways)


def free(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    match device.type:
        case "cuda":
            return torch.cuda.mem_get_info(device)[0]
        case "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        case _:
            return psutil.virtual_memory().available


def _complete(shapes: Mapping[str, Shapes], family: Family) -> bool:
    wanted = {"vae", *(each.component for each in family.encoders)}
    return wanted <= shapes.keys() and bool(shapes.keys() & set(choice.DENOISERS))


def _as_set(
    shapes: Mapping[str, Shapes],
    index: Mapping[str, Any],
    family: Family,
    settings: ModelSettings,
    device: torch.device,
) -> Weights:
    precision = choice.pick_precision(settings.precision, device)
    return _weigh(shapes, index, family, precision, settings.quantize)


def _weigh(
    shapes: Mapping[str, Shapes], index: Mapping[str, Any], family: Family, precision: str, quantize: str
) -> Weights:
    size = choice.DTYPES[precision].itemsize
    fewer = {name: KEPT.get(index[name][1], ()) for name in rounded(index, family) if quantize != "none"}
    components = {}
    for component, tensors in shapes.items():
        kept = fewer.get(component)
        components[component] = (
            sum(
                _rounded_bytes(shape, quantize)
                if kept is not None and _is_rounded(name, shape, kept)
                else math.prod(shape) * size
                for name, shape in tensors.items()
            )
            / 1e9
        )
    vae = 4 * sum(map(math.prod, shapes["vae"].values())) / 1e9
    names = {*choice.DENOISERS, *(each.component for each in family.encoders)}
    step = sum(value for name, value in components.items() if name in names)
    total = sum(components.values())
    return Weights(
        precision=precision,
        quantize=quantize,
        components=components,
        total=total,
        at_once=total - components["vae"] + vae,
        low_memory=max(vae, step),
    )


def _is_rounded(name: str, shape: tuple[int, ...], kept: tuple[str, ...]) -> bool:
    """Whether a tensor of a component that is rounded is the weight of a linear layer, and outside of modules that are kept."""
    linear = len(shape) == 2 and name.endswith(".weight") and not name.endswith(TABLES)
    return linear and not any(f".{each}." in f".{name}" for each in kept)


def _rounded_bytes(shape: tuple[int, ...], quantize: str) -> float:
    """Bytes of a rounded matrix: a byte a number and a float32 a row; or half a byte, and a float32 for every 64 numbers.

    Source: Dettmers et al., "LLM.int8()", 2022, section 2, and "QLoRA", 2023, section 3, without double quantisation.
    """
    rows, width = shape
    if quantize == "8bit":
        return rows * width + 4 * rows
    return rows * width / 2 + 4 * math.ceil(rows * width / 64)


def _savings(
    settings: ModelSettings, model: Model, device: torch.device
) -> Iterator[tuple[str, ModelSettings]]:
    """Options that take less memory and work here, mildest first, each with the settings changed by it alone."""
    large = choice.pick_dtype(settings.precision, device).itemsize > choice.DTYPES["bf16"].itemsize
    ways: list[tuple[str, dict[str, Any], bool]] = [
        ("--low-memory", {"low_memory": True}, not settings.low_memory and device.type in OWN_MEMORY),
        ("--precision bf16", {"precision": "bf16"}, large),
    ]
    for kind in ("8bit", "4bit"):
        fewer = BITS[kind] < BITS[settings.quantize] and model.file is None
        ways.append((f"--quantize {kind}", {"quantize": kind}, fewer and bool(_able_on(kind, device))))
    for name, change, helps in ways:
        if helps:
            yield name, settings.model_copy(update=change)


def _options(
    settings: ModelSettings,
    model: Model,
    device: torch.device,
    needed: Callable[[ModelSettings], float],
    room: float,
) -> tuple[str, ...]:
    """The mildest options that bring what is needed under `room`; none if it is there already, or cannot be."""
    chosen: list[str] = []
    while needed(settings) > room:
        better = next(
            (
                (name, smaller)
                for name, smaller in _savings(settings, model, device)
                if needed(smaller) < needed(settings)
            ),
            None,
        )
        if better is None:
            return ()
        name, settings = better
        # One amount of rounding takes the place of another.
        chosen = [each for each in chosen if each.split()[0] != name.split()[0]] + [name]
    return tuple(chosen)
