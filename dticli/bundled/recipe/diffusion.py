"""Step `diffusion`: train the denoiser on cached latents, and the rows of words on which the text encoder was not pretrained.

`torchrun --nproc-per-node 2 -m dticli.bundled.recipe diffusion` runs a process on each of two cores.
v-prediction (Salimans and Ho, arXiv:2202.00512) with a schedule of zero terminal SNR (Lin et al., arXiv:2305.08891).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dticli.bundled.world import grammar
from dticli.bundled.world.scenes import Scene
from dticli.ranks import ALONE, Ranks

from . import assembly, autoencoder, cache, shards, text_encoder, vocabulary
from .training import MovingAverage, RecipeLog, Stateful, accelerate, fast, rate, train

BATCH = 16
PEAK_RATE = 4e-4
BRIEF = 0.2
UNCONDITIONAL = 0.1
DECAY_FROM = 0.55
AVERAGING = 0.998
ROW_RATE = 1e-2
THINGS = 2.0  # extra weight of errors on things, because backgrounds are learned from far fewer pictures
SHAPING = 0.7
AGREE_EVERY = 8  # steps; sending 36 MB takes a third of a step


def new() -> UNet2DConditionModel:
    """An untrained denoiser, with attention at 8 x 8 only, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=shards.SIDE // 4,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(96, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_encoder.WIDTH,
        attention_head_dim=4,
    )


# --------------------------------------------------------------- what is computed once


def encode_pictures(log: RecipeLog, ranks: Ranks = ALONE) -> Tensor:
    """Scaled latents, (count, 4, 16, 16) float16, by shard; independent of the text encoder's training."""
    network = accelerate(autoencoder.load())

    def latents(source: Path) -> Tensor:
        pictures = autoencoder.to_tensor(shards.read_shard(source).pixels)
        with fast():
            means = autoencoder.encode(network, pictures.contiguous(memory_format=torch.channels_last))
        return means.float() * network.config["scaling_factor"]

    return _once("latents", autoencoder.weights(), latents, log, ranks)


def _once(
    name: str, weights: Path, compute: Callable[[Path], Tensor], log: RecipeLog, ranks: Ranks
) -> Tensor:
    """`compute` of every shard of pictures in float16; cached for the same `weights` and shards."""
    mark = cache.fingerprint(weights)
    sources = shards.shard_files("pictures")
    targets = [
        assembly.denoiser_folder() / f"{name}-{mark}-{cache.fingerprint(source)}-{source.stem}.safetensors"
        for source in sources
    ]
    for source, target in list(zip(sources, targets, strict=True))[ranks.rank :: ranks.size]:
        if not target.is_file():
            cache.write_bytes(target, save({name: compute(source).half().contiguous()}))
            log(f"diffusion: {name} of {source.stem}")
    ranks.largest(0)  # wait until every rank has written its shards
    return torch.cat([load_file(target)[name] for target in targets])


@dataclass(frozen=True)
class Material:
    """Training data: scaled latents (count, 4, 16, 16) float16, masks of things (count, 16, 16) uint8, and scenes."""

    latents: Tensor
    masks: Tensor
    scenes: tuple[Scene, ...]


def _material(log: RecipeLog, ranks: Ranks) -> Material:
    pictures = shards.read("pictures")
    return Material(encode_pictures(log, ranks), torch.from_numpy(pictures.masks), pictures.scenes)


class NewRows:
    """The rows of a text encoder that are trained; its other weights are frozen. Rows keep their initial norms."""

    def __init__(self, encoder: CLIPTextModel, ids: list[int]):
        self.table = encoder.requires_grad_(False).get_input_embeddings().weight.requires_grad_(True)
        self.ids = torch.tensor(ids, dtype=torch.long)
        self.lengths = self.table.detach()[self.ids].norm(dim=1, keepdim=True)
        self.free = torch.zeros(len(self.table), 1).index_fill_(0, self.ids, 1.0)

    def shield(self) -> None:
        """Set the gradient of frozen rows to zero."""
        if self.table.grad is not None:
            self.table.grad.mul_(self.free)

    @torch.no_grad()
    def restore(self, table: Tensor) -> None:
        """Scale the trained rows of a table back to their norms."""
        rows = table[self.ids]
        table[self.ids] = rows * (self.lengths / rows.norm(dim=1, keepdim=True))


# ------------------------------------------------------------------------------ training


def run(minutes: float, seed: int, log: RecipeLog, start: Path | None = None, ranks: Ranks = ALONE) -> None:
    """Train, and write the averaged denoiser and the whole model.

    Args:
        start: a diffusers folder with a denoiser of the same shape to continue; None for that of `begin`, or new weights.
    """
    torch.manual_seed(seed)
    material = _material(log, ranks)
    network = _begun(start)
    network.set_attn_processor(AttnProcessor())  # the fused kernel's CPU backward pass is ten times slower
    accelerate(network).train()
    tokens, encoder = text_encoder.load()
    rows = NewRows(encoder, text_encoder.unread_ids())
    optimiser = torch.optim.AdamW(
        [
            {
                "params": list(network.parameters()),
                "peak": PEAK_RATE,
                "weight_decay": 1e-2,
                "betas": (0.9, 0.99),
            },
            {"params": [rows.table], "peak": ROW_RATE, "weight_decay": 0.0, "betas": (0.9, 0.999)},
        ],
        fused=True,
    )
    both = nn.ModuleDict({"network": network, "rows": encoder.get_input_embeddings()})
    average = MovingAverage(both, decay=AVERAGING)
    signal = assembly.scheduler().alphas_cumprod
    log(
        f"diffusion: {len(material.latents)} pictures, {sum(value.numel() for value in network.parameters()):,} weights, "
        f"{len(rows.ids)} rows"
    )

    def step(index: int, progress: float) -> dict[str, float]:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate(progress, warmup=0.01, decay_from=DECAY_FROM)
        loss = _loss(
            network,
            lambda said: states_of(tokens, encoder, said),
            material,
            signal,
            (seed, index, ranks.rank),
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        rows.shield()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rows.restore(rows.table)
        if index % AGREE_EVERY == 0:
            _agree(both, ranks)
        average.update(both, index)
        return {"loss": loss.item()}

    parts: dict[str, Stateful] = {"both": both, "optimiser": optimiser, "average": average}
    train("diffusion", parts, step, minutes, log, lambda: _publish(average, rows), ranks)


def _begun(start: Path | None) -> UNet2DConditionModel:
    """The denoiser to train: from a folder, that of `begin`, or a new one."""
    laid_out = assembly.denoiser_folder() / "start"
    if start or laid_out.is_dir():
        return UNet2DConditionModel.from_pretrained(start or laid_out).float()
    return new()


def states_of(tokens: CLIPTokenizer, encoder: CLIPTextModel, captions: list[str]) -> Tensor:
    """Last hidden states as in a Stable Diffusion pipeline, (count, 32, width)."""
    ids = tokens(
        captions, padding="max_length", truncation=True, max_length=vocabulary.LENGTH, return_tensors="pt"
    ).input_ids
    return encoder(ids).last_hidden_state


@torch.no_grad()
def _agree(network: nn.Module, ranks: Ranks) -> None:
    """Replace the weights by their means over the ranks (local SGD: Stich, arXiv:1805.09767)."""
    if ranks.size == 1:
        return
    weights = list(network.parameters())
    together = torch.cat([value.flatten() for value in weights])
    ranks.mean_([together])
    for value, part in zip(weights, together.split([value.numel() for value in weights]), strict=True):
        value.copy_(part.view(value.shape))


def _loss(
    network: UNet2DConditionModel,
    states_of: Callable[[list[str]], Tensor],
    material: Material,
    signal: Tensor,
    place: tuple[int, int, int],
) -> Tensor:
    """Weighted mean squared error of the predicted velocity; all draws depend only on `place`, (seed, index, rank)."""
    random = np.random.default_rng(place)
    picks = random.integers(len(material.latents), size=BATCH)
    words = Random(f"captions {place}")
    captions = [
        "" if words.random() < UNCONDITIONAL
        else grammar.caption(material.scenes[pick], words, background=words.random() >= BRIEF)
        for pick in picks
    ]  # fmt: skip
    clean = material.latents[picks].float()
    steps = torch.from_numpy(_timesteps(random, len(signal)))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(int(random.integers(2**62))))
    noisy, velocity = noised(clean, noise, signal[steps])
    with fast():
        states = states_of(captions)
        predicted = network(noisy.to(memory_format=torch.channels_last), steps, states, return_dict=False)[0]
    weights = 1 + THINGS * material.masks[picks].float().unsqueeze(1) / 255
    return (weights * (predicted.float() - velocity).square()).sum() / (weights.sum() * clean.shape[1])


def noised(clean: Tensor, noise: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents at the given alpha-bars, (batch,), and the velocities that a denoiser should predict (arXiv:2202.00512)."""
    keep = signal.view(-1, 1, 1, 1)
    return keep.sqrt() * clean + (1 - keep).sqrt() * noise, keep.sqrt() * noise - (1 - keep).sqrt() * clean


def _timesteps(random: np.random.Generator, count: int) -> np.ndarray:
    """Timesteps of a batch, (BATCH,) int64, most of them where shapes are determined.

    The schedule was made for latents of 64 x 64. In its upper half, latents of 16 x 16 show little but their mean colour, and
    uniform draws would spend half of the training there. A part is uniform, because sampling uses all noise levels.
    """
    shaping = random.random(BATCH) < SHAPING
    place = np.where(shaping, random.beta(2, 3, BATCH), random.random(BATCH))
    return (place * count).astype(np.int64)


def _publish(average: MovingAverage, rows: NewRows) -> None:
    state = average.state_dict()
    network = new()
    network.load_state_dict(
        {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
    )
    _, encoder = text_encoder.load()
    with torch.no_grad():
        encoder.get_input_embeddings().weight.copy_(state["rows.weight"])
        rows.restore(encoder.get_input_embeddings().weight)  # an average of rows is shorter than they are
    cache.write_folder(assembly.denoiser_folder() / "unet", network.save_pretrained)
    cache.write_folder(assembly.denoiser_folder() / "text_encoder", encoder.save_pretrained)
    assembly.assemble(assembly.built())
