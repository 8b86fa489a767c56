"""Tiny random diffusers pipelines built entirely in code, one per model family.

    from tests.tiny import build, call

    pipe = build("sdxl")
    pictures = pipe(prompt="a photo of dog", **call("sdxl", output_type="pil"))[0]

They hold no knowledge, but they have the real classes, the real tokenizers' habits and the real quirks.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from diffusers import DiffusionPipeline

from .cogview4 import COGVIEW4
from .flux import CHROMA, FLUX1_DEV, FLUX1_SCHNELL, FLUX2, FLUX2_KLEIN
from .gemma import LUMINA2, SANA, SANA_SPRINT
from .krea2 import KREA2
from .parts import TinyFamily
from .stable_diffusion import SD1, SD2, SDXL
from .stable_diffusion_3 import SD3, SD3_NO_T5
from .t5 import AURAFLOW, HUNYUANDIT, PIXART_SIGMA
from .tokenizers import CLIP_EOS, WORDS
from .wan import QWEN_IMAGE, WAN
from .z_image import ZIMAGE

__all__ = ["CLIP_EOS", "FAMILIES", "KIN", "TINY", "WORDS", "TinyFamily", "build", "call", "cases", "distinct"]

FAMILIES: dict[str, TinyFamily] = {
    "sd1": SD1,
    "sd2": SD2,
    "sdxl": SDXL,
    "sd3": SD3,
    "sd3_no_t5": SD3_NO_T5,
    "flux1_dev": FLUX1_DEV,
    "flux1_schnell": FLUX1_SCHNELL,
    "flux2_klein": FLUX2_KLEIN,
    "flux2": FLUX2,
    "sana": SANA,
    "lumina2": LUMINA2,
    "wan": WAN,
    "qwen_image": QWEN_IMAGE,
    "zimage": ZIMAGE,
    "pixart_sigma": PIXART_SIGMA,
    "hunyuandit": HUNYUANDIT,
    "chroma": CHROMA,
    "auraflow": AURAFLOW,
    "cogview4": COGVIEW4,
    "sana_sprint": SANA_SPRINT,
    "krea2": KREA2,
}
KIN = {"sd2": "sd1", "sd3_no_t5": "sd3", "flux1_schnell": "flux1_dev", "flux2": "flux2_klein"}
"""Pipelines that run the code of another one's family, and differ from it in what their configs and classes say."""
TINY: dict[str, Callable[..., DiffusionPipeline]] = {name: family.make for name, family in FAMILIES.items()}


def build(name: str, *, eos_token_id: int | None = None, seed: int = 0) -> DiffusionPipeline:
    """Build a tiny pipeline on the CPU in float32, in `eval()` mode; no global random state is touched.

    Args:
        name: a key of `TINY`.
        eos_token_id: what the config of every CLIP encoder says; None for 2, as the public configs do, which
            pools at the highest id of the prompt. `CLIP_EOS` is the true id: pooling at the end of text.
        seed: the same seed gives the same weights, bit for bit.

    Raises:
        TypeError: `eos_token_id` for a family without a CLIP encoder.
    """
    options = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
    with torch.random.fork_rng(devices=[]):
        # not `torch.manual_seed`: it would also seed the accelerators, which are not forked here
        torch.random.default_generator.manual_seed(seed)
        pipe = TINY[name](**options)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cases(*names: str) -> list[ParameterSet]:
    """Values for `pytest.mark.parametrize("name", cases())`: all or the given names, with their filters.

    The filters let pass only what diffusers, transformers and numpy warn of among themselves.
    """
    return [
        pytest.param(name, marks=[pytest.mark.filterwarnings(text) for text in FAMILIES[name].warnings])
        for name in names or FAMILIES
    ]


def distinct() -> list[ParameterSet]:
    """`cases` without kin: a pipeline for each file of family code, for what trains or draws at length.

    How kin are encoded, noised and drawn is held against the stock pipelines, which takes less.
    """
    return cases(*(name for name in FAMILIES if name not in KIN))


def call(name: str, output_type: str = "latent", *, steps: int = 2, seed: int = 0) -> dict[str, Any]:
    """Arguments of `pipe(prompt=..., ...)` for the quickest picture: the smallest size and `steps` steps.

    The prompt must be named: FLUX.2 klein takes a picture first.

    Args:
        name: a key of `TINY`.
        output_type: "latent", "pt", "np" or "pil".
        seed: of the starting noise; every call returns a fresh generator.
    """
    family = FAMILIES[name]
    return {
        "height": family.size,
        "width": family.size,
        "num_inference_steps": steps,
        "output_type": output_type,
        "generator": torch.Generator("cpu").manual_seed(seed),
        **family.arguments,
        **(family.but_two if steps != 2 else {}),
    }
