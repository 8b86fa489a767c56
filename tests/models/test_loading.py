"""Weights as they are loaded: wherever and however they were stored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dticli.models import choice, contents, loading
from dticli.words import norms
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]


def lengthen(path: Path, by: int) -> None:
    """The same weights behind a longer header: its metadata grows, as that of another program would."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    # The format wants data at a multiple of eight bytes; beyond that, it lies where the header's length puts it.
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + by)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize("name", tiny.cases("sdxl"))
def test_a_word_does_not_depend_on_how_long_a_files_header_is(
    dti: Dti, photos: Path, tmp_path: Path, name: str
) -> None:
    """One model, its weights stored at four distances from a boundary: every tensor lies on one, and the word has equal bits."""
    tiny.build(name).save_pretrained(tmp_path / "model")
    (tmp_path / "one.toml").write_text('templates = ["a photo of {}"]')
    words, summaries = [], []
    for length in (0, 8, 24, 40):
        folder = shutil.copytree(tmp_path / "model", tmp_path / str(length))
        for path in folder.rglob("*.safetensors"):
            lengthen(path, length)
        pipe = loading.load(choice.choose(str(folder)), torch.device("cpu"), torch.float32)
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                assert all(each.data_ptr() % 64 == 0 for each in component.state_dict().values())
        summaries.append([norms.summary(each) for each in contents.tables(choice.choose(str(folder)))])
        outcome = dti(
            *(
                "train",
                photos,
                "--config",
                tmp_path / "one.toml",
                "--token",
                "<dog>",
                "--init",
                "dog",
                "--quiet",
            ),
            *("--steps", 1, "--batch-size", 1, "--accumulate", 1, "--resolution", tiny.FAMILIES[name].size),
            *("--model", folder, "-o", tmp_path / f"{length}.safetensors"),
        )
        assert outcome.code == 0, outcome.err
        words.append(load_file(tmp_path / f"{length}.safetensors"))
    assert all(each == summaries[0] for each in summaries)
    for word in words[1:]:
        assert all(torch.equal(word[key], rows) for key, rows in words[0].items())
