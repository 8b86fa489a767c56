"""Where a word starts: rows from a phrase, a token file, the vocabulary's mean, chance, or an encoder's output."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dticli import randomness, sphere
from dticli.errors import UsageError
from dticli.learn.hyperparameters import Start
from dticli.models import contents
from dticli.models.choice import Model
from dticli.models.families import Encoder, Family
from dticli.paths import names_token_file
from dticli.randomness import Key
from dticli.words import learned_word, norms, placement, token_reading
from dticli.words.norms import Summary

CROSS = "cross:"
NO_PHRASES = frozenset({"random", "mean", "init", "none", CROSS.rstrip(":")})


def begin(
    pipe: Any, family: Family, start: Start, vocabulary: Mapping[str, Summary]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor] | None]:
    """Everything a word starts with.

    Returns:
        encoder key to rows (vectors, width), to the lengths they get (vectors, 1), and to the unit rows its prior pulls
        towards, shaped as the rows; None for no prior.

    Raises:
        UsageError, InputError: as `rows`.
    """
    found = rows(pipe, family, start.init, start.vectors, start.seed)
    lengths = magnitudes(found, vocabulary, start.magnitude)
    match start.prior:
        case "none":
            return found, lengths, None
        case "init":
            return found, lengths, directions(found)
        case phrase:
            count = len(next(iter(found.values())))
            return found, lengths, directions(rows(pipe, family, phrase, count, start.seed))


def rows(pipe: Any, family: Family, init: str, vectors: int | None, seed: int) -> dict[str, Tensor]:
    """Rows to start from, of any length.

    Args:
        init: `random`, `mean`, `cross:PHRASE` (the encoder's output for the phrase), a token file, or a phrase.
        vectors: how many a word gets; None takes as many as the phrase has pieces in the encoder that needs most.

    Returns:
        encoder key to (vectors, width) float32.

    Raises:
        UsageError: the phrase is empty or unknown to a tokenizer.
        InputError: the token file cannot be read, or has no vectors of an encoder's width.
    """
    found = {
        encoder.key: _rows(pipe, family, encoder, init, vectors or 1, seed) for encoder in family.encoders
    }
    count = vectors or max(len(each) for each in found.values())
    return {key: _resample(each, count) for key, each in found.items()}


def _rows(pipe: Any, family: Family, encoder: Encoder, init: str, vectors: int, seed: int) -> Tensor:
    table = placement.table(pipe, encoder)
    if init == "random":
        return randomness.normal(Key(seed, "init", encoder.key), (vectors, table.shape[1])).to(table.device)
    if init == "mean":
        live = table[: len(encoder.tokenizer_of(pipe))]
        return live.float().mean(dim=0, keepdim=True)
    if init.startswith(CROSS):
        return _encoder_output(pipe, encoder, init.removeprefix(CROSS))
    if init == CROSS.rstrip(":"):
        raise UsageError(
            "--init cross names no word: expected the class word after a colon; write --init cross:dog"
        )
    if names_token_file(init):
        widths = {each.key: placement.table(pipe, each).shape[1] for each in family.encoders}
        fitted = learned_word.fit(token_reading.read(Path(init)), widths)
        return fitted.vectors[encoder.key].to(table.device)
    ids = pieces(pipe, encoder, init)
    _require_live(init, encoder.tokenizer_of(pipe), table, ids)
    return table[ids].float()


def count(tokenizers: Sequence[Any], init: str, vectors: int | None) -> int:
    """How many vectors `rows` gives a word.

    Raises:
        InputError: there is no such token file, or it cannot be read.
    """
    if vectors:
        return vectors
    if names_token_file(init):
        return max(len(rows) for rows in token_reading.read(Path(init)).rows.values())
    if init in NO_PHRASES:
        return 1
    phrase = init.removeprefix(CROSS).strip()
    return max(len(each(phrase, add_special_tokens=False).input_ids) for each in tokenizers)


def is_phrase(text: str) -> bool:
    """Whether an init, or a prior, is words whose rows are taken."""
    return not (text in NO_PHRASES or text.startswith(CROSS) or names_token_file(text))


def require_known(model: Model, family: Family, texts: Sequence[str], names: Sequence[str]) -> None:
    """Check new words, and what they are to start from, against a model's tokenizers and tables, before it is loaded.

    Args:
        texts: as `init` and `prior` take them; those that are neither phrases nor files are passed over.
        names: of the new words.

    Raises:
        InputError: there is no such token file, or it cannot be read.
        UsageError: a phrase is empty, or the model does not know it; or it knows a new word.
    """
    components = dict.fromkeys(encoder.tokenizer for encoder in family.encoders)
    tokenizers = SimpleNamespace(**dict(zip(components, contents.tokenizers(model, family), strict=True)))
    for component in components:
        placement.require_new(names, getattr(tokenizers, component))
    tables = {table.encoder: table.tensor for table in contents.tables(model)}
    for text in dict.fromkeys(texts):
        if names_token_file(text):
            token_reading.read(Path(text))
        for encoder in family.encoders if is_phrase(text) else ():
            ids = pieces(tokenizers, encoder, text)
            _require_live(text, encoder.tokenizer_of(tokenizers), tables[encoder.component], ids)


def _require_live(phrase: str, tokenizer: Any, table: Tensor, ids: list[int]) -> None:
    """Raise UsageError for rows of zeros: only a model of a small world has them, for what its captions never say."""
    if table[ids].any(dim=-1).all():
        return
    live = table.any(dim=-1).tolist()
    words = [text.removesuffix("</w>") for text, index in tokenizer.get_vocab().items() if live[index]]
    near = difflib.get_close_matches(phrase, [word for word in words if len(word) > 2], n=3)
    raise UsageError(
        f"the model has not learned {phrase!r}: expected a word that it knows; "
        + (
            f"did you mean {' or '.join(near)}?"
            if near
            else "choose another class word, such as dog, car or house"
        )
    )


def pieces(pipe: Any, encoder: Encoder, phrase: str) -> list[int]:
    """Token ids of a phrase as they occur inside a prompt.

    Args:
        pipe: whatever has the encoder's tokenizer.

    Raises:
        UsageError: there are none, or the tokenizer does not know a part of it.
    """
    tokenizer = encoder.tokenizer_of(pipe)
    ids = tokenizer(_inside_a_prompt(encoder, phrase), add_special_tokens=False).input_ids
    if not ids:
        raise UsageError("the init phrase is empty: expected a class word; write --init dog")
    # CLIP's unknown token is its end of text, which no phrase contains either.
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise UsageError(
            f"the model does not know {phrase!r}: expected words of its vocabulary; try a plainer class word for --init"
        )
    return ids


def _inside_a_prompt(encoder: Encoder, phrase: str) -> str:
    """Language models spell a word inside a sentence with the space before it."""
    return f" {phrase.strip()}" if encoder.spaced else phrase.strip()


@torch.no_grad()
def _encoder_output(pipe: Any, encoder: Encoder, phrase: str) -> Tensor:
    """Last states, after the final norm, where the phrase's pieces stand: cross initialisation.

    Source: Pang et al., "Cross Initialization for Face Personalization of Text-to-Image Models", CVPR 2024.
    """
    tokenizer, text_encoder = encoder.tokenizer_of(pipe), getattr(pipe, encoder.component)
    wanted = pieces(pipe, encoder, phrase)
    ids = torch.tensor([tokenizer(_inside_a_prompt(encoder, phrase)).input_ids], device=text_encoder.device)
    output = text_encoder(ids, output_hidden_states=True)
    # CLIP lists its states without the final norm; language models with a head give theirs, with it, in the list alone.
    states = output.get("last_hidden_state", output.hidden_states[-1])[0].float()
    return states[torch.isin(ids[0], torch.tensor(wanted, device=ids.device))]


def _resample(rows: Tensor, count: int) -> Tensor:
    """`count` rows: a shorter list repeats, a longer one is averaged in consecutive groups."""
    if len(rows) <= count:
        return rows[torch.arange(count, device=rows.device) % len(rows)].clone()
    return torch.stack([group.mean(dim=0) for group in rows.tensor_split(count)])


def directions(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unit rows of `rows`, float32."""
    return {key: sphere.normalize(each.float()) for key, each in rows.items()}


def magnitudes(rows: Mapping[str, Tensor], vocabulary: Mapping[str, Summary], rule: str) -> dict[str, Tensor]:
    """Lengths for the rows, encoder key to (vectors, 1) float32.

    Args:
        rule: `init` keeps each row's own length; others are those of `norms.magnitude`.

    Raises:
        UsageError: another rule.
    """
    own = {key: each.float().norm(dim=-1, keepdim=True) for key, each in rows.items()}
    if rule == "init":
        return own
    return {key: torch.full_like(each, norms.magnitude(vocabulary[key], rule)) for key, each in own.items()}
