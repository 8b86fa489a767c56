"""Words in a pipeline: their rows per encoder, and how these take effect.

The base model is never changed: forward hooks on the embedding modules insert the rows into their output, and the tokenizers
that know the new words are copies, which are removed when the context closes.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from dticli.errors import InputError, ModelError, UsageError
from dticli.models.embeddings import Table, table_of
from dticli.models.families import Encoder, Family
from dticli.words.texts import holds


class Word(Protocol):
    """A placeholder such as `<dog>` with n rows in each encoder's embedding table."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> Mapping[str, Tensor]:
        """Encoder key to (n, width) float32, computed anew at every access so that gradients flow."""
        ...


@dataclass(frozen=True)
class FreeWord:
    """A word with plain rows: loaded from a file, or learned by ordinary Textual Inversion."""

    name: str
    rows: Mapping[str, Tensor]


@dataclass(frozen=True)
class DirectionalWord:
    """A word whose rows are magnitude times direction; by default, only the direction is trained.

    Attributes:
        direction: encoder key to unit rows, (n, width), float32.
        log_magnitude: encoder key to the logarithm of the row norms, (n, 1), float32.
    """

    name: str
    direction: Mapping[str, Tensor]
    log_magnitude: Mapping[str, Tensor]

    @property
    def rows(self) -> Mapping[str, Tensor]:
        return {key: self.log_magnitude[key].exp() * rows for key, rows in self.direction.items()}


def vector_names(name: str, count: int) -> list[str]:
    """`<dog>`, `<dog>__1`, ...: the names of a word's vectors in our tokenizers.

    Not `<dog>_1` as in diffusers: its pipelines would expand a prompt that is already expanded.
    """
    return [name, *(f"{name}__{index}" for index in range(1, count))]


def size_of(word: Word) -> int:
    """Number of vectors of a word, the same in every encoder."""
    return len(next(iter(word.rows.values())))


@dataclass
class _Rows:
    """The rows for one encoder and its last input ids; shared by the hooks of its modules.

    Attributes:
        ids: (spellings, vectors); a vector's name may be a token with and without a leading space.
        seen: the last input ids.
        marks: numbers to return instead of hidden states, one for each vector, the last for everything else; None: return states.
    """

    key: str
    words: Sequence[Word]
    ids: Tensor
    seen: Tensor | None = field(default=None, repr=False)
    marks: Tensor | None = field(default=None, repr=False)

    def where(self) -> Tensor:
        """Which vector is at each position of the last input, (batch, length, vectors), bool."""
        assert self.seen is not None
        self.ids = self.ids.to(self.seen.device)  # once: an encoder stays where it is
        return (self.seen[..., None, None] == self.ids).any(dim=-2)

    def before(self, module: nn.Embedding, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keep the ids; replace added ids beyond the table by an existing one for the lookup."""
        self.seen = args[0]
        return (args[0].clamp(max=module.num_embeddings - 1), *args[1:])

    def after(self, module: nn.Embedding, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Insert our rows at our ids, scaled as the module scales its own rows (Gemma: sqrt(width))."""
        if not self.words:
            return output
        rows = torch.cat([word.rows[self.key] for word in self.words]).to(output.device, module.weight.dtype)
        scale = getattr(module, "embed_scale", None)
        if scale is not None:
            rows = rows * torch.as_tensor(scale).to(rows)
        match = self.where()
        # Not rows[...]: on the CPU, its gradient is summed in the order in which threads happen to finish.
        chosen = nn.functional.embedding(match.int().argmax(dim=-1), rows).to(output.dtype)
        return torch.where(match.any(dim=-1, keepdim=True), chosen, output)

    def encoded(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Replace the encoder's hidden states by marks, if there are any."""
        if self.marks is None:
            return output
        match = self.where()
        vector = torch.where(match.any(dim=-1), match.int().argmax(dim=-1), -1)
        return _with_states(output, self.marks.to(vector.device)[vector])


def _with_states(output: Any, states: Tensor) -> Any:
    """An encoder's output with other states, (batch, length), the same in all layers and channels, and zero pooled states."""
    match output:
        case Tensor() if output.ndim == 3 and output.shape[:2] == states.shape:
            return states[..., None].to(output).expand_as(output)
        case Tensor() if output.is_floating_point():
            return torch.zeros_like(output)
        case Mapping():
            return type(output)(**{name: _with_states(each, states) for name, each in output.items()})
        case tuple():
            return tuple(_with_states(each, states) for each in output)
        case _:
            return output


@dataclass(frozen=True)
class Placement:
    """Words placed in a pipeline by `place`."""

    pipe: Any
    words: Sequence[Word]
    encoders: Sequence[Encoder]
    rows: Mapping[str, _Rows]
    aliases: Sequence[str]

    def expand(self, text: str) -> str:
        """A text with all words expanded to the names of their vectors, as the pipeline's tokenizers do with their input."""
        return _written_out(text, {word.name: size_of(word) for word in self.words})

    def addressed(self, text: str, word: Word) -> str:
        """A text with the word's name replaced by its alias, which identifies it among words of the same name."""
        alias = self.aliases[self._place(word)]
        return text if alias == word.name else _named(word.name, size_of(word)).sub(alias, text)

    def _place(self, word: Word) -> int:
        """Index of the word, by identity, because two words may have the same name."""
        return next(place for place, each in enumerate(self.words) if each is word)

    @torch.no_grad()
    def require_read(self, family: Family, texts: Iterable[str], words: Sequence[Word] | None = None) -> None:
        """Check that the denoiser receives the states of all vectors of the words in every text.

        A pipeline may drop states that an encoder computes, beyond a length limit or together with a template. If the denoiser
        only gets a pooled state of an encoder, the vectors must be in the encoder's input. Layers run only for the first text of
        each length.

        Args:
            words: to look for in the texts; default: all.

        Raises:
            InputError: a vector of a word is dropped from a text; names the word.
            UsageError: a word has more vectors than the model reads.
        """
        from dticli.models.families.shape import Frame

        side = (family.multiple, family.multiple)
        frame = Frame(side, (0, 0), side)

        def read(text: str, word: Word) -> int:
            with self._marking(word):
                conditioning = family.code.encode(self.pipe, [self.addressed(text, word)], [frame])
                return self._counted(torch.cat([each.flatten() for each in _tensors(conditioning)]))

        with self._reading():
            for text in dict.fromkeys(texts):
                for word in self.words if words is None else words:
                    size = size_of(word)
                    if not holds(text, word.name) or read(text, word) == size:
                        continue
                    if (most := read(word.name, word)) < size:
                        raise UsageError(
                            f"{word.name} has {size} vectors, but the model receives only {most} of them, even without other "
                            f"text: expected fewer; learn it with fewer --vectors"
                        )
                    raise InputError(
                        f"the model does not receive all of {word.name} in {text[:60]!r}: expected it before the text is "
                        f"truncated; shorten the text or move the word to the front"
                    )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Inside the context, encoders only look up embeddings; their output has the right shape, but no other use."""
        text_encoders = [getattr(self.pipe, each.component) for each in self.encoders]
        # Offloading libraries put a `forward` of their own there.
        own = [vars(each).get("forward") for each in text_encoders]
        try:
            for text_encoder in text_encoders:
                text_encoder.forward = _Reader(text_encoder)
            yield
        finally:
            for text_encoder, forward in zip(text_encoders, own, strict=True):
                del text_encoder.forward
                if forward is not None:
                    text_encoder.forward = forward

    @contextmanager
    def _marking(self, word: Word) -> Iterator[None]:
        """Give each vector of a word in each encoder a different number as its state, and everything else another number."""
        start = sum(size_of(other) for other in self.words[: self._place(word)])
        for place, rows in enumerate(self.rows.values()):
            marks = torch.zeros(rows.ids.shape[-1] + 1)
            marks[start : start + size_of(word)] = torch.arange(1.0, size_of(word) + 1)
            # Negative, because masks, sizes and positions are not; of few bits, exact in any precision.
            rows.marks = -torch.where(marks > 0, marks, size_of(word) + 1) / 512**place
        try:
            yield
        finally:
            for rows in self.rows.values():
                rows.marks = None

    def _counted(self, conditioning: Tensor) -> int:
        """How many vectors of the marked word are in a flat conditioning tensor, the minimum over encoders."""
        conditioning = conditioning.cpu()
        counts = []
        for rows in self.rows.values():
            assert rows.marks is not None
            others = rows.marks[-1]
            own = rows.marks != others
            # torch.isin would sort the conditioning, which is long; marks are few.
            found = torch.stack([(conditioning == mark).any() for mark in rows.marks])
            if not found.any():
                found[:-1] = rows.where().flatten(0, 1).any(dim=0).cpu()
            counts.append(int((found & own).sum()))
        return min(counts)


class _Reader:
    """Replaces a text encoder's `forward`: runs it for the first input of each shape, and only looks up embeddings for others.

    The code after the encoder needs an output of the right shape, and gets that of the first input.
    """

    def __init__(self, text_encoder: Any) -> None:
        self.forward = text_encoder.forward
        self.embedding = embedding_modules(text_encoder)[0]
        self.outputs: dict[tuple[int, ...], Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ids = args[0] if args else kwargs["input_ids"]
        shape = tuple(ids.shape)
        if shape not in self.outputs:
            self.outputs[shape] = self.forward(*args, **kwargs)
        else:
            # An offloaded encoder waits on the CPU while others run.
            self.embedding(ids.to(self.embedding.weight.device))
        return self.outputs[shape]


def _tensors(conditioning: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, in float32."""
    match conditioning:
        case Tensor():
            yield conditioning.float()
        case Mapping():
            for each in conditioning.values():
                yield from _tensors(each)
        case list() | tuple():
            for each in conditioning:
                yield from _tensors(each)


@contextmanager
def place(
    pipe: Any, encoders: Sequence[Encoder], words: Sequence[Word], aliases: Sequence[str] | None = None
) -> Iterator[Placement]:
    """Place `words` in `pipe` inside the context.

    The conditioning is bit-identical to that of rows written into the tables; a word's name stands for all its vectors. The rows
    of a trained word receive float32 gradients, whatever the dtype of the encoders.

    Args:
        aliases: name of each word in the pipeline, and in texts returned by `addressed`; default: its own name.

    Raises:
        UsageError: two words share a name, or a name is already in a vocabulary.
        ModelError: an encoder has no embedding module to hook.
    """
    aliases = [word.name for word in words] if aliases is None else aliases
    counts = [size_of(word) for word in words]
    sizes = dict(zip(aliases, counts, strict=True))
    names = [
        name for alias, count in zip(aliases, counts, strict=True) for name in vector_names(alias, count)
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(
            f"two words are called {twice}: expected different names; rename one with -t NAME=FILE"
        )
    originals = {encoder.tokenizer: getattr(pipe, encoder.tokenizer) for encoder in encoders}
    handles = []
    try:
        rows = {}
        for encoder in encoders:
            setattr(pipe, encoder.tokenizer, copy.deepcopy(originals[encoder.tokenizer]))
            tokenizer = encoder.tokenizer_of(pipe)
            ids = _add_names(tokenizer, names, encoder)
            _write_out(tokenizer, sizes)
            rows[encoder.key] = state = _Rows(encoder.key, words, ids)
            handles.append(getattr(pipe, encoder.component).register_forward_hook(state.encoded))
            for module in embedding_modules(getattr(pipe, encoder.component)):
                handles.append(module.register_forward_pre_hook(state.before))
                handles.append(module.register_forward_hook(state.after))
        yield Placement(pipe, words, encoders, rows, aliases)
    finally:
        for handle in handles:
            handle.remove()
        for component, held in originals.items():
            setattr(pipe, component, held)


def _written_out(text: str, sizes: Mapping[str, int]) -> str:
    """A text with all words expanded to our names of their vectors.

    An expansion that is already there, ours or that of diffusers (`<dog> <dog>_1`), counts as the word.
    """
    for word, size in sizes.items():
        text = _named(word, size).sub(" ".join(vector_names(word, size)), text)
    return text


def _named(word: str, size: int) -> re.Pattern[str]:
    """Every way to write a word: its name alone, or all its vectors written out."""
    name = re.escape(word)
    others = "".join(rf"\s*{name}__?{number}" for number in range(1, size))
    return re.compile(rf"{name}(?:{others})?(?!__?\d)", re.IGNORECASE)


def _write_out(tokenizer: Any, sizes: Mapping[str, int]) -> None:
    """Make a tokenizer expand words in every text that it is called with: prompts, negative prompts and captions."""
    kind: Any = type(tokenizer)

    def call(self: Any, text: Any = None, *arguments: Any, **options: Any) -> Any:
        if isinstance(text, str):
            text = _written_out(text, sizes)
        elif isinstance(text, list | tuple):
            text = [_written_out(each, sizes) if isinstance(each, str) else each for each in text]
        return kind.__call__(self, text, *arguments, **options)

    tokenizer.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})


def _add_names(tokenizer: Any, names: Sequence[str], encoder: Encoder) -> Tensor:
    """Add the names to a tokenizer; returns their ids, (spellings, names)."""
    require_new(names, tokenizer)
    if not encoder.spaced:
        tokenizer.add_tokens(list(names))
        return torch.tensor([tokenizer.convert_tokens_to_ids(list(names))])
    # Not AddedToken(lstrip=True), which takes line breaks of a chat template too.
    spellings = [list(names), [f" {name}" for name in names]]
    for each in spellings:
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name in each])
    return torch.tensor([tokenizer.convert_tokens_to_ids(each) for each in spellings])


def require_new(names: Iterable[str], tokenizer: Any) -> None:
    """Raise UsageError if a name is in the vocabulary: learning it would change a row of the model."""
    vocabulary = tokenizer.get_vocab()
    taken = next((name for name in names if name in vocabulary), None)
    if taken:
        raise UsageError(
            f"{taken} is already in the model's vocabulary: expected a new word; choose another --token"
        )


def embedding_modules(text_encoder: Any) -> list[nn.Embedding]:
    """Every module that looks up the input table.

    Not `get_input_embeddings()` alone: in T5 the forward pass runs another module that shares its weight.

    Raises:
        ModelError: there is none.
    """
    weight = text_encoder.get_input_embeddings().weight
    modules = [m for m in text_encoder.modules() if isinstance(m, nn.Embedding) and m.weight is weight]
    if not modules:
        raise ModelError(
            f"{type(text_encoder).__name__} has no embedding table: expected a transformers text encoder"
        )
    return modules


def table(pipe: Any, encoder: Encoder) -> Tensor:
    """The embedding table of an encoder, (rows, width), detached, in the model's dtype."""
    return getattr(pipe, encoder.component).get_input_embeddings().weight.detach()


def tables(pipe: Any, encoders: Sequence[Encoder]) -> dict[str, Table]:
    """Encoder key to the vocabulary of each encoder of a loaded pipeline."""
    return {
        encoder.key: table_of(encoder.component, table(pipe, encoder), encoder.tokenizer_of(pipe))
        for encoder in encoders
    }
