"""Chooses the device and the dtype, and configures libraries."""

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
"""Precision as in settings to the name of its dtype in torch."""
DRIVERS_AT = Path("/dev")
DRIVERS = ("nvidia*", "nvhost*", "dxg", "kfd")
"""Device files of drivers for what torch calls CUDA: NVIDIA cards, Jetson, WSL and AMD."""


def has_cuda() -> bool:
    """Whether torch can compute with CUDA; torch is imported only if there is a driver, because that is slow."""
    if sys.platform == "linux" and not any(any(DRIVERS_AT.glob(name)) for name in DRIVERS):
        return False
    import torch

    return torch.cuda.is_available()


def pick_device(wanted: str) -> "torch.device":
    """The device for `auto`, `cuda`, `mps` or `cpu`.

    Raises:
        EnvironmentProblem: torch has no such device.
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
    """The dtype of a precision in `DTYPES`."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[precision])
    return found


def pick_dtype(precision: str, device: "torch.device") -> "torch.dtype":
    """The dtype of the frozen weights; `auto` is bf16 or fp16 on CUDA, fp32 elsewhere."""
    return dtype(pick_precision(precision, device))


def pick_precision(precision: str, device: "torch.device") -> str:
    """The precision whose dtype `pick_dtype` returns."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    import torch

    # Cards before Ampere emulate bf16, which is many times slower than fp16.
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


NOISY = ("bitsandbytes", "torchao", "torch.utils._pytree")
"""Loggers that warn about missing kernels when diffusers imports their libraries."""


def quiet_libraries() -> None:
    """Turn off warnings and progress bars of libraries; errors are still raised."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def make_deterministic() -> None:
    """Let torch use deterministic algorithms only; operations without one raise RuntimeError."""
    import torch

    # cuBLAS reads it at the first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


@contextmanager
def explaining_determinism() -> Iterator[None]:
    """Turn torch's error for an operation without a deterministic algorithm into an EnvironmentProblem with advice."""
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise EnvironmentProblem(
            f"--deterministic: {first_line(error).split(', ')[0]}: expected a deterministic operation; leave the option out, "
            f"or use --device cpu"
        ) from None
