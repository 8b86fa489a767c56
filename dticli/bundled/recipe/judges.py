"""Step `judges`: train judge B on renderings alone, and measure both judges where the truth is known.

Half of what B sees went through the autoencoder, because all it will be asked to judge did.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from dticli.bundled import judge
from dticli.bundled.judge import DualEncoder, Observer

from . import autoencoder, cache, elements, text_encoder, world
from .elements import CLASSES, UNKNOWN
from .training import Log, channels_last, rate, train

BATCH = 64
PEAK_RATE = 1.5e-3
SHIFT = 3  # px
WATCHED = 1_000


def file_b() -> Path:
    """Where judge B lies."""
    return cache.folder("judges") / "judge-b.safetensors"


def run(minutes: float, seed: int, log: Log) -> None:
    """Train B on its own pictures, held-out combinations included, and report both judges' accuracy."""
    torch.manual_seed(seed)
    pictures = world.read("judging")
    labels = torch.tensor([elements.labels(scene).indices for scene in pictures.scenes])
    seen = [pictures.pixels[WATCHED:], _rebuilt(pictures.pixels[WATCHED:], log)]
    network = channels_last(Observer()).train()
    optimiser = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=0.05)

    def step(index: int, progress: float) -> dict[str, float]:
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(progress)
        random = np.random.default_rng((seed, index))
        source = seen[index % 2]
        picks = random.integers(len(source), size=BATCH)
        loss = _loss(network, _shifted(autoencoder.to_tensor(source[picks]), random), labels[WATCHED + picks])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return {"loss": loss.item()}

    def publish() -> None:
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        cache.write_bytes(file_b(), save(state))

    train("judges", {"network": network, "optimiser": optimiser}, step, minutes, log, publish)
    network.eval()
    watched = autoencoder.to_tensor(pictures.pixels[:WATCHED])
    _report("a", judge.load_a(text_encoder.judge_file()), watched, labels[:WATCHED], log)
    _report("b", network, watched, labels[:WATCHED], log)


def _rebuilt(pixels: np.ndarray, log: Log) -> np.ndarray:
    """The first pictures after the autoencoder; made once."""
    file = cache.folder("judges") / f"rebuilt-{cache.fingerprint(autoencoder.weights())}.npz"
    if not file.is_file():
        log("judges: passing pictures through the autoencoder")
        decoded = autoencoder.rebuild(autoencoder.load(), autoencoder.to_tensor(pixels[:8_000]))
        packed = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        cache.write(file, lambda out: np.savez(out, pixels=packed))
    with np.load(file) as packed:
        return packed["pixels"]


def _shifted(pictures: Tensor, random: np.random.Generator) -> Tensor:
    """Moved by a few pixels, edges repeated."""
    padded = functional.pad(pictures, (SHIFT,) * 4, mode="replicate")
    x, y = random.integers(2 * SHIFT + 1, size=2)
    return padded[:, :, y : y + world.SIDE, x : x + world.SIDE].contiguous(memory_format=torch.channels_last)


def _loss(network: Observer, pictures: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        features = network.features(pictures)
    losses = [
        functional.cross_entropy(logits, wanted, ignore_index=UNKNOWN)
        for logits, wanted in zip(network.namer(features.float()), labels.T, strict=True)
        if (wanted != UNKNOWN).any()
    ]
    return torch.stack(losses).mean()


def _report(name: str, eyes: DualEncoder | Observer, pictures: Tensor, labels: Tensor, log: Log) -> None:
    with torch.no_grad():
        logits = [
            torch.cat(parts) for parts in zip(*(eyes(batch) for batch in pictures.split(64)), strict=True)
        ]
    for element, predicted, wanted in zip(CLASSES, logits, labels.T, strict=True):
        known = wanted != UNKNOWN
        right = (predicted.argmax(dim=1) == wanted)[known].float().mean().item()
        log(f"judge {name}: {element} right on {100 * right:.1f} % of {int(known.sum())} unseen renderings")
