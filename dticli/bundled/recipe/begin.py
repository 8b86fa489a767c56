"""Step `begin`: start a new model from the parts of an existing one."""

import shutil
from pathlib import Path

from dticli.bundled import model_folder

from . import assembly, autoencoder, cache, text_encoder
from .training import RecipeLog


def run(start: Path | None, seed: int, log: RecipeLog) -> None:
    """Copy the autoencoder, the text encoder with new rows for words that it does not know, and the denoiser to continue.

    Args:
        start: a model folder in diffusers layout; None for the bundled model.
    """
    start = start or model_folder()
    cache.write_folder(autoencoder.folder(), lambda folder: _copy(start / "vae", folder))
    cache.write_folder(assembly.denoiser_folder() / "start", lambda folder: _copy(start / "unet", folder))
    text_encoder.begin(start, seed)
    log(f"begin: {len(text_encoder.unread_ids())} words to learn with the denoiser")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
