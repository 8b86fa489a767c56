"""`python -m dticli` and the `dti` script."""

import sys

from dticli.cli import run


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
