"""Step `autoencoder`: train an AutoencoderKL with factor 4 and four latent channels on whole pictures."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import cache, shards
from .training import MovingAverage, RecipeLog, accelerate, fast, rate, train

BATCH = 8
PEAK_RATE = 1.5e-3
KL_WEIGHT = 1e-3
GRADIENT_WEIGHT = 0.5
WATCHED = 256  # pictures held back to measure PSNR


def new() -> AutoencoderKL:
    """An untrained autoencoder."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=shards.SIDE,
    )


def folder() -> Path:
    """The folder of the trained autoencoder."""
    return cache.folder("autoencoder") / "vae"


def weights() -> Path:
    """The file of the trained weights."""
    return folder() / "diffusion_pytorch_model.safetensors"


def load(place: Path | None = None) -> AutoencoderKL:
    """Load the autoencoder of a diffusers folder in float32; the trained one by default."""
    return AutoencoderKL.from_pretrained(place or folder()).float().eval()


def run(minutes: float, seed: int, log: RecipeLog, start: Path | None = None) -> None:
    """Train, and write the averaged weights.

    Args:
        start: a diffusers folder with an autoencoder of the same shape to continue; None for new weights.
    """
    torch.manual_seed(seed)
    pixels = np.concatenate([shards.read(kind).pixels for kind in ("pictures", "reading")])
    watched, pixels = pixels[:WATCHED], pixels[WATCHED:]
    network = AutoencoderKL.from_pretrained(start).float() if start else new()
    accelerate(network).train()
    optimiser = torch.optim.AdamW(network.parameters(), PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = MovingAverage(network)

    def step(index: int, progress: float) -> dict[str, float]:
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(progress)
        picks = np.random.default_rng((seed, index)).integers(len(pixels), size=BATCH)
        losses = _losses(network, to_tensor(pixels[picks]), torch.Generator().manual_seed(seed + index))
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        average.update(network, index)
        return {key: value.item() for key, value in losses.items()}

    def publish() -> None:
        _publish(average, to_tensor(pixels[:2000:4]), to_tensor(watched), log)

    train(
        "autoencoder",
        {"network": network, "optimiser": optimiser, "average": average},
        step,
        minutes,
        log,
        publish,
    )


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(count, side, side, 3) uint8 -> (count, 3, side, side) float32 in [-1, 1], channels_last."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _losses(network: AutoencoderKL, pictures: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
    with fast():
        posterior = network.encode(pictures).latent_dist
        rebuilt = network.decode(posterior.sample(noise)).sample
    error = rebuilt.float() - pictures
    distance = error.abs().mean() + error.square().mean() + GRADIENT_WEIGHT * edges(error)
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    return {"loss": distance + KL_WEIGHT * divergence, "mse": error.square().mean(), "kl": divergence}


def edges(error: Tensor) -> Tensor:
    """Mean absolute difference of vertically and horizontally neighbouring pixels."""
    return (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) / 2


@torch.no_grad()
def rebuild(network: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode pictures in [-1, 1] to the posterior mean, and decode; clamped to [-1, 1]."""
    batches = [network.decode(network.encode(batch).latent_dist.mean).sample for batch in pictures.split(32)]
    return torch.cat(batches).clamp(-1, 1)


def psnr(pictures: Tensor, rebuilt: Tensor) -> float:
    """Mean over pictures of 10 log10(peak^2 / MSE) in dB; values span 2."""
    errors = (pictures - rebuilt).float().square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / errors)).mean().item()


def _publish(average: MovingAverage, sample: Tensor, watched: Tensor, log: RecipeLog) -> None:
    network = new()
    network.load_state_dict(average.state_dict())
    network.eval()
    latents = encode(network, sample)
    network.register_to_config(scaling_factor=float(1 / latents.std()))
    cache.write_folder(folder(), network.save_pretrained)
    log(
        f"autoencoder psnr {psnr(watched, rebuild(network, watched)):.2f} dB on {len(watched)} unseen pictures"
    )


@torch.no_grad()
def encode(network: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Posterior means before scaling, (count, 4, side / 4, side / 4)."""
    return torch.cat([network.encode(batch).latent_dist.mean for batch in pictures.split(32)])
