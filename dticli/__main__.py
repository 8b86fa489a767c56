"""`python -m dticli` and the `dti` script."""

import os
import sys
from collections.abc import Mapping, MutableMapping

OF_THREADS = ("OMP_", "GOMP_", "KMP_")
"""Prefixes of environment variables of OpenMP."""
SPINS = 300
"""How often a waiting thread of GNU's OpenMP looks for work before it sleeps."""
OF_MEMORY = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Prefixes of environment variables of memory allocation."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
"""Freed blocks of up to this many bytes are kept, and this many bytes in total; constants from malloc.h and mallopt(3)."""


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep and not spin, unless the user has set variables of OpenMP.

    A spinning thread occupies a core that another process needs: beside two processes, steps took ten times as long. The
    variables are read once, when torch is imported.
    """
    if not any(name.startswith(OF_THREADS) for name in environment):
        environment.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": str(SPINS)})


def keep_freed_memory(environment: Mapping[str, str]) -> None:
    """Keep memory that a step frees for the next one, unless the user has set variables of allocation; for GNU's library only.

    The library chooses such values itself after large blocks have been freed, as with a large model. A small model in bf16 frees
    none: after every step, two to three thousand pages were returned to the system and fetched again.
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
        # Interrupted before or after the command, which handles its own interrupts.
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def _open_closed_streams() -> None:
    """Redirect closed streams to the null device, and let output streams escape characters that they cannot encode.

    Otherwise, the first file that is opened would get a closed stream's descriptor, and what is printed to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the program runs
        elif mode == "w":
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
