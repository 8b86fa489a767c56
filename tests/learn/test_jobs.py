"""Settings of a word from all their sources, before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dticli.learn import jobs
from dticli.models import families
from dticli.settings import ModelSettings, TrainSettings
from dticli.words import base_model

# As arXiv:2512.13672 and its code have them; step lengths times the batch, as its launcher scales them.
PAPER: Mapping[str, dict[str, Any]] = {
    "sdxl": {"steps": 500, "lr": 0.02, "kappa": 1e-4, "batch_size": 4, "zero_pad": False},
    "sana": {"steps": 1000, "lr": 0.08, "kappa": 5e-5, "batch_size": 4, "zero_pad": True},
    "wan": {"steps": 500, "lr": 0.04, "kappa": 5e-5, "batch_size": 1, "accumulate": 4},
}
ALL = {"schedule": "constant", "average": False, "beta": 0.0, "magnitude": "mean", "prior": "init"}


def settings(photos: Path, tmp_path: Path, *layers: dict[str, Any]) -> TrainSettings:
    """Those of a word on the bundled model in a folder that wants other things than the paper."""
    folder = tmp_path / "model"
    folder.mkdir()
    opened = base_model.open_model(dict.fromkeys(ModelSettings.model_fields) | {"model": "stickers"}, ())
    for part in Path(opened.model.location).iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "dti.toml").unlink()
    (folder / "dti.toml").write_text(
        '[train]\nsteps = 7\nschedule = "linear"\naverage = true\nresolution = 64\n'
    )
    opened = base_model.open_model(dict.fromkeys(ModelSettings.model_fields) | {"model": str(folder)}, ())
    own = {"photos": str(photos), "token": "<dog>", "init": "dog"}
    return jobs.one(opened, [own, *layers], None, None).settings


@pytest.mark.parametrize("family", PAPER)
def test_the_papers_values_stay_whatever_the_defaults_become(family: str) -> None:
    found = families.of_name(family)
    assert found
    assert found.as_paper | PAPER[family] | ALL == found.as_paper


def test_the_papers_setting_is_one_word(photos: Path, tmp_path: Path) -> None:
    """It goes before the model's own settings, and what is given besides before it; crops stay the model's."""
    found = settings(photos, tmp_path, {"as_paper": True, "lr": 0.5}, {"as_paper": False, "kappa": 0.25})
    assert (found.steps, found.schedule, found.average, found.batch_size) == (500, "constant", False, 4)
    assert (found.lr, found.kappa, found.resolution) == (0.5, 0.25, 64)


def test_without_that_word_the_models_settings_stand(photos: Path, tmp_path: Path) -> None:
    found = settings(photos, tmp_path)
    assert (found.steps, found.schedule, found.average) == (7, "linear", True)
