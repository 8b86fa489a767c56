"""Vocabulary statistics: how long a model's embedding rows are, and where a learned vector lies among them.

Everything is computed in float32, piece by piece. Live rows are those that words have: spare rows (index >= the
tokenizer's length) and zero rows are left out (arXiv:2512.13672, section 3).
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dticli import spelling, sphere
from dticli.errors import InputError, ModelError, UsageError
from dticli.models.embeddings import Table

PERCENTILES = (1, 5, 25, 75, 95, 99)
BINS = 40
CENTRAL = (0.5, 99.5)
"""Percentiles between which a norm counts as the vocabulary's own.

The central 99 %: minimum and maximum would hang on single odd rows, and a number of standard deviations would
presume a bell, which tables with a heavy tail of rare words are not.
"""
_CHUNK = 2**20


@dataclass(frozen=True)
class Summary:
    """The lengths of a table's live rows.

    Attributes:
        rows: all rows of the table.
        spare: rows beyond the tokenizer's length.
        zero: rows of words that hold only zeros.
        std: of the population.
        percentiles: percent -> length, interpolated linearly.
        argmin, argmax: words of the shortest and the longest row.
        counts, edges: histogram in bins of equal size from min to max.
    """

    encoder: str
    width: int
    rows: int
    spare: int
    zero: int
    min: float
    mean: float
    median: float
    max: float
    std: float
    percentiles: Mapping[int, float]
    argmin: str
    argmax: str
    counts: tuple[int, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Neighbour:
    """A word of the vocabulary and the cosine of its row with a vector."""

    word: str
    cosine: float

    @property
    def name(self) -> str:
        """The word as a reader writes it."""
        return readable(self.word)


@dataclass(frozen=True)
class Close:
    """A word of the vocabulary and the distance of its row from a vector."""

    word: str
    distance: float

    @property
    def name(self) -> str:
        """The word as a reader writes it."""
        return readable(self.word)


@dataclass(frozen=True)
class Position:
    """Where a vector lies among a table's live rows.

    Attributes:
        norm: its length.
        percentile: percent of live rows that are shorter; rows of the same length count half.
        z_score: distance from their mean length in standard deviations.
        in_distribution: whether its length lies between the `CENTRAL` percentiles.
        nearest: words by falling cosine.
        closest: words by growing distance, which are other ones where the vector is longer than words are.
    """

    norm: float
    percentile: float
    z_score: float
    in_distribution: bool
    nearest: tuple[Neighbour, ...]
    closest: tuple[Close, ...]


def readable(piece: str) -> str:
    """A tokenizer's piece without its marks of word starts and ends."""
    return piece.removesuffix("</w>").lstrip("▁Ġ")


def live_norms(weight: Tensor, vocabulary_size: int) -> Tensor:
    """Lengths of the rows that words can have, (live,), float32 on the CPU.

    Args:
        weight: (rows, width), any float dtype and device; rows >= `vocabulary_size` are spare.
        vocabulary_size: length of the base tokenizer, without words added to it.

    Raises:
        ModelError: a row holds NaN or inf, or none is live.
    """
    norms = _norms(weight, vocabulary_size)
    return norms[norms > 0]


def summary(table: Table) -> Summary:
    """Summarise the lengths of a table's live rows.

    Raises:
        ModelError: as `live_norms`.
    """
    norms = _norms(table.rows, len(table.words))
    words = (norms > 0).nonzero()[:, 0]
    live = norms[words].double()
    low, high = live.aminmax()
    counts, edges = torch.histogram(live, BINS)
    return Summary(
        encoder=table.encoder,
        width=table.width,
        rows=len(table.rows),
        spare=len(table.rows) - len(norms),
        zero=len(norms) - len(live),
        min=low.item(),
        mean=live.mean().item(),
        median=_percentile(live, 50),
        max=high.item(),
        std=live.std(correction=0).item(),
        percentiles={percent: _percentile(live, percent) for percent in PERCENTILES},
        argmin=table.words[int(words[live.argmin()])],
        argmax=table.words[int(words[live.argmax()])],
        counts=tuple(map(int, counts.tolist())),
        edges=tuple(edges.tolist()),
    )


def magnitude(norms: Summary | Tensor, rule: str) -> float:
    """The length a rule asks for.

    Args:
        norms: a summary, or lengths of live rows, (live,).
        rule: `mean`, `median`, `min`, `max`, a length such as `0.4`, or a multiple of the mean such as `2x`.

    Raises:
        UsageError: another rule, or a number that is not positive.
    """
    try:
        statistic, factor = spelling.length(rule)
    except ValueError as error:
        raise UsageError(f"magnitude {rule!r}: {error}") from None
    return factor * _statistic(norms, statistic) if statistic else factor


def position(vector: Tensor, table: Table, k: int = 8) -> Position:
    """Where one vector, (width,), lies among a table's live rows; see `positions`."""
    return positions(vector[None], table, k)[0]


def positions(vectors: Tensor, table: Table, k: int = 8) -> tuple[Position, ...]:
    """Where vectors lie among a table's live rows, in three passes over the table for all of them.

    Args:
        vectors: (n, width), of any length but zero.
        k: how many words to name.

    Raises:
        InputError: the widths differ.
        ModelError: as `live_norms`.
        NumericalError: a vector is zero, or holds NaN or inf; names the row.
    """
    if vectors.shape[1] != table.width:
        raise InputError(
            f"vectors of width {vectors.shape[1]}: expected {table.width} as in {table.encoder}; "
            "use the model they were learned on"
        )
    vectors = vectors.detach().float().cpu()
    units = sphere.normalize(vectors)
    norms = _norms(table.rows, len(table.words))
    live = norms[norms > 0].double()
    lengths = vectors.norm(dim=1).double()
    low, high = (_percentile(live, percent) for percent in CENTRAL)
    z_scores = (lengths - live.mean()) / live.std(correction=0)
    nearest = _best(table, norms, len(vectors), k, lambda rows, lengths: units @ rows.T / lengths)
    # By 2 v.r - r.r, since the vector's own square is the same for all rows.
    closest = _best(
        table, norms, len(vectors), k, lambda rows, lengths: 2 * vectors @ rows.T - lengths.square()
    )
    return tuple(
        Position(
            norm=length.item(),
            percentile=_rank(live, length),
            z_score=z_score.item(),
            in_distribution=low <= length.item() <= high,
            nearest=tuple(Neighbour(word, cosine) for word, cosine in parallel),
            closest=tuple(Close(word, max(length.item() ** 2 - score, 0.0) ** 0.5) for word, score in near),
        )
        for length, z_score, parallel, near in zip(lengths, z_scores, nearest, closest, strict=True)
    )


def fingerprint(tables: Iterable[Table]) -> str:
    """SHA-256, in hexadecimal, over the signs of each table's rows of words, in order.

    Signs survive rounding, so the same model gives the same fingerprint in fp32, bf16 and fp16, and a finetune with
    other rows another one.
    """
    digest = hashlib.sha256()
    for table in tables:
        for _, chunk in _chunks(table.rows[: len(table.words)]):
            # Row by row, so that it does not matter how many are packed at once.
            digest.update(np.packbits(chunk.signbit().numpy(), axis=1).tobytes())
    return digest.hexdigest()


def row_of(table: Table, word: str) -> Tensor | None:
    """The row of a word as it occurs inside a sentence, (width,) float32, or None if it is not one piece."""
    for piece in (f"{word}</w>", f"▁{word}", f"Ġ{word}", word):
        if word and piece in table.words:
            return table.rows[table.words.index(piece)].float()
    return None


def _chunks(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Pieces of a table as float32 on the CPU, each valid until the next, with the index of their first row."""
    step = max(1, _CHUNK // weight.shape[1])
    # One buffer for all pieces: a fresh one each fragments the heap until the whole table is in it.
    buffer = torch.empty(min(step, len(weight)), weight.shape[1])
    for start in range(0, len(weight), step):
        rows = weight[start : start + step].detach()
        # Copied even where they are float32 already: where a file puts them decides how sums are rounded.
        yield start, buffer[: len(rows)].copy_(rows)


def _norms(weight: Tensor, vocabulary_size: int) -> Tensor:
    """Lengths of the rows of all words, zero rows included, (vocabulary,)."""
    norms = torch.empty(min(vocabulary_size, len(weight)))
    for start, chunk in _chunks(weight[:vocabulary_size]):
        norms[start : start + len(chunk)] = chunk.norm(dim=1)
    if not norms.isfinite().all():
        row = int((~norms.isfinite()).nonzero()[0])
        raise ModelError(f"row {row} of the embedding table holds NaN or inf: download the model again")
    if not norms.any():
        raise ModelError(
            "the embedding table holds only zeros: expected rows of words; download the model again"
        )
    return norms


def _percentile(norms: Tensor, percent: float) -> float:
    return norms.quantile(percent / 100).item()


def _statistic(norms: Summary | Tensor, name: str) -> float:
    if isinstance(norms, Summary):
        return getattr(norms, name)
    return _percentile(norms.double(), 50) if name == "median" else getattr(norms.double(), name)().item()


def _rank(norms: Tensor, length: Tensor) -> float:
    """Percent of `norms` below `length`, equal ones counting half."""
    below, equal = (norms < length).sum(), (norms == length).sum()
    return (100 * (below + equal / 2) / len(norms)).item()


def _best(
    table: Table, norms: Tensor, count: int, k: int, score: Callable[[Tensor, Tensor], Tensor]
) -> list[list[tuple[str, float]]]:
    """The `k` live words of the highest score, and their scores, for each of `count` vectors.

    Args:
        score: from rows and their lengths to (count, rows).
    """
    k = min(k, int((norms > 0).sum()))
    scores, words = torch.empty(count, 0), torch.empty(count, 0, dtype=torch.long)
    for start, chunk in _chunks(table.rows[: len(table.words)]):
        lengths = norms[start : start + len(chunk)]
        found = score(chunk, lengths).where(lengths > 0, -math.inf)
        scores = torch.cat([scores, found], dim=1)
        words = torch.cat([words, torch.arange(start, start + len(chunk)).expand_as(found)], dim=1)
        scores, best = scores.topk(min(k, scores.shape[1]), dim=1)
        words = words.gather(1, best)
    return [
        [(table.words[word], value) for word, value in zip(*pairs, strict=True)]
        for pairs in zip(words.tolist(), scores.tolist(), strict=True)
    ]
