"""On what device, in which dtype, and with which libraries quiet: the one place that decides."""

import logging
import os

import torch

from dticli.errors import EnvironmentProblem

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(wanted: str) -> torch.device:
    """The device for `auto`, `cuda`, `mps` or `cpu`.

    Raises:
        EnvironmentProblem: that kind of device is not there.
    """
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


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the frozen weights; `auto` is bf16 or fp16 on CUDA, fp32 elsewhere."""
    if precision != "auto":
        return DTYPES[precision]
    if device.type != "cuda":
        return torch.float32
    # Cards before Ampere emulate bf16, many times slower than they compute in fp16.
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def pick_precision(precision: str, device: torch.device) -> str:
    """Name of the dtype that `pick_dtype` picks."""
    dtype = pick_dtype(precision, device)
    return next(name for name, each in DTYPES.items() if each == dtype)


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
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
