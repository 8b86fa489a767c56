"""What learns and draws on the CPU does so on a device of its own: nothing is left behind, nothing fetched for no reason."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dticli.draw import sampler
from dticli.learn.trainer import Learner, Task
from dticli.models import devices, families, footprint, memory
from dticli.models.families import Family
from dticli.settings import GenerateSettings
from dticli.words import mixing, placement
from dticli.words.placement import FreeWord
from tests import tiny, trainings
from tests.checking_device import DEVICE, UPLOAD, WAIT, CheckingDevice, MixedDevices, plugged_in
from tests.conftest import Outcome
from tests.gpu import test_cuda
from tests.trainings import recoded, training

CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("name", tiny.distinct())


def on_host(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: each.detach().cpu() for key, each in rows.items()}


def drawn(task: Task, rows: Mapping[str, Tensor], *prompts: str) -> np.ndarray:
    """Pictures of the word in prompts, of which one is always there."""
    shots = sampler.shots(["a photo of <dog>", *prompts], 0, 1)
    side = str(task.latents.frames[0].target[0])
    settings = GenerateSettings(steps=2, size=side, batch_size=len(shots))
    found = sampler.sample(task.pipe, task.family, [FreeWord("<dog>", rows)], shots, settings)
    return np.stack([picture.image for picture in found]).astype(int)


@dataclass
class Seen:
    """A run, what it did, and what it counted in its second step outside of the model's own encoders and denoiser."""

    task: Task
    learner: Learner
    losses: list[float]
    rows: dict[str, Tensor]
    picture: np.ndarray
    counted: Counter[str]


def learned_and_drawn(name: str, place: torch.device, device: CheckingDevice) -> Seen:
    """Two steps, and a picture of what lies halfway between the word and its start."""
    task, learner = training(name, place, torch.float32)
    losses = []
    with outside_of_the_model(task.family, device) as counted:
        for report in trainings.fit(task, learner):
            losses.append(report.loss)
            if report.step == 1:
                counted.clear()
        counted = Counter(counted)
    rows = {key: each.detach() for key, each in learner.word.rows.items()}
    assert {each.device.type for each in rows.values()} == {place.type}
    task.pipe.vae.to(place)
    between = mixing.mixed([rows, learner.start], (0.5, 0.5), "slerp")
    return Seen(task, learner, losses, on_host(rows), drawn(task, between), counted)


@contextlib.contextmanager
def outside_of_the_model(family: Family, device: CheckingDevice) -> Iterator[Counter[str]]:
    """Count only what dti does itself: a pipeline's own code is not ours to hurry."""
    counted, theirs = device.counted, Counter[str]()

    def apart(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            device.counted = theirs
            try:
                return function(*args, **kwargs)
            finally:
                device.counted = counted

        return call

    with pytest.MonkeyPatch.context() as patch:
        recoded(patch, family, encode=apart(family.code.encode), predict=apart(family.code.predict))
        yield counted


def left_behind(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose tensors have not come along to the device."""
    return lambda *args: tree_map_only(Tensor, Tensor.cpu, function(*args))


def require_seen_where_left_behind(task: Task, learner: Learner, function: str) -> None:
    """Train with a function of the family whose tensors stay on the CPU, and see that the device refuses them."""
    with pytest.MonkeyPatch.context() as patch:
        recoded(patch, task.family, **{function: left_behind(getattr(task.family.code, function))})
        with pytest.raises(MixedDevices):
            next(trainings.fit(task, learner))


def most(encoders: int) -> dict[str, int]:
    """What a step may count.

    Copied are the two noises and the level, and the two statistics of a model that whitens its latents. Waited for are the
    loss and the angle; in each encoder what the optimizer and the report look at, after the backward pass; and twice in
    the backward pass of families that pick tokens by a mask.
    """
    return {UPLOAD: 3 + 2, WAIT: 2 + 8 * encoders + 2}


@every_family
def test_a_device_of_its_own_learns_and_draws_the_same(name: str) -> None:
    """Two steps and a picture are those of the CPU but for rounding, and a step hardly talks to the host.

    The device would have seen it otherwise: either of two planted faults, in every family.
    """
    ours = learned_and_drawn(name, CPU, CheckingDevice())
    with plugged_in() as device:
        theirs = learned_and_drawn(name, DEVICE, device)
        for function in ("encode", "to_latents"):
            require_seen_where_left_behind(theirs.task, theirs.learner, function)
    assert theirs.losses == pytest.approx(ours.losses, rel=1e-4)
    for key, rows in ours.rows.items():
        torch.testing.assert_close(theirs.rows[key], rows, rtol=1e-3, atol=1e-4 * rows.abs().max().item())
    assert abs(theirs.picture - ours.picture).max() <= 2
    for what, limit in most(len(ours.rows)).items():
        assert 0 < theirs.counted[what] <= limit, what


@every_family
def test_half_precision_and_low_memory_work_on_a_device_of_its_own(name: str) -> None:
    """In bf16 with activations computed again; then every part is on the device only while it draws."""
    with plugged_in():
        task, learner = training(name, DEVICE, torch.bfloat16, low_memory=True)
        (report,) = trainings.fit(replace(task, optimisation=replace(task.optimisation, steps=1)), learner)
        assert math.isfinite(report.loss)
        assert report.angle > 0
        task.pipe.vae.to(torch.bfloat16)  # as drawing loads it
        memory.offload(task.pipe, DEVICE)
        drawn(task, {key: each.detach() for key, each in learner.word.rows.items()}, "a <dog> in the snow")


# ------------------------------------------------------------------ planted faults


def test_what_waits_too_often_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number fetched for each pixel of the latents breaks the bound."""
    family = families.of_name("sd")
    assert family is not None
    to_latents = family.code.to_latents

    def slow(pipe: Any, sample: Tensor) -> Tensor:
        assert max(map(float, sample.flatten())) < 1e6
        return to_latents(pipe, sample)

    recoded(monkeypatch, family, to_latents=slow)
    with plugged_in() as device:
        seen = learned_and_drawn("sd1", DEVICE, device)
    assert seen.counted[WAIT] > most(1)[WAIT]


def test_a_placed_word_costs_no_copies() -> None:
    """Encoding a prompt copies its ids and no more, with a word as without."""
    with plugged_in() as device:
        task, learner = training("sdxl", DEVICE, torch.float32)
        counts = []
        for words in ([], [learner.word]):
            with placement.place(task.pipe, task.family.encoders, words):
                for _ in range(2):
                    device.counted.clear()
                    task.family.code.encode(task.pipe, ["a photo of dog"], task.latents.frames[:1])
            counts.append(device.counted[UPLOAD])
        assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    "mistake",
    [
        lambda there: there + torch.ones(2),
        lambda there: torch.cat([there, torch.ones(2)]),
        lambda there: torch.nn.functional.linear(there, torch.ones(2, 2)),
        lambda there: torch.nn.functional.embedding(torch.tensor([0]), there[None]),
        lambda there: there.numpy(),
        lambda there: np.asarray(there),
        lambda there: torch.randn(2, device=DEVICE, generator=torch.Generator()),
        lambda there: there.normal_(generator=torch.Generator()),
    ],
)
def test_what_cuda_refuses_is_refused(mistake: Callable[[Tensor], Any]) -> None:
    """Each of these raises on CUDA."""
    with plugged_in(), pytest.raises(MixedDevices):
        mistake(torch.ones(2).to(DEVICE))


def test_what_cuda_allows_is_allowed() -> None:
    """Single numbers of the host, indices of the host, and reading, which waits."""
    with plugged_in() as device:
        there = torch.tensor([1.0, 2.0, 3.0], device=DEVICE)
        assert (there + torch.tensor(1.0)).tolist() == [2.0, 3.0, 4.0]
        assert there[[0, 2]].tolist() == [1.0, 3.0]
        assert there[torch.tensor([1])].tolist() == [2.0]
        there[1:] = 5
        assert there.cpu().tolist() == [1.0, 5.0, 5.0]
        assert (float(there[0]), bool(there[0]), torch.tensor([there[1], 2.0]).tolist()) == (
            1.0,
            True,
            [5.0, 2.0],
        )
        assert device.counted == {UPLOAD: 1, WAIT: 7}


# -------------------------------------------------------------------- whole commands


@pytest.mark.parametrize("name", tiny.cases("sdxl"))
def test_commands_work_on_a_device_of_its_own(
    name: str, dti: Callable[..., Outcome], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, continue, draw and interpolate, with --low-memory and without."""
    tiny.build(name).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(devices, "pick_device", lambda wanted: DEVICE)
    monkeypatch.setattr(footprint, "OWN_MEMORY", {DEVICE.type})
    model, size = ("--model", tmp_path / "model", "--quiet"), tiny.FAMILIES[name].size
    word, other = tmp_path / "dog.safetensors", tmp_path / "other.safetensors"
    train = ("train", photos, "--init", "dog", "--batch-size", 1, "--resolution", size, *model)
    draw = ("--steps", 2, "--size", size, *model)
    with plugged_in():
        for command in (
            (*train, "--token", "<dog>", "--out", word, "--steps", 1),
            (*train, "--token", "<dog>", "--out", word, "--steps", 2, "--resume"),
            (
                *train,
                "--token",
                "<other>",
                "--out",
                other,
                "--steps",
                1,
                "--low-memory",
                "--precision",
                "bf16",
            ),
            ("generate", "a <dog>", "-t", word, "--out", tmp_path / "drawn", "--low-memory", *draw),
            ("interpolate", word, other, "--frames", 3, "--out", tmp_path / "way.png", *draw),
        ):
            outcome = dti(*command)
            assert outcome.code == 0, outcome.err
    assert load_file(word)["clip_l"].any()
    assert len([*(tmp_path / "drawn").glob("*.png")]) == 1
    assert (tmp_path / "way.png").stat().st_size


def test_what_a_card_is_to_show_can_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks that wait for a card run through on a device of its own."""
    monkeypatch.setattr(test_cuda, "CUDA", DEVICE)
    monkeypatch.setattr(test_cuda, "STEPS", 2)
    with plugged_in():
        test_cuda.test_the_word_turns_as_on_the_cpu("sd1", torch.bfloat16)
        test_cuda.test_low_memory_learns_the_same("sd1")
