"""Stateless randomness: every draw is a pure function of its key.

A `Key` is (seed, purpose, word, step, sample). Resuming, splitting a batch over devices or accumulation, and training
several words at once therefore use the same numbers as one uninterrupted run of one word.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Key:
    """Identifies one draw: the seed of the run, the purpose of the draw, and its position in the run.

    `sample` counts samples over the whole run (step x batch + position), however the batch is split.
    """

    seed: int
    purpose: str
    word: str = ""
    step: int = 0
    sample: int = 0

    def generator(self) -> "torch.Generator":
        """A CPU generator seeded by the key alone; the same on every machine and device."""
        import torch

        text = "\0".join(map(str, (self.seed, self.purpose, self.word, self.step, self.sample)))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def normal(key: Key, shape: tuple[int, ...]) -> "Tensor":
    """Standard normal float32 tensor of `shape`, on the CPU."""
    import torch

    return torch.randn(shape, generator=key.generator())


def uniform(key: Key) -> float:
    """One number in [0, 1), exact in float32: a float64 draw could round up to 1."""
    import torch

    return torch.rand((), generator=key.generator()).item()


def integer(key: Key, count: int) -> int:
    """One of 0 ... count - 1, with equal probability."""
    import torch

    return int(torch.randint(count, (), generator=key.generator()))


def shuffled(key: Key, count: int) -> list[int]:
    """A permutation of 0 ... count - 1."""
    import torch

    return torch.randperm(count, generator=key.generator()).tolist()
