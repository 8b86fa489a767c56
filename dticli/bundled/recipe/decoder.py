"""Step `decoder`: train the autoencoder's decoder further with a frozen encoder, so that latents and denoiser stay valid."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import assembly, autoencoder, cache, diffusion, shards
from .autoencoder import edges, psnr, rebuild, to_tensor
from .training import MovingAverage, RecipeLog, accelerate, fast, rate, train

PEAK_RATE = 5e-4
SQUARE_WEIGHT = 10.0  # the bar is in dB
EDGE_WEIGHT = 0.5
PLAIN_WEIGHT = 0.3


def run(minutes: float, seed: int, log: RecipeLog) -> None:
    """Train on the denoiser's latents and pictures, and write the averaged weights and the whole model."""
    torch.manual_seed(seed)
    latents = diffusion.encode_pictures(log)
    pixels = shards.read("pictures").pixels
    held_back = autoencoder.WATCHED
    watched = to_tensor(pixels[:held_back])
    network = accelerate(autoencoder.load()).train()
    for part in (network.encoder, network.quant_conv):
        part.requires_grad_(False)
    learned = [value for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(learned, PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = MovingAverage(network, decay=0.998)

    def step(index: int, progress: float) -> dict[str, float]:
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(progress, decay_from=0.3)
        random = np.random.default_rng((seed, index))
        picks = random.integers(held_back, len(pixels), size=autoencoder.BATCH)
        losses = _losses(network, latents[picks], to_tensor(pixels[picks]))
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        average.update(network, index)
        return {key: value.item() for key, value in losses.items()}

    parts = {"network": network, "optimiser": optimiser, "average": average}
    train(assembly.decoder_name(), parts, step, minutes, log, lambda: _publish(average, watched, log))


def _losses(network: AutoencoderKL, latents: Tensor, pictures: Tensor) -> dict[str, Tensor]:
    plain = (latents.float() / network.config["scaling_factor"]).contiguous(memory_format=torch.channels_last)
    with fast():
        rebuilt = network.decode(plain).sample
    error = rebuilt.float() - pictures
    square = error.square().mean()
    loss = SQUARE_WEIGHT * square + PLAIN_WEIGHT * (error.abs().mean() + EDGE_WEIGHT * edges(error))
    return {"loss": loss, "mse": square}


def _publish(average: MovingAverage, watched: Tensor, log: RecipeLog) -> None:
    network = autoencoder.load()
    network.load_state_dict(average.state_dict())
    cache.write_folder(assembly.decoder_folder(), network.save_pretrained)
    assembly.assemble(assembly.built())
    log(f"decoder psnr {psnr(watched, rebuild(network, watched)):.2f} dB on {len(watched)} unseen pictures")
