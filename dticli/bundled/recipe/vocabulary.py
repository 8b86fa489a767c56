"""The tokenizer: every word the grammar can say is one id, and every row of the vocabulary is used.

CLIP's tokenizer builds words by merging letters, so some pieces of words must have ids too. Captions with merge dropout
(Provilkov et al., arXiv:1910.13267) spell words in pieces now and then: letters and pieces are read in training as well.
"""

from collections import Counter

from transformers import CLIPTokenizer

LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
PUNCTUATION = (",", "-", ".")


def tokenizer(words: set[str]) -> CLIPTokenizer:
    """A CLIPTokenizer in which each of `words` (lower case) is one id.

    Digits stand alone in CLIP's splitting, so `3d` is two ids.
    """
    alphabetic = {word for word in words if word.isalpha()}
    merges = merges_for(alphabetic)
    letters = sorted({letter for word in alphabetic for letter in word})
    singles = [*(letter + WORD_END for letter in letters), *(sign + WORD_END for sign in (*PUNCTUATION, "3"))]
    pieces = [*letters, *singles, *("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
        merges=merges,
        model_max_length=LENGTH,
    )


def merges_for(words: set[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word is one piece."""
    split = [_letters(word) for word in sorted(words)]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for pieces in split for pair in zip(pieces, pieces[1:], strict=False)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]
    return merges


def _letters(word: str) -> list[str]:
    return [*word[:-1], word[-1] + WORD_END]


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
