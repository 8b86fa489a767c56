"""Models that judge pictures: the likeness of two pictures, and the alignment of a picture with a text."""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from dticli import files, hub
from dticli.errors import EnvironmentProblem, ModelError, UsageError, boundary, is_out_of_memory
from dticli.evaluation import stickers
from dticli.evaluation.measure import Eyes, Reader
from dticli.evaluation.prompt import Prompt, Reading
from dticli.models import devices, foreign

KNOWN = {
    "dinov2": "facebook/dinov2-base",
    "siglip": "google/siglip-base-patch16-512",
    "clip": "openai/clip-vit-large-patch14",
}
"""Short names of judges. The paper uses DINOv2 for likeness and SigLIP for prompts, in these sizes (arXiv:2512.13672)."""
FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
AT_ONCE = 8


@dataclass(frozen=True)
class Likeness:
    """A vision model whose features are nearly parallel for pictures of the same thing."""

    model: Any
    processor: Any
    device: torch.device

    @torch.no_grad()
    def features(self, images: Sequence[Image]) -> Tensor:
        """Unit features of pictures, (pictures, width) float32 on the CPU.

        They are the model's pooled output, or the last state of the class token if it has none.
        """
        parts = []
        with _visiting(self.model, self.device):
            for start in range(0, len(images), AT_ONCE):
                pixels = _pixels(self.processor, images[start : start + AT_ONCE], self.model)
                seen = self.model(pixel_values=pixels)
                pooled = seen.get("pooler_output")
                parts.append(seen.last_hidden_state[:, 0] if pooled is None else pooled)
        return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1).cpu()


@dataclass(frozen=True)
class Alignment:
    """A joint model of pictures and texts.

    SigLIP was trained to predict the probability that they match; of CLIP's outputs, only the cosine has a meaning.
    """

    model: Any
    processor: Any
    tokenizer: Any
    device: torch.device

    def require(self, prompts: Sequence[Prompt], noun: str) -> None:
        """Does nothing: every prompt and noun can be judged."""

    def read(self, images: Sequence[Image], prompt: Prompt, noun: str) -> Reading:
        """Judge how well each picture fits the prompt with the noun in place of the word."""
        return Reading(tuple(self.scores(images, prompt.of(noun)).tolist()))

    @torch.no_grad()
    def scores(self, images: Sequence[Image], text: str) -> Tensor:
        """How well each picture fits a text, (pictures,) float32 on the CPU: SigLIP's probability, or CLIP's cosine."""
        ids = self.tokenizer([text], padding="max_length", truncation=True, return_tensors="pt").to(
            self.device
        )
        parts = []
        with _visiting(self.model, self.device):
            for start in range(0, len(images), AT_ONCE):
                pixels = _pixels(self.processor, images[start : start + AT_ONCE], self.model)
                logits = self.model(**ids, pixel_values=pixels).logits_per_image[:, 0].float()
                parts.append(
                    logits.sigmoid() if self.gives_probabilities else logits / self.model.logit_scale.exp()
                )
        return torch.cat(parts).cpu()

    @property
    def gives_probabilities(self) -> bool:
        return self.model.config.model_type.startswith("siglip")


@contextmanager
def _visiting(model: Any, device: torch.device) -> Iterator[None]:
    """Move a judge to the device while the context is open; afterwards, its memory is free for the drawing model.

    Raises:
        EnvironmentProblem: out of memory.
    """
    try:
        model.to(device)
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EnvironmentProblem(
            f"out of memory on {device.type} judging pictures: expected room for a judge beside the model; "
            "use --low-memory, or a smaller judge"
        ) from None
    finally:
        model.to("cpu")


def _pixels(processor: Any, images: Sequence[Image], model: Any) -> Tensor:
    pictures = [image.convert("RGB") for image in images]
    return processor(images=pictures, return_tensors="pt").pixel_values.to(model.device, model.dtype)


def load(
    image_judge: str, text_judge: str, device: torch.device, *, offline: bool = False
) -> tuple[Eyes, Reader]:
    """Load a judge of likeness and a judge of alignment; errors as of `likeness`."""
    return (
        likeness(image_judge, device, offline=offline),
        alignment(text_judge, device, offline=offline),
    )


def likeness(name: str, device: torch.device, *, offline: bool = False) -> Eyes:
    """Load a judge of likeness.

    Args:
        name: in `KNOWN`, the hub id or folder of a vision model, or a bundled judge.

    Raises:
        UsageError: `name` is none of these.
        ModelError: the hub has no such model, or it cannot be loaded or takes no pictures.
        EnvironmentProblem: the hub cannot be reached.
    """
    from transformers import AutoImageProcessor

    if name in stickers.JUDGES:
        return stickers.StickerEyes(stickers.load(name))
    with _loading(name, "--image-judge", offline) as folder:
        model = _model(folder)
        processor = foreign.load(AutoImageProcessor.from_pretrained, folder)
        vision = getattr(model, "vision_model", model)
        if vision.main_input_name != "pixel_values":
            raise ValueError("it looks at no pictures")
    return Likeness(vision.requires_grad_(False).eval(), processor, device)


def alignment(name: str, device: torch.device, *, offline: bool = False) -> Reader:
    """Load a judge of pictures and texts; arguments and errors as of `likeness`."""
    from transformers import AutoImageProcessor, AutoTokenizer

    if name in stickers.JUDGES:
        return stickers.StickerReader(stickers.load(name))
    with _loading(name, "--text-judge", offline) as folder:
        model = _model(folder)
        if not hasattr(model, "logit_scale"):
            raise ValueError("it does not compare pictures with sentences")
        processor = foreign.load(AutoImageProcessor.from_pretrained, folder)
        tokenizer = foreign.load(AutoTokenizer.from_pretrained, folder)
    return Alignment(model.requires_grad_(False).eval(), processor, tokenizer, device)


def _model(folder: Path) -> Any:
    """Load a model from a folder, without its pooling layer if that is untrained (DINO's vision transformers).

    Raises:
        ValueError: other weights are missing, which transformers would initialise randomly.
    """
    from transformers import AutoModel

    load = functools.partial(foreign.load, AutoModel.from_pretrained, folder, use_safetensors=True)
    model, info = load(output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        return load(add_pooling_layer=False)
    if missing:
        raise ValueError(f"its files lack {missing[0]} and {len(missing) - 1} others")
    return model


@contextmanager
def _loading(name: str, option: str, offline: bool) -> Iterator[Path]:
    """The folder of a judge; errors of libraries inside of the context become a ModelError."""
    devices.quiet_libraries()
    folder = _folder(KNOWN.get(name, name), option, offline)
    with boundary(
        lambda reason: ModelError(f"{name} cannot be loaded as a judge: {reason}; choose another {option}")
    ):
        yield folder


def _folder(name: str, option: str, offline: bool) -> Path:
    """The local folder of a judge, downloaded from the hub unless `name` is a folder."""
    from huggingface_hub import snapshot_download

    if os.path.isdir(name):
        files.require_regular(Path(name), ModelError, "expected the files of a judge")
        return Path(name)
    repository, _, revision = name.partition("@")
    if not hub.ID.fullmatch(repository):
        raise UsageError(
            f"no judge {name}: expected {', '.join([*KNOWN, *stickers.JUDGES])}, a hub id like user/name, or a folder; "
            f"check {option}"
        )
    with hub.errors(
        repository,
        revision or None,
        kind="model",
        error=ModelError,
        option=option,
        lacks=f"config.json: expected a model of transformers; choose another {option}",
        instead=f"check the network, pass a folder to {option}, or for pictures of the bundled model {option} stickers-b",
        offline=offline,
    ):
        return Path(
            snapshot_download(
                repository, revision=revision or None, local_files_only=offline, allow_patterns=FILES
            )
        )
