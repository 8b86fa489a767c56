"""Where CLIP's pooled state is read: the one vector of a prompt that SDXL, SD3 and FLUX.1 get besides its states.

Public configs call 2 the end of text, which makes transformers pool at the highest id of the prompt. That is the end of
text, unless a word was added: its id is higher still. The pooled state then stands at the word, and knows nothing of what
follows it. Plain diffusers does the same, and the paper's words were learned so; ComfyUI and kohya pool at the end of text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dticli.errors import UsageError
from dticli.families import Encoder

Pooling = Literal["stock", "eos"]


def choose(pipe: Any, encoders: Sequence[Encoder], pooling: Pooling) -> None:
    """Let the encoders of a loaded pipeline pool at the end of text; `stock` leaves them as they are.

    The attribute is set, because the config is no longer read once the encoder is built.
    """
    if pooling == "stock":
        return
    for encoder in encoders:
        text_encoder = getattr(pipe, encoder.component)
        pooler = getattr(text_encoder, "text_model", text_encoder)
        if hasattr(pooler, "eos_token_id"):
            pooler.eos_token_id = getattr(pipe, encoder.tokenizer).eos_token_id


def recorded(metadata: Mapping[str, Mapping[str, str]]) -> Pooling:
    """The pooling that words were learned with; `stock` where files do not say.

    Args:
        metadata: word to what its token file says.

    Raises:
        UsageError: they differ.
    """
    found = {said(each) for each in metadata.values()}
    if len(found) > 1:
        raise UsageError(
            f"{' and '.join(metadata)} were learned with different pooling: expected one; choose it with --pooling"
        )
    return next(iter(found), "stock")


def said(metadata: Mapping[str, str]) -> Pooling:
    """The pooling one word was learned with."""
    return "eos" if metadata.get("dti.pooling") == "eos" else "stock"
