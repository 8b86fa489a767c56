"""Shell completion of values: known names, and files that dti can read. Imports no slow libraries.

If nothing matches, shells complete file names themselves.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from dticli import bundled, evaluation
from dticli.draw.schedulers import SCHEDULERS
from dticli.evaluation.prompts import SETS
from dticli.paths import RUN, SUFFIXES, snapshots


def token_files(incomplete: str) -> list[str]:
    """Token files that match a path, also after `NAME=`, and kept states after `dog.run@`."""
    name, equals, path = incomplete.rpartition("=")
    run, at, _ = path.rpartition("@")
    steps = snapshots(Path(run)) if at and run.endswith(RUN) else {}
    states = [f"{run}@{step}" for step in [*steps, "best"]] if steps else []
    return [name + equals + each for each in [*_fitting(path, states), *_files(path, SUFFIXES)]]


def runs(incomplete: str) -> list[str]:
    """Folders of runs that match a path."""
    return _files(incomplete, (RUN,))


def words(incomplete: str) -> list[str]:
    """Runs, token files and states."""
    return [*runs(incomplete), *token_files(incomplete)]


def measured(incomplete: str) -> list[str]:
    """Models, runs and words, without duplicates."""
    return list(dict.fromkeys([*models(incomplete), *words(incomplete)]))


def subjects(incomplete: str) -> list[str]:
    """Subjects with example photos."""
    return _fitting(incomplete, (each.name for each in bundled.subjects()))


def plans(incomplete: str) -> list[str]:
    """Plans that come with dti, and TOML files."""
    return _fitting(incomplete, evaluation.plans()) + _files(incomplete, (".toml",))


def settings_files(incomplete: str) -> list[str]:
    """TOML files."""
    return _files(incomplete, (".toml",))


def prompt_sets(incomplete: str) -> list[str]:
    """Prompt sets that come with dti, and text files."""
    return _fitting(incomplete, SETS) + _files(incomplete, (".txt",))


def schedulers(incomplete: str) -> list[str]:
    """Samplers."""
    return _fitting(incomplete, SCHEDULERS)


def models(incomplete: str) -> list[str]:
    """The bundled model, cached models of the hub, checkpoints, and folders in diffusers layout."""
    from huggingface_hub import constants

    stored = Path(constants.HF_HUB_CACHE).glob("models--*--*/snapshots/*/model_index.json")
    hub = {each.parents[2].name.removeprefix("models--").replace("--", "/") for each in stored}
    folders = [path.parent for path in _beside(incomplete).glob("*/model_index.json")]
    return (
        _fitting(incomplete, [bundled.MODEL_NAME, *sorted(hub), *map(str, sorted(folders))])
        + _files(incomplete, (".safetensors",))
    )  # fmt: skip


OF_SETTINGS: dict[str, Callable[[str], list[str]]] = {
    "model": models,
    "scheduler": schedulers,
    "init": token_files,
    "prior": token_files,
}
"""Name of a setting to its completion."""


def _beside(incomplete: str) -> Path:
    """The folder of a path that is not complete yet."""
    return Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent


def _files(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    folder = _beside(incomplete)
    found = (each for each in folder.glob("*") if each.suffix in suffixes and str(each).isprintable())
    return _fitting(incomplete, sorted(map(str, found)))


def _fitting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
