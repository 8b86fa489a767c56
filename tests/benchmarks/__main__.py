"""Measure what dti costs: `python -m tests.benchmarks [PART ...] [--peer NAME=COMMAND]`.

Writes docs/benchmarks.json and, from it, the tables of docs/benchmarks.md; parts that are not named keep their figures. A peer is
a program that trains with a torch optimizer, given as `SCRIPT ARGUMENTS` in which are filled in: {model}, or {sdxl} for one that
trains SDXL alone; {photos}, {noun} (what they show), {size} (pixels), {batch}, {out} (a folder), and {save} (how many steps lie
between two words that it writes there, as FILE-STEPS.safetensors).
"""

import argparse
import dataclasses
import json
import platform
import shlex
from pathlib import Path

import torch

from dticli.evaluation.markdown import table
from tests.benchmarks.parts import PARTS

DOCS = Path(__file__).parents[2] / "docs"
FIGURES, PAGE = DOCS / "benchmarks.json", DOCS / "benchmarks.md"
START, END = "<!-- measured -->", "<!-- end -->"


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    options = parser.parse_args()
    if unknown := sorted(set(options.parts) - PARTS.keys()):
        parser.error(f"no part {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    peers = {
        name: shlex.split(command) for name, _, command in (each.partition("=") for each in options.peer)
    }
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    for part in options.parts:
        tables = [dataclasses.asdict(each) for each in PARTS[part](peers)]
        figures[part] = {"machine": machine(), "tables": tables}
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(figures), encoding="utf-8")
        print("\n".join(_lines(figures[part])))


def machine() -> str:
    """Processor, threads and torch."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    cores = f"{len(names)} cores of {names[0]}, {torch.get_num_threads()} threads"
    return f"{cores}, torch {torch.__version__}, Python {platform.python_version()}"


def page(figures: dict) -> str:
    """The page with what was measured between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    _, after = rest.split(END)
    lines = [line for part in PARTS if part in figures for line in ("", *_lines(figures[part]))]
    return "\n".join([before + START, *lines, "", END + after])


def _lines(measured: dict) -> list[str]:
    lines = []
    for each in measured["tables"]:
        lines += [f"## {each['title']}", "", f"{each['said']} {measured['machine']}.", ""]
        lines += [*table(each["head"], each["rows"]), ""]
    return lines[:-1]


if __name__ == "__main__":
    main()
