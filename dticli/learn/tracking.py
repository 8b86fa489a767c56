"""Metrics and previews of a run for TensorBoard, Weights & Biases, or as CSV.

The first two are written through accelerate. If a tracker fails during the run, tracking ends, and the run continues.
"""

import csv
import importlib.util
import io
import logging
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from dticli import atomic, files
from dticli.errors import DtiError, EnvironmentProblem, InputError, UsageError, boundary
from dticli.learn.run_folder import RunFolder

LOG = logging.getLogger(__name__)
EXTRAS = ("tensorboard", "wandb")
"""Trackers that need a package; dti has extras of the same names."""
Config = dict[str, bool | int | float | str]
METRICS, PICTURES = "metrics.csv", "previews.csv"


def require(name: str, *, offline: bool) -> None:
    """Raise EnvironmentProblem if the tracker is not installed, UsageError if it has no account to write to."""
    if name in EXTRAS and importlib.util.find_spec(name) is None:
        raise EnvironmentProblem(
            f"{name} is not installed: pip install 'dticli[{name}]', or choose --tracker csv"
        )
    if name == "wandb" and _mode(offline) == "online":
        import wandb

        if not wandb.api.api_key:
            raise UsageError(
                "no account at Weights & Biases: expected a key; run wandb login, or add --offline and send the run later "
                "with wandb sync"
            )


def _mode(offline: bool) -> str:
    return "offline" if offline else os.environ.get("WANDB_MODE", "online")


@contextmanager
def opened(
    name: str | None, config: Config, folder: RunFolder, step: int, *, offline: bool
) -> Iterator["Tracking"]:
    """The tracker of this name, if any, for a run that continues after `step`.

    Args:
        config: the run's settings, as the tracker shows them.

    Raises:
        EnvironmentProblem: it cannot be opened.
    """
    tracking = Tracking(None)
    if name:
        with boundary(lambda reason: EnvironmentProblem(f"cannot track to {name}: {reason}")):
            tracking = Tracking(_tracker(name, config, folder, step, offline))
    try:
        yield tracking
    finally:
        tracking.finish()


def _tracker(name: str, config: Config, folder: RunFolder, step: int, offline: bool) -> GeneralTracker:
    # Whatever accelerate's trackers do, they log; its log asks who they are.
    PartialState(cpu="LOCAL_RANK" not in os.environ)
    tracker: GeneralTracker
    match name:
        case "tensorboard":
            # Steps of an earlier attempt that come again are shown once.
            tracker = TensorBoardTracker("", folder.path / name, purge_step=step + 1 if step else 0)
            shown = f"tensorboard --logdir {folder.path / name}"
        case "wandb":
            tracker = WandBTracker(os.environ.get("WANDB_PROJECT", "dti"), **_wandb(config, folder, offline))
            shown = f"wandb sync {folder.path / name}/offline-run-*"
        case _:
            tracker = CsvTracker(folder, step)
            shown = str(folder.path / METRICS)
    # This process writes: it is the first of those that learn the word, if not of all.
    tracker.main_process_only = False
    tracker.start()
    if isinstance(tracker, WandBTracker):
        shown = tracker.tracker.url or shown
    else:
        tracker.store_init_configuration(config)
    LOG.info(f"tracked: {shown}")
    return tracker


def _wandb(config: Config, folder: RunFolder, offline: bool) -> dict[str, Any]:
    """Options for W&B, so that it sends only what it is given, and nothing about the machine or its code."""
    import wandb

    return {
        "name": folder.path.stem,
        "group": folder.path.stem,
        "dir": str(folder.path),
        "mode": _mode(offline),
        "config": config,
        # Words that learn side by side have a run each.
        "reinit": "create_new",
        "settings": wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
        ),
    }


class Tracking:
    """A tracker until it fails; None for no tracker."""

    def __init__(self, tracker: GeneralTracker | None) -> None:
        self.tracker = tracker

    def step(self, entry: Mapping[str, Any]) -> None:
        """Log the metrics of a step.

        Args:
            entry: a line of the run's log.
        """
        with self._ending(entry["step"]) as tracker:
            if tracker:
                tracker.log(_figures(entry), step=entry["step"])

    def previews(self, step: int, pictures: Sequence[Path]) -> None:
        """Log the previews of a step, by the prompts in their metadata."""
        with self._ending(step) as tracker:
            if isinstance(tracker, CsvTracker):
                tracker.name_pictures(pictures, step)
            elif tracker and pictures:
                options = {"dataformats": "NHWC"} if isinstance(tracker, TensorBoardTracker) else {}
                tracker.log_images(_by_prompt(pictures), step=step, **options)

    def finish(self) -> None:
        with self._ending(None) as tracker:
            if tracker:
                tracker.finish()

    @contextmanager
    def _ending(self, step: int | None) -> Iterator[GeneralTracker | None]:
        """The tracker; if it fails inside the context, a warning is logged and it is dropped."""
        try:
            with boundary(EnvironmentProblem):
                yield self.tracker
        except DtiError as error:
            LOG.warning(f"no more tracking{'' if step is None else f' from step {step} on'}: {error}")
            self.tracker = None


def _figures(entry: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a log line; means over vectors."""
    by_encoder = {
        f"{name}/{key}": value for name in ("norm", "cosine_to_init") for key, value in entry[name].items()
    } | {f"gradient/{key}": statistics.fmean(lengths) for key, lengths in entry["gradient"].items()}
    return {name: entry[name] for name in ("loss", "smoothed", "angle")} | by_encoder


def _by_prompt(pictures: Sequence[Path]) -> dict[str, np.ndarray]:
    """Prompt to its pictures, (pictures, height, width, 3) uint8."""
    found: dict[str, list[np.ndarray]] = {}
    for file in pictures:
        with Image.open(file) as image:
            found.setdefault(str(image.info["prompt"]), []).append(np.asarray(image.convert("RGB")))
    return {f"previews/{prompt}": np.stack(images) for prompt, images in found.items()}


class CsvTracker(GeneralTracker):
    """Two tables in the run's folder: metrics, one row per step, and the files of previews.

    Args:
        step: rows of later steps, from an earlier attempt, are removed.
    """

    name = "csv"
    requires_logging_directory = True

    def __init__(self, folder: RunFolder, step: int) -> None:
        super().__init__()
        self.folder, self.first = folder.path, step

    @property
    def tracker(self) -> Path:
        return self.folder / METRICS

    def start(self) -> None:
        for name in (METRICS, PICTURES):
            path = self.folder / name
            atomic.write_text(path, _kept(path, self.first))

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """The settings stand in the run's own file."""

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._append(METRICS, [{"step": step, **values}])

    def name_pictures(self, pictures: Sequence[Path], step: int) -> None:
        """Write the names of pictures, with prompt and seed."""
        rows = []
        for file in pictures:
            with Image.open(file) as image:
                said = {name: image.info[name] for name in ("prompt", "seed")}
            rows.append({"step": step, **said, "file": file.relative_to(self.folder).as_posix()})
        self._append(PICTURES, rows)

    def finish(self) -> None:
        """Every row is in its file."""

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / name
        text = io.StringIO(newline="")
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerows(rows)
            file.write(text.getvalue())


def _kept(path: Path, step: int) -> str:
    """The table up to a step; a row that was cut off is left out."""
    if not step or not os.path.exists(path):
        return ""
    text = files.read_text(path, InputError, "expected the table of an earlier part of the run; move it away")
    head, *rows = [*csv.reader(io.StringIO(text, newline=""))] or [[]]
    kept = [row for row in rows if len(row) == len(head) and row[0].isdecimal() and int(row[0]) <= step]
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows(filter(None, [head, *kept]))
    return table.getvalue()
