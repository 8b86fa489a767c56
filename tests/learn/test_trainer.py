"""A step's samples and its loss, worked out again from photos, stock diffusers and the draws that `randomness` names."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from dticli import randomness
from dticli.errors import ModelError
from dticli.models import families
from dticli.photos import albums, latents
from dticli.photos.albums import Cropping
from dticli.photos.latents import Latents
from dticli.randomness import Key
from tests import trainings

CPU = torch.device("cpu")
SIDE = 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, a pixel more than twice as wide as a crop, and a mask with the subject on the left of each."""
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = random.integers(0, 256, (SIDE, 2 * SIDE + 1, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        mask = np.zeros((SIDE, 2 * SIDE + 1), dtype=np.uint8)
        mask[:, : SIDE - 4] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / name)
    return tmp_path


def seen(pipe: Any) -> list[dict[str, Tensor]]:
    """What the denoiser gets and gives from now on, batch by batch."""
    calls: list[dict[str, Tensor]] = []

    def keep(module: Any, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        noisy, level = args[:2]
        calls.append({"noisy": noisy.detach(), "level": level, "prediction": output[0].detach()})

    pipe.unet.register_forward_hook(keep)
    return calls


def test_a_steps_loss_is_the_one_worked_out_from_the_photos(folder: Path) -> None:
    """Crop, mirror image, mask, posterior, noise and level of every sample; two batches of three make one step."""
    task, learner = trainings.training("sd1", CPU, torch.float32, steps=1, batch_size=3, accumulate=2, seed=7)
    pipe = task.pipe
    photos = albums.read(folder, str(folder / "masks")).photos
    encoded = latents.encode(
        pipe, task.family, albums.crops(photos, Cropping(SIDE, "center", 1, True, 8, 7)), CPU
    )
    task = replace(task, latents=encoded, captions=dict.fromkeys(encoded.paths, ("a photo of <dog>",)))
    calls = seen(pipe)
    (report,) = trainings.fit(task, learner)

    posteriors, weights = [], []
    for name in ("a.png", "b.png"):
        whole = np.asarray(Image.open(folder / name), dtype=np.float32) / 127.5 - 1
        # The mask's edge lies 4 pixels left of the crop's middle.
        centre = whole[:, SIDE // 2 : SIDE // 2 + SIDE]
        counts = np.full((SIDE, SIDE), 0.1, dtype=np.float32)
        counts[:, : SIDE // 2 - 4] = 1
        for flipped in (False, True):
            pixels, mask = (each[:, ::-1].copy() if flipped else each for each in (centre, counts))
            with torch.no_grad():
                found = pipe.vae.encode(torch.tensor(pixels).permute(2, 0, 1)[None]).latent_dist
            height, width = found.mean.shape[-2:]
            small = mask.reshape(height, SIDE // height, width, SIDE // width).mean(axis=(1, 3))
            posteriors.append(found)
            weights.append(torch.tensor(small / small.mean()))
    stock = DDPMScheduler.from_config(pipe.scheduler.config)
    order = [
        *randomness.shuffled(Key(7, "photo", "<dog>", 0), 4),
        *randomness.shuffled(Key(7, "photo", "<dog>", 1), 4),
    ]
    losses = []
    for sample in range(6):

        def key(purpose: str, sample: int = sample) -> Key:
            return Key(7, purpose, "<dog>", 0, sample)

        batch, place = divmod(sample, 3)
        found = posteriors[order[sample]]
        shape = tuple(found.mean.shape[1:])
        clean = (
            found.mean + found.std * randomness.normal(key("posterior"), shape)
        ) * pipe.vae.config.scaling_factor
        noise = randomness.normal(key("noise"), shape)[None]
        level = torch.tensor([int(1000 * randomness.uniform(key("level")))])
        assert calls[batch]["level"][place] == level
        torch.testing.assert_close(calls[batch]["noisy"][place], stock.add_noise(clean, noise, level)[0])
        missed = (calls[batch]["prediction"][place] - noise[0]).square()
        losses.append((weights[order[sample]] * missed).mean().item())
    assert report.loss == pytest.approx(np.mean(losses), rel=1e-4)
    # As wide a rest on the left as on the right, but for the pixel, which a mirror image has on the other side.
    assert [(frame.original, frame.crop) for frame in encoded.frames] == [
        ((SIDE, 2 * SIDE + 1), (0, SIDE // 2)),
        ((SIDE, 2 * SIDE + 1), (0, SIDE // 2 + 1)),
    ] * 2


def test_every_photo_comes_once_an_epoch_and_epochs_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    task, learner = trainings.training("sd1", CPU, torch.float32, steps=4, batch_size=4, crops=4)
    picked: list[int] = []
    own: Callable[..., Tensor] = Latents.sample

    def sample(self: Latents, picks: Sequence[int], keys: Sequence[Key]) -> Tensor:
        picked.extend(picks)
        return own(self, picks, keys)

    monkeypatch.setattr(Latents, "sample", sample)
    list(trainings.fit(task, learner))
    epochs = [tuple(picked[start : start + 4]) for start in range(0, 16, 4)]
    assert all(Counter(each) == Counter(range(4)) for each in epochs)
    assert len(set(epochs)) > 2


def test_levels_of_diffusion_are_all_as_likely() -> None:
    """A thousand even draws are the thousand timesteps."""
    family = families.of_name("sd")
    assert family is not None
    draws = (torch.arange(1000) + 0.5) / 1000
    assert family.code.process(DDPMScheduler()).levels(draws).tolist() == list(range(1000))


def test_one_vector_without_a_gradient_is_enough_to_refuse() -> None:
    """The other one would learn, and this one be moved by the prior alone."""
    task, learner = trainings.training("sd1", CPU, torch.float32)
    learner.leaves[0].register_hook(lambda gradient: gradient * torch.tensor([[1.0], [0.0]]))
    with pytest.raises(ModelError, match="no gradient reaches <dog>"):
        list(trainings.fit(task, learner))


def test_photos_of_two_shapes_in_a_batch_count_the_same(tmp_path: Path) -> None:
    """They cannot go through the model together: the step's loss is the mean over samples all the same."""
    random = np.random.default_rng(0)
    for name, shape in {"a.png": (SIDE, 2 * SIDE), "b.png": (2 * SIDE, SIDE)}.items():
        Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / name)
    task, learner = trainings.training("sd1", CPU, torch.float32, steps=1, batch_size=2)
    crops = albums.crops(albums.read(tmp_path).photos, Cropping(SIDE, "none", 1, False, 8, 0))
    encoded = latents.encode(task.pipe, task.family, crops, CPU)
    calls = seen(task.pipe)
    (report,) = trainings.fit(
        replace(task, latents=encoded, captions=dict.fromkeys(encoded.paths, ("a photo of <dog>",))), learner
    )
    assert [len(each["noisy"]) for each in calls] == [1, 1]
    missed = [
        (each["prediction"] - randomness.normal(Key(0, "noise", "<dog>", 0, sample), each["noisy"].shape[1:]))
        .square()
        .mean()
        .item()
        for sample, each in enumerate(calls)
    ]
    assert report.loss == pytest.approx(np.mean(missed), rel=1e-5)


def test_steps_shorten_and_the_word_is_the_mean_of_the_last_half() -> None:
    """Four steps of a falling length turn by its arc tangents; the mean of the last two states lies halfway between them."""
    task, learner = trainings.training(
        "sd1", CPU, torch.float32, steps=4, lr=0.08, schedule="linear", average=True
    )
    (leaf,) = learner.leaves
    states = [leaf.detach().double()]
    for _ in trainings.fit(task, learner):
        states.append(leaf.detach().double())
    turned = [torch.arccos((a * b).sum(dim=-1)).tan() for a, b in pairwise(states)]
    for found, length in zip(turned, (0.08, 0.06, 0.04, 0.02), strict=True):
        assert found.tolist() == pytest.approx([length] * 2, rel=1e-3)
    (rows,) = learner.learned.rows.values()
    halfway = torch.nn.functional.normalize(states[3] + states[4], dim=-1)
    assert torch.nn.functional.cosine_similarity(rows.double(), halfway).tolist() == pytest.approx(
        [1, 1], abs=1e-9
    )
