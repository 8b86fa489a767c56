"""Quantization of the large matrices of a model, by an installed library."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dticli.errors import EnvironmentProblem
from dticli.models import contents, devices
from dticli.models.families import Family

SMALL_ENCODERS = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection", "BertModel"})
"""Text encoders with less than a billion parameters, which are not quantized: little is saved, and gradients pass them."""
TABLES = (
    *("token_embedding.weight", "shared.weight", "embed_tokens.weight", "word_embeddings.weight"),
    *("position_embedding.weight", "relative_attention_bias.weight", "lm_head.weight"),
)
"""Lookup tables of text encoders, and matrices that are tied to them, which are never quantized."""
KEPT: Mapping[str, tuple[str, ...]] = {
    # These overflow. transformers and diffusers exclude them themselves, but not with every library.
    "T5EncoderModel": ("wo", "wo.weight"),
    "UMT5EncoderModel": ("wo", "wo.weight"),
    "WanTransformer3DModel": ("time_embedder",),
    # The model uses the weights of this module directly.
    "HunyuanDiT2DModel": ("pooler",),
}
"""Class of a component to its modules that are not quantized."""


@dataclass(frozen=True)
class Backend:
    """A library that stores matrices in fewer bits.

    Attributes:
        package: name for imports.
        install: name for pip.
        devices: types of device on which diffusers supports it.
        configs: value of the setting to a function that makes a config from the component's library (diffusers or transformers),
            the dtype of computation, and the modules that are not quantized, None for the library's choice.
    """

    package: str
    install: str
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
    Backend(
        "bitsandbytes",
        "'dticli[quantize]'",
        frozenset({"cuda"}),
        {"8bit": _bitsandbytes_8bit, "4bit": _bitsandbytes_4bit},
    ),
    Backend("torchao", "torchao", frozenset({"cuda", "cpu"}), {"8bit": _torchao_8bit}),
)
"""In order of preference; the first installed one is used."""


def config(
    index: Mapping[str, Any], family: Family, kind: str, device: torch.device, dtype: torch.dtype
) -> Any:
    """The `PipelineQuantizationConfig` for a model's large components; None for `none`.

    Args:
        index: of the model.
        kind: the setting `quantize`.
        dtype: of computation.

    Raises:
        EnvironmentProblem: no library for `kind` is installed, or none supports the device.
    """
    if kind == "none":
        return None
    devices.quiet_libraries()
    import diffusers
    import transformers

    config = backend(kind, device).configs[kind]
    libraries = {"diffusers": diffusers, "transformers": transformers}
    mapping = {}
    for name in rounded(index, family):
        library, kept = index[name][0], KEPT.get(index[name][1])
        mapping[name] = config(libraries[library], dtype, list(kept) if kept else None)
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def rounded(index: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    """Components that are quantized: the denoiser, and text encoders except small ones."""
    encoders = [each.component for each in family.encoders if index[each.component][1] not in SMALL_ENCODERS]
    return (*(name for name in contents.DENOISERS if name in index), *encoders)


def backend(kind: str, device: torch.device) -> Backend:
    able = able_on(kind, device)
    if not able:
        raise EnvironmentProblem(
            f"--quantize {kind} does not work on {device.type}: expected {_devices(kind)}; leave it out, or use --low-memory"
        )
    found = next((each for each in able if importlib.util.find_spec(each.package)), None)
    if found is None:
        raise EnvironmentProblem(
            f"--quantize {kind} needs {' or '.join(each.package for each in able)}: expected it to be installed; "
            f"pip install {able[0].install}"
        )
    return found


def _devices(kind: str) -> str:
    """Types of device for which a library supports `kind`, for messages."""
    return " or ".join(
        sorted({device for each in BACKENDS if kind in each.configs for device in each.devices})
    )


def able_on(kind: str, device: torch.device) -> list[Backend]:
    """The libraries that support `kind` on a device, installed or not."""
    return [each for each in BACKENDS if kind in each.configs and device.type in each.devices]


def stored(parameter: Tensor) -> list[Tensor]:
    """The plain tensors that store a parameter: itself, or the parts of a tensor that torchao has quantized."""
    if hasattr(parameter, "__tensor_flatten__"):
        names, _ = parameter.__tensor_flatten__()
        return [getattr(parameter, name) for name in names]
    return [parameter]
