"""A device that stands in for a GPU where there is none: its tensors say that they lie elsewhere, and mix with none of the CPU's.

It goes by the name `meta`, which torch knows everywhere and computes nothing on. Its tensors hold their numbers on the CPU,
where each operation runs. What CUDA refuses is refused: operands on both devices, a generator of the other one, numpy.
What copies from the host, or makes the host wait for the device, is counted.
"""

import contextlib
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
UPLOAD = "copies to the device"
WAIT = "waits for the device"

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = (
    *(aten.index.Tensor, aten.index_put.default, aten.index_put_.default),
    *(aten._index_put_impl_.default, aten._unsafe_index.Tensor),
)
"""Here indices may lie on the CPU. Masks make the host wait for how many there are."""
SIZED_BY_CONTENT = (
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default),
    *(aten.masked_select.default, aten._unique2.default, aten.unique_dim.default),
    aten.repeat_interleave.Tensor,
)
NUMBERS = (Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__)


class MixedDevices(RuntimeError):
    """An operation that CUDA refuses."""


class OnDevice(Tensor):
    """A tensor on the checking device; `held` has the same numbers on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counter())


class CheckingDevice:
    """What happened between host and device; while `resting`, `meta` is what it always was.

    Attributes:
        counted: how often, by `UPLOAD` and `WAIT`.
    """

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.resting = False

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        """Libraries build models on `meta` before they read the weights."""
        before, self.resting = self.resting, True
        try:
            yield
        finally:
            self.resting = before


@contextlib.contextmanager
def plugged_in() -> Iterator[CheckingDevice]:
    """Let `meta` compute, check and count while the context is open."""
    device = CheckingDevice()
    to, read = torch.nn.Module.to, diffusers.DiffusionPipeline.from_pretrained.__func__  # type: ignore[attr-defined]

    def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Parameters are replaced here, where CUDA replaces what they hold: tied ones come apart.
        result = to(module, *args, **kwargs)
        for part in module.modules():
            if hasattr(part, "tie_weights"):
                part.tie_weights()
        return result

    def from_pretrained(kind: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_ours(kwargs.get("device_map")):
            kwargs.pop("device_map")
        with device.rest():
            return read(kind, *args, **kwargs)

    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, _Functions(device), _Operations(device):
        patch.setattr(torch.nn.Module, "to", moved)
        patch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
        # Libraries empty the cache of a device through a module of its name.
        patch.setattr(torch, DEVICE.type, types.SimpleNamespace(empty_cache=lambda: None), raising=False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield device
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


# Operations


class _Operations(TorchDispatchMode):
    def __init__(self, device: CheckingDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.device.resting:
            return func(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {}, self.device.counted)


def _run(func: Any, args: Any, kwargs: dict[str, Any], counted: Counter[str]) -> Any:
    """Run an operation where its operands lie, and its result shall."""
    here: list[OnDevice] = []
    there: list[Tensor] = []
    held_args = [_held(each, here, there) for each in args]
    held_kwargs = {name: _held(each, here, there) for name, each in kwargs.items()}
    wanted = kwargs.get("device")
    if not here and not _is_ours(wanted):
        return func(*args, **kwargs)
    if func in COPIES:
        to_us = (
            isinstance(args[0], OnDevice)
            if func is aten.copy_.default
            else wanted is None or _is_ours(wanted)
        )
        counted[UPLOAD] += to_us and bool(there)
        counted[WAIT] += not to_us
    elif here and func not in INDEXING and any(each.ndim for each in there):
        found = ", ".join(f"{each.device} {tuple(each.shape)}" for each in (*here, *there))
        raise MixedDevices(f"Expected all tensors to be on the same device, but {func} found {found}")
    elif kwargs.get("generator") is not None:
        raise MixedDevices(
            f"Expected a generator of {DEVICE}, but {func} found one of {kwargs['generator'].device}"
        )
    elif func in SIZED_BY_CONTENT or (func in INDEXING and _has_mask(here)):
        counted[WAIT] += 1
    if _is_ours(wanted):
        held_kwargs["device"] = CPU
    result = func(*held_args, **held_kwargs)
    if wanted is not None and not _is_ours(wanted):
        return result
    # What is changed in place is handed back as it came.
    known = {id(each.held): each for each in here} | {id(each): each for each in there}
    return _wrapped(result, known if func._schema.is_mutable else {})


def _held(value: Any, here: list[OnDevice], there: list[Tensor]) -> Any:
    """Operands as they lie on the CPU, gathered by the device they claim."""
    if isinstance(value, OnDevice):
        here.append(value)
        return value.held
    if isinstance(value, Tensor):
        there.append(value)
    elif isinstance(value, list | tuple):
        return type(value)([_held(each, here, there) for each in value])
    return value


def _wrapped(value: Any, known: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A pending conjugation is invisible from outside, and would be left out.
        return known[id(value)] if id(value) in known else OnDevice(value.resolve_conj().resolve_neg())
    if isinstance(value, list | tuple):
        return type(value)([_wrapped(each, known) for each in value])
    return value


def _has_mask(tensors: list[OnDevice]) -> bool:
    return any(each.dtype in (torch.bool, torch.uint8) for each in tensors[1:])


# What does not come as an operation


class _Functions(TorchFunctionMode):
    def __init__(self, device: CheckingDevice) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, counted = kwargs or {}, self.device.counted
        first = args[0] if args else None
        if self.device.resting:
            return func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and isinstance(first, Tensor):
            return (first.detach().clone() if func is torch.tensor else first).to(**kwargs)
        if func in (torch.tensor, torch.as_tensor):
            made = func(_read(first, counted), *args[1:], **kwargs | {"device": CPU})
            return made.to(kwargs.get("device", CPU))
        if not isinstance(first, OnDevice):
            return func(*args, **kwargs)
        if func in NUMBERS or func is Tensor.tolist:
            counted[WAIT] += 1
            return func(first.held.detach())
        if func in (Tensor.numpy, Tensor.__array__):
            raise MixedDevices(f"can't convert {DEVICE} device type tensor to numpy: use Tensor.cpu() first")
        if func is Tensor.data_ptr:
            return func(first.held)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (first, _indices(args[1]), *args[2:])
        return func(*args, **kwargs)


def _read(data: Any, counted: Counter[str]) -> Any:
    """Numbers for `torch.tensor`, which fetches each one that lies on the device."""
    if isinstance(data, OnDevice):
        counted[WAIT] += 1
        return data.held.detach()
    return type(data)([_read(each, counted) for each in data]) if isinstance(data, list | tuple) else data


def _indices(index: Any) -> Any:
    """Lists as tensors of the host: of a list, torch makes a tensor on `meta`, and that one has no numbers."""
    if isinstance(index, tuple):
        return tuple(_indices(each) for each in index)
    return torch.tensor(index) if isinstance(index, list) else index
