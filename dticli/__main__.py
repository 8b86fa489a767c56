"""`python -m dticli` and the `dti` script."""

import os
import sys
from collections.abc import Mapping, MutableMapping

OF_THREADS = ("OMP_", "GOMP_", "KMP_")
"""Start of the variables that tell OpenMP how its threads behave."""
SPINS = 300
"""How often GNU's OpenMP looks for work before a thread that waits goes to sleep."""
OF_MEMORY = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Start of the variables that tell how memory is allocated."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
"""Blocks of up to so many bytes are kept when they are freed, and so many bytes in all; from malloc.h and mallopt(3)."""


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Threads that wait for each other sleep instead of spinning, unless the user has said anything of threads.

    A thread that spins takes the core another process computes on: beside two of those, steps took ten times as long. The
    libraries read this once, when torch is imported.
    """
    if not any(name.startswith(OF_THREADS) for name in environment):
        environment.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPINS)})


def keep_freed_memory(environment: Mapping[str, str]) -> None:
    """Memory that a step frees is kept for the next one, unless the user has said anything of memory; of GNU's library only.

    That library comes to these values by itself where large blocks have been freed, as those of a large model are. A small model
    in bf16 frees none: two to three thousand pages were given back after every step and fetched again.
    """
    if sys.platform != "linux" or any(name.startswith(OF_MEMORY) for name in environment):
        return
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in KEPT.items():
            library.mallopt(parameter, value)


def main() -> None:
    """Run the command line and exit with its code."""
    let_threads_sleep(os.environ)
    keep_freed_memory(os.environ)
    _open_closed_streams()
    try:
        from dticli.cli import run

        code = run()
    except KeyboardInterrupt:
        # Before or after the command itself, which handles its own.
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def _open_closed_streams() -> None:
    """Give streams that were closed a place to go to, and every stream characters it can write.

    The first file that is opened would take a closed stream's number, and get what is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the program runs
        elif mode == "w":
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
