"""Step `diffusion`: the denoiser, on latents and text states that were each computed once.

`torchrun --nproc-per-node 2 -m dticli.bundled.recipe diffusion` puts a process on each of two cores.
v-prediction (Salimans and Ho, arXiv:2202.00512) on a schedule of zero terminal SNR (Lin et al., arXiv:2305.08891).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save
from torch import Tensor

from dticli.ranks import ALONE, Ranks

from . import autoencoder, cache, grammar, package, text_encoder, vocabulary, world
from .training import Average, Log, accelerate, rate, train

BATCH = 16
PEAK_RATE = 7e-4
BRIEF = 0.2
UNCONDITIONAL = 0.1
DECAY_FROM = 0.7
AVERAGING = 0.999
SHAPING = 0.7
AGREE_EVERY = 8  # steps: sending 36 MB takes a third of one


def new() -> UNet2DConditionModel:
    """Untrained: attention at 8 x 8 only, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=world.SIDE // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(96, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_encoder.WIDTH,
        attention_head_dim=4,
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule the denoiser is trained and sampled with."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def folder() -> Path:
    """Where the denoiser, the latents and the text states lie."""
    return cache.folder("diffusion")


# --------------------------------------------------------------- what is computed once


@dataclass(frozen=True)
class Encoded:
    """Scaled latents (count, 4, 16, 16) and text states (count, 32, width), both float16."""

    latents: Tensor
    states: Tensor


def encode(seed: int, log: Log, ranks: Ranks) -> Encoded:
    """Latents and states of every drawn picture."""
    return Encoded(encode_pictures(log, ranks), _encode_captions(seed, log, ranks))


def encode_pictures(log: Log, ranks: Ranks = ALONE) -> Tensor:
    """Scaled latents, a shard at a time; needs no text encoder, so it can run while that one trains."""
    network = accelerate(autoencoder.load())

    def latents(source: Path) -> Tensor:
        pictures = autoencoder.to_tensor(world.read_shard(source).pixels)
        with torch.autocast("cpu", torch.bfloat16):
            means = autoencoder.encode(network, pictures.contiguous(memory_format=torch.channels_last))
        return means.float() * network.config["scaling_factor"]

    return _once("latents", autoencoder.weights(), latents, log, ranks)


def _encode_captions(seed: int, log: Log, ranks: Ranks) -> Tensor:
    tokens, encoder = text_encoder.load()

    def states(source: Path) -> Tensor:
        random = Random(f"captions {seed} {source.stem}")
        scenes = world.read_shard(source).scenes
        captions = [grammar.caption(scene, random, background=random.random() >= BRIEF) for scene in scenes]
        return text_states(tokens, encoder, captions)

    return _once("states", text_encoder.weights(), states, log, ranks)


def _once(name: str, weights: Path, compute: Callable[[Path], Tensor], log: Log, ranks: Ranks) -> Tensor:
    """`compute` of every shard of pictures in float16; not computed again while the weights it rests on stay the same."""
    mark = cache.fingerprint(weights)
    sources = world.shard_files("pictures")
    targets = [
        folder() / f"{name}-{mark}-{cache.fingerprint(source)}-{source.stem}.safetensors"
        for source in sources
    ]
    for source, target in list(zip(sources, targets, strict=True))[ranks.rank :: ranks.size]:
        if not target.is_file():
            cache.write_bytes(target, save({name: compute(source).half().contiguous()}))
            log(f"diffusion: {name} of {source.stem}")
    ranks.largest(0)  # wait until every rank has written its shards
    return torch.cat([load_file(target)[name] for target in targets])


@torch.no_grad()
def text_states(tokens: object, encoder: torch.nn.Module, captions: list[str]) -> Tensor:
    """Last hidden states as a Stable Diffusion pipeline reads them, (count, 32, width) float16."""
    parts = []
    for start in range(0, len(captions), 100):
        ids = tokens(  # type: ignore[operator]
            captions[start : start + 100],
            padding="max_length", truncation=True, max_length=vocabulary.LENGTH, return_tensors="pt",
        ).input_ids  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(encoder(ids).last_hidden_state.half())
    return torch.cat(parts)


# ------------------------------------------------------------------------------ training


def run(minutes: float, seed: int, log: Log, start: Path | None = None, ranks: Ranks = ALONE) -> None:
    """Train and write the averaged denoiser and, with it, the whole model.

    Args:
        start: a diffusers folder with a denoiser of the same shape to go on from, instead of fresh weights.
    """
    torch.manual_seed(seed)
    encoded = encode(seed, log, ranks)
    empty = text_states(*text_encoder.load(), [""])[0]
    network = UNet2DConditionModel.from_pretrained(start).float() if start else new()
    network.set_attn_processor(AttnProcessor())  # the fused kernel's CPU backward pass is ten times slower
    accelerate(network).train()
    optimiser = torch.optim.AdamW(
        network.parameters(), PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )
    average = Average(network, decay=AVERAGING)
    signal = scheduler().alphas_cumprod
    log(
        f"diffusion: {len(encoded.latents)} pictures, {sum(value.numel() for value in network.parameters()):,} weights"
    )

    def step(index: int, progress: float) -> dict[str, float]:
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(progress, warmup=0.005, decay_from=DECAY_FROM)
        loss = _loss(network, encoded, empty, signal, (seed, index, ranks.rank))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if index % AGREE_EVERY == 0:
            _agree(network, ranks)
        average.update(network, index)
        return {"loss": loss.item()}

    parts = {"network": network, "optimiser": optimiser, "average": average}
    train("diffusion", parts, step, minutes, log, lambda: _publish(average), ranks)


@torch.no_grad()
def _agree(network: UNet2DConditionModel, ranks: Ranks) -> None:
    """Replace the weights by their mean over the ranks (local SGD: Stich, arXiv:1805.09767)."""
    if ranks.size == 1:
        return
    weights = list(network.parameters())
    together = torch.cat([value.flatten() for value in weights])
    ranks.mean_([together])
    for value, part in zip(weights, together.split([value.numel() for value in weights]), strict=True):
        value.copy_(part.view(value.shape))


def _loss(
    network: UNet2DConditionModel,
    encoded: Encoded,
    empty: Tensor,
    signal: Tensor,
    place: tuple[int, int, int],
) -> Tensor:
    """Mean squared error of the predicted velocity; every draw depends on `place`, (seed, index, rank), alone."""
    random = np.random.default_rng(place)
    picks = torch.from_numpy(random.integers(len(encoded.latents), size=BATCH))
    clean, states = encoded.latents[picks].float(), encoded.states[picks].float()
    states[torch.from_numpy(random.random(BATCH) < UNCONDITIONAL)] = empty.float()
    steps = torch.from_numpy(_timesteps(random, len(signal)))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(random.integers(2**62))))
    keep = signal[steps].view(-1, 1, 1, 1)
    noisy = keep.sqrt() * clean + (1 - keep).sqrt() * noise
    velocity = keep.sqrt() * noise - (1 - keep).sqrt() * clean
    with torch.autocast("cpu", torch.bfloat16):
        predicted = network(noisy.to(memory_format=torch.channels_last), steps, states, return_dict=False)[0]
    return (predicted.float() - velocity).square().mean()


def _timesteps(random: np.random.Generator, count: int) -> np.ndarray:
    """Timesteps of a batch, most of them where a noun's shape is decided.

    The schedule was made for latents 64 wide. On 16 x 16 the upper half of it leaves little but the mean colour to see,
    so a uniform draw would spend half of the training there; a part stays uniform because sampling visits every noise level.
    """
    shaping = random.random(BATCH) < SHAPING
    place = np.where(shaping, random.beta(2, 3, BATCH), random.random(BATCH))
    return (place * count).astype(np.int64)


def _publish(average: Average) -> None:
    network = new()
    network.load_state_dict(average.state_dict())
    cache.write_folder(folder() / "unet", network.save_pretrained)
    package.assemble(package.built())
