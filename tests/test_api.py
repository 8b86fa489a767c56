"""The functions for programs: their page runs, and they give what commands and stock diffusers give."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

import dticli
from dticli import bundled
from dticli.errors import ModelError, UsageError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def word(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word learned by the API in two steps."""
    target = tmp_path_factory.mktemp("api") / "dog.safetensors"
    photos = bundled.photos("dog")[0].parent
    steps = list(dticli.train(photos, "<dog>", "dog", model="stickers", steps=2, out=target, seed=3))
    assert [each.report.step for each in steps] == [1, 2]
    return target


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    """A stock pipeline."""
    loaded = StableDiffusionPipeline.from_pretrained(
        bundled.model_folder(), safety_checker=None, requires_safety_checker=False
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded.to(torch.float32)


def states(pipe: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


def test_the_command_learns_the_same_word(word: Path, tmp_path: Path) -> None:
    """The same settings by the command give the same rows, bit for bit."""
    target = tmp_path / "dog.safetensors"
    photos = bundled.photos("dog")[0].parent
    options = ("--token", "<dog>", "--init", "dog", "--model", "stickers", "--steps", "2", "--seed", "3")
    subprocess.run(
        [sys.executable, "-m", "dticli", "train", str(photos), *options, "-o", str(target), "--quiet"],
        check=True,
    )
    ours, theirs = load_file(word), load_file(target)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_placed_word_is_what_stock_loading_makes_of_it(word: Path, pipe: StableDiffusionPipeline) -> None:
    """The text states equal those after `load_textual_inversion`, and afterwards the pipeline is as it was."""
    prompt = "a photo of <dog> in the snow"
    before = states(pipe, prompt)
    with dticli.place(pipe, dticli.load_word(word)) as placed:
        assert placed.expand(prompt) == prompt
        ours = states(pipe, prompt)
    assert torch.equal(states(pipe, prompt), before)
    stock = StableDiffusionPipeline.from_pretrained(
        bundled.model_folder(), safety_checker=None, requires_safety_checker=False
    ).to(torch.float32)
    stock.load_textual_inversion(str(word))
    torch.testing.assert_close(ours, states(stock, prompt), rtol=0, atol=1e-6)
    assert not torch.allclose(ours, before, atol=1e-3)


def test_a_word_in_the_middle_lies_on_the_arc(word: Path) -> None:
    """Half way from a word to a right angle's end: (a + b) / sqrt 2 in direction, the geometric mean in length."""
    first = dticli.load_word(word)
    key = next(iter(first.vectors))
    rows = first.vectors[key].double()
    unit = rows / rows.norm()
    other = torch.zeros_like(unit)
    other[0, 0] = 1.0
    other = other - (other * unit).sum() * unit
    other = 3 * rows.norm() * other / other.norm()
    second = dticli.load_word(f"<cat>={word}")
    second = second.with_vectors({key: other.float()})
    half = dticli.slerp(first, second, 0.5)
    expected = (unit + other / other.norm()) / 2**0.5 * (3**0.5 * rows.norm())
    torch.testing.assert_close(half.vectors[key].double(), expected, rtol=1e-5, atol=1e-6)
    assert half.name == "<dog>"


def test_norms_are_those_of_the_table() -> None:
    """Mean over rows that are not zero, from the weights themselves."""
    table = load_file(bundled.model_folder() / "text_encoder" / "model.safetensors")
    rows = next(value for name, value in table.items() if name.endswith("token_embedding.weight")).double()
    lengths = rows.norm(dim=1)
    found = dticli.vocabulary_norms("stickers")["clip_l"]
    assert found.mean == pytest.approx(lengths[lengths > 0].mean().item(), rel=1e-5)


def test_errors_are_those_of_the_commands(word: Path, pipe: StableDiffusionPipeline) -> None:
    """A file in the way, a misspelt setting, and a pipeline that no family has."""
    photos = bundled.photos("dog")[0].parent
    with pytest.raises(UsageError, match="exists"):
        next(dticli.train(photos, "<dog>", "dog", model="stickers", out=word))
    with pytest.raises(UsageError, match="stepz"):
        next(dticli.train(photos, "<dog>", "dog", model="stickers", out=word, stepz=3))
    with (
        pytest.raises(ModelError),
        dticli.place(type("Strange", (), {"config": {}})(), dticli.load_word(word)),
    ):
        pass


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    """docs/api.md, in a folder with photos and a second word, with fewer steps."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL))
    shutil.copytree(bundled.photos("dog")[0].parent, tmp_path / "photos")
    photos = bundled.photos("cat")[0].parent
    list(dticli.train(photos, "<cat>", "cat", model="stickers", steps=1, out=tmp_path / "cat.safetensors"))
    code = code.replace("steps=100", "steps=1").replace(
        'in the snow")', 'in the snow", num_inference_steps=1)'
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "snow.png").is_file()


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Names are there, modules are not."""
    code = "import sys, dticli; dir(dticli); print({'torch', 'diffusers', 'pydantic'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
