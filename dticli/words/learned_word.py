"""A learned word: its name, and its vectors for each encoder."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from dticli import spelling
from dticli.errors import InputError, UsageError
from dticli.words.programs import SOLE

if TYPE_CHECKING:
    from torch import Tensor

NAME = re.compile(r"<[a-z0-9]([a-z0-9_-]*[a-z0-9])?>")
MAX_NAME = 64
MAX_VECTORS = 256
MAX_WIDTH = 16384


@dataclass(frozen=True, eq=False)
class Token:
    """A learned word, as stored in a token file. Reading, showing and writing it does not import torch.

    Attributes:
        name: what prompts call it, such as `<dog>`.
        rows: encoder key (`clip_l`, `clip_g`, `t5xxl`, ...) to (n, width) float32, n the same in all. The key is `SOLE`
            if a file has one tensor and does not name its encoder.
        metadata: of the file, except what follows from name and rows. It is untrusted: escape it before showing.

    Raises:
        UsageError: the name is not usable.
        InputError: no vectors, too many, NaN or inf, a row of zeros, or counts that differ between encoders.
        TypeError: other dtypes than the above, or metadata that is not text.
    """

    name: str
    rows: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, name: str, vectors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> Self:
        """The word with these vectors, encoder key to (n, width) float32 on the CPU."""
        return cls(name, _arrays(vectors), metadata)

    @property
    def vectors(self) -> "dict[str, Tensor]":
        """The rows as tensors on the CPU, which share their memory."""
        import torch

        return {key: torch.from_numpy(rows) for key, rows in self.rows.items()}

    def with_vectors(
        self, vectors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
    ) -> Self:
        """The same word with other vectors, and other metadata if given."""
        return replace(self, rows=_arrays(vectors), metadata=self.metadata if metadata is None else metadata)

    def __post_init__(self) -> None:
        check_name(self.name)
        if not all(isinstance(text, str) for pair in self.metadata.items() for text in pair):
            raise TypeError("metadata maps text to text")
        for key, rows in self.rows.items():
            if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype != np.float32:
                raise TypeError(
                    f"{key}: expected (n, width) float32, got {type(rows).__name__} {rows.dtype} {rows.shape}"
                )
            require_shape(key, rows.shape)
            _require_directions(key, rows)
        counts = {key: len(rows) for key, rows in self.rows.items()}
        if len(set(counts.values())) != 1:
            listed = ", ".join(f"{count} for {key}" for key, count in counts.items()) or "no tensors"
            raise InputError(f"numbers of vectors: {listed}; expected the same number for every encoder")


def check_name(name: str) -> str:
    """Return `name` if prompts can use it: a-z, 0-9, `-` and `_` in angle brackets, a-z or 0-9 at both ends.

    Brackets keep the name from matching inside other words; several pipelines lower-case prompts.

    Raises:
        UsageError: says what is wrong, and offers the nearest usable name.
    """
    if _is_usable(name):
        return name
    inner = name.removeprefix("<").removesuffix(">")
    complaints = {
        "is empty": not inner,
        "has no angle brackets": f"<{inner}>" != name,
        "has capitals, which several pipelines turn into small letters in prompts": inner != inner.lower(),
        "has spaces": any(letter.isspace() for letter in inner),
        f"has more than {MAX_NAME} characters": len(name) > MAX_NAME,
    }
    problem = " and ".join(text for text, holds in complaints.items() if holds)
    raise UsageError(
        f"the name {shown(name)} {problem or 'has characters that tokenizers split at'}: "
        "expected a-z, 0-9, - and _ in angle brackets, starting and ending with a letter or digit; "
        f"write '{nearest_usable(name) or '<dog>'}'"
    )


def named(given: str) -> str:
    """The name in angle brackets, which `given` may lack.

    Raises:
        UsageError: as `check_name`.
    """
    return check_name(spelling.word(given))


def _is_usable(name: str) -> bool:
    return bool(NAME.fullmatch(name)) and len(name) <= MAX_NAME


def nearest_usable(name: str) -> str | None:
    """The most similar name that `check_name` accepts, or None if no letter or digit would be left."""
    if _is_usable(name):
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[: MAX_NAME - 2].rstrip("-_")
    return f"<{slug}>" if slug else None


def shown(text: str) -> str:
    """Untrusted text, shortened and escaped for one line of a message."""
    return ascii(text) if len(text) <= 48 else f"{text[:45]!a}..."


def require_shape(key: str, shape: Sequence[int]) -> None:
    count, width = (1, *shape) if len(shape) == 1 else shape if len(shape) == 2 else (0, 0)
    if not (1 <= count <= MAX_VECTORS and 1 <= width <= MAX_WIDTH):
        raise InputError(
            f"{vectors_for(key)} have shape {list(shape)[:4]}: expected 1 to {MAX_VECTORS} vectors of 1 to {MAX_WIDTH} "
            "numbers; choose a token file"
        )


def _arrays(vectors: "Mapping[str, Tensor]") -> dict[str, np.ndarray]:
    return {key: rows.detach().numpy() for key, rows in vectors.items()}


def _require_directions(key: str, rows: np.ndarray) -> None:
    if not np.isfinite(rows).all():
        raise InputError(
            f"{vectors_for(key)} hold NaN or inf: expected finite numbers; get another copy or train again"
        )
    # As everything computes them: squares of tiny numbers vanish, and of huge ones overflow.
    measured = lengths(rows)
    if not np.isfinite(measured).all():
        row = int(np.isfinite(measured).argmin())
        raise InputError(
            f"vector {row} of {vectors_for(key)} is so long that its norm overflows: expected a norm near the vocabulary's; "
            f"get another copy or train again"
        )
    if not measured.all():
        row = int(measured.argmin())
        raise InputError(
            f"vector {row} of {vectors_for(key)} is zero: expected a direction; train the word again"
        )


def lengths(rows: np.ndarray) -> np.ndarray:
    """Length of each row, (n,) float32."""
    with np.errstate(over="ignore"):
        return np.linalg.norm(rows, axis=1)


def vectors_for(key: str) -> str:
    return "the vectors" if key == SOLE else f"the vectors for {key}"


def fit(token: Token, widths: Mapping[str, int]) -> Token:
    """The word with rows for each encoder of a model.

    Several encoders are matched by key. One is matched by width, unless the file names another kind: CLIP
    encoders differ in width, which tells them apart under any key, but T5 and UMT5 are both 4096 wide.

    Args:
        widths: encoder key to the width of its embedding table.

    Returns:
        the word, its keys those of `widths`, in their order.

    Raises:
        InputError: other encoders or widths than the model's; names both.
    """
    found = dict(token.rows)
    if len(found) == len(widths) == 1:
        ((key, rows),), (encoder,) = found.items(), widths
        if key == SOLE or (key.startswith("clip_") and encoder.startswith("clip_")):
            found = {encoder: rows}
    if {key: rows.shape[1] for key, rows in found.items()} != dict(widths):
        theirs = " and ".join(_described(key, rows.shape[1]) for key, rows in token.rows.items())
        ours = " and ".join(_described(key, width) for key, width in widths.items())
        raise InputError(f"{token.name} is for {theirs}: expected {ours}; use the model it was learned on")
    return replace(token, rows={key: found[key] for key in widths})


def _described(key: str, width: int) -> str:
    return f"one encoder of width {width}" if key == SOLE else f"{key} of width {width}"
