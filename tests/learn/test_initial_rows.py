"""Where words start."""

from types import SimpleNamespace

import pytest
from transformers import CLIPTokenizer

from dticli.errors import UsageError
from dticli.learn import initial_rows
from dticli.models.families import CLIP_L


def test_a_word_the_tokenizer_does_not_know_is_refused() -> None:
    """A vocabulary without the letters of a word turns it into end-of-text; that is no place to start from."""
    vocabulary = {"d": 0, "o": 1, "g</w>": 2, "do": 3, "dog</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}
    pipe = SimpleNamespace(tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[("d", "o"), ("do", "g</w>")]))
    assert initial_rows.pieces(pipe, CLIP_L, " dog dog ") == [4, 4]
    with pytest.raises(UsageError, match="does not know 'dog cat'"):
        initial_rows.pieces(pipe, CLIP_L, "dog cat")
