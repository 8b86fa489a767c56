"""Step `judges`: train both judges on drawn pictures, and measure their accuracy on unseen ones.

B classifies elements, without captions. A is the image tower of the text encoder's pretraining, trained further against the
frozen encoder. Half of the batches are decoded from latents, as all pictures to judge are. Trained on 19,000 unmodified pictures,
both recognised 98 % of the nouns in these and 75 % in others; therefore they also see the denoiser's training pictures, and half
of all batches are recoloured, rotated and mirrored.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from dticli.bundled import judge
from dticli.bundled.judge import DualEncoder, Observer
from dticli.bundled.world import elements, grammar
from dticli.bundled.world.elements import CLASSES, UNKNOWN
from dticli.errors import ModelError

from . import assembly, autoencoder, cache, shards, text_encoder
from .training import RecipeLog, accelerate, channels_last, fast, rate, train

Eyes = TypeVar("Eyes", DualEncoder, Observer)
BATCH = 64
PEAK_RATE = 1.5e-3
SHIFT = 3  # px
TURN, ZOOM = 0.14, 0.08  # radians, and the logarithm of a scale, at most
WATCHED = 1_000
REBUILT, PORTION = 20_000, 10_000


@dataclass(frozen=True)
class Shown:
    """Training data of the judges.

    Attributes:
        drawn: pictures, (pictures, 64, 64, 3) uint8.
        rebuilt: the first of them after the autoencoder.
        labels: of the pictures, (pictures, elements).
        pooled: pooled state of one caption per picture, (pictures, WIDTH).
        told: labels of these captions, (pictures, elements).
    """

    drawn: np.ndarray
    rebuilt: np.ndarray
    labels: Tensor
    pooled: Tensor
    told: Tensor


@dataclass(frozen=True)
class PictureBatch:
    """Pictures (BATCH, 3, 64, 64) in [-1, 1] with their labels, pooled states of captions, and labels of captions.

    `varied` pictures are recoloured and transformed; their labels are adapted, but captions may be wrong.
    """

    pictures: Tensor
    labels: Tensor
    pooled: Tensor
    told: Tensor
    varied: bool


def run(minutes: float, seed: int, log: RecipeLog) -> None:
    """Train each judge for `minutes`, also on held-out combinations, and log its accuracy."""
    torch.manual_seed(seed)
    # The judges' own pictures, the first WATCHED of which are not trained on, and the denoiser's.
    pictures = shards.read("judging", "pictures")
    labels = torch.tensor([elements.labels(scene).indices for scene in pictures.scenes])
    seen = pictures.pixels[WATCHED:]
    told = torch.tensor([elements.caption_labels(scene, True).indices for scene in pictures.scenes])
    pooled = _pooled(pictures, seed, log)
    shown = Shown(seen, _rebuilt(seen, log), labels[WATCHED:], pooled[WATCHED:], told[WATCHED:])
    watched = autoencoder.to_tensor(pictures.pixels[:WATCHED])
    a, b = _begun(DualEncoder(), "a"), _begun(Observer(), "b")
    for name, file, eyes, loss in (
        ("b", assembly.judge_b(), b, _naming),
        ("a", assembly.judge_a(), a, _matching),
    ):
        _train(name, file, eyes, loss, shown, minutes, seed, log)
        _report(name, eyes.eval(), watched, labels[:WATCHED], log)


def _begun(eyes: Eyes, name: Literal["a", "b"]) -> Eyes:
    """A judge with the weights of the shipped one, except its classifiers, because the elements may have changed.

    Raises:
        ModelError: the shipped weights have other shapes or names.
    """
    kept = {key: value for key, value in load_file(judge.weights(name)).items() if "namer." not in key}
    missing, unexpected = eyes.load_state_dict(kept, strict=False)
    if unexpected or not all("namer." in key for key in missing):
        raise ModelError(
            f"the shipped judge {name} has another shape: expected today's; train it from nothing"
        )
    return eyes


def _train(
    name: str,
    file: Path,
    eyes: nn.Module,
    loss: Callable[[Any, PictureBatch], Tensor],
    shown: Shown,
    minutes: float,
    seed: int,
    log: RecipeLog,
) -> None:
    network = channels_last(eyes).train()
    optimiser = torch.optim.AdamW(
        [value for value in network.parameters() if value.requires_grad], PEAK_RATE, weight_decay=0.05
    )

    def step(index: int, progress: float) -> dict[str, float]:
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(progress)
        found = loss(network, _batch(shown, seed, index))
        optimiser.zero_grad(set_to_none=True)
        found.backward()
        optimiser.step()
        return {"loss": found.item()}

    def publish() -> None:
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        cache.write_bytes(file, save(state))

    train(f"judges/{name}", {"network": network, "optimiser": optimiser}, step, minutes, log, publish)


def _batch(shown: Shown, seed: int, index: int) -> PictureBatch:
    """The batch of a step, a pure function of (seed, index): alternately drawn and rebuilt, and half of them varied."""
    random = np.random.default_rng((seed, index))
    source = (shown.drawn, shown.rebuilt)[index % 2]
    picks = random.integers(len(source), size=BATCH)
    pictures, labels = autoencoder.to_tensor(source[picks]), shown.labels[picks]
    varied = index % 4 > 1
    if varied:
        pictures, labels = _varied(pictures, labels, random)
    else:
        pictures = _shifted(pictures, random)
    return PictureBatch(pictures, labels, shown.pooled[picks], shown.told[picks], varied)


ELEMENTS = list(CLASSES)
COLOURED = [ELEMENTS.index(name) for name in ELEMENTS if name.endswith("hue") or name in ("setting", "style")]
"""Indices of the elements that depend on colours."""


def _varied(pictures: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Rotate, scale, shift, mirror (single things only) and recolour pictures; labels of COLOURED become UNKNOWN."""
    alone = labels[:, ELEMENTS.index("second noun")] == elements.NOUNS.index("")
    mirrored = torch.from_numpy(random.random(len(pictures)) < 0.5) & alone
    turn = torch.from_numpy(random.uniform(-TURN, TURN, len(pictures))).float()
    zoom = torch.from_numpy(random.uniform(-ZOOM, ZOOM, len(pictures))).float().exp()
    moved = torch.from_numpy(random.uniform(-SHIFT, SHIFT, (len(pictures), 2))).float() * 2 / shards.SIDE
    side = torch.where(mirrored, -1.0, 1.0)
    first = torch.stack([side * turn.cos() * zoom, -turn.sin() * zoom, moved[:, 0]], dim=1)
    second = torch.stack([side * turn.sin() * zoom, turn.cos() * zoom, moved[:, 1]], dim=1)
    grid = functional.affine_grid(
        torch.stack([first, second], dim=1), list(pictures.shape), align_corners=False
    )
    pictures = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    labels = labels.clone()
    labels[:, COLOURED] = UNKNOWN
    channels = random.permutation(3)
    inverted = -1.0 if random.random() < 0.25 else 1.0
    return (pictures[:, channels] * inverted).contiguous(memory_format=torch.channels_last), labels


def _rebuilt(pixels: np.ndarray, log: RecipeLog) -> np.ndarray:
    """The first REBUILT pictures after the autoencoder, cached in parts of PORTION pictures."""
    return np.concatenate(
        [
            _portion(pixels[start : start + PORTION], log)
            for start in range(0, min(REBUILT, len(pixels)), PORTION)
        ]
    )


def _portion(pixels: np.ndarray, log: RecipeLog) -> np.ndarray:
    drawn = hashlib.sha256(pixels.tobytes()).hexdigest()[:8]
    file = cache.folder("judges") / f"rebuilt-{cache.fingerprint(assembly.decoder_weights())}-{drawn}.npz"
    if not file.is_file():
        log("judges: passing pictures through the autoencoder")
        with fast():
            decoded = autoencoder.rebuild(
                accelerate(assembly.load_decoder()), autoencoder.to_tensor(pixels)
            ).float()
        packed = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        cache.write(file, lambda out: np.savez(out, pixels=packed))
    with np.load(file) as packed:
        return packed["pixels"]


@torch.no_grad()
def _pooled(pictures: shards.Pictures, seed: int, log: RecipeLog) -> Tensor:
    """Pooled state of one caption of each picture, (pictures, WIDTH)."""
    log("judges: reading captions")
    tokens, encoder = assembly.load_encoder()
    random = Random(f"judging captions {seed}")
    captions = [grammar.caption(scene, random) for scene in pictures.scenes]
    parts = []
    for start in range(0, len(captions), 100):
        ids = text_encoder.token_ids(tokens, captions[start : start + 100])
        with fast():
            parts.append(encoder(ids).pooler_output.float())
    return torch.cat(parts)


def _shifted(pictures: Tensor, random: np.random.Generator) -> Tensor:
    """Shift pictures by up to SHIFT pixels, with replicated edges."""
    padded = functional.pad(pictures, (SHIFT,) * 4, mode="replicate")
    x, y = random.integers(2 * SHIFT + 1, size=2)
    return padded[:, :, y : y + shards.SIDE, x : x + shards.SIDE].contiguous(
        memory_format=torch.channels_last
    )


def _naming(network: Observer, batch: PictureBatch) -> Tensor:
    with fast():
        features = network.features(batch.pictures)
    return text_encoder.naming(network.namer(features.float()), batch.labels)


def _matching(network: DualEncoder, batch: PictureBatch) -> Tensor:
    """CLIP's loss between pictures and captions, and the classification of elements; only the latter if varied."""
    with fast():
        seen = network.image(batch.pictures)
    seen = seen.float()
    if batch.varied:
        return text_encoder.naming(network.image_namer(seen), batch.labels)
    logits = network.similarity(functional.normalize(network.image_out(seen), dim=-1), batch.pooled)
    targets = torch.arange(BATCH)
    contrast = functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)
    named_text = text_encoder.naming(network.text_namer(batch.pooled), batch.told)
    return contrast + text_encoder.naming(network.image_namer(seen), batch.labels) + named_text


def _report(
    name: str, eyes: DualEncoder | Observer, pictures: Tensor, labels: Tensor, log: RecipeLog
) -> None:
    with torch.no_grad():
        logits = [
            torch.cat(parts) for parts in zip(*(eyes(batch) for batch in pictures.split(64)), strict=True)
        ]
    for element, predicted, wanted in zip(CLASSES, logits, labels.T, strict=True):
        known = wanted != UNKNOWN
        right = (predicted.argmax(dim=1) == wanted)[known].float().mean().item()
        log(f"judge {name}: {element} right on {100 * right:.1f} % of {int(known.sum())} unseen renderings")
