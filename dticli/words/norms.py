"""Vocabulary statistics: norms of a model's embedding rows, and where a learned vector lies among them.

Everything is computed with NumPy in double precision, in chunks; importing torch would take longer. Live rows are the rows of
tokens: spare rows (index >= the tokenizer's length) and zero rows are left out (arXiv:2512.13672, section 3).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from dticli import spelling
from dticli.errors import InputError, ModelError, NumericalError, UsageError
from dticli.models.embeddings import BFLOAT16, Table

PERCENTILES = (1, 5, 25, 75, 95, 99)
BINS = 40
CENTRAL = (0.5, 99.5)
"""Percentiles between which a norm counts as the vocabulary's own.

The central 99 %: minimum and maximum would hang on single odd rows, and a number of standard deviations would
presume a bell, which tables with a heavy tail of rare words are not.
"""
_CHUNK = 2**18


@dataclass(frozen=True)
class Summary:
    """Statistics of the norms of a table's live rows.

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
    """A token without its markers of word starts and ends."""
    return piece.removesuffix("</w>").lstrip("▁Ġ")


def live_norms(table: Table) -> np.ndarray:
    """Norms of the live rows, (live,) float64, each rounded to float32.

    Raises:
        ModelError: a row holds NaN or inf, or none is live.
    """
    norms = _norms(table)
    return norms[norms > 0]


def summary(table: Table) -> Summary:
    """Compute the statistics of a table's live rows.

    Raises:
        ModelError: as `live_norms`.
    """
    norms = _norms(table)
    words = np.flatnonzero(norms)
    live = norms[words]
    counts, edges = np.histogram(live, BINS)
    return Summary(
        encoder=table.encoder,
        width=table.width,
        rows=len(table.rows),
        spare=len(table.rows) - len(norms),
        zero=len(norms) - len(live),
        min=float(live.min()),
        mean=float(live.mean()),
        median=float(np.median(live)),
        max=float(live.max()),
        std=float(live.std()),
        percentiles={percent: float(np.percentile(live, percent)) for percent in PERCENTILES},
        argmin=table.words[int(words[live.argmin()])],
        argmax=table.words[int(words[live.argmax()])],
        counts=tuple(map(int, counts)),
        edges=tuple(map(float, edges)),
    )


def magnitude(norms: Summary, rule: str) -> float:
    """The norm that a rule asks for.

    Args:
        rule: `mean`, `median`, `min`, `max`, a length such as `0.4`, or a multiple of the mean such as `2x`.

    Raises:
        UsageError: another rule, or a number that is not positive.
    """
    try:
        statistic, factor = spelling.length(rule)
    except ValueError as error:
        raise UsageError(f"magnitude {rule!r}: {error}") from None
    return factor * getattr(norms, statistic) if statistic else factor


def position(vector: np.ndarray, table: Table, k: int = 8) -> Position:
    """Where one vector, (width,), lies among a table's live rows; see `positions`."""
    return positions(vector[None], table, k)[0]


def positions(vectors: np.ndarray, table: Table, k: int = 8) -> tuple[Position, ...]:
    """Where vectors lie among a table's live rows, in one pass over the table.

    Args:
        vectors: (n, width), none of them zero.
        k: number of nearest and closest words.

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
    vectors = vectors.astype(np.float64)
    lengths = _lengths(vectors)
    usable = (lengths > 0) & np.isfinite(lengths)
    if not usable.all():
        row = int(usable.argmin())
        raise NumericalError(
            f"vector {row} is zero, or holds NaN or inf: expected a direction; train the word again"
        )
    nearest, closest = _Best(len(vectors), k), _Best(len(vectors), k)
    measured = []
    for start, rows, norms in _measured(table):
        live = np.flatnonzero(norms)
        norms = norms[live]
        products = (vectors @ rows.T)[:, live]
        nearest.offer(products / lengths[:, None] / norms, start + live)
        # By 2 v.r - r.r, since the vector's own square is the same for all rows.
        closest.offer(2 * products - norms**2, start + live)
        measured.append(norms)
    norms = np.concatenate(measured)
    low, high = np.percentile(norms, CENTRAL)
    with np.errstate(divide="ignore", invalid="ignore"):
        z_scores = (lengths - norms.mean()) / norms.std()
    return tuple(
        Position(
            norm=float(length),
            percentile=_rank(norms, length),
            z_score=float(z_scores[row]),
            in_distribution=bool(low <= length <= high),
            nearest=tuple(Neighbour(table.words[word], cosine) for word, cosine in nearest.of(row)),
            closest=tuple(
                Close(table.words[word], max(float(length) ** 2 - score, 0.0) ** 0.5)
                for word, score in closest.of(row)
            ),
        )
        for row, length in enumerate(lengths)
    )


def fingerprint(tables: Iterable[Table]) -> str:
    """SHA-256, in hexadecimal, over the signs of each table's rows of words, in order.

    Signs survive rounding, so the same model gives the same fingerprint in fp32, bf16 and fp16, and a finetune with
    other rows another one.
    """
    digest = hashlib.sha256()
    for table in tables:
        for _, rows in _pieces(table):
            # Row by row, so that it does not matter how many are packed at once.
            digest.update(np.packbits(np.signbit(rows), axis=1).tobytes())
    return digest.hexdigest()


def row_of(table: Table, word: str) -> np.ndarray | None:
    """The row of a word as it occurs inside a sentence, (width,) float64, or None if it is not one piece."""
    for piece in (f"{word}</w>", f"▁{word}", f"Ġ{word}", word):
        if word and piece in table.words:
            place = table.words.index(piece)
            return _wide(table.rows[place : place + 1])[0]
    return None


def _pieces(table: Table) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of words in pieces, float64, with the index of the first."""
    step = max(1, _CHUNK // table.width)
    for start in range(0, len(table.words), step):
        yield start, _wide(table.rows[start : min(start + step, len(table.words))])


def _wide(rows: np.ndarray) -> np.ndarray:
    """A table's rows as float64."""
    if rows.dtype == BFLOAT16:
        rows = np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)
    return rows.astype(np.float64)


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Length of each row, (n,) float64, rounded to float32, so that it does not matter in which order squares are summed."""
    with np.errstate(over="ignore"):
        return np.sqrt(np.einsum("ij,ij->i", rows, rows)).astype(np.float32).astype(np.float64)


def _norms(table: Table) -> np.ndarray:
    """Lengths of the rows of all words, zero rows included, (vocabulary,)."""
    return np.concatenate([lengths for _, _, lengths in _measured(table)])


def _measured(table: Table) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """As `_pieces`, and the rows' lengths.

    Raises:
        ModelError: as `live_norms`.
    """
    any_live = False
    for start, rows in _pieces(table):
        lengths = _lengths(rows)
        if not np.isfinite(lengths).all():
            row = start + int(np.isfinite(lengths).argmin())
            raise ModelError(f"row {row} of the embedding table holds NaN or inf: download the model again")
        any_live |= bool(lengths.any())
        yield start, rows, lengths
    if not any_live:
        raise ModelError(
            "the embedding table holds only zeros: expected rows of words; download the model again"
        )


def _rank(norms: np.ndarray, length: float) -> float:
    """Percent of `norms` below `length`, equal ones counting half."""
    below, equal = (norms < length).sum(), (norms == length).sum()
    return float(100 * (below + equal / 2) / len(norms))


@dataclass
class _Best:
    """The `k` rows of the highest score for each of `count` vectors, of those that were offered."""

    count: int
    k: int
    scores: np.ndarray = field(init=False)
    rows: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.scores, self.rows = np.empty((self.count, 0)), np.empty((self.count, 0), np.int64)

    def offer(self, scores: np.ndarray, rows: np.ndarray) -> None:
        """Scores, (count, n), of these rows, (n,)."""
        self.scores = np.concatenate([self.scores, scores], axis=1)
        self.rows = np.concatenate([self.rows, np.broadcast_to(rows, scores.shape)], axis=1)
        best = np.argsort(-self.scores, axis=1, kind="stable")[:, : self.k]
        self.scores, self.rows = (np.take_along_axis(each, best, axis=1) for each in (self.scores, self.rows))

    def of(self, vector: int) -> Iterator[tuple[int, float]]:
        """Row and score, the best first."""
        return zip(self.rows[vector].tolist(), self.scores[vector].tolist(), strict=True)
