"""`python -m dticli` and the `dti` script."""

import os
import sys
from collections.abc import MutableMapping

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
