"""Fits large models into memory: unused parts of the pipeline are on the CPU, and activations are recomputed.

Neither changes what is learned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dticli.errors import EnvironmentProblem, is_out_of_memory
from dticli.models import activations, contents, devices, footprint, loading, quantization
from dticli.models.choice import Model
from dticli.models.families import Family
from dticli.settings import ModelSettings

CPU = torch.device("cpu")


def load(
    model: Model,
    family: Family,
    settings: ModelSettings,
    device: torch.device,
    *,
    safety_checker: bool = True,
) -> Any:
    """Load the pipeline on `device`, or with `low_memory` on the CPU, until `economize` or `offload` is called.

    Raises:
        ModelError, UsageError: as `loading.load`.
        EnvironmentProblem: as `loading.load` and `quantization.config`, or the model does not fit into memory.
    """
    dtype = devices.pick_dtype(settings.precision, device)
    with fitting(model, settings, device):
        return loading.load(
            model,
            CPU if settings.low_memory else device,
            dtype,
            safety_checker=safety_checker,
            quantization=quantization.config(contents.index(model), family, settings.quantize, device, dtype),
        )


@contextmanager
def fitting(model: Model, settings: ModelSettings, device: torch.device) -> Iterator[None]:
    """Turn an out-of-memory error into an EnvironmentProblem that names options which need less."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        options = [name for name, _ in footprint.savings(settings, model, device)]
        advice = ", ".join([*options, "or a smaller --model"]) if options else "a smaller --model"
        raise EnvironmentProblem(
            f"{model.name} does not fit into the memory of {device.type}: expected more free memory; try {advice}"
        ) from None


def tile(vae: Any) -> None:
    """Turn on tiling of large pictures and slicing of batches in an autoencoder, if it supports them."""
    _switch(vae, "enable")


def untile(vae: Any) -> None:
    """Turn off tiling and slicing."""
    _switch(vae, "disable")


def _switch(vae: Any, to: str) -> None:
    for way in ("tiling", "slicing"):
        if hasattr(vae, f"use_{way}"):
            getattr(vae, f"{to}_{way}")()


def set_aside(pipe: Any) -> None:
    """Move every module of the pipeline to the CPU."""
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.to(CPU)


def economize(pipe: Any, family: Family, device: torch.device) -> None:
    """For training: keep only the encoders and the denoiser on the device, with gradient checkpointing."""
    set_aside(pipe)
    for module in (family.code.denoiser(pipe), *(getattr(pipe, each.component) for each in family.encoders)):
        module.to(device)
        activations.recompute(module)


def offload(pipe: Any, device: torch.device) -> None:
    """For drawing: keep each part of the pipeline on the device only while it runs, and decode in tiles."""
    tile(pipe.vae)
    if device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device)
