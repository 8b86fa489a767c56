"""Where words start."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from dticli import bundled
from dticli.errors import UsageError
from dticli.learn import initial_rows, trainer
from dticli.models import families
from dticli.models.families import CLIP_L
from dticli.words import token_reading
from tests import tiny
from tests.conftest import Outcome
from tests.trainings import recoded


def test_a_word_the_tokenizer_does_not_know_is_refused() -> None:
    """A vocabulary without the letters of a word turns it into end-of-text; that is no place to start from."""
    vocabulary = {"d": 0, "o": 1, "g</w>": 2, "do": 3, "dog</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}
    pipe = SimpleNamespace(tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[("d", "o"), ("do", "g</w>")]))
    assert initial_rows.pieces(pipe, CLIP_L, " dog dog ") == [4, 4]
    with pytest.raises(UsageError, match="does not know 'dog cat'"):
        initial_rows.pieces(pipe, CLIP_L, "dog cat")


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux1_dev", "sana", "qwen_image", "flux2_klein"])
def test_cross_initialisation_takes_states_after_the_final_norm(name: str) -> None:
    """In every kind of encoder, whatever it calls them: the rows are where the phrase stands in what its last norm gives."""
    pipe = tiny.build(name)
    family = families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, name)
    given = {}
    for encoder in family.encoders:
        for path, module in getattr(pipe, encoder.component).named_modules():
            if path.rpartition(".")[2] in ("final_layer_norm", "norm"):

                def record(module: Any, args: Any, output: Any, key: str = encoder.key) -> None:
                    given[key] = output[0]

                module.register_forward_hook(record)
    rows = initial_rows.rows(pipe, family, "cross:red dog", None, 0)
    for encoder in family.encoders:
        tokenizer = getattr(pipe, encoder.tokenizer)
        end = (
            tokenizer(" red dog").input_ids[-1]
            != tokenizer(" red dog", add_special_tokens=False).input_ids[-1]
        )
        states = given[encoder.key][: len(given[encoder.key]) - end]
        assert torch.equal(rows[encoder.key], states[-2:]), encoder.key


def test_the_mean_is_that_of_words() -> None:
    """Rows beyond the tokenizer's length are spare, and say nothing of words."""
    pipe = tiny.build("qwen_image")
    family, count = families.of_name("qwen_image"), len(pipe.tokenizer)
    assert family is not None
    weight = pipe.text_encoder.get_input_embeddings().weight.detach()
    assert len(weight) > count
    weight[count:] = 100
    (rows,) = initial_rows.rows(pipe, family, "mean", None, 0).values()
    assert np.allclose(rows.numpy(), weight[:count].numpy().mean(axis=0, dtype=np.float64), atol=1e-6)


def test_captions_begin_with_as_many_zeros_as_in_the_papers_code() -> None:
    """Exponential with a mean of 2, rounded down, at most 15: its survival function by halves."""
    drawn = np.array([trainer._pads(float(each)) for each in np.linspace(0, 1, 100_000, endpoint=False)])
    for count in range(1, 16):
        assert (drawn >= count).mean() == pytest.approx(math.exp(-count / 2), abs=2e-5)
    assert drawn.max() == 15


def test_zero_pads_are_rows_of_zeros_before_the_caption(
    dti: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample's caption begins with a number drawn for it; the word learned is another one, and remembers it."""
    tiny.build("sana").save_pretrained(tmp_path / "model")
    said: list[str] = []
    family = families.of_name("sana")
    assert family is not None
    encode = family.code.encode

    def record(pipe: Any, prompts: Sequence[str], frames: Any) -> Any:
        said.extend(prompts)
        ids = pipe.tokenizer.convert_tokens_to_ids([trainer.PAD])
        if prompts[0].startswith(trainer.PAD):
            assert not pipe.text_encoder.get_input_embeddings()(torch.tensor([ids])).any()
        return encode(pipe, prompts, frames)

    recoded(monkeypatch, family, encode=record)
    options = ("--token", "<dog>", "--init", "dog", "--steps", 4, "--batch-size", 2, "--resolution", 32)
    photos = bundled.photos("dog")[0].parent
    (tmp_path / "one.toml").write_text('templates = ["a photo of {}"]')
    files = {}
    for pads in ("--zero-pad", "--no-zero-pad"):
        said.clear()
        files[pads] = tmp_path / f"{pads}.safetensors"
        outcome = dti(
            "train",
            photos,
            *options,
            "-o",
            files[pads],
            "--model",
            tmp_path / "model",
            pads,
            "--config",
            tmp_path / "one.toml",
        )
        assert outcome.code == 0, outcome.err
        counts = [text.count(trainer.PAD) for text in said]
        assert all(text.endswith("a photo of <dog>") for text in said)
        looked, drawn = counts[:-8], counts[-8:]
        assert set(looked) == {15 if pads == "--zero-pad" else 0}
        assert (len(set(drawn)) > 1) is (pads == "--zero-pad")
    words = [token_reading.read(file) for file in files.values()]
    assert not torch.equal(*(word.vectors["gemma2_2b"] for word in words))
    assert [word.metadata["dti.zero_pad"] for word in words] == ["True", "False"]
