"""Step `package`: put the trained parts together in the diffusers layout, float16, ready to ship."""

import json
from pathlib import Path
from typing import Literal

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save
from torch import Tensor

from dticli.bundled import MODEL_NAME, judge, model_folder
from dticli.errors import ModelError

from . import cache, decoder, diffusion, judges
from .training import RecipeLog

MOST_BYTES = 48 * 2**20


def built() -> Path:
    """Where the recipe's own model lies before it ships."""
    return cache.root() / MODEL_NAME


def assemble(target: Path) -> None:
    """Write the whole model to `target`, part by part, with the training defaults of the shipped one."""
    tokens, encoder = diffusion.load_encoder()
    pipeline = StableDiffusionPipeline(
        vae=decoder.load(),
        text_encoder=encoder,
        tokenizer=tokens,
        unet=UNet2DConditionModel.from_pretrained(diffusion.folder() / "unet"),
        scheduler=diffusion.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    defaults = (model_folder() / "dti.toml").read_bytes()

    def fill(folder: Path) -> None:
        pipeline.save_pretrained(folder)
        _forget_origins(folder)
        (folder / "dti.toml").write_bytes(defaults)

    cache.write_folder(target, fill)


def _forget_origins(folder: Path) -> None:
    """Take out where each part was loaded from, which diffusers notes: a path of the machine that made the model."""
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(model: Path | None = None) -> StableDiffusionPipeline:
    """A model folder as a float32 pipeline without progress bars; by default the recipe's own."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        model or built(), safety_checker=None, requires_safety_checker=False
    )
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ship(log: RecipeLog) -> None:
    """Put the recipe's model and judges into the package; refuses to ship more than MOST_BYTES of weights."""
    half = {name: _half(load_file(file)) for name, file in _judge_files().items()}
    size = _weight_bytes(built()) + sum(value.nbytes for state in half.values() for value in state.values())
    if size > MOST_BYTES:
        raise ModelError(
            f"the weights take {size / 2**20:.1f} MiB: at most {MOST_BYTES / 2**20:.0f} MiB ship; shrink a part"
        )
    assemble(model_folder())
    judge.weights("a").parent.mkdir(exist_ok=True)
    for name, state in half.items():
        cache.write_bytes(judge.weights(name), save(state))
    log(f"package: {size / 2**20:.1f} MiB of weights in {model_folder()} and {judge.weights('a').parent}")


def _judge_files() -> dict[Literal["a", "b"], Path]:
    return {"a": judges.file_a(), "b": judges.file_b()}


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def _weight_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.rglob("*.safetensors"))
