"""Several processes on one run, started by `torchrun` or `accelerate launch`: each processes its share of every step's samples.

Gradients are averaged, so that n processes with batch size b take the same steps as one with n x b. Only the first writes.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from dticli.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: 0 ... size - 1; rank 0 writes files and prints.
        local: index among the processes of this machine, and of its device.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own(self, device: "torch.device") -> "torch.device":
        """The device of this process, of the kind of `device`; on CUDA it becomes the current device.

        Raises:
            EnvironmentProblem: this machine has fewer devices than processes.
        """
        if device.type != "cuda":
            return device
        import torch

        if self.local >= torch.cuda.device_count():
            raise EnvironmentProblem(
                f"process {self.local} of this machine has no CUDA device: there are {torch.cuda.device_count()}; "
                "start as many processes as devices, with --nproc-per-node"
            )
        mine = torch.device(device.type, self.local)
        torch.cuda.set_device(mine)
        return mine

    def mean_(self, tensors: "Sequence[Tensor]") -> None:
        """Replace each tensor by its mean over all ranks."""
        if self.size == 1:
            return
        from torch import distributed

        for tensor in tensors:
            with _together():
                distributed.all_reduce(tensor)
            tensor /= self.size

    def mean(self, value: float) -> float:
        """The mean over all ranks; NaN if it is NaN in one."""
        import torch

        total = torch.tensor(value, dtype=torch.float64)
        self.mean_([total])
        return total.item()

    def largest(self, value: int) -> int:
        """The largest over all ranks."""
        if self.size == 1:
            return value
        import torch
        from torch import distributed

        found = torch.tensor(value)
        with _together():
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def shared(self, content: bytes) -> bytes:
        """The `content` that rank 0 passes; that of other ranks is ignored."""
        if self.size == 1:
            return content
        import torch
        from torch import distributed

        length = torch.tensor(len(content))
        with _together():
            distributed.broadcast(length, src=0)
            sent = torch.zeros(int(length), dtype=torch.uint8)
            if self.first:
                sent = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            distributed.broadcast(sent, src=0)
        return sent.numpy().tobytes()


ALONE = Ranks()
PATIENCE = timedelta(days=7)
"""How long a rank waits for another: one may still be learning words when others are done. The launcher detects dead ranks."""


def launched() -> Ranks:
    """This process, as described by the launcher's environment variables; `ALONE` without a launcher.

    Raises:
        UsageError: the variables contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = {name: os.environ.get(name, "") for name in names}
    if not found["WORLD_SIZE"] or found["WORLD_SIZE"] == "1":
        return ALONE
    if not all(value.isdecimal() for value in found.values()) or int(found["RANK"]) >= int(
        found["WORLD_SIZE"]
    ):
        said = ", ".join(f"{name}={value!r}" for name, value in found.items())
        raise UsageError(
            f"{said} in the environment: expected those that torchrun sets; unset WORLD_SIZE to train in one process"
        )
    return Ranks(*(int(found[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


@contextmanager
def joined(ranks: Ranks) -> Iterator[None]:
    """Connect the ranks inside the context; every rank must enter it.

    Raises:
        EnvironmentProblem: they cannot be reached.
    """
    if ranks.size == 1:
        yield
        return
    import torch
    from torch import distributed

    # Windows has CUDA and no NCCL; gloo then carries what is on cards too.
    nccl = torch.cuda.is_available() and distributed.is_nccl_available()
    backends = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    try:
        distributed.init_process_group(backends, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"the {ranks.size} processes cannot reach each other ({str(error).splitlines()[0]}): expected a launcher; "
            "start them with torchrun"
        ) from None
    yield
    # Not after an error: NCCL would wait for the other ranks, and the launcher for this one.
    distributed.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Explain errors of collective operations."""
    try:
        yield
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"another process of this run has ended ({str(error).splitlines()[0][:100]}): expected all to go on; "
            "see its message, and continue with --resume"
        ) from None
