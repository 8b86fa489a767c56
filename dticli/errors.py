"""Every error a user can meet, and the exit code each kind ends with.

A message is one line: what was found; what was expected; what to do next.
"""

import errno


class DtiError(Exception):
    """Base of all errors that are the user's to see; anything else is a bug and exits 1."""

    exit_code = 1


class UsageError(DtiError):
    """The command line or a settings file asks for something that cannot be done."""

    exit_code = 2


class InputError(DtiError):
    """Photos, captions or token files are missing or unusable."""

    exit_code = 3


class ModelError(DtiError):
    """The text-to-image model is missing, broken, or of a kind that cannot learn the word."""

    exit_code = 4


class EnvironmentProblem(DtiError):
    """Disk, memory, network or device stand in the way."""

    exit_code = 5


class NumericalError(DtiError):
    """NaN or infinity where numbers were expected."""

    exit_code = 6


class NonFiniteError(NumericalError):
    """A tensor holds NaN or infinity; the message names the row."""


class Stopped(DtiError):
    """A signal asked for an end, and everything so far is safe; the code is 128 plus its number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


EXIT_CODES = {
    0: "done",
    1: "a bug in dti",
    2: "usage or settings",
    3: "photos or token files",
    4: "model",
    5: "environment: disk, memory, network",
    6: "numbers: NaN or infinity",
    130: "interrupted (SIGINT)",
    143: "terminated (SIGTERM)",
}

_OUT_OF_MEMORY = (
    "out of memory",
    "OutOfMemoryError",
    "DefaultCPUAllocator",
    "Cannot allocate memory",
    "unable to mmap",
    "std::bad_alloc",
    "Invalid buffer size",
    "_STATUS_ALLOC_FAILED",
)
"""What allocators say: CUDA, HIP, XPU and MPS in their own words, torch's for the CPU, the system's, C++'s, and cuBLAS's or
cuDNN's."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory is what an error, or the one that led to it, is about: of a device, of the CPU, or to map a file into.

    There is no class for it: torch raises OutOfMemoryError for CUDA and XPU, and RuntimeError for MPS, the CPU and files that
    cannot be mapped; other libraries raise MemoryError and OSError, and those that load models wrap any of these in their own.
    """
    seen: set[int] = set()
    # An error of ours has been explained already, whatever led to it.
    while error is not None and not isinstance(error, DtiError) and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if any(sign in f"{type(error).__name__}: {error}" for sign in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False
