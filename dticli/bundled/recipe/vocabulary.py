"""The tokenizer, in which every word of the grammar is one token.

CLIP's tokenizer merges the letters of a word, so letters and parts of words need ids too. Captions never contain these; their
rows are zero in the text encoder, and statistics of the vocabulary leave them out.
"""

from collections import Counter, defaultdict
from itertools import pairwise

from transformers import CLIPTokenizer

LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
SIGNS = (",", "-", "3")


def tokenizer(words: set[str]) -> CLIPTokenizer:
    """A CLIPTokenizer in which each alphabetic one of `words` (lower case) is one token.

    CLIP's tokenizer splits off digits, so `3d` is two tokens.
    """
    alphabetic = {word for word in words if word.isalpha()}
    merges = merges_for(alphabetic)
    inner = sorted({letter for word in alphabetic for letter in word[:-1]})
    final = sorted({word[-1] + WORD_END for word in alphabetic} | {sign + WORD_END for sign in SIGNS})
    pieces = [*inner, *final, *("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        model_max_length=LENGTH,
    )


def silent_ids(tokens: CLIPTokenizer, words: set[str]) -> list[int]:
    """Ids that do not occur in captions of `words`: letters and parts of words that are not words themselves."""
    spoken = {tokens.bos_token_id, tokens.eos_token_id}
    spoken.update(
        index for ids in tokens([*words, *SIGNS], add_special_tokens=False).input_ids for index in ids
    )
    return sorted(set(range(len(tokens))) - spoken)


def merges_for(words: set[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word is one token."""
    split = {word: [*word[:-1], word[-1] + WORD_END] for word in sorted(words)}
    holders: dict[tuple[str, str], set[str]] = defaultdict(set)
    counts: Counter[tuple[str, str]] = Counter()
    for word, pieces in split.items():
        _note(word, pieces, holders, counts, 1)
    merges = []
    while counts:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word in sorted(holders[best]):
            _note(word, split[word], holders, counts, -1)
            split[word] = _merge(split[word], best)
            _note(word, split[word], holders, counts, 1)
    return merges


def _note(word: str, pieces: list[str], holders: dict, counts: Counter, sign: int) -> None:
    """Add (sign 1) or remove (sign -1) a word's neighbouring pairs."""
    for pair in pairwise(pieces):
        counts[pair] += sign
        (holders[pair].add if sign > 0 else holders[pair].discard)(word)
        if not counts[pair]:
            del counts[pair]


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
