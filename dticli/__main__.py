"""`python -m dticli` and the `dti` script."""

import os
import sys
from collections.abc import MutableMapping

from dticli.cli import run

OF_THREADS = ("OMP_", "GOMP_", "KMP_")
"""Start of the variables that tell OpenMP how its threads behave."""


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Threads that wait for each other sleep instead of spinning, unless the user has said anything of threads.

    A thread that spins takes the core another process computes on: beside two of those, steps took ten times as long. The
    libraries read this once, when torch is imported.
    """
    if not any(name.startswith(OF_THREADS) for name in environment):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def main() -> None:
    """Run the command line and exit with its code."""
    let_threads_sleep(os.environ)
    sys.exit(run())


if __name__ == "__main__":
    main()
