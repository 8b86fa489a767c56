"""What the length of a row does inside a text encoder, measured: the paper's analysis, on any encoder and word.

Rows are put in the place of words in sentences of random words, and read where the first block's attention reads them and
after every block. Nothing is presumed about the encoder: added, relative and rotary positions, pre-norm and post-norm blocks
show in the figures.

Source: arXiv:2512.13672, Lemmas 1 and 2, Proposition 1, and the probes of its analysis.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dticli import sphere
from dticli.errors import ModelError
from dticli.models.embeddings import Table
from dticli.randomness import Key
from dticli.words.norms import live_norms
from dticli.words.placement import embedding_modules

MULTIPLES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
LONGEST = 77
SENTENCES, LEARNED_FROM, AT_ONCE = 24, 64, 16
PER_SENTENCE = 8
"""Places of a sentence that are read; the other words keep their lengths."""
HIDDEN, EPOCHS, BATCH, RATE = 128, 20, 256, 3e-3
FALLING = -0.5
"""Above this exponent a figure does not fall as 1/m would have it."""


@dataclass(frozen=True)
class ProbeReading:
    """What an encoder makes of rows of one length.

    Attributes:
        multiple: their length in mean lengths of the vocabulary.
        moved: how far what the first attention reads moves when the row changes its place, relative to its length.
        turned: degrees a block turns the row's state, mean over blocks.
        added: length of what all blocks add to the state, relative to what came in.
        growth: length of the state after the last block, relative to what came in.
        place_read: share of rows whose place a probe knows from what the first attention reads.
        place_encoded: the same from the encoded state, by a probe of its own.
    """

    multiple: float
    moved: float
    turned: float
    added: float
    growth: float
    place_read: float
    place_encoded: float

    def __str__(self) -> str:
        return (
            f"{self.multiple:11.2f}  {self.moved:5.2f}  {self.turned:6.1f}  {self.added:6.2f}  {self.growth:6.2f}  "
            f"{self.place_read:10.0%}  {self.place_encoded:13.0%}"
        )


@dataclass(frozen=True)
class Exponents:
    """The slopes of log figure over log length from the mean on; None where a figure is zero. 1/m has slope -1."""

    moved: float | None
    turned: float | None
    added: float | None


@dataclass(frozen=True)
class Probed:
    """An encoder's answer.

    Attributes:
        places: in which rows were put; a probe that knows nothing is right in one of so many.
        vocabulary: readings of the vocabulary's words at multiples of its mean length.
        words: label to reading, of learned words.
    """

    encoder: str
    blocks: int
    places: int
    vocabulary: tuple[ProbeReading, ...]
    exponents: Exponents
    words: Mapping[str, ProbeReading]

    def lines(self) -> Iterator[str]:
        yield f"{self.encoder}, probed: {self.blocks} blocks, {self.places} places"
        yield f"  {'norm / mean':>11}  moved  turned   added  growth  place read  place encoded"
        for reading in self.vocabulary:
            yield f"  {reading}  words of the vocabulary"
        for label, reading in self.words.items():
            yield f"  {reading}  {label}"
        laws = ", ".join(
            f"{name} {'nothing' if value is None else f'like m^{value:.2f}'}"
            for name, value in vars(self.exponents).items()
        )
        yield f"  with the norm m from the mean on: {laws}"
        attenuation = {
            None: "does not apply, since the first attention reads the same at every place",
            True: "holds",
            False: "does not hold",
        }[self.positional_attenuation]
        yield f"  measured: positional attenuation {attenuation}; residual stagnation " + (
            "holds" if self.residual_stagnation else "does not hold"
        )

    @property
    def positional_attenuation(self) -> bool | None:
        """Whether longer rows drown their place before the first attention; None where no place is added to them."""
        if self.exponents.moved is None:
            return None
        return self.exponents.moved < FALLING

    @property
    def residual_stagnation(self) -> bool:
        """Whether blocks add less, relatively, to longer rows."""
        return self.exponents.added is not None and self.exponents.added < FALLING


def probe(encoder: Any, tokenizer: Any, table: Table, words: Mapping[str, Tensor], seed: int = 0) -> Probed:
    """Measure an encoder with its vocabulary's rows at several lengths, and with the rows of words.

    Args:
        encoder: a transformers text encoder.
        tokenizer: its tokenizer, without added words.
        table: its vocabulary.
        words: label to rows, (vectors, width), at the length they have.

    Raises:
        ModelError: no blocks are found in it.
    """
    bench = Bench.of(encoder, tokenizer, table, seed)
    mean = float(live_norms(table).mean())
    learned = bench.observe(LEARNED_FROM, "learn")
    read_probe = fit(learned.read, learned.places, bench.places, seed)
    encoded_probe = fit(learned.states[:, -1], learned.places, bench.places, seed)

    def reading(rows: Tensor, multiple: float) -> ProbeReading:
        seen = bench.observe(SENTENCES, "test", rows)
        other = bench.observe(SENTENCES, "test", rows, shift=bench.places // 2)
        first, last = seen.states[:, 0], seen.states[:, -1]
        lengths = first.norm(dim=-1)
        units = sphere.normalize(seen.states)
        turned = torch.rad2deg(sphere.angle(units[:, 1:], units[:, :-1]))
        return ProbeReading(
            multiple=multiple,
            moved=((other.read - seen.read).norm(dim=-1) / seen.read.norm(dim=-1)).mean().item(),
            turned=turned.mean().item(),
            added=((last - first).norm(dim=-1) / lengths).mean().item(),
            growth=(last.norm(dim=-1) / lengths).mean().item(),
            place_read=_right(read_probe, seen.read, seen.places),
            place_encoded=_right(encoded_probe, last, seen.places),
        )

    units = sphere.normalize(table.tensor[bench.held_out].float())
    vocabulary = tuple(reading(units * mean * multiple, multiple) for multiple in MULTIPLES)
    return Probed(
        encoder=table.encoder,
        blocks=len(bench.blocks),
        places=bench.places,
        vocabulary=vocabulary,
        exponents=Exponents(*(slope(vocabulary, name) for name in ("moved", "turned", "added"))),
        words={
            label: reading(rows.float().cpu(), rows.float().norm(dim=1).mean().item() / mean)
            for label, rows in words.items()
        },
    )


def slope(readings: Sequence[ProbeReading], figure: str) -> float | None:
    """Least-squares slope of log figure over log multiple, from the vocabulary's mean on; None if a figure is zero."""
    points = [(math.log(each.multiple), getattr(each, figure)) for each in readings if each.multiple >= 1]
    if not all(value > 0 for _, value in points):
        return None
    x = torch.tensor([log for log, _ in points], dtype=torch.float64)
    y = torch.tensor([value for _, value in points], dtype=torch.float64).log()
    x = x - x.mean()
    return (x @ y / (x @ x)).item()


# Probes


def fit(features: Tensor, places: Tensor, count: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A network of one hidden layer that tells places, 0 to `count` - 1, from features, (n, width)."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        mean, std = features.mean(dim=0), features.std(dim=0) + 1e-6
        network = nn.Sequential(nn.Linear(features.shape[1], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, count))
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
        known = (features - mean) / std
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(known)).split(BATCH):
                loss = nn.functional.cross_entropy(network(known[batch]), places[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    network.requires_grad_(False)
    return lambda others: network((others - mean) / std).argmax(dim=1)


def _right(guess: Callable[[Tensor], Tensor], features: Tensor, places: Tensor) -> float:
    return (guess(features) == places).double().mean().item()


# The encoder at work


@dataclass(frozen=True)
class Seen:
    """Rows that were read.

    Attributes:
        places: of each, (n,).
        read: what the first block's first matrix was given, (n, width).
        states: what went into the first block, and what came out of every one, (n, blocks + 1, width).
    """

    places: Tensor
    read: Tensor
    states: Tensor


@dataclass(frozen=True)
class Bench:
    """An encoder, sentences for it, and where in it to look."""

    encoder: Any
    modules: Sequence[nn.Module]
    blocks: nn.ModuleList
    before: Sequence[int]
    after: Sequence[int]
    known: Tensor
    held_out: Tensor
    places: int
    seed: int

    @classmethod
    def of(cls, encoder: Any, tokenizer: Any, table: Table, seed: int) -> "Bench":
        before, after = _frame(tokenizer)
        limit = min(LONGEST, tokenizer.model_max_length, _limit(encoder))
        special = set(tokenizer.all_special_ids)
        live = table.tensor[: len(table.words)].float().norm(dim=1) > 0
        words = torch.tensor([index for index in live.nonzero()[:, 0].tolist() if index not in special])
        words = words[torch.randperm(len(words), generator=Key(seed, "probe words").generator())]
        half = len(words) // 2
        return cls(
            encoder=encoder,
            modules=embedding_modules(encoder),
            blocks=_blocks(encoder),
            before=before,
            after=after,
            known=words[:half],
            held_out=words[half : half + SENTENCES * PER_SENTENCE],
            places=limit - len(before) - len(after),
            seed=seed,
        )

    def sentences(
        self, count: int, purpose: str, rows: Tensor | None = None, shift: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Random sentences, where in them to look, and which rows stand there.

        Args:
            rows: (n, width), in turn; None looks at every word as it is.
            shift: moves all places by so many.

        Returns:
            ids (count, length), columns (count, places), and rows (count, places, width) or None.
        """
        generator = Key(self.seed, f"probe {purpose}").generator()
        middle = self.known[torch.randint(len(self.known), (count, self.places), generator=generator)]
        order = torch.rand(count, self.places, generator=generator).argsort(dim=1)
        ids = torch.cat([_repeat(self.before, count), middle, _repeat(self.after, count)], dim=1)
        if rows is None:
            return ids, order + len(self.before), None
        places = (order[:, :PER_SENTENCE] + shift) % self.places
        inserted = rows[torch.arange(places.numel()).reshape(places.shape) % len(rows)]
        return ids, places + len(self.before), inserted

    @torch.no_grad()
    def observe(self, count: int, purpose: str, rows: Tensor | None = None, shift: int = 0) -> Seen:
        """Encode `sentences`."""
        ids, columns, inserted = self.sentences(count, purpose, rows, shift)
        parts = []
        for start in range(0, count, AT_ONCE):
            some = slice(start, start + AT_ONCE)
            parts.append(self._encode(ids[some], columns[some], None if inserted is None else inserted[some]))
        read, states = (torch.cat(each) for each in zip(*parts, strict=True))
        return Seen(columns.flatten() - len(self.before), read, states)

    def _encode(self, ids: Tensor, columns: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is read, and the states, of one batch."""
        lines = torch.arange(len(ids))[:, None]
        device = next(self.encoder.parameters()).device
        with _inserted(self.modules, lines, columns, rows), _watched(self.blocks) as watched:
            self.encoder(input_ids=ids.to(device))
        states = torch.stack([watched.entered, *watched.left], dim=2)
        picked = [each[lines, columns].flatten(0, 1).float().cpu() for each in (watched.read, states)]
        return picked[0], picked[1]


class _Watched:
    """What passes through blocks: what the first is given and reads, and what each hands on."""

    entered: Tensor
    read: Tensor

    def __init__(self) -> None:
        self.left: list[Tensor] = []


@contextmanager
def _watched(blocks: nn.ModuleList) -> Iterator[_Watched]:
    """Watch one pass through blocks."""
    watched = _Watched()

    def entering(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        watched.entered = args[0] if args else named["hidden_states"]

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        watched.left.append(output[0] if isinstance(output, tuple) else output)

    def reading(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not hasattr(watched, "read"):
            watched.read = args[0]

    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [block.register_forward_hook(leaving) for block in blocks]
    handles += [
        module.register_forward_pre_hook(reading)
        for module in blocks[0].modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _inserted(
    modules: Sequence[nn.Module], lines: Tensor, columns: Tensor, rows: Tensor | None
) -> Iterator[None]:
    """Put rows, (lines, places, width), in the place of what embedding modules look up, scaled as they scale their own."""

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert rows is not None
        changed = output.clone()
        changed[lines, columns] = (rows * getattr(module, "embed_scale", 1.0)).to(output)
        return changed

    handles = [module.register_forward_hook(after) for module in modules if rows is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _blocks(encoder: Any) -> nn.ModuleList:
    """The blocks that text goes through: the longest list beside the embeddings, or the nearest one above them."""
    inside = embedding_modules(encoder)
    names = [name for name, module in encoder.named_modules() if any(module is each for each in inside)]
    for name in sorted(names, key=lambda each: -each.count(".")):
        parts = name.split(".")
        for depth in range(len(parts) - 1, -1, -1):
            around = encoder.get_submodule(".".join(parts[:depth]))
            found = [module for module in around.modules() if isinstance(module, nn.ModuleList)]
            if found:
                return max(found, key=len)
    raise ModelError(
        f"{type(encoder).__name__} has no list of blocks: expected a transformer; probe another model"
    )


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids a tokenizer puts before and after a sentence."""
    with_them, without = (tokenizer("a", add_special_tokens=special).input_ids for special in (True, False))
    start = next(i for i in range(len(with_them)) if with_them[i : i + len(without)] == without)
    return with_them[:start], with_them[start + len(without) :]


def _limit(encoder: Any) -> int:
    config = encoder.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or LONGEST


def _repeat(ids: Sequence[int], count: int) -> Tensor:
    return torch.tensor(ids, dtype=torch.long).expand(count, -1)
