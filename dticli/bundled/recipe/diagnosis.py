"""Step `diagnosis`: which part limits the likeness of pictures, on the tuning subjects.

What free text states cannot draw is limited by the denoiser; what eight vectors cannot, by the text encoder; what one vector
cannot, by the single token or the optimizer. Training with masks excludes the influence of backgrounds.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from dticli import api, bundled
from dticli.evaluation import measure
from dticli.evaluation.measure import Mean

from . import art, assembly, autoencoder, cache, ceilings, check, diffusion, photos, sampling, shards
from .training import RecipeLog, fast

PROMPT = "a photo of {}"
PICTURES = 20
DRAWS = 320
STEPS = 400
EARLY = 100
VECTORS = {"one vector": 1, "eight vectors": 8}
FREE_STEPS, FREE_RATE, FREE_BATCH = 800, 2e-2, 4


@dataclass(frozen=True)
class DiagnosisReport:
    """Method to losses on fixed draws and figures of judge B: means over subjects with their intervals."""

    rows: dict[str, dict[str, Mean]]


@dataclass(frozen=True)
class LatentPhotos:
    """A subject's photos.

    Attributes:
        latents: scaled, (photos, 4, 16, 16).
        thing: mask of the thing, (photos, 16, 16), with mean one in each photo.
    """

    latents: Tensor
    thing: Tensor

    @property
    def whole(self) -> "LatentPhotos":
        """The same latents with a uniform mask."""
        return LatentPhotos(self.latents, torch.ones_like(self.thing))


@dataclass(frozen=True)
class Draws:
    """Noisy latents of a subject's photos, (count, 4, 16, 16), timesteps, target velocities, and weights of errors."""

    noisy: Tensor
    steps: Tensor
    velocity: Tensor
    weights: Tensor


def run(seed: int, model: Path | None, log: RecipeLog) -> DiagnosisReport:
    """Learn, draw and judge; log and write `diagnosis.json` and `diagnosis.png`, one row per subject."""
    pipeline = assembly.load(model)
    pipeline.unet.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    _, observer = check.load_judges(model)
    icons = art.load()
    figures: dict[str, list[Mapping[str, float]]] = {}
    rows: list[list[Image.Image]] = []
    for subject in (each for each in bundled.subjects() if each.role == "tuning" and each.look):
        masks = photos.lay_masks(subject, icons, cache.folder("diagnosis") / "masks" / subject.name)
        shown = _shown(pipeline, subject, masks)
        held_out = {
            "loss": _draws(shown.whole, DRAWS, seed),
            "loss on the thing": _draws(shown, DRAWS, seed),
        }
        row = []
        for said, states in _ways(
            pipeline, subject, shown, masks, model or assembly.built(), seed, log
        ).items():
            images = _drawn(pipeline, states, seed)
            found = ceilings.alone(observer, subject, images) | {
                loss: _loss(pipeline, states, draws) for loss, draws in held_out.items()
            }
            figures.setdefault(said, []).append(found)
            row.append(images[0])
            log(
                f"diagnosis: {subject.name}, {said}: "
                + ", ".join(f"{key} {value:.4f}" for key, value in found.items())
            )
        rows.append([ceilings.photos(subject)[0], *row])
    report = DiagnosisReport({said: _means(found) for said, found in figures.items()})
    cache.write_bytes(
        cache.folder("diagnosis") / "diagnosis.json", json.dumps(asdict(report), indent=1).encode()
    )
    ceilings.save_rows(rows, cache.folder("diagnosis") / "diagnosis.png")
    return report


def _ways(
    pipeline: StableDiffusionPipeline,
    subject: bundled.Subject,
    shown: LatentPhotos,
    masks: Path,
    model: Path,
    seed: int,
    log: RecipeLog,
) -> dict[str, Tensor]:
    """Method to the text states of the prompt with the subject, (1, 32, width)."""
    plain = _states(pipeline, PROMPT.format(subject.class_word))
    ways = {"class word": plain}
    for said, vectors in VECTORS.items():
        several = ("--vectors", str(vectors), "--steps", str(STEPS), "--keep", str(STEPS // EARLY))
        file = ceilings.learned("diagnosis", f"{subject.name}-{vectors}", subject, model, log, *several)
        for steps, source in ((EARLY, f"{file.with_suffix('.run')}@{EARLY}"), (STEPS, str(file))):
            with api.place(pipeline, api.load_word(source)) as there:
                ways[f"{said}, {steps} steps"] = _states(
                    pipeline, there.expand(PROMPT.format(f"<{subject.name}>"))
                )
    masked = ("--masks", str(masks), "--steps", str(EARLY))
    file = ceilings.learned("diagnosis", f"{subject.name}-masked", subject, model, log, *masked)
    with api.place(pipeline, api.load_word(file)):
        ways[f"one vector, masked, {EARLY} steps"] = _states(pipeline, PROMPT.format(f"<{subject.name}>"))
    ways[f"free states, {FREE_STEPS} steps"] = _freed(pipeline, plain, shown.whole, seed)
    ways[f"free states, masked, {FREE_STEPS} steps"] = _freed(pipeline, plain, shown, seed)
    return ways


@torch.no_grad()
def _states(pipeline: StableDiffusionPipeline, prompt: str) -> Tensor:
    return pipeline.encode_prompt(prompt, pipeline.device, 1, do_classifier_free_guidance=False)[0]


@torch.no_grad()
def _latents(pipeline: StableDiffusionPipeline, subject: bundled.Subject) -> Tensor:
    """Scaled latents of a subject's photos, (photos, 4, 16, 16), which are reduced to the size that the denoiser draws."""
    side = (shards.SIDE, shards.SIDE)
    pixels = np.stack(
        [np.asarray(photo.resize(side, Image.Resampling.LANCZOS)) for photo in ceilings.photos(subject)]
    )
    return (
        autoencoder.encode(pipeline.vae, autoencoder.to_tensor(pixels)) * pipeline.vae.config.scaling_factor
    )


def _shown(pipeline: StableDiffusionPipeline, subject: bundled.Subject, masks: Path) -> LatentPhotos:
    latents = _latents(pipeline, subject)
    height, width = latents.shape[2:]
    things = np.stack(
        [
            np.asarray(
                Image.open(masks / photo.name).resize((width, height), Image.Resampling.BOX), np.float32
            )
            for photo in bundled.photos(subject.name)
        ]
    )
    return LatentPhotos(latents, torch.from_numpy(things / things.mean(axis=(1, 2), keepdims=True)))


def _draws(shown: LatentPhotos, count: int, seed: int) -> Draws:
    """Photos in turn at evenly spread timesteps, each with its own noise."""
    signal = assembly.scheduler().alphas_cumprod
    noise = torch.randn(count, *shown.latents.shape[1:], generator=torch.Generator().manual_seed(seed))
    # 7 and the number of photos are coprime, so that every photo gets all noise levels.
    steps = (torch.arange(count) * len(signal) * 7 // count) % len(signal)
    photo = torch.arange(count) % len(shown.latents)
    noisy, velocity = diffusion.noised(shown.latents[photo], noise, signal[steps])
    return Draws(noisy, steps, velocity, shown.thing[photo])


def _error(pipeline: StableDiffusionPipeline, states: Tensor, draws: Draws, part: slice) -> Tensor:
    noisy = draws.noisy[part]
    with fast():
        predicted = pipeline.unet(
            noisy, draws.steps[part], states.expand(len(noisy), -1, -1), return_dict=False
        )[0]
    return (draws.weights[part, None] * (predicted.float() - draws.velocity[part]).square()).mean()


@torch.no_grad()
def _loss(pipeline: StableDiffusionPipeline, states: Tensor, draws: Draws) -> float:
    """Mean squared error on all draws."""
    return float(
        np.mean(
            [
                _error(pipeline, states, draws, slice(start, start + 32)).item()
                for start in range(0, DRAWS, 32)
            ]
        )
    )


def _freed(pipeline: StableDiffusionPipeline, start: Tensor, shown: LatentPhotos, seed: int) -> Tensor:
    """Text states that are trained directly, without an encoder, by Adam with cosine annealing to zero."""
    states = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([states], FREE_RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, FREE_STEPS)
    draws = _draws(shown, FREE_STEPS * FREE_BATCH, seed + 1)
    order = torch.randperm(FREE_STEPS * FREE_BATCH, generator=torch.Generator().manual_seed(seed))
    draws = Draws(*(each[order] for each in (draws.noisy, draws.steps, draws.velocity, draws.weights)))
    for step in range(FREE_STEPS):
        optimiser.zero_grad()
        _error(pipeline, states, draws, slice(step * FREE_BATCH, (step + 1) * FREE_BATCH)).backward()
        optimiser.step()
        falling.step()
    return states.detach()


def _drawn(pipeline: StableDiffusionPipeline, states: Tensor, seed: int) -> list[Image.Image]:
    """PICTURES pictures of a prompt's text states, each from its own noise."""
    empty = _states(pipeline, "")
    pictures = sampling.sample_states(
        pipeline, states.expand(PICTURES, -1, -1), empty.expand(PICTURES, -1, -1), seed
    )
    return ceilings.images(pictures)


def _means(rows: list[Mapping[str, float]]) -> dict[str, Mean]:
    return {name: measure.mean([row[name] for row in rows]) for name in rows[0]}
