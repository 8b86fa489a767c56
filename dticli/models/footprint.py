"""Memory needed by a model's weights and activations, and the options that would make it fit."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil
import torch

from dticli.errors import EnvironmentProblem
from dticli.models import contents, devices, quantization
from dticli.models.activations import Activations, of_training
from dticli.models.choice import Model
from dticli.models.families import Family
from dticli.models.quantization import KEPT, TABLES
from dticli.models.single_file import Shapes
from dticli.settings import ModelSettings, TrainSettings

S = TypeVar("S", bound=ModelSettings)
BITS = {"none": 16, "8bit": 8, "4bit": 4}
"""Of a number in a large matrix, at least, by the setting `quantize`."""
OWN_MEMORY = frozenset({"cuda"})
"""Devices on which nothing weighs what waits on the CPU."""


@dataclass(frozen=True)
class Weights:
    """Memory of a model's weights during training, in gigabytes (10^9 bytes), without activations.

    Layers that the libraries keep in float32 by themselves (Wan's time embedding; in fp16, a part of T5) are counted like the
    others, because file headers do not show them.

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

    @property
    def autoencoder(self) -> float:
        """The autoencoder in the float32 it encodes in."""
        return self.at_once - self.total + self.components["vae"]

    def stages(self, family: Family, *, low_memory: bool, own_memory: bool) -> tuple[float, float]:
        """Weights on the device while photos are encoded, and during a step; the autoencoder is moved away in between.

        Args:
            own_memory: whether the device has its own memory, separate from the CPU's.
        """
        if not own_memory:
            return self.at_once, self.at_once
        names = {*contents.DENOISERS, *(each.component for each in family.encoders)}
        if low_memory:
            step = sum(value for name, value in self.components.items() if name in names)
            return self.autoencoder, step
        return self.at_once, self.at_once - self.autoencoder

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
    """Memory that a run needs, compared with what is free, in gigabytes.

    Attributes:
        activations: part of `needed`; None if the model's code depends on tensor values, so they are unknown before the run.
        needed: peak on the device, with the current settings.
        free: on the device now.
        options: that would bring `needed` below `free`; empty if it is already, or if none would.
        host_needed: for components that wait on the host, if the device has its own memory; None for other devices.
        host_free: on the host now.
    """

    device: str
    weights: Weights
    activations: float | None
    needed: float
    free: float
    options: tuple[str, ...]
    host_needed: float | None
    host_free: float

    def lines(self) -> Iterator[str]:
        yield f"weights: {self.weights}"
        known = self.activations is not None
        of = (
            f"with {_shown(self.activations)} of activations (estimated)"
            if self.activations is not None
            else "of weights"
        )
        beside = f"{_shown(self.needed)} {of}, {_shown(self.free)} free on {self.device}"
        if self.needed <= self.free:
            rest = "" if known else "; activations come on top, and are not known before the first step"
            yield f"{beside}: they fit{rest}"
        elif self.options:
            yield f"{beside}: they do not fit; they would with {' '.join(self.options)}"
        else:
            smaller = (
                "a smaller --resolution or --batch-size, or another --model" if known else "a smaller --model"
            )
            yield f"{beside}: they do not fit, and no option would make them; choose {smaller}"
        if self.host_needed is not None:
            short = ": not enough; close other programs" if self.host_needed > self.host_free else ""
            yield f"on the host, {_shown(self.host_needed)} needed, {_shown(self.host_free)} free{short}"


@dataclass(frozen=True, eq=False)
class _Training:
    """What the trainings of a model on a device take.

    Attributes:
        shapes: of its weights.
        size: (height, width) of the pictures; None leaves out activations.
    """

    model: Model
    family: Family
    index: Mapping[str, Any]
    shapes: Mapping[str, Shapes]
    device: torch.device
    size: tuple[int, int] | None
    known: dict[tuple[torch.dtype, bool, int], Activations | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: Model, family: Family, settings: ModelSettings, size: tuple[int, int] | None
    ) -> "_Training | None":
        """None where weights are not safetensors."""
        device = devices.pick_device(settings.device)
        if settings.quantize != "none":
            quantization.backend(settings.quantize, device)
        shapes = contents.shapes(model)
        if not _complete(shapes, family):
            return None
        shapes.pop("safety_checker", None)  # training does without
        return cls(model, family, contents.index(model), shapes, device, size)

    @property
    def own_memory(self) -> bool:
        return self.device.type in OWN_MEMORY

    def weights(self, settings: ModelSettings) -> Weights:
        precision = devices.pick_precision(settings.precision, self.device)
        return _weigh(self.shapes, self.index, self.family, precision, settings.quantize)

    def activations(self, settings: ModelSettings, batch_size: int) -> Activations | None:
        if self.size is None:
            return None
        dtype = devices.pick_dtype(settings.precision, self.device)
        key = (dtype, settings.low_memory, batch_size)
        if key not in self.known:
            self.known[key] = of_training(
                self.model, self.family, dtype, self.size, batch_size, low_memory=settings.low_memory
            )
        return self.known[key]

    def taken(self, settings: ModelSettings, batch_size: int) -> tuple[float, float | None]:
        """What is needed, and how much of it are activations."""
        weights, found = self.weights(settings), self.activations(settings, batch_size)
        if found is None:
            return (weights.low_memory if settings.low_memory and self.own_memory else weights.at_once), None
        encoding, step = weights.stages(
            self.family, low_memory=settings.low_memory, own_memory=self.own_memory
        )
        return max(
            (encoding + found.encoding / 1e9, found.encoding / 1e9),
            (step + found.step / 1e9, found.step / 1e9),
        )


def estimate(
    model: Model,
    family: Family,
    settings: ModelSettings,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
) -> Memory | None:
    """What a training takes, from the headers of its weights' files; None where these are not safetensors.

    Args:
        size: (height, width) of the pictures; None leaves out activations.
        batch_size: pictures at once.

    Raises:
        ModelError, EnvironmentProblem: as `contents.shapes`, or the device is not there, or nothing can quantise as asked.
    """
    training = _Training.of(model, family, settings, size)
    if training is None:
        return None
    device, weights = training.device, training.weights(settings)
    room = free(device) / 1e9
    needed, activations = training.taken(settings, batch_size)
    waiting = weights.total if settings.low_memory or model.file else weights.autoencoder
    return Memory(
        device=device.type,
        weights=weights,
        activations=activations,
        needed=needed,
        free=room,
        options=_options(settings, model, device, lambda each: training.taken(each, batch_size)[0], room),
        host_needed=waiting if training.own_memory else None,
        host_free=psutil.virtual_memory().available / 1e9,
    )


PRESETS = {"8gb": 8.0, "12gb": 12.0, "24gb": 24.0}
"""What a training may take, in gigabytes, by the name of a preset. A card sold with 8 GB has 8.6, and CUDA itself takes "
"some."""


@dataclass(frozen=True)
class Fitted:
    """Settings under which a training is estimated to fit.

    Attributes:
        changed: the options that differ from what was asked for.
        needed: gigabytes.
    """

    settings: TrainSettings
    changed: tuple[str, ...]
    needed: float
    activations: float | None

    def __str__(self) -> str:
        options = " ".join(self.changed) or "nothing to change"
        of = "" if self.activations is not None else " of weights alone"
        return f"{options}; {_shown(self.needed)}{of} by the estimate, which no card has confirmed yet"


def fitted(
    model: Model, family: Family, settings: TrainSettings, preset: str, said: Collection[str] = ()
) -> Fitted:
    """The mildest changes that fit a training into a preset: smaller batches with more accumulation, then `savings`.

    Args:
        said: names of settings that must not change.

    Raises:
        EnvironmentProblem: it would not fit, or its size is unknown, because the weights are not safetensors.
        ModelError: as `estimate`.
    """
    size = (settings.resolution, settings.resolution)
    training = _Training.of(model, family, settings, size)
    if training is None:
        raise EnvironmentProblem(
            f"--preset {preset}: the weights of {model.name} are not all safetensors, so their size is unknown; "
            "choose --low-memory, --batch-size and --quantize yourself"
        )
    asked = settings
    while (taken := training.taken(settings, settings.batch_size))[0] > PRESETS[preset]:
        ways = [_halved(settings), *(each for _, each in savings(settings, model, training.device))]
        smaller = next(
            (
                each
                for each in ways
                if training.taken(each, each.batch_size)[0] < taken[0]
                and not _changed(settings, each) & {*said}
            ),
            None,
        )
        if smaller is None:
            raise EnvironmentProblem(
                f"--preset {preset}: {model.name} is estimated to take {_shown(taken[0])}, and no option makes it less; "
                "choose a lower --resolution or a smaller --model"
            )
        settings = smaller
    options = [_option(name, getattr(settings, name)) for name in sorted(_changed(asked, settings))]
    return Fitted(settings, tuple(options), *taken)


def _halved(settings: TrainSettings) -> TrainSettings:
    """The same steps from smaller batches, of which more are gathered."""
    whole = settings.batch_size
    size = max((each for each in range(1, whole) if whole % each == 0), default=1)
    return settings.model_copy(update={"batch_size": size, "accumulate": settings.accumulate * whole // size})


def _changed(one: TrainSettings, other: TrainSettings) -> set[str]:
    return {name for name in type(one).model_fields if getattr(one, name) != getattr(other, name)}


def _option(name: str, value: object) -> str:
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag} {value}"


def table(model: Model, family: Family, shapes: Mapping[str, Shapes]) -> tuple[Weights, ...]:
    """What a model's weights take in every precision; empty where they are not all safetensors.

    Args:
        shapes: of `contents.shapes`.
    """
    index = contents.index(model)
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
    return wanted <= shapes.keys() and bool(shapes.keys() & set(contents.DENOISERS))


def _weigh(
    shapes: Mapping[str, Shapes], index: Mapping[str, Any], family: Family, precision: str, quantize: str
) -> Weights:
    size = devices.dtype(precision).itemsize
    fewer = {
        name: KEPT.get(index[name][1], ())
        for name in quantization.rounded(index, family)
        if quantize != "none"
    }
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
    names = {*contents.DENOISERS, *(each.component for each in family.encoders)}
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
    """Bytes of a rounded matrix: one byte per number and one float32 per row; or half a byte, and a float32 for every 64 numbers.

    Source: Dettmers et al., "LLM.int8()", 2022, section 2, and "QLoRA", 2023, section 3, without double quantisation.
    """
    rows, width = shape
    if quantize == "8bit":
        return rows * width + 4 * rows
    return rows * width / 2 + 4 * math.ceil(rows * width / 64)


def savings(settings: S, model: Model, device: torch.device) -> Iterator[tuple[str, S]]:
    """Options that need less memory and work on this device, mildest first, each with the changed settings."""
    large = devices.pick_dtype(settings.precision, device).itemsize > devices.dtype("bf16").itemsize
    ways: list[tuple[str, dict[str, Any], bool]] = [
        ("--low-memory", {"low_memory": True}, not settings.low_memory and device.type in OWN_MEMORY),
        ("--precision bf16", {"precision": "bf16"}, large),
    ]
    for kind in ("8bit", "4bit"):
        fewer = BITS[kind] < BITS[settings.quantize] and model.file is None
        ways.append(
            (f"--quantize {kind}", {"quantize": kind}, fewer and bool(quantization.able_on(kind, device)))
        )
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
    """The mildest options that bring the needed memory below `room`; empty if it is already, or if none would."""
    chosen: list[str] = []
    while needed(settings) > room:
        better = next(
            (
                (name, smaller)
                for name, smaller in savings(settings, model, device)
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
