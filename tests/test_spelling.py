"""Names of things as other programs write them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dticli import spelling
from dticli.draw import schedulers
from dticli.settings import GenerateSettings
from tests.conftest import Outcome

Dti = Callable[..., Outcome]

# A1111, ComfyUI, InvokeAI, and classes of diffusers
SAMPLERS = {
    "ddim": "DDIM|ddim|DDIMScheduler|DDIM Scheduler",
    "ddpm": "DDPM|ddpm|DDPMScheduler",
    "dpm++": "DPM++ 2M|dpmpp_2m|DPMSolverMultistepScheduler|DPM-Solver++|k_dpmpp_2m|dpm++_2m|DPM++",
    "dpm++-karras": "DPM++ 2M Karras|dpmpp_2m_karras|dpmpp_2m_k|dpm++-karras",
    "dpm++-sde": "DPM++ 2M SDE|dpmpp_2m_sde|dpmpp_sde|DPM++ SDE|dpmpp_2m_sde_gpu",
    "dpm++-sde-karras": "DPM++ 2M SDE Karras|dpmpp_2m_sde_k|dpmpp_2m_sde_karras",
    "euler": "Euler|euler|EulerDiscreteScheduler|k_euler|sample_euler",
    "euler-a": "Euler a|euler_a|euler_ancestral|EulerAncestralDiscreteScheduler|k_euler_a|k_euler_ancestral",
    "heun": "Heun|heun|HeunDiscreteScheduler|k_heun",
    "pndm": "PNDM|plms|PLMS|PNDMScheduler",
    "unipc": "UniPC|uni_pc|uni_pc_bh2|UniPCMultistepScheduler|unipc",
}


@pytest.mark.parametrize("ours", SAMPLERS)
def test_samplers_are_known_by_every_programs_name(ours: str) -> None:
    for name in SAMPLERS[ours].split("|"):
        assert spelling.sampler(name) == ours, name
        assert GenerateSettings(scheduler=name).scheduler == ours
    assert ours in schedulers.SCHEDULERS


def test_every_sampler_has_its_own_name_and_its_class() -> None:
    """The table of spellings and that of samplers are of the same; class names lead to what they build."""
    assert spelling.SAMPLERS.keys() == schedulers.SCHEDULERS.keys()
    for ours, (kind, options) in schedulers.SCHEDULERS.items():
        assert spelling.sampler(ours) == ours
        if not options:
            assert spelling.sampler(kind) == ours


@pytest.mark.parametrize("name", ["karras", "nothing", "", "lcm", "dpm2 x"])
def test_other_names_stay_and_are_refused(name: str, dti: Dti) -> None:
    assert spelling.sampler(name) == name
    if name:
        outcome = dti("generate", "a dog", "--model", "stickers", "--scheduler", name)
        assert (outcome.code, name in outcome.error) == (2, True)


@pytest.mark.parametrize(
    "text", ["64x96", "64 x 96", "64,96", "64, 96", "64X96", "64×96", "64*96", " 64x96 ", "64 96", "64:96"]
)
def test_sizes_of_every_mark(text: str) -> None:
    assert GenerateSettings(size=text).height_width == (96, 64)


@pytest.mark.parametrize("text", ["64x", "x96", "64x96x3", "64-96", "large", "6.4x96"])
def test_other_sizes_are_refused(text: str, dti: Dti) -> None:
    outcome = dti("generate", "a dog", "--model", "stickers", "--size", text)
    assert (outcome.code, "768x512" in outcome.error) == (2, True), outcome.err


@pytest.mark.parametrize("name", ["dog", "sks-dog", "dog_2", "7"])
def test_a_word_without_brackets_is_the_word(name: str, dti: Dti, dog: Path, tmp_path: Path) -> None:
    assert spelling.word(name) == f"<{name}>"
    outcome = dti("convert", dog, "--token", name, "-o", tmp_path / "out", "--json")
    assert outcome.json["words"][0]["token"] == f"<{name}>"


def test_training_takes_a_word_without_brackets(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """As an option, where it is said, and in a settings file."""
    (tmp_path / "one.toml").write_text('token = "sks-dog"\ninit = "dog"\nsteps = 1')
    report = dti("train", photos, "--token", "sks-dog", "--init", "dog", "--model", "stickers", "--check")
    assert (report.code, "<sks-dog>" in report.err) == (0, True), report.err
    config = ("--config", tmp_path / "one.toml", "--model", "stickers")
    assert dti("train", photos, *config, "--check").code == 0


@pytest.mark.parametrize("name", ["Dog", "a dog", "<dog", "dog>", "ドッグ"])
def test_other_names_are_refused(name: str, dti: Dti, dog: Path, tmp_path: Path) -> None:
    outcome = dti("convert", dog, f"--token={name}", "-o", tmp_path)
    assert (outcome.code, "write '<" in outcome.error) == (2, True), outcome.err


def test_any_seed_is_drawn_said_and_drawn_again(dti: Dti, tmp_path: Path) -> None:
    """`--seed -1` is a new seed each time, which draws the same picture when it is asked for."""
    small = ("--model", "stickers", "--steps", 1, "--json")
    said = []
    for number in range(2):
        outcome = dti("generate", "a dog", "--seed", -1, "-o", tmp_path / str(number), *small)
        assert outcome.code == 0, outcome.err
        (seed,) = re.findall(r"^seed: (\d+)$", outcome.err, re.MULTILINE)
        (drawn,) = outcome.json["pictures"]
        assert drawn["seed"] == int(seed)
        said.append((int(seed), Path(drawn["file"]).read_bytes()))
    assert said[0][0] != said[1][0]
    outcome = dti("generate", "a dog", "--seed", said[0][0], "-o", tmp_path / "again", *small)
    (drawn,) = outcome.json["pictures"]
    assert np.array_equal(Image.open(drawn["file"]), Image.open(tmp_path / "0" / Path(drawn["file"]).name))
    assert dti("generate", "a dog", "--seed", -2, *small).code == 2


def test_any_seed_is_said_by_every_command_that_draws(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """A grid of words can be drawn again too."""
    small = ("--model", "stickers", "--size", 16, "--steps", 1, "--prompt", "a {}", "--quiet")
    first = dti("compare", dog, "--seed", -1, "--out", tmp_path / "first.png", *small)
    (seed,) = re.findall(r"^seed: (\d+)$", first.err, re.MULTILINE)
    assert dti("compare", dog, "--seed", seed, "--out", tmp_path / "again.png", *small).code == 0
    assert np.array_equal(Image.open(tmp_path / "first.png"), Image.open(tmp_path / "again.png"))


def test_no_training_has_any_seed(dti: Dti, tmp_path: Path) -> None:
    """Only pictures do: a word is learned again from the seed in its settings."""
    assert dti("train", tmp_path, "--token", "<a>", "--init", "dog", "--seed", -1).code == 2
