"""`python -m dticli.bundled.recipe STEP`: make the bundled model again, one resumable step at a time."""

import argparse
import os
import sys
from pathlib import Path

# glibc hands every large buffer back to the system, and half of a training step was spent getting it again.
# Threads that wait by spinning starve each other as soon as something else runs.
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
STEPS = (
    "art",
    "photos",
    "world",
    "begin",
    "text-encoder",
    "autoencoder",
    "latents",
    "diffusion",
    "decoder",
    "judges",
    "gate",
    "check",
    "ceilings",
    "diagnosis",
    "pairs",
    "package",
    "results",
)


def main() -> int:
    """Run one step; its environment is read when a process starts."""
    arguments = _parser().parse_args()
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(
            sys.executable,
            [sys.executable, "-m", __package__, *sys.argv[1:]],
            os.environ | ENVIRONMENT,
        )
    from . import steps

    return steps.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dticli.bundled.recipe", description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--minutes", type=float, help="training time of the step over all its starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=60_000, help="world: pictures to draw of each kind")
    parser.add_argument("--kinds", nargs="*", help="world: which kinds of pictures to draw; all by default")
    parser.add_argument("--samples", type=int, default=1_000, help="gate, check, results: pictures to sample")
    parser.add_argument(
        "--plans", nargs="*", default=(), help="results: plans to carry out, hours each; none by default"
    )
    parser.add_argument("--parts", nargs="*", help="results: what to measure beside ceilings; all by default")
    parser.add_argument(
        "--start",
        type=Path,
        help="begin: a model folder to go on from; autoencoder, diffusion: a folder of weights",
    )
    parser.add_argument(
        "--model", type=Path, help="gate, check: the model to judge; default: the one just trained"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
