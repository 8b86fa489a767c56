"""Pictures and states along a run: what they show, when they come, and that what is learned does not know of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dticli.draw import sampler
from dticli.errors import EnvironmentProblem
from dticli.learn.previews import Timetable
from dticli.learn.run_folder import read_log
from tests.conftest import Outcome

Train = Callable[..., Outcome]
PROMPT = "a photo of {} in the snow"
PREVIEWS = ("--preview", PROMPT, "--preview-every", 2, "--preview-steps", 1, "--preview-share", 1)


@pytest.fixture
def train(dti: Callable[..., Outcome], photos: Path, tmp_path: Path) -> Train:
    def call(name: str, *options: object) -> Outcome:
        fixed = ["--token", "<dog>", "--init", "dog", "--model", "stickers", "--resolution", 16]
        often = ["--batch-size", 1, "--steps", 5, "--checkpoint-steps", 1]
        return dti("train", photos, *fixed, *often, "--out", tmp_path / f"{name}.safetensors", *options)

    return call


def previews(run: Path) -> dict[int, list[Path]]:
    """Step to the files of its previews."""
    found: dict[int, list[Path]] = {}
    for file in sorted((run / "previews").iterdir()):
        found.setdefault(int(file.name[:8]), []).append(file)
    return found


@pytest.mark.parametrize(
    "options",
    [
        ("--pooling", "mixed", "--optimizer", "adamw", "--crop", "random", "--flip"),
        ("--method", "ti", "--low-memory", "--precision", "bf16", "--average"),
    ],
)
def test_a_word_is_the_same_with_previews_and_without(
    train: Train, tmp_path: Path, options: tuple[object, ...]
) -> None:
    """The token file byte for byte, the last state tensor for tensor, and every number of the log."""
    more = (*PREVIEWS, "--preview-count", 2, "--preview-negative", "blurry", "--keep", 2)
    assert train("plain", *options).code == 0
    assert train("seen", *options, *more).code == 0
    assert [len(files) for files in previews(tmp_path / "seen.run").values()] == [2, 2, 2, 2]
    words = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("plain", "seen")]
    assert words[0] == words[1]
    states = [load_file(tmp_path / f"{name}.run" / "finished.safetensors") for name in ("plain", "seen")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    plain, seen = (
        [{**entry, "seconds": 0} for entry in read_log(tmp_path / f"{name}.run")]
        for name in ("plain", "seen")
    )
    assert plain == seen


@pytest.mark.parametrize(
    "options", [(), ("--average", "--train-magnitude", "--lr", 0.5), ("--average", "--method", "ti")]
)
def test_a_preview_is_what_the_word_of_that_step_draws(
    train: Train, dti: Callable[..., Outcome], tmp_path: Path, options: tuple[object, ...]
) -> None:
    """Pixel for pixel the picture that `generate` makes of the state kept there; at step 0, that of the class word.

    Where the word is an average, pictures are of the average.
    """
    assert train("dog", *PREVIEWS, "--keep", 5, "--magnitude", "init", *options).code == 0
    how = ("--size", 16, "--steps", 1, "--model", "stickers", "--quiet")
    for step, (preview,) in previews(tmp_path / "dog.run").items():
        word = ("-t", f"{tmp_path / 'dog.run'}@{step}") if step else ()
        prompt = PROMPT.replace("{}", "<dog>" if step else "dog")
        assert dti("generate", prompt, *word, *how, "--out", tmp_path / str(step)).code == 0
        (drawn,) = (tmp_path / str(step)).iterdir()
        with Image.open(preview) as ours, Image.open(drawn) as theirs:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs)), step
            assert ours.info["step"] == str(step)
            assert ours.info["prompt"] == PROMPT.replace("{}", "<dog>")


def test_a_kept_state_is_the_word_of_a_run_that_ends_there(train: Train, tmp_path: Path) -> None:
    """Byte for byte, provenance included; five steps kept as two states are the third and the fifth."""
    assert train("long", "--keep", 2).code == 0
    assert train("short", "--steps", 3).code == 0
    kept = sorted((tmp_path / "long.run" / "snapshots").iterdir())
    assert [file.name for file in kept] == ["00000003.safetensors", "00000005.safetensors"]
    assert kept[0].read_bytes() == (tmp_path / "short.safetensors").read_bytes()
    assert kept[1].read_bytes() == (tmp_path / "long.safetensors").read_bytes()


def test_a_kept_state_is_a_word_everywhere(train: Train, dti: Callable[..., Outcome], tmp_path: Path) -> None:
    """`RUN@STEP` is read by commands that take a word, and as an init; of a step that was not kept, the kept ones are named."""
    assert train("dog", "--keep", 2).code == 0
    state = f"{tmp_path / 'dog.run'}@3"
    assert dti("info", state, "--json").json["metadata"]["dti.steps"] == "3"
    assert dti("convert", state, "--to", "diffusers", "--out", tmp_path / "a").code == 0
    assert train("next", "--init", state).code == 0
    missing = dti("info", f"{tmp_path / 'dog.run'}@4")
    assert (missing.code, "3, 5" in missing.error) == (3, True)
    assert train("plain").code == 0
    assert "--keep" in dti("info", f"{tmp_path / 'plain.run'}@4").error


def test_an_interrupted_run_ends_with_the_same_previews(train: Train, tmp_path: Path) -> None:
    """What lies behind the state that is continued from is drawn and kept again; a new start keeps nothing of the old one."""
    how = (*PREVIEWS, "--keep", 5)
    assert train("whole", *how).code == 0
    assert train("dog", *how).code == 0
    run = tmp_path / "dog.run"
    before = {file.relative_to(run): file.read_bytes() for file in run.glob("[ps]*/*")}
    assert len(before) == 4 + 5
    (tmp_path / "dog.safetensors").unlink()
    (run / "finished.safetensors").rename(run / "checkpoint-00000005.safetensors")
    assert train("dog", *how, "--resume").code == 0
    assert {file.relative_to(run): file.read_bytes() for file in run.glob("[ps]*/*")} == before
    assert train("dog", "--steps", 1, "--force", "--quiet").code == 0
    assert list(run.glob("[ps]*/*")) == []


def test_previews_keep_to_their_share() -> None:
    """Of a step of 1 s and previews of 3 s, a share of a quarter of the time leaves room for one in about ten steps."""
    now = 0.0
    timetable = Timetable(every=2, last=1000, share=0.25, now=lambda: now)
    drawn = []
    for step in range(1001):
        now += 1.0
        if timetable.due(step):
            drawn.append(step)
            with timetable.timed():
                now += 3.0
    assert drawn[0] == 0
    assert drawn[-1] == 1000
    assert timetable.spent == 3.0 * len(drawn)
    between = 3.0 * (len(drawn) - 1)
    assert 0.24 < between / now <= 0.25
    unhurried = Timetable(every=100, last=1000, share=0.25, now=lambda: 0.0)
    assert [step for step in range(1001) if unhurried.due(step)] == [0, *range(100, 1001, 100)]


def test_a_preview_that_does_not_fit_does_not_cost_the_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found at the start it ends the run, which has lost nothing; later it ends the previews alone, and says why."""
    assert train("plain").code == 0
    whole = sampler._call
    fits = iter([True, False])

    def call(*arguments: Any) -> Any:
        if next(fits):
            return whole(*arguments)
        raise EnvironmentProblem("out of device memory drawing 1 pictures at once: lower --size")

    monkeypatch.setattr(sampler, "_call", call)
    outcome = train("dog", *PREVIEWS)
    assert outcome.code == 0, outcome.err
    assert "no more previews from step 2 on: out of device memory" in outcome.err
    assert list(previews(tmp_path / "dog.run")) == [0]
    assert (tmp_path / "dog.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    fits = iter([False])
    outcome = train("other", *PREVIEWS)
    assert (outcome.code, "out of device memory" in outcome.error) == (5, True)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--preview", "a dog in the snow"), ("a dog in the snow", "{} or <dog>")),
        (("--preview", f"{'very ' * 80}<dog>"), ("<dog>", "truncated")),
        (("--preview", PROMPT, "--preview-every", 0), ("--preview-every",)),
    ],
)
def test_bad_previews_are_found_before_the_first_step(
    train: Train, tmp_path: Path, options: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    """A prompt without the word or too long for it, and steps that are no number of steps."""
    outcome = train("dog", *options)
    assert outcome.code in (2, 3)
    assert all(part in outcome.error for part in parts), outcome.error
    assert not (tmp_path / "dog.safetensors").exists()


def test_training_draws_do_not_move_the_generators_of_others(train: Train) -> None:
    """Nor do previews: torch's own generator stands where it stood."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert train("dog", *PREVIEWS, "--quiet").code == 0
    assert torch.equal(torch.get_rng_state(), before)
