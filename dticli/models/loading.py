"""Loads a model into a frozen pipeline."""

import dataclasses
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dticli.errors import ModelError, UsageError, boundary
from dticli.models import contents, devices, embeddings, foreign, single_file
from dticli.models.choice import Model
from dticli.models.families import tokenizer_in
from dticli.models.quantization import stored
from dticli.models.single_file import Base


def load(
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    *,
    safety_checker: bool = True,
    quantization: Any = None,
    left_out: Iterable[str] = (),
) -> Any:
    """Load the pipeline, frozen, on `device`.

    Args:
        safety_checker: False leaves out the safety checker, if the pipeline has one.
        quantization: a `PipelineQuantizationConfig`; None loads every weight in `dtype`.
        left_out: components that are not loaded.

    Raises:
        ModelError: files are missing or broken.
        EnvironmentProblem: the hub cannot be reached.
        UsageError: a single file with quantization, or a prediction type for a flow-matching model.
        Exception: out of memory, as libraries raise it; see `errors.is_out_of_memory`.
    """
    devices.quiet_libraries()
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedTokenizerBase

    if model.file and quantization:
        raise UsageError(
            f"--quantize for the single file {model.name}: expected a model in diffusers layout; leave one of them out"
        )
    scheduler = contents.scheduler(model) if model.noise else None
    source = _brought(model) if model.file else model
    without: dict[str, Any] = contents.absent(contents.index(source)) | dict.fromkeys(
        [*model.stored, *left_out]
    )
    # Single files never have a safety checker, and diffusers loads them without one.
    if (model.file or not safety_checker) and "safety_checker" in contents.index(source):
        without |= WITHOUT_SAFETY_CHECKER
    contents.require_sane(source)
    with (
        contents.hub_errors(source),
        boundary(partial(_unloadable, source)),
        foreign.gathering_lacks() as lacks,
    ):
        pipe = foreign.load(
            DiffusionPipeline.from_pretrained,
            source.location,
            dtype=dtype,
            revision=source.revision,
            variant=source.variant,
            local_files_only=source.offline or source.kind != "hub",
            quantization_config=quantization,
            # Components go to the device one by one, so that the host's memory need not hold the whole model.
            device_map=None if quantization else device.type,
            **without,
        )
        for part in map(tokenizer_in, pipe.components.values()):
            if isinstance(part, PreTrainedTokenizerBase):
                embeddings.require_words(part)
    if lacks:
        raise _unloadable(source, f"its text encoders lack {len(lacks)} weights, such as {lacks[0]}")
    if model.file:
        pipe = single_file.fill(model.file, pipe, _as_base(source), dtype)
    if scheduler:
        pipe.scheduler = scheduler
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False).eval()
            _without_cache(module)
            align(module)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _unloadable(model: Model, reason: str) -> ModelError:
    what = contents.mistaken_file(model) or f"{reason}; download the model again"
    return ModelError(f"{model.name} cannot be loaded: {what}")


def text_encoders(model: Model, device: torch.device, dtype: torch.dtype) -> Any:
    """Load a pipeline with only its text encoders and tokenizers; a single file is loaded completely.

    Raises:
        ModelError, EnvironmentProblem, UsageError: as `load`.
    """
    others = [name for name in contents.index(model) if not re.match(r"_|text_encoder|tokenizer", name)]
    return load(model, device, dtype, left_out=() if model.file else others)


def _brought(model: Model) -> Model:
    """A single file's base as a local folder; downloads what the file does not have.

    Raises:
        ModelError: as `single_file.require_fit`.
    """
    assert model.file
    layout = model.layout
    patterns = ["*.json", "tokenizer*/*", *(f"{component}/*.safetensors" for component in model.file.lacking)]
    folder = layout.folder or contents.snapshot(model, patterns)
    brought = dataclasses.replace(layout, kind="folder", location=str(folder))
    single_file.require_fit(model.file, _as_base(brought))
    return brought


def _as_base(model: Model) -> Base:
    return Base(model.label, Path(model.location), contents.index(model))


@torch.no_grad()
def align(module: torch.nn.Module) -> None:
    """Copy misaligned weights on the CPU to aligned memory, so that results do not depend on the file they came from.

    The alignment of weights that are mapped from a file depends on the length of its header, and some kernels round the last
    bit differently there than at torch's own alignment.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        for part in stored(tensor):
            if part.device.type == "cpu" and part.data_ptr() % ALIGNMENT:
                part.data = part.data.clone()


def _without_cache(module: torch.nn.Module) -> None:
    """Turn off the key-value cache of language models, which encoders do not need."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "get_text_config"):
        config.get_text_config().use_cache = False


ALIGNMENT = 64
"""Alignment of torch's allocations on the CPU, in bytes."""

WITHOUT_SAFETY_CHECKER = {"safety_checker": None, "requires_safety_checker": False}
