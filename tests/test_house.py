"""Who may import whom: down the floors of the house, and in no circle."""

import ast
import sys
from pathlib import Path

import pytest

from tests import house
from tests.house import Arrow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found() -> set[Arrow]:
    return house.arrows(ROOT)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_room_has_a_floor() -> None:
    """A new room must say where it stands, and one that is gone must not."""
    assert {house.room(name) for name in house.modules(ROOT)} == set().union(*house.FLOORS)


def test_imports_lead_down(found: set[Arrow]) -> None:
    """Rooms know those below and none beside them or above, not even inside a function."""
    assert house.upwards(found) == []


def test_no_rooms_import_one_another(found: set[Arrow]) -> None:
    assert house.circles(house.between(found)) == []


def test_no_modules_import_one_another(found: set[Arrow]) -> None:
    """Each can be read after what it imports."""
    assert house.circles(found) == []


def test_only_commands_and_the_live_line_know_the_console(found: set[Arrow]) -> None:
    """Everything else returns, raises, logs, or is handed what shows its progress."""
    knowing = {each.source for each in found if each.target == "console"}
    assert {name for name in knowing if not name.startswith("commands.")} == {"cli", "learn.lifecycle"}


def test_the_rooms_of_a_training_get_values_and_not_all_its_settings() -> None:
    """Whoever asks for a training, records it or fits it into memory knows its settings; what does the work does not."""
    knowing = {
        name
        for name, path in house.modules(ROOT).items()
        if any(isinstance(node, ast.alias) and node.name == "TrainSettings" for node in ast.walk(tree(path)))
    }
    assert {name for name in knowing if house.room(name) not in {"commands", "evaluation", "report"}} == {
        "learn.hyperparameters",
        "learn.jobs",
        "learn.run",
        "learn.run_identity",
        "models.footprint",
    }


def test_the_sphere_is_mathematics(found: set[Arrow]) -> None:
    """It needs torch and nothing of dti but its errors."""
    assert {each.target for each in found if each.source == "sphere"} == {"errors"}
    assert house.outside(ROOT)["sphere"] - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize(
    "line",
    [
        "from dticli.learn import run",
        "from dticli.learn.run import Run",
        "import dticli.learn.run",
        "from ..learn import run",
        "from ..learn.run import Run as Other",
        "def later():\n    from dticli.learn import run",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dticli.learn.run import Run",
    ],
)
def test_every_way_to_import_is_seen(tmp_path: Path, line: str) -> None:
    """In a house of two rooms, the lower of which reaches up; the upper one looks down."""
    for name, text in {
        "__init__": "",
        "words/__init__": "",
        "words/norms": line,
        "learn/__init__": "",
        "learn/run": "from dticli.words import norms",
    }.items():
        file = tmp_path / "dticli" / f"{name}.py"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
    found = house.arrows(tmp_path)
    assert {Arrow("words.norms", "learn.run"), Arrow("learn.run", "words.norms")} == found
    assert house.upwards(found) == ["words.norms -> learn.run"]
    assert house.circles(found) == [("learn.run", "words.norms")]
    assert house.circles(house.between(found)) == [("learn", "words")]
    assert house.floors(found) == 1


def test_floors_are_counted() -> None:
    """The longest way down decides."""
    assert house.floors([Arrow("a", "b"), Arrow("b", "c"), Arrow("a", "c")]) == 3
    assert house.floors([Arrow("a", "b"), Arrow("b", "c"), Arrow("c", "b"), Arrow("c", "d")]) == 3


def test_no_two_classes_share_a_name() -> None:
    """What a message, a docstring or a search names is one thing."""
    places: dict[str, list[str]] = {}
    for file in (ROOT / "dticli").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
