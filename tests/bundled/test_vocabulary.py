"""The tokenizer: one id a word, and no row that is neither spoken nor silent."""

from collections import Counter
from random import Random

import pytest
from transformers import CLIPTokenizer

from dticli.bundled.recipe import vocabulary
from dticli.bundled.world import grammar

CAPTIONS = 16_000


@pytest.fixture(scope="module")
def words():
    """Every word of the grammar."""
    return grammar.every_caption_word()


@pytest.fixture(scope="module")
def tokens(words):
    """The tokenizer over all words."""
    return vocabulary.tokenizer(words)


@pytest.fixture(scope="module")
def uses(tokens):
    """How often each id occurs in captions the text encoder reads."""
    random = Random(7)
    captions = [
        grammar.caption(grammar.training_scene(random, grammar.READING), random) for _ in range(CAPTIONS)
    ]
    return Counter(index for ids in tokens(captions).input_ids for index in ids)


def test_every_word_is_one_id(words, tokens):
    """No word is cut into pieces, in front, in the middle or at the end of a prompt."""
    alphabetic = sorted(word for word in words if word.isalpha())
    ids = tokens(alphabetic, add_special_tokens=False).input_ids
    assert {len(of_word) for of_word in ids} == {1}
    assert tokens.convert_ids_to_tokens([of_word[0] for of_word in ids]) == [
        word + "</w>" for word in alphabetic
    ]


def test_the_vocabulary_is_large_and_bounded(words):
    """Hundreds of words, each of which can be learned."""
    assert 400 < len(words) <= 1_500


def test_every_spoken_word_occurs_in_captions(words, tokens, uses):
    """Every row that is not silent is used by captions, the rarest more than once in a thousand."""
    silent = set(vocabulary.silent_ids(tokens, words))
    rarest = min(uses[index] for index in range(len(tokens)) if index not in silent)
    assert rarest >= 2


def test_silent_ids_are_never_spoken(words, tokens, uses):
    """No caption yields a letter or a piece of a word."""
    assert not [index for index in vocabulary.silent_ids(tokens, words) if uses[index]]


def test_prompts_are_padded_and_pooled_at_the_true_eos(tokens):
    """Padding repeats the end of text, as Stable Diffusion's own tokenizer does, to 32 ids."""
    ids = tokens("a red dog", padding="max_length").input_ids
    assert len(ids) == 32
    assert ids[4:] == [tokens.eos_token_id] * 28
    assert tokens.pad_token_id == tokens.eos_token_id


def test_the_tokenizer_survives_its_files(tokens, tmp_path):
    """Written and read by the stock class, it cuts words the same."""
    tokens.save_pretrained(tmp_path)
    prompt = "on a striped blue and pink background, a pixel art of a tiny cat"
    assert CLIPTokenizer.from_pretrained(tmp_path)(prompt).input_ids == tokens(prompt).input_ids
