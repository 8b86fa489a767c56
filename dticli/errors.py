"""Errors for users, and their exit codes.

A message is one line: what was found, what was expected, and what to do next.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DtiError(Exception):
    """Base of all errors that are shown to users; any other exception is a bug and exits with 1."""

    exit_code = 1


class UsageError(DtiError):
    """The command line or a settings file asks for something that cannot be done."""

    exit_code = 2


class InputError(DtiError):
    """Photos, captions or token files are missing or unusable."""

    exit_code = 3


class ModelError(DtiError):
    """The text-to-image model is missing, broken, or not supported."""

    exit_code = 4


class EnvironmentProblem(DtiError):
    """Disk, memory, network, device or installation prevents the work."""

    exit_code = 5


class NumericalError(DtiError):
    """NaN, infinity, or an undefined result where finite numbers were expected."""

    exit_code = 6


class NonFiniteError(NumericalError):
    """A tensor contains NaN or infinity; the message names the row."""


class Stopped(DtiError):
    """A signal ended the work, and its state was saved; the exit code is 128 plus the signal's number."""

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
"""Parts of allocators' messages: of CUDA, HIP, XPU and MPS, of torch's for the CPU, of the system, of C++, and of cuBLAS or
cuDNN."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is due to a lack of memory of a device, the CPU or a memory-mapped file.

    There is no common class: torch raises OutOfMemoryError for CUDA and XPU, and RuntimeError for MPS, the CPU and mapped files;
    other libraries raise MemoryError and OSError, and loaders of models wrap these in their own classes.
    """
    seen: set[int] = set()
    # A DtiError has been explained already, whatever it was raised from.
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
    """Turn every exception of a library inside of the context into one of our errors.

    Classes are not listed, because invalid input makes libraries raise any class. DtiError, ConnectionError and out-of-memory
    errors pass through, because they are not due to the input.

    Args:
        ours: makes the error from the first line of the library's message.
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
    """The first line of an error's message that is not blank, at most 300 characters; its class without a message."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]
