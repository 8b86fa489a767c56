"""What a run does about numbers that are none, memory that is short, and words that do not move."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from dticli import bundled
from dticli.learn import outcome, trainer
from dticli.learn.run_folder import RunFolder, read_log
from dticli.learn.trainer import Lane
from dticli.models import families
from dticli.words import norms
from tests.conftest import Outcome
from tests.trainings import recoded

Train = Callable[..., Outcome]


@pytest.fixture
def train(dti: Callable[..., Outcome], photos: Path, tmp_path: Path) -> Train:
    def call(*options: object) -> Outcome:
        fixed = ["--token", "<dog>", "--init", "dog", "--model", "stickers", "--resolution", 16, "--quiet"]
        often = ["--batch-size", 4, "--steps", 6, "--checkpoint-steps", 1]
        return dti("train", photos, *fixed, *often, "--out", tmp_path / "dog.safetensors", *options)

    return call


def spoil_after(
    monkeypatch: pytest.MonkeyPatch, steps: int, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Change the loss of later steps."""
    whole = trainer._losses

    def losses(placed: Any, process: Any, lanes: Sequence[Lane], part: int) -> list[torch.Tensor]:
        found = whole(placed, process, lanes, part)
        return [loss if lane.step < steps else spoil(loss) for lane, loss in zip(lanes, found, strict=True)]

    monkeypatch.setattr(trainer, "_losses", losses)


BROKEN = {
    "nan loss": (lambda loss: loss * torch.nan, (), ("loss of step 4", "nan", "weights")),
    "inf loss": (lambda loss: loss / 0, (), ("loss of step 4", "inf")),
    "nan loss of ti": (lambda loss: loss * torch.nan, ("--method", "ti"), ("--lr",)),
    "nan loss in half precision": (
        lambda loss: loss * torch.nan,
        ("--precision", "fp16"),
        ("half precision", "bf16"),
    ),
    "inf gradient": (lambda loss: Overflow.apply(loss), (), ("gradient of vector 0", "--precision")),
}


class Overflow(torch.autograd.Function):
    """A finite value with an infinite gradient."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * torch.inf


@pytest.mark.parametrize("case", BROKEN)
def test_numbers_that_are_none_end_the_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Exit code 6, the likely cause, the last good state untouched and finite, and no token file."""
    spoil, options, parts = BROKEN[case]
    spoil_after(monkeypatch, 3, spoil)
    outcome = train(*options)
    assert outcome.code == 6, outcome.err
    kept = tmp_path / "dog.run" / "checkpoint-00000003.safetensors"
    assert all(part in outcome.error for part in (*parts, str(kept))), outcome.error
    assert all(value.isfinite().all() for value in load_file(kept).values())
    assert not (tmp_path / "dog.safetensors").exists()
    assert not (tmp_path / "dog.run" / "checkpoint-00000004.safetensors").exists()


def test_damaged_weights_are_found(train: Train, tmp_path: Path) -> None:
    """NaN in the autoencoder names the photo, before any step."""
    pipe = StableDiffusionPipeline.from_pretrained(bundled.model_folder())
    with torch.no_grad():
        pipe.vae.encoder.conv_in.weight[0] = torch.nan
    pipe.save_pretrained(tmp_path / "model")
    outcome = train("--model", tmp_path / "model")
    assert (outcome.code, "autoencoder" in outcome.error, "1.png" in outcome.error) == (6, True, True)
    assert not (tmp_path / "dog.run").exists()


def test_half_precision_keeps_the_direction(train: Train, tmp_path: Path) -> None:
    """In fp16 weights the row stays float32, finite, and as long as the vocabulary's mean."""
    outcome = train("--precision", "fp16", "--json")
    assert outcome.code == 0, outcome.err
    ((rows),) = load_file(tmp_path / "dog.safetensors").values()
    assert rows.dtype == torch.float32
    assert rows.norm().item() == pytest.approx(outcome.json["vocabulary_norm"]["clip_l"], rel=1e-3)
    assert outcome.json["angle"] > 0.5


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """One entry for each call of `owner.name` from now on."""
    calls: list[None] = []
    whole = getattr(owner, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, count)
    return calls


def test_captions_are_checked_without_the_encoders_layers(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many captions there are, layers run once for all of them, and once for the step."""
    layers = json.loads((bundled.model_folder() / "text_encoder/config.json").read_text())[
        "num_hidden_layers"
    ]
    calls = counted(monkeypatch, CLIPEncoderLayer, "forward")
    assert train("--steps", 1, "--batch-size", 1).code == 0
    assert len(calls) == 2 * layers


def test_a_model_is_fingerprinted_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, norms, "fingerprint")
    assert train("--steps", 1, "--batch-size", 1, "--format", "diffusers").code == 0
    assert len(calls) == 1


def test_more_vectors_than_an_encoder_reads_are_named(train: Train) -> None:
    """The bundled encoder reads 32 pieces, of which start and end take two: no caption is to blame for 31 vectors."""
    outcome = train("--vectors", 31, "--steps", 1)
    assert outcome.code == 2, outcome.err
    assert all(part in outcome.error for part in ("31 vectors", "receives only 30", "--vectors")), (
        outcome.error
    )


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A denoiser that takes `most` pictures at once."""
    family = families.of_name("sd")
    assert family
    whole = family.code.predict

    def predict(pipe: Any, noisy: torch.Tensor, level: torch.Tensor, conditioning: Any) -> torch.Tensor:
        if len(noisy) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(pipe, noisy, level, conditioning)

    recoded(monkeypatch, family, predict=predict)


def test_out_of_memory_says_what_would_fit(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by trying: with the advice the same command goes through; where nothing fits, it says that."""
    short_of_memory(monkeypatch, 2)
    outcome = train()
    assert (outcome.code, "--batch-size 2 --accumulate 2 would fit" in outcome.error) == (5, True)
    assert train("--batch-size", 2, "--accumulate", 2, "--force").code == 0
    short_of_memory(monkeypatch, 0)
    outcome = train("--force")
    assert (outcome.code, "--resolution (now 16)" in outcome.error) == (5, True)


def log(folder: Path, entries: Iterator[dict[str, Any]]) -> RunFolder:
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return RunFolder(folder)


def concerns(
    folder: Path, steps: int, angle: float, gradient: float, loss: Callable[[int], float]
) -> list[str]:
    entries = (
        {
            "step": i,
            "loss": loss(i),
            "smoothed": loss(i),
            "angle": angle,
            "gradient": {"clip_l": [gradient]},
            "norm": {"clip_l": 1.0},
            "cosine_to_init": {"clip_l": 1.0},
        }
        for i in range(1, steps + 1)
    )
    return list(outcome.concerns(log(folder, entries), "<dog>", lr=0.02))


def test_a_word_that_does_not_move_is_worth_a_warning(tmp_path: Path) -> None:
    """Each sign has its cause; a run that learns has none, and a short one is not judged by its loss."""
    assert concerns(tmp_path, 300, 20.0, 0.1, lambda step: 1 / step) == []
    assert concerns(tmp_path, 30, 20.0, 0.1, lambda step: 0.5) == []
    # Losses that scatter by 0.1 and rise by 0.01 say nothing.
    assert (
        concerns(tmp_path, 300, 20.0, 0.1, lambda step: 0.4 + step / 30000 + 0.1 * (step * 7919 % 13 - 6) / 6)
        == []
    )
    for found, part in (
        (concerns(tmp_path, 300, 0.1, 0.1, lambda step: 1 / step), "did not move"),
        (concerns(tmp_path, 300, 20.0, 0.1, lambda step: 0.1 + step / 1000), "loss rose"),
    ):
        (warning,) = found
        assert part in warning


def test_a_still_direction_is_warned_of_on_the_screen(train: Train) -> None:
    """Steps shorter than float32 resolves leave the word where it is."""
    outcome = train("--lr", 1e-9)
    assert outcome.code == 0
    assert "warning: the direction did not move" in outcome.err


def test_a_run_from_a_token_file_continues_from_its_record(
    train: Train, dti: Callable[..., Outcome], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run.toml` holds the file's whole path; the same rows by another path are the same run, other rows are not."""
    monkeypatch.chdir(tmp_path)
    first = train("--steps", 1, "--out", "start.safetensors")
    assert first.code == 0, first.err
    begun = train("--init", "start.safetensors", "--steps", 2)
    assert begun.code == 0, begun.err
    record = next(tmp_path.glob("dog*/run.toml"))
    said = ("--config", record, "--model", "stickers", "--out", "dog.safetensors", "--resume", "--quiet")
    outcome = dti("train", photos, *said, "--steps", 4)
    assert outcome.code == 0, outcome.err
    assert train("--steps", 1, "--seed", 3, "--out", "start.safetensors", "--force").code == 0
    outcome = dti("train", photos, *said, "--steps", 6)
    assert (outcome.code, "first rows" in outcome.error) == (2, True)


def test_the_shown_loss_begins_as_the_mean_of_its_steps(train: Train, tmp_path: Path) -> None:
    """One noisy first step is not dragged along for a hundred: that looks like a loss that climbs."""
    assert train().code == 0
    entries = read_log(tmp_path / "dog.run")
    losses = [entry["loss"] for entry in entries]
    means = [sum(losses[: place + 1]) / (place + 1) for place in range(len(losses))]
    assert [entry["smoothed"] for entry in entries] == pytest.approx(means)
