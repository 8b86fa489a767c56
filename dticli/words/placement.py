"""The words being learned or used: their rows per encoder, and how these take effect inside a pipeline.

The base model is never changed: rows replace the output of the embedding modules by forward hooks, and the tokenizers
that know the new words are copies, put back when the context closes.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from dticli.errors import ModelError, UsageError
from dticli.models.embeddings import Table, table_of
from dticli.models.families import Encoder


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
    """A word whose rows are what they are: loaded from a file, or learned by ordinary Textual Inversion."""

    name: str
    rows: Mapping[str, Tensor]


@dataclass(frozen=True)
class DirectionalWord:
    """A word whose rows are magnitude times direction; only the direction is learned, unless asked otherwise.

    Attributes:
        direction: encoder key to unit rows, (n, width), float32.
        log_magnitude: encoder key to the logarithm of the rows' lengths, (n, 1), float32.
    """

    name: str
    direction: Mapping[str, Tensor]
    log_magnitude: Mapping[str, Tensor]

    @property
    def rows(self) -> Mapping[str, Tensor]:
        return {key: self.log_magnitude[key].exp() * rows for key, rows in self.direction.items()}


def vector_names(name: str, count: int) -> list[str]:
    """`<dog>`, `<dog>_1`, ...: one name a vector, as diffusers writes them."""
    return [name, *(f"{name}_{index}" for index in range(1, count))]


def size_of(word: Word) -> int:
    """Number of vectors of a word, the same in every encoder."""
    return len(next(iter(word.rows.values())))


@dataclass
class _Rows:
    """The rows one encoder sees, and what it last saw: state shared by the hooks of its embedding modules."""

    key: str
    words: Sequence[Word]
    ids: Tensor
    seen: Tensor | None = field(default=None, repr=False)

    def before(self, module: nn.Embedding, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keep the ids; look up an existing row where an added id lies beyond the table."""
        self.seen = args[0]
        return (args[0].clamp(max=module.num_embeddings - 1), *args[1:])

    def after(self, module: nn.Embedding, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Put our rows where our ids stand, scaled as the module scales its own (Gemma's sqrt(width))."""
        assert self.seen is not None
        if not self.words:
            return output
        rows = torch.cat([word.rows[self.key] for word in self.words]).to(output.device, module.weight.dtype)
        scale = getattr(module, "embed_scale", None)
        if scale is not None:
            rows = rows * torch.as_tensor(scale).to(rows)
        match = self.seen[..., None] == self.ids.to(self.seen.device)
        # Not rows[...]: on the CPU, its gradient is summed in the order in which threads happen to finish.
        chosen = nn.functional.embedding(match.int().argmax(dim=-1), rows).to(output.dtype)
        return torch.where(match.any(dim=-1, keepdim=True), chosen, output)


@dataclass(frozen=True)
class Placement:
    """Words at work in a pipeline; made by `place`."""

    pipe: Any
    words: Sequence[Word]
    encoders: Sequence[Encoder]
    rows: Mapping[str, _Rows]

    def expand(self, prompt: str) -> str:
        """The prompt with every vector of a word written out, where the pipeline does not do so itself."""
        if hasattr(self.pipe, "maybe_convert_prompt"):
            return prompt
        for word in self.words:
            joined = "".join(vector_names(word.name, size_of(word)))
            prompt = re.sub(re.escape(word.name) + r"(?!_\d)", joined, prompt)
        return prompt

    def reached(self, word: Word) -> bool:
        """Whether every encoder saw all vectors of `word` when it last ran: false if absent or cut off."""
        return self.seen(word) == size_of(word)

    def seen(self, word: Word) -> int:
        """How many vectors of `word` were in what the encoders last read; of several encoders, the least."""
        start = sum(size_of(other) for other in self.words[: self.words.index(word)])
        own = slice(start, start + size_of(word))
        return min(
            0 if rows.seen is None else int(torch.isin(rows.ids[own].to(rows.seen.device), rows.seen).sum())
            for rows in self.rows.values()
        )

    @contextmanager
    def reading_only(self) -> Iterator[None]:
        """Encoders stop at the embedding while the context is open: `seen` is of each prompt, what they return is not."""
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


class _Reader:
    """In the place of a text encoder's `forward`: runs it for the first ids of a shape, and looks up the ids of others.

    What comes behind the encoder in the pipeline needs an output of the right shape, and gets the first one's.
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
            self.embedding(ids)
        return self.outputs[shape]


@contextmanager
def place(pipe: Any, encoders: Sequence[Encoder], words: Sequence[Word]) -> Iterator[Placement]:
    """Let `words` take effect in `pipe` while the context is open.

    Conditioning is bit-identical to rows written into the tables. Rows of a trained word receive gradients in float32
    whatever the encoders' dtype.

    Raises:
        UsageError: two words share a name, or a name is already in a vocabulary.
        ModelError: an encoder has no embedding module to hook.
    """
    names = [name for word in words for name in vector_names(word.name, size_of(word))]
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
            tokenizer = copy.deepcopy(originals[encoder.tokenizer])
            ids = _add_names(tokenizer, names, encoder)
            setattr(pipe, encoder.tokenizer, tokenizer)
            rows[encoder.key] = state = _Rows(encoder.key, words, torch.tensor(ids))
            for module in embedding_modules(getattr(pipe, encoder.component)):
                handles.append(module.register_forward_pre_hook(state.before))
                handles.append(module.register_forward_hook(state.after))
        yield Placement(pipe, words, encoders, rows)
    finally:
        for handle in handles:
            handle.remove()
        for component, tokenizer in originals.items():
            setattr(pipe, component, tokenizer)


def _add_names(tokenizer: Any, names: Sequence[str], encoder: Encoder) -> list[int]:
    """Teach a tokenizer the names, one id each."""
    vocabulary = tokenizer.get_vocab()
    taken = next((name for name in names if name in vocabulary), None)
    if taken:
        raise UsageError(
            f"{taken} is already in the model's vocabulary ({encoder.tokenizer}): expected a new word; choose another --token"
        )
    if encoder.lstrip:
        tokenizer.add_tokens([AddedToken(name, lstrip=True, normalized=False) for name in names])
    else:
        tokenizer.add_tokens(list(names))
    return tokenizer.convert_tokens_to_ids(list(names))


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
        encoder.key: table_of(encoder.component, table(pipe, encoder), getattr(pipe, encoder.tokenizer))
        for encoder in encoders
    }
