"""Tiny tokenizers of the kinds text-to-image models use, built from a word list alone.

Every printable character is in each vocabulary, so any prompt tokenises; every word of `WORDS` is one piece.
Special tokens stand where the public vocabularies have them: CLIP's end of text is the highest id and its
first id is `!`, T5 starts with padding, end and unknown, Qwen ends with its chat markers.
"""

import string
from collections.abc import Callable, Iterable
from itertools import pairwise

from tokenizers import processors
from transformers import (
    BertTokenizer,
    CLIPTokenizer,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

_WORDS = """
a an the of in on at to with and next by is this my one over under near like left right style
photo picture image painting drawing rendering sketch depiction close up cropped good bad dark bright
nice small large big tiny huge clean dirty cool weird old new
dog cat toy mug vase bear bird car robot house tree person man woman child chair bottle boat teapot
sticker plush statue animal object thing place
snow grass beach jungle city forest mountain river street table wooden floor sky night sunset garden
red blue green yellow white black purple pink golden brown
hat cap scarf crown glasses wearing holding riding sitting sleeping running jumping
watercolor cartoon pencil oil pixel art digital
"""
WORDS = tuple(_WORDS.split())
_PIPELINE_WORDS = """
system user assistant
Describe detailing color shape size texture quantity text spatial relationships objects background
You are designed generate superior images degree alignment based textual prompts or Prompt Start
"""
PIPELINE_WORDS = tuple(_PIPELINE_WORDS.split())
"""Words that Qwen-Image and Lumina 2 put before a prompt; single pieces in the public Qwen vocabulary, and so
Qwen-Image's 34 tokens, which it counts and cuts off, are 34 here."""
CHARACTERS = string.digits + string.ascii_letters + string.punctuation

CLIP_LENGTH = 77
T5_SPARE_ROWS = 28
"""Rows of the public T5-XXL table beyond its tokenizer: 32128 - 32100."""
UMT5_SPARE_ROWS = 84
"""Rows of the public UMT5-XXL table beyond its tokenizer: 256384 - 256300."""
QWEN3_SPARE_ROWS = 267
"""Rows of the public Qwen3-4B table beyond its tokenizer: 151936 - 151669."""
QWEN25_SPARE_ROWS = 399
"""Rows of the public Qwen2.5-VL-7B table beyond its tokenizer: 152064 - 151665."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
"""Qwen3's way of writing a conversation, without tools."""


MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set mark = {'system': 'SYSTEM_PROMPT', 'user': 'INST'}[message.role] %}"
    "[{{ mark }}]{% for part in message.content %}{{ part.text }}{% endfor %}[/{{ mark }}]"
    "{% endfor %}"
)


def clip_tokenizer(*, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's byte-level pairs; `pad_token="!"` is id 0, as in SD2 and in SDXL's second tokenizer."""
    merges = _merges((*word[:-1], word[-1] + "</w>") for word in WORDS)
    letters = _byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *_joined(merges)]
    vocab = _numbered([*pieces, "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=CLIP_LENGTH)


def t5_tokenizer(*, length: int = 512) -> T5Tokenizer:
    """T5's unigrams with its hundred sentinels; also stands for UMT5."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [("▁" + word, -4.0) for word in WORDS]
    letters = [("▁", -2.0), *((letter, -8.0) for letter in CHARACTERS)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    return T5Tokenizer(vocab=[*special, *letters, *words, *sentinels], model_max_length=length)


def gemma_tokenizer() -> GemmaTokenizer:
    """Gemma's pairs with bytes to fall back on; a word is known with and without its leading space."""
    merges = _spaced_merges("▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    fallback = [f"<0x{number:02X}>" for number in range(256)]
    vocab = _numbered([*special, *fallback, "\n", "▁", *CHARACTERS, *_joined(merges)])
    return GemmaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, model_max_length=8192)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's byte-level pairs, its markers and its chat template; words with and without a space."""
    merges = _spaced_merges("Ġ")
    vocab = _numbered([*_byte_letters(), *_joined(merges), "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=131072,
    )
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Mistral 3's byte-level pairs, its template without pictures, and padding on the left."""
    merges, marks = _spaced_merges("Ġ"), ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    marks += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"]
    vocab = _numbered([*marks, *_byte_letters(), *_joined(merges)])
    backend = Qwen2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer
    backend.add_special_tokens(marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=MISTRAL_TEMPLATE,
        model_max_length=131072,
    )


def glm_tokenizer() -> PreTrainedTokenizerFast:
    """GLM-4's byte-level pairs, with two marks before every text and padding before these."""
    merges, start, pad = _spaced_merges("Ġ"), ("[gMASK]", "<sop>"), "<|endoftext|>"
    vocab = _numbered([*_byte_letters(), *_joined(merges), pad, *start])
    backend = Qwen2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer
    backend.add_special_tokens([pad, *start])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{' '.join(start)} $A", special_tokens=[(mark, vocab[mark]) for mark in start]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=pad, pad_token=pad, padding_side="left", model_max_length=131072
    )


def bert_tokenizer() -> BertTokenizer:
    """BERT's word pieces, lower case only."""
    letters = sorted({letter.lower() for letter in CHARACTERS})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rest = [word for word in WORDS if len(word) > 1]
    vocab = _numbered([*special, *letters, *("##" + letter for letter in letters), *rest])
    return BertTokenizer(vocab=vocab, model_max_length=CLIP_LENGTH)


TOKENIZERS: dict[str, Callable] = {
    "clip": clip_tokenizer,
    "t5": t5_tokenizer,
    "gemma": gemma_tokenizer,
    "qwen": qwen_tokenizer,
    "mistral": mistral_tokenizer,
    "glm": glm_tokenizer,
    "bert": bert_tokenizer,
}


def _byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in the order of the public vocabularies: `!` first."""
    return list(bytes_to_unicode().values())


def _merges(words: Iterable[Iterable[str]]) -> list[tuple[str, str]]:
    """Pair merges, best first, after which every word is one piece.

    A word is first merged by what earlier words already added, as the tokenizer will do it; only what is left
    is then joined from the left. Later merges rank lower, so they cannot undo an earlier word.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = _merge(list(word), ranks)
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = _merge(pieces, ranks)
    return list(ranks)


def _spaced_merges(space: str) -> list[tuple[str, str]]:
    """Pair merges that know every word without and with a space before it."""
    words = [*WORDS, *PIPELINE_WORDS]
    return _merges([*words, *(space + word for word in words)])


def _merge(pieces: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: the best known pair is joined, until none is left."""
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        best = min(known, key=ranks.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return pieces


def _joined(merges: Iterable[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(left + right for left, right in merges))


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces)}


CLIP_EOS = len(clip_tokenizer()) - 1
"""Id of `<|endoftext|>`; the public configs say 2 instead, which makes CLIP pool at the highest id."""
