"""What the recipe's diagnosis rests on: fixed draws that hold their photos, and text states that learn by themselves."""

import pytest
import torch

from dticli import bundled
from dticli.bundled.recipe import assembly, diagnosis


def test_every_draw_holds_its_photo_at_every_height_of_the_noise() -> None:
    """clean = sqrt(a) noisy - sqrt(1 - a) velocity (Salimans and Ho, arXiv:2202.00512, appendix D)."""
    photos = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(5, 16, 16, generator=torch.Generator().manual_seed(1))
    draws = diagnosis._draws(diagnosis.LatentPhotos(photos, weights), 320, seed=1)
    torch.testing.assert_close(draws.weights, weights.repeat(64, 1, 1), rtol=0, atol=0)
    keep = assembly.scheduler().alphas_cumprod[draws.steps].view(-1, 1, 1, 1)
    clean = keep.sqrt() * draws.noisy - (1 - keep).sqrt() * draws.velocity
    torch.testing.assert_close(clean, photos.repeat(64, 1, 1, 1), rtol=0, atol=2e-5)
    for photo in range(5):
        heights = draws.steps[photo::5].sort().values
        assert (heights.diff() <= 32).all()
        assert heights[0] < 32
        assert heights[-1] >= 968


def test_free_states_learn_the_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps bring the loss on draws they were not learned on below that of the class word."""
    monkeypatch.setattr(diagnosis, "FREE_STEPS", 6)
    monkeypatch.setattr(diagnosis, "DRAWS", 16)
    pipeline = assembly.load(bundled.model_folder())
    pipeline.unet.requires_grad_(False)
    subject = bundled.subject("dog")
    latents = diagnosis._latents(pipeline, subject)
    assert latents.shape == (5, 4, 16, 16)  # of photos of 128 px, as the denoiser draws them
    shown = diagnosis.LatentPhotos(latents, torch.ones(len(latents), 16, 16))
    plain = diagnosis._states(pipeline, "a photo of dog")
    held_out = diagnosis._draws(shown, 16, seed=0)
    learned = diagnosis._freed(pipeline, plain, shown, seed=0)
    assert diagnosis._loss(pipeline, learned, held_out) < diagnosis._loss(pipeline, plain, held_out)
