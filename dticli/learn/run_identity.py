"""The identity of a run (settings, photos, captions, model, initial rows), and the machine that it runs on."""

import hashlib
import json
import platform
from typing import Any

import torch
from torch import Tensor

from dticli import paths
from dticli.learn.checkpoint import Identity
from dticli.learn.trainer import Learner, Task
from dticli.models import quantization
from dticli.models.choice import Model
from dticli.photos.albums import Album
from dticli.photos.latents import Latents
from dticli.ranks import Ranks
from dticli.settings import TrainSettings, Trait
from dticli.words import provenance

SAMPLE = 16
"""Numbers of each parameter that stand for it in the fingerprint of a model."""


def as_alone(settings: TrainSettings, ranks: Ranks) -> TrainSettings:
    """The settings with which one process would take the same steps as all ranks together."""
    return settings.model_copy(update={"batch_size": settings.batch_size * ranks.size})


def of_run(
    settings: TrainSettings, model: Model, weights: str, task: Task, learner: Learner, album: Album
) -> Identity:
    """Everything that must be the same for a run to continue.

    Args:
        settings: as `as_alone` returns them.
        weights: the model's fingerprint.
    """
    incidental, words = settings.named(Trait.INCIDENTAL), settings.named(Trait.WORD_OR_FILE)
    return Identity(
        settings={
            name: json.dumps(getattr(settings, name))
            for name in TrainSettings.model_fields
            if name not in incidental
            # The rows of a token file are compared, wherever it lies.
            and not (name in words and paths.names_token_file(getattr(settings, name)))
        }
        | _length(settings)
        | _tiles(task.latents),
        photos={photo.name: photo.fingerprint for photo in album.photos},
        captions={
            photo.name: _digest(json.dumps(list(task.captions[photo.path])).encode())
            for photo in album.photos
        },
        model={
            "name": model.label,
            "weights": weights,
            "precision": str(task.dtype).removeprefix("torch."),
            # Files the word starts from, and its prior, may change under the same name.
            "first rows": _digest(*(_bytes(each) for each in _start(learner))),
        },
    )


def _length(settings: TrainSettings) -> dict[str, str]:
    """The number of steps, if what is learned depends on it."""
    depends = settings.schedule != "constant" or settings.average
    return {"steps": json.dumps(settings.steps)} if depends else {}


def _tiles(encoded: Latents) -> dict[str, str]:
    """Whether photos were encoded in tiles, which gives slightly different latents."""
    return {"photos encoded": "in tiles"} if encoded.tiled else {}


def _start(learner: Learner) -> list[Tensor]:
    """The word's rows and the directions of its prior."""
    priors = [each for optimizer in learner.optimizers for each in optimizer.prior or ()]
    return [*learner.word.rows.values(), *priors]


@torch.no_grad()
def weights(pipe: Any) -> str:
    """A fingerprint of all weights, from a sample of each."""
    samples = [
        name.encode() + b"".join(_bytes(part.flatten()[:SAMPLE]) for part in quantization.stored(parameter))
        for component, module in sorted(pipe.components.items())
        if isinstance(module, torch.nn.Module)
        for name, parameter in module.named_parameters(component)
        if not parameter.is_meta
    ]
    return _digest(*samples)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().float().cpu().numpy().tobytes()


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


def machine(device: torch.device) -> dict[str, str]:
    """Everything about the machine that can change the last bits of a result."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return provenance.versions() | {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{device.type} {name or platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }
