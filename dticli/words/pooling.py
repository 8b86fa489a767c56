"""The position of CLIP's pooled state: the single vector of a prompt that SDXL, SD3 and FLUX.1 use besides the hidden states.

Public configs have `eos_token_id` 2, which makes transformers pool at the highest id of the prompt. That is the end of text,
unless a word was added, whose id is higher. Then the pooled state is that of the word, and does not depend on what follows it.
Plain diffusers does the same, and the paper's words were learned so; ComfyUI and kohya pool at the end of the text.
"""

import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dticli.errors import UsageError
from dticli.models.families import Encoder

Pooling = Literal["stock", "eos"]
Learned = Literal["stock", "eos", "mixed"]
"""What a word may be learned with; mixed takes the two in turn, and suits both."""


def choose(pipe: Any, encoders: Sequence[Encoder], pooling: Pooling) -> None:
    """Make the encoders of a loaded pipeline pool at the end of the text (`eos`), or as their configs say (`stock`).

    This sets an attribute, because the config is not read any more once the encoder is built.
    """
    for encoder in encoders:
        text_encoder = getattr(pipe, encoder.component)
        pooler = getattr(text_encoder, "text_model", text_encoder)
        if hasattr(pooler, "eos_token_id"):
            knows = encoder.tokenizer_of(pipe) if pooling == "eos" else pooler.config
            pooler.eos_token_id = knows.eos_token_id


def at_step(learned: Learned, step: int) -> Pooling:
    """The pooling of one training step."""
    if learned != "mixed":
        return learned
    return "eos" if step % 2 else "stock"


def recorded(words: Sequence[tuple[str, Mapping[str, str]]]) -> Pooling:
    """The pooling that words were learned with; `stock` where files do not say, or all words suit both.

    Args:
        words: names, and what the token file of each says.

    Raises:
        UsageError: they differ.
    """
    found = {learned for _, each in words if (learned := said(each)) != "mixed"}
    if len(found) > 1:
        raise UsageError(
            f"{' and '.join(name for name, _ in words)} were learned with different pooling: expected one; "
            "choose it with --pooling"
        )
    return next(iter(found), "stock")


def said(metadata: Mapping[str, str]) -> Learned:
    """The pooling one word was learned with."""
    known: tuple[Learned, ...] = typing.get_args(Learned)
    return next((each for each in known if each == metadata.get("dti.pooling")), "stock")
