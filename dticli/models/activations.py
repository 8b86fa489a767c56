"""Memory of activations, measured by running the model on torch's `meta` device, without reading weights.

The lifetime of every tensor is tracked, so both what is kept for the backward pass and temporary tensors count.
"""

import importlib
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from dticli.models import contents, devices, foreign
from dticli.models.choice import Model
from dticli.models.families import Family
from dticli.models.families.shape import Frame

META = torch.device("meta")
aten = torch.ops.aten


@dataclass(frozen=True)
class Activations:
    """Bytes besides weights, at most.

    Attributes:
        encoding: while the autoencoder encodes a photo, in float32.
        step: in the forward and backward pass of a step.
    """

    encoding: int
    step: int


def of_training(
    model: Model,
    family: Family,
    dtype: torch.dtype,
    size: tuple[int, int],
    batch_size: int,
    *,
    low_memory: bool,
) -> Activations | None:
    """The activations of one word with one vector; None for models whose code depends on tensor values.

    Args:
        dtype: of encoders and denoiser.
        size: (height, width) of the pictures.
        low_memory: activations of layers are computed twice instead of kept.

    Raises:
        ModelError, EnvironmentProblem: configs or tokenizers are missing.
    """
    pipe = _on_meta(model, dtype)
    try:
        return Activations(
            encoding=_encoding(pipe, family, size),
            step=_step(pipe, family, size, batch_size, low_memory=low_memory),
        )
    except (NotImplementedError, RuntimeError):
        # Masks are turned into lists, and lengths into shapes.
        return None


def _on_meta(model: Model, dtype: torch.dtype) -> Any:
    """The pipeline with its own configs and tokenizers, and modules without numbers."""
    devices.quiet_libraries()
    import diffusers

    index = contents.index(model)
    folder = model.layout.folder or contents.snapshot(model, ["*.json", "*/*.json", "tokenizer*/*"])
    entries = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    modules = {
        name: _module(folder / name, *entry)
        for name, entry in entries.items()
        if entry[0] in ("diffusers", "transformers") and os.path.isfile(folder / name / "config.json")
    }
    # A filter of pictures has no part in training.
    absent = {"safety_checker": None} if "safety_checker" in entries else {}
    pipe = foreign.load(
        diffusers.DiffusionPipeline.from_pretrained,
        folder,
        local_files_only=True,
        **contents.absent(index) | modules | absent,
    )
    for module in modules.values():
        module.to(dtype).requires_grad_(False).eval()
    return pipe


def _module(folder: Path, library: str, name: str) -> nn.Module:
    kind = getattr(importlib.import_module(library), name)
    with META:
        if library == "diffusers":
            return kind.from_config(kind.load_config(folder))
        return kind(foreign.load(kind.config_class.from_pretrained, folder, local_files_only=True))


@torch.no_grad()
def _encoding(pipe: Any, family: Family, size: tuple[int, int]) -> int:
    pipe.vae.to(torch.float32)
    with _followed(pipe.vae) as followed:
        family.code.posterior(pipe, torch.empty(1, 3, *size, device=META))
    return followed.most


def _step(pipe: Any, family: Family, size: tuple[int, int], batch_size: int, *, low_memory: bool) -> int:
    code, encoders = family.code, [getattr(pipe, each.component) for each in family.encoders]
    denoiser = code.denoiser(pipe)
    dtype: torch.dtype = denoiser.dtype  # type: ignore[assignment]
    with torch.no_grad():
        raw, _ = code.posterior(pipe, torch.empty(batch_size, 3, *size, device=META))
        clean = code.to_latents(pipe, raw)
    for module in (denoiser, *encoders) if low_memory else ():
        recompute(module)
    process = code.process(pipe.scheduler)
    level = process.levels(torch.full((batch_size,), 0.5, device=META))
    frames = [Frame(size, (0, 0), size)] * batch_size
    with _followed(denoiser, *encoders) as followed, _learning(encoders):
        conditioning = code.encode(pipe, ["a photo"] * batch_size, frames)
        noisy = process.add_noise(clean, torch.empty_like(clean), level).to(dtype)
        prediction = code.predict(pipe, noisy, level, conditioning).float()
        (prediction - process.target(clean, torch.empty_like(clean), level)).square().mean().backward()
    return followed.most


@contextmanager
def _learning(encoders: list[nn.Module]) -> Iterator[None]:
    """Require gradients of the embeddings that the tables return, as of a word's rows."""
    tables = [each.get_input_embeddings() for each in encoders]  # type: ignore[operator]
    modules = [
        part
        for encoder, table in zip(encoders, tables, strict=True)
        for part in encoder.modules()
        if isinstance(part, nn.Embedding) and part.weight is table.weight
    ]
    handles = [
        each.register_forward_hook(lambda module, args, output: output.requires_grad_()) for each in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Computing twice


def recompute(module: nn.Module) -> None:
    """Turn on gradient checkpointing: keep only the inputs of layers, and run each layer again in the backward pass; same bits.

    Layers of text encoders do this only in training mode. It is set on the layers themselves but not on their submodules: the
    layers have no dropout of their own, and attention, feed-forward and dropout modules stay in evaluation mode.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if getattr(module, "_supports_gradient_checkpointing", False):
        module.enable_gradient_checkpointing()  # type: ignore[operator]
    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.training = True


# Following tensors


@contextmanager
def _followed(*modules: nn.Module) -> Iterator["_Followed"]:
    """Follow the storages of all tensors but the modules' own while the context is open."""
    with _fused_attention(), _Followed(modules) as followed:
        yield followed


class _Followed(TorchDispatchMode):
    """Bytes of the storages that are alive, now and at most."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen = {
            id(tensor.untyped_storage()): tensor.untyped_storage()
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }
        self.alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self.seen or key in self.alive:
            return
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        self.alive[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.now -= size
        del self.alive[key]


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Use flash attention on `meta`, which would otherwise build the full attention matrix.

    The function is replaced where libraries look it up, because the backward pass recomputes layers outside of any mode.
    """
    own = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = _fused
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = own


def _fused(query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any) -> Tensor:
    return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
