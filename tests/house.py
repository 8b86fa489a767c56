"""The house: which module of the package imports which, by rooms and floors.

`python tests/house.py [FOLDER]` prints the figures of a checkout, of this one by default. Imports inside functions and
those for type checkers count like any other: they too say what a module must know.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = "dticli"
TOP = "__init__"
FOLDERS = ("bundled/recipe", "bundled/world", "models/families")
"""Folders inside a room that are rooms of their own."""


@dataclass(frozen=True, order=True)
class Arrow:
    """One module imports another."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


def modules(root: Path) -> dict[str, Path]:
    """Module to file; a package is called by its folder: `words.norms`, `bundled`, and the top one `__init__`."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or TOP] = path
    return found


def arrows(root: Path) -> set[Arrow]:
    """Every import of one module of the package by another."""
    there = modules(root)
    return {
        Arrow(name, target)
        for name, path in there.items()
        for target in _imported(name, path, there)
        if target != name
    }


def outside(root: Path) -> dict[str, set[str]]:
    """Module to the libraries it imports, by their top name."""
    return {
        name: {each.split(".")[0] for each in _absolute(name, path)} - {PACKAGE}
        for name, path in modules(root).items()
    }


def _imported(name: str, path: Path, there: Mapping[str, Path]) -> Iterator[str]:
    for full in _absolute(name, path):
        if full.split(".")[0] != PACKAGE:
            continue
        # `from dticli.words import norms` names a module, `from dticli.words.norms import Summary` what one holds.
        parts = full.split(".")[1:]
        while parts and ".".join(parts) not in there:
            parts.pop()
        yield ".".join(parts) or TOP


def _absolute(name: str, path: Path) -> Iterator[str]:
    """The dotted names that a file imports."""
    package = [PACKAGE, *name.split(".")] if name != TOP else [PACKAGE]
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """The room of a module: its folder, or at the top the module itself."""
    path = module.replace(".", "/")
    inner = next((folder for folder in FOLDERS if f"{path}/".startswith(f"{folder}/")), None)
    return inner or path.split("/")[0]


def between(found: Iterable[Arrow]) -> set[Arrow]:
    """The arrows from room to room."""
    rooms = {Arrow(room(each.source), room(each.target)) for each in found}
    return {each for each in rooms if each.source != each.target}


FLOORS = (
    {"errors", "version"},
    {"files"},
    {
        "atomic",
        "charts",
        "dataclass_json",
        "durations",
        "mistaken",
        "paths",
        "randomness",
        "ranks",
        "signals",
        "spelling",
        "sphere",
    },
    {"bundled/world", "console", "hub", "settings"},
    {"bundled", "help_page", "models/families"},
    {"models"},
    {"photos", "words"},
    {"draw"},
    {"learn"},
    {"api", "evaluation", "report"},
    {"bundled/recipe", "commands"},
    {"cli"},
    {"__init__", "__main__", "command_reference"},
)
"""The rooms, from the ground up: one may import those on floors below its own."""


def floor(name: str) -> int:
    """The floor that a room is on."""
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def upwards(found: Iterable[Arrow]) -> list[str]:
    """The imports that do not lead to a lower floor."""
    return sorted(
        str(each)
        for each in found
        if room(each.source) != room(each.target) and floor(room(each.source)) <= floor(room(each.target))
    )


def circles(found: Iterable[Arrow]) -> list[tuple[str, ...]]:
    """Names that import one another, directly or through others: one tuple for each such group."""
    below: dict[str, set[str]] = {}
    for each in found:
        below.setdefault(each.source, set()).add(each.target)
    groups = {tuple(sorted(_mutual(name, below))) for name in below}
    return sorted(group for group in groups if len(group) > 1)


def _mutual(name: str, below: Mapping[str, set[str]]) -> set[str]:
    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for each in below.get(waiting.pop(), set()) - seen:
                seen.add(each)
                waiting.append(each)
        return seen

    return {each for each in reached(name) if name in reached(each)}


def floors(found: Iterable[Arrow]) -> int:
    """How many imports lie one above the other at most; a circle counts as one floor."""
    found = list(found)
    group = {name: circle for circle in circles(found) for name in circle}
    below: dict[object, set[object]] = {}
    for each in found:
        source, target = group.get(each.source, each.source), group.get(each.target, each.target)
        below.setdefault(source, set())
        if source != target:
            below[source].add(target)
    height: dict[object, int] = {}
    for name in TopologicalSorter(below).static_order():
        height[name] = 1 + max((height[each] for each in below.get(name, ())), default=0)
    return max(height.values(), default=0)


def figures(root: Path) -> str:
    """The house in figures."""
    found = arrows(root)
    rooms = between(found)
    names = {room(name) for name in modules(root)}
    known = set[str]().union(*FLOORS)
    up = (
        len(upwards(rooms)) if names <= known else f"unknown: no floor for {', '.join(sorted(names - known))}"
    )
    lines = {
        "modules": len(modules(root)),
        "rooms": len(names),
        "floors of rooms": floors(rooms),
        "arrows between rooms": len(rooms),
        "arrows between rooms that lead up": up,
        "circles of rooms": "; ".join(map(" ".join, circles(rooms))) or 0,
        "floors of modules": floors(found),
        "arrows between modules": len(found),
        "circles of modules": "; ".join(map(" ".join, circles(found))) or 0,
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


if __name__ == "__main__":
    print(figures(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]))
