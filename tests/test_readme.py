"""README's commands, run as they are written there, with the bundled model in the place of a large one and fewer steps."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dticli import bundled
from tests.conftest import Outcome

README = Path(__file__).parents[1] / "README.md"
QUICK = {
    "train": ("--steps", "1", "--batch-size", "1"),
    "generate": ("--steps", "1"),
    "interpolate": ("--steps", "1"),
}


def section(title: str) -> str:
    """A section's text, its heading left out."""
    return next(part for part in README.read_text().split("\n## ") if part.startswith(title)).partition("\n")[
        2
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `dti ...` of a text's code blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```|^((?:    .*\n)+)", text, re.DOTALL | re.MULTILINE)
    for line in "".join(fenced or indented for fenced, indented in blocks).splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["dti"]:
                yield words[1:]


@pytest.mark.parametrize("title", ["Try it", "Your own photos"])
def test_every_command_runs_as_written(
    title: str, dti: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other in one folder, as a reader types them."""
    monkeypatch.chdir(tmp_path)
    if title == "Your own photos":
        assert dti("example", "./photos").code == 0
    ran = 0
    for arguments in commands(section(title)):
        there = [str(bundled.model_folder()) if each.startswith("~/models/") else each for each in arguments]
        bundled_too = (
            ("--model", "stickers") if arguments[0] == "train" and "--model" not in arguments else ()
        )
        quick = () if "--check" in arguments else QUICK.get(arguments[0], ())
        outcome = dti(*there, *bundled_too, *quick)
        assert outcome.code == 0, (arguments, outcome.err)
        ran += 1
    assert ran == sum(1 for _ in commands(section(title))) >= 2
    if title == "Try it":
        assert {"dog.safetensors", "cat.safetensors", "grid.png", "morph.gif"} <= {
            path.name for path in tmp_path.iterdir()
        }


def test_the_opening_and_the_newcomers_command_agree() -> None:
    """The first screen's training is what *Try it* runs, on the bundled model."""
    opening = next(commands(README.read_text()))
    newcomers = next(words for words in commands(section("Try it")) if words[0] == "train")
    assert newcomers == [*opening, "--model", "stickers"]
