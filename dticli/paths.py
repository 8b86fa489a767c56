"""Names of the files of words and runs. Imports no torch."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

SUFFIXES = (".safetensors", ".pt", ".bin")
"""Suffixes of token files, of any program."""
RUN = ".run"
"""Suffix of the folder of a run of `train`."""
SNAPSHOTS = "snapshots"
"""Its subfolder with the states that were kept along the run."""
SNAPSHOT = re.compile(rf"(?P<run>.+{re.escape(RUN)})@(?P<step>\d{{1,8}}|best)")
"""Name of a kept state in the place of a token file: `dog.run@200`, or `dog.run@best` after one was chosen."""
ALPHA = "alpha"
"""Value in place of a folder of masks that stands for the photos' own transparency."""
MARK = "drawn by dti"
"""Metadata of pictures that dti drew, which are never read as photos."""


def names_token_file(text: str) -> bool:
    """Whether an init or prior is a token file and not a word, by its suffix: a folder `dog` does not hide the word."""
    return Path(text).suffix in SUFFIXES or SNAPSHOT.fullmatch(text) is not None


def told_apart(sources: Sequence[str], short: Callable[[str], str]) -> list[str]:
    """A name for each source: its short name, or the source itself if several have that short name."""
    names = [short(source) for source in sources]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]


def snapshot(run: Path, step: int) -> Path:
    """The token file of a run's state at a step."""
    return run / SNAPSHOTS / f"{step:08d}.safetensors"


def snapshots(run: Path) -> dict[int, Path]:
    """Step to token file of every kept state of a run, in the order of steps."""
    folder = run / SNAPSHOTS
    files = sorted(folder.glob("*.safetensors")) if os.path.isdir(folder) else []
    return {int(file.stem): file for file in files if file.stem.isdecimal()}


def best(run: Path) -> Path:
    """The file that records the best of a run's kept states."""
    return run / "best.json"
