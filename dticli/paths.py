"""How the files of words and runs are called. Imports no torch."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

SUFFIXES = (".safetensors", ".pt", ".bin")
"""Of token files, as any program writes them."""
RUN = ".run"
"""Suffix of the folder in which `train` keeps its books."""
SNAPSHOTS = "snapshots"
"""In it, the folder of states kept along the run."""
SNAPSHOT = re.compile(rf"(?P<run>.+{re.escape(RUN)})@(?P<step>\d{{1,8}}|best)")
"""How a state that was kept is named where a token file can be: `dog.run@200`, or `dog.run@best` once one was chosen."""
ALPHA = "alpha"
"""In the place of a folder of masks: the photos' own transparency."""
MARK = "drawn by dti"
"""What pictures that dti drew say: they are never photos."""


def names_token_file(text: str) -> bool:
    """Whether an init, or a prior, is a token file and not a word: by its ending, so that a folder called dog hides no dog."""
    return Path(text).suffix in SUFFIXES or SNAPSHOT.fullmatch(text) is not None


def told_apart(sources: Sequence[str], short: Callable[[str], str]) -> list[str]:
    """What to call each source: by its short name, or where several share that, as it was given."""
    names = [short(source) for source in sources]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]


def snapshot(run: Path, step: int) -> Path:
    """The token file of the state that a run kept at a step."""
    return run / SNAPSHOTS / f"{step:08d}.safetensors"


def snapshots(run: Path) -> dict[int, Path]:
    """Step to token file of every state that a run kept, in order."""
    folder = run / SNAPSHOTS
    files = sorted(folder.glob("*.safetensors")) if os.path.isdir(folder) else []
    return {int(file.stem): file for file in files if file.stem.isdecimal()}


def best(run: Path) -> Path:
    """What says which of the states that a run kept is the best one."""
    return run / "best.json"
