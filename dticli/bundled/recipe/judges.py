"""Step `judges`: train both judges on renderings alone, and measure them where the truth is known.

B names elements and has never seen a caption. A is the image side of the text encoder's pretraining, trained on against the
encoder that is frozen by then. Half of what they see went through the autoencoder, because all they will be asked to judge did.
Taught by 19,000 renderings as they are, both knew 98 % of their nouns and 75 % of others': so they see the denoiser's pictures
too, and half of all batches in other colours, turned and mirrored.
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
    """What judges learn from: drawn pictures first, then as they look after the autoencoder, and what they show.

    `labels` (pictures, elements), the pooled state of one caption per picture, (pictures, WIDTH), and what that caption
    says, `told` (pictures, elements), are those of the drawn ones.
    """

    drawn: np.ndarray
    rebuilt: np.ndarray
    labels: Tensor
    pooled: Tensor
    told: Tensor


@dataclass(frozen=True)
class PictureBatch:
    """Pictures (BATCH, 3, 64, 64) in [-1, 1] with their labels, captions' pooled states and what captions say.

    `varied`: they do not look as they were drawn, and captions may be wrong about them; labels are not.
    """

    pictures: Tensor
    labels: Tensor
    pooled: Tensor
    told: Tensor
    varied: bool


def run(minutes: float, seed: int, log: RecipeLog) -> None:
    """Train each judge for `minutes` on its own pictures, held-out combinations included, and report their accuracy."""
    torch.manual_seed(seed)
    # Their own, the first WATCHED of which they never learn from, and the denoiser's.
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
    """A judge that begins as the shipped one sees, and has its naming to learn: the elements may be others by now."""
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
    """The batch of one step, drawn and rebuilt pictures in turn, varied every other time; a pure function of (seed, index)."""
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
"""What a picture's colours decide."""


def _varied(pictures: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turned, scaled and moved a little; mirrored where that swaps no two things; in other colours, which are then not named."""
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
    """The first REBUILT pictures after the autoencoder, made once, a PORTION at a time."""
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
    """Moved by a few pixels, edges repeated."""
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
    """CLIP's loss between pictures and captions, and the naming of elements."""
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
