"""What `pip install .` puts on a machine: all that runs, and nothing that only makes the bundled model."""

import tomllib
from pathlib import Path

import pytest

import dticli

ROOT = Path(dticli.__file__).parents[1]


def test_the_package_holds_what_runs_and_not_the_recipe() -> None:
    """As setuptools collects it, from this checkout: every module and data file but the recipe's."""
    pytest.importorskip("setuptools")
    from setuptools import Distribution
    from setuptools.config.pyprojecttoml import apply_configuration

    there = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "dticli").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    recipe = {name for name in there if name.startswith("dticli/bundled/recipe/")}
    distribution = Distribution({"script_name": "setup.py"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        apply_configuration(distribution, "pyproject.toml")
        build = distribution.get_command_obj("build_py")
        build.ensure_finalized()
        packed = {str(Path(file)) for file in build.get_source_files()}
        packed |= {str(Path(folder, name)) for _, folder, _, names in build.data_files for name in names}
    assert recipe
    assert packed == there - recipe


def test_the_project_says_who_and_what_for() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"authors", "urls", "classifiers", "keywords", "license"} <= about.keys()
