"""Every error a user can meet, and the exit code each kind ends with.

A message is one line: what was found; what was expected; what to do next.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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


@contextmanager
def boundary(ours: Callable[[str], DtiError]) -> Iterator[None]:
    """The boundary of a library: whatever it raises inside becomes one error of ours.

    Classes are not listed, because libraries raise what their input leads them to. Errors of ours, and a lack of memory
    or of a connection, which no input is to blame for, pass through.

    Args:
        ours: the error, made from what the library said, in one line.
    """
    try:
        yield
    except (DtiError, ConnectionError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ours(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says that is not blank, at most 300 characters of it; its class if it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]
