"""On what device, in which dtype, and with which libraries quiet: the one place that decides."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dticli.errors import EnvironmentProblem, first_line

if TYPE_CHECKING:
    import torch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
"""What users call a precision, and what torch calls it."""
DRIVERS_AT = Path("/dev")
DRIVERS = ("nvidia*", "nvhost*", "dxg", "kfd")
"""What lies there where a driver for CUDA, or for what torch calls so, is at work: of cards, Jetson, WSL and AMD."""


def has_cuda() -> bool:
    """Whether torch can compute with CUDA; it is not imported where there is no driver to compute with."""
    if sys.platform == "linux" and not any(any(DRIVERS_AT.glob(name)) for name in DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def pick_device(wanted: str) -> "torch.device":
    """The device for `auto`, `cuda`, `mps` or `cpu`.

    Raises:
        EnvironmentProblem: that kind of device is not there.
    """
    import torch

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


def dtype(precision: str) -> "torch.dtype":
    """The dtype of this name."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[precision])
    return found


def pick_dtype(precision: str, device: "torch.device") -> "torch.dtype":
    """The dtype of the frozen weights; `auto` is bf16 or fp16 on CUDA, fp32 elsewhere."""
    return dtype(pick_precision(precision, device))


def pick_precision(precision: str, device: "torch.device") -> str:
    """Name of the dtype that `pick_dtype` picks."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    import torch

    # Cards before Ampere emulate bf16, many times slower than they compute in fp16.
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


NOISY = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""Loggers that tell, as soon as diffusers imports them, which of their kernels this machine lacks."""


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
    import torch

    # cuBLAS reads it when CUDA computes its first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


@contextmanager
def explaining_determinism() -> Iterator[None]:
    """Turn what torch raises for an op that has no deterministic version into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise EnvironmentProblem(
            f"--deterministic: {first_line(error).split(', ')[0]}: expected a deterministic operation; leave the option out, "
            f"or use --device cpu"
        ) from None
