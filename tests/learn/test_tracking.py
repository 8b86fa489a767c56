"""What trackers are given, figures of the log and previews, and what becomes of a run whose tracker fails."""

import csv
import importlib.util
import io
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import TensorBoardTracker
from PIL import Image

from dticli.learn.run_folder import read_log
from tests.conftest import Outcome

Train = Callable[..., Outcome]
PROMPTS = ("a photo of {}", "{} in the snow")
PREVIEWS = (
    *(part for prompt in PROMPTS for part in ("--preview", prompt)),
    *("--preview-every", 2, "--preview-steps", 1, "--preview-share", 1, "--preview-count", 2),
)


@pytest.fixture
def train(dti: Callable[..., Outcome], photos: Path, tmp_path: Path) -> Train:
    def call(name: str, *options: object) -> Outcome:
        fixed = [
            "--token",
            "<dog>",
            "--init",
            "dog",
            "--model",
            "stickers",
            "--resolution",
            16,
            "--vectors",
            2,
        ]
        often = ["--batch-size", 1, "--steps", 4, "--checkpoint-steps", 1]
        return dti("train", photos, *fixed, *often, "--out", tmp_path / f"{name}.safetensors", *options)

    return call


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def figures(entry: dict[str, Any]) -> dict[str, float]:
    """What a tracker should have of a line of the log."""
    first, second = entry["gradient"]["clip_l"]
    return {
        "loss": entry["loss"],
        "smoothed": entry["smoothed"],
        "angle": entry["angle"],
        "norm/clip_l": entry["norm"]["clip_l"],
        "cosine_to_init/clip_l": entry["cosine_to_init"]["clip_l"],
        "gradient/clip_l": (first + second) / 2,
    }


def test_tables_hold_the_log_and_name_the_previews(train: Train, tmp_path: Path) -> None:
    """One row per step, each once even where a run is continued from an earlier state; the word is that of no tracker."""
    assert train("plain").code == 0
    assert train("dog", *PREVIEWS, "--tracker", "csv").code == 0
    assert (tmp_path / "dog.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    run = tmp_path / "dog.run"
    expected = [{"step": entry["step"], **figures(entry)} for entry in read_log(run)]
    assert [
        {name: float(value) for name, value in row.items()} for row in table(run / "metrics.csv")
    ] == expected
    pictures = table(run / "previews.csv")
    assert [int(row["step"]) for row in pictures] == [0] * 4 + [2] * 4 + [4] * 4
    assert {(row["prompt"], row["seed"]) for row in pictures} == {
        (prompt.replace("{}", "<dog>"), seed) for prompt in PROMPTS for seed in ("0", "1")
    }
    assert {row["file"] for row in pictures} == {
        file.relative_to(run).as_posix() for file in (run / "previews").iterdir()
    }
    with (run / "metrics.csv").open("a") as file:
        file.write("5,0.1\n")
    assert train("dog", *PREVIEWS, "--tracker", "csv", "--resume", "--steps", 6, "--force").code == 0
    assert [row["step"] for row in table(run / "metrics.csv")] == list("123456")
    assert [row["step"] for row in table(run / "previews.csv")] == list("0000222244446666")


def test_tensorboard_shows_the_log_and_the_previews(train: Train, tmp_path: Path) -> None:
    """Read back by TensorBoard's own reader: scalars of every step, every preview, and the settings without anyone's folders."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train("dog", *PREVIEWS, "--tracker", "tensorboard").code == 0
    run = tmp_path / "dog.run"
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    found.Reload()
    log = read_log(run)
    assert set(found.Tags()["scalars"]) == set(figures(log[0]))
    for name in figures(log[0]):
        ours = [(entry["step"], np.float32(figures(entry)[name])) for entry in log]
        assert [(event.step, np.float32(event.value)) for event in found.Scalars(name)] == ours
    previews = {
        file.name: np.asarray(Image.open(file).convert("RGB")) for file in (run / "previews").iterdir()
    }
    tags = [f"previews/{prompt.replace('{}', '<dog>')}" for prompt in PROMPTS]
    assert sorted(found.Tags()["images"]) == sorted(tags)
    for first, tag in enumerate(tags):
        assert [event.step for event in found.Images(tag)] == [0, 2, 4]
        for event in found.Images(tag):
            pair = [previews[name] for name in sorted(previews) if name.startswith(f"{event.step:08d}")]
            shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
            assert np.array_equal(shown, np.hstack(pair[2 * first : 2 * first + 2]))
    (settings,) = (run / "tensorboard").glob("*/hparams.yml")
    assert "batch_size: 1" in settings.read_text()
    assert str(tmp_path) not in settings.read_text()


def records(path: Path) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format, in blocks of 32 KiB, behind a header of 7 bytes.

    A fragment is a checksum of 4 bytes, its length in 2, its kind in 1 (1 whole, 2 first, 3 middle, 4 last), and the data.
    """
    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def losses(kept: Path) -> list[tuple[int, float]]:
    """Steps with their losses, of a W&B run in a folder. Its service writes them behind the run's back, soon."""
    until = time.monotonic() + 30
    while not (found := _written(kept)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _written(kept: Path) -> list[tuple[int, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for data in records(next(kept.glob("*.wandb"))):
        record = Record.FromString(data)
        said = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "loss" in said:
            found.append((int(said["_step"]), float(said["loss"])))
    return found


@pytest.mark.parametrize("tracker", ["csv", "tensorboard", "wandb"])
def test_words_that_learn_side_by_side_are_tracked_apart(
    dti: Callable[..., Outcome], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    """Each with the figures of its own log."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = {name: f'[{name}]\nphotos = "{photos}"\ninit = "{name}"\n' for name in ("dog", "cat")}
    (tmp_path / "subjects.toml").write_text("".join(words.values()))
    how = ("--model", "stickers", "--resolution", 16, "--batch-size", 1, "--steps", 2, "--offline", "--quiet")
    both = ("--subjects", tmp_path / "subjects.toml", "--together", 2, "--out", tmp_path)
    outcome = dti("train", *both, *how, "--tracker", tracker)
    assert outcome.code == 0, outcome.err
    for name in words:
        run = tmp_path / f"{name}.run"
        match tracker:
            case "csv":
                found = [(int(row["step"]), float(row["loss"])) for row in table(run / "metrics.csv")]
            case "wandb":
                (kept,) = (run / "wandb").glob("offline-run-*")
                found = losses(kept)
            case _:
                found = scalars(run, "loss")
        ours = [(entry["step"], entry["loss"]) for entry in read_log(run)]
        assert found == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in ours]


def scalars(run: Path, name: str) -> list[tuple[int, float]]:
    """Steps with the values that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_weights_and_biases_without_a_network(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run to be sent later, in the run's folder: every step's figures and every preview's pixels."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    outcome = train("dog", *PREVIEWS, "--tracker", "wandb", "--offline")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "dog.run"
    assert f"wandb sync {run / 'wandb'}" in outcome.err
    (kept,) = (run / "wandb").glob("offline-run-*")
    assert losses(kept) == [(entry["step"], entry["loss"]) for entry in read_log(run)]

    def pixels(folder: Path) -> list[bytes]:
        return sorted(Image.open(file).convert("RGB").tobytes() for file in folder.rglob("*.png"))

    assert pixels(kept) == pixels(run / "previews")


def test_a_tracker_that_fails_does_not_cost_the_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the step on at which it fails there is a warning and no tracker; the word is that of a run without one."""
    assert train("plain").code == 0
    whole = TensorBoardTracker.log

    def log(self: TensorBoardTracker, values: Any, step: int, **options: Any) -> None:
        if step == 3:
            raise OSError(28, "No space left on device")
        whole(self, values, step, **options)

    monkeypatch.setattr(TensorBoardTracker, "log", log)
    outcome = train("dog", "--tracker", "tensorboard")
    assert outcome.code == 0
    assert outcome.err.count("no more tracking from step 3 on: [Errno 28] No space left on device") == 1
    assert (tmp_path / "dog.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


def test_a_tracker_that_is_not_there_is_found_before_the_photos(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named with the extra that brings it; an unknown one with those there are."""
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else whole(name, *rest)
    )
    outcome = train("dog", "--tracker", "wandb")
    assert (outcome.code, "dticli[wandb]" in outcome.error) == (5, True)
    assert "tensorboard" in train("dog", "--tracker", "mlflow").error


def test_weights_and_biases_without_an_account(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked for a key in the middle of a run: before it, one line says how to get one or do without."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    outcome = train("dog", "--tracker", "wandb")
    assert (outcome.code, "--offline" in outcome.error) == (2, True)
