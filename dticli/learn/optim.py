"""Optimizers for learned rows: Riemannian SGD on the sphere, and the baselines it is measured against.

All work on a list of rows tensors, one per encoder, whose `.grad` the backward pass has filled. State is plain
tensors, so that a checkpoint can hold it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dticli import sphere
from dticli.errors import NonFiniteError


class RiemannianSGD:
    """Turn every row by a step of fixed length against its gradient, under a von Mises-Fisher prior.

    Per row v with Euclidean gradient g:

        g <- g - kappa mu                the prior's gradient, before projection
        g <- g - (v.g) v                 tangent
        g <- g / sqrt(EMA of |g|^2)      beta = 0: a unit tangent
        v <- (v - lr g) / |v - lr g|     retraction; a unit tangent turns atan(lr) radians

    Args:
        directions: unit rows, each (vectors, width), float32, updated in place.
        prior: unit rows mu of the same shapes, or None for no prior.
        kappa: concentration of the prior.
        beta: decay of the moving average of |g|^2, with bias correction.

    Source: arXiv:2512.13672, section 3.
    """

    def __init__(
        self, directions: Sequence[Tensor], *, prior: Sequence[Tensor] | None, kappa: float, beta: float = 0.0
    ) -> None:
        self.leaves = list(directions)
        self.prior = None if prior is None else list(prior)
        self.kappa = kappa
        self.beta = beta
        self.squares = [row.new_zeros(row.shape[0], 1) for row in self.leaves]
        self.steps_taken = 0

    @torch.no_grad()
    def step(self, lr: float) -> list[Tensor]:
        """Update every direction from its `.grad`; returns the tangent lengths |g| before normalising, (vectors,) each.

        A row whose tangent is exactly zero stays where it is.

        Args:
            lr: length of the step along a unit tangent.

        Raises:
            NonFiniteError: a gradient holds NaN or inf; names the vector.
        """
        self.steps_taken += 1
        return [self._step(index, lr) for index in range(len(self.leaves))]

    def _step(self, index: int, lr: float) -> Tensor:
        direction = self.leaves[index]
        gradient = _gradient(direction)
        if self.prior is not None:
            gradient = gradient - self.kappa * self.prior[index]
        across = sphere.tangent(direction, gradient)
        square = across.square().sum(dim=-1, keepdim=True)
        self.squares[index].mul_(self.beta).add_((1 - self.beta) * square)
        scale = (self.squares[index] / (1 - self.beta**self.steps_taken)).sqrt()
        unit = torch.where(scale > 0, across / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0)
        direction.copy_(sphere.retract(direction, -lr * unit))
        return square.sqrt()[:, 0]

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, beside the directions."""
        return {f"square.{i}": square for i, square in enumerate(self.squares)} | {
            "steps_taken": torch.tensor(self.steps_taken)
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        for index, square in enumerate(self.squares):
            square.copy_(state[f"square.{index}"])
        self.steps_taken = int(state["steps_taken"])


class AdamW:
    """AdamW on free rows, as ordinary Textual Inversion uses it; `retracting` keeps them on the sphere instead.

    Args:
        rows: (vectors, width) float32 each, updated in place; unit rows where they are retracted.
        weight_decay: decoupled, times the learning rate; on the sphere it would only fight the retraction.
        retracting: gradients are projected to the tangent space and every step ends with a retraction, so that the
            direction alone is learned.
        prior, kappa: as in `RiemannianSGD`.
    """

    def __init__(
        self,
        rows: Sequence[Tensor],
        *,
        weight_decay: float = 0.0,
        retracting: bool = False,
        prior: Sequence[Tensor] | None = None,
        kappa: float = 0.0,
    ) -> None:
        self.leaves = list(rows)
        self.retracting = retracting
        self.prior = None if prior is None else list(prior)
        self.kappa = kappa
        # Not foreach: it would fuse rows of different encoders and change the order of sums.
        self.adam = torch.optim.AdamW(self.leaves, lr=1.0, weight_decay=weight_decay, foreach=False)

    @torch.no_grad()
    def step(self, lr: float) -> list[Tensor]:
        """Update every row from its `.grad`; returns the lengths of the gradients, or of their tangents, (vectors,) each.

        Raises:
            NonFiniteError: a gradient holds NaN or inf; names the vector.
        """
        gradients = [self._prepare(index) for index in range(len(self.leaves))]
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        if self.retracting:
            for row in self.leaves:
                row.copy_(sphere.normalize(row))
        return [gradient.norm(dim=-1) for gradient in gradients]

    def _prepare(self, index: int) -> Tensor:
        row = self.leaves[index]
        gradient = _gradient(row)
        if self.prior is not None:
            gradient = gradient - self.kappa * self.prior[index]
        if self.retracting:
            gradient = sphere.tangent(row, gradient)
        row.grad = gradient
        return gradient

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on, beside the rows."""
        return {
            f"{index}.{name}": value
            for index, state in self.adam.state_dict()["state"].items()
            for name, value in state.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        per_row: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            index, name = key.split(".", 1)
            per_row.setdefault(int(index), {})[name] = value.clone()
        self.adam.load_state_dict({"state": per_row, "param_groups": self.adam.state_dict()["param_groups"]})


Optimizer = RiemannianSGD | AdamW


def step_length(schedule: str, lr: float, step: int, steps: int) -> float:
    """The step length of one of `steps` steps, counted from 0: `lr`, or falling from it to 0, which would be the step after the
    last."""
    match schedule:
        case "linear":
            return lr * (1 - step / steps)
        case "cosine":
            return lr * (1 + math.cos(math.pi * step / steps)) / 2
        case _:
            return lr


class Average:
    """The running mean of tensors that learn: of unit rows along great circles, of others number by number.

    Args:
        leaves: as in the optimizers.
        unit: how many of them, from the first, hold unit rows.

    Source: Tripuraneni et al., "Averaging Stochastic Gradient Descent on Riemannian Manifolds", arXiv:1802.09128, section 3.
    """

    def __init__(self, leaves: Sequence[Tensor], unit: int) -> None:
        self.leaves, self.unit = list(leaves), unit
        self.means = [leaf.detach().clone() for leaf in self.leaves]
        self.count = 0

    @torch.no_grad()
    def add(self) -> None:
        """Count the leaves as they are now in."""
        self.count += 1
        for index, (mean, leaf) in enumerate(zip(self.means, self.leaves, strict=True)):
            share = 1 / self.count
            between = sphere.slerp(mean, leaf, share) if index < self.unit else mean + (leaf - mean) * share
            mean.copy_(between)

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""
        return {f"mean.{index}": mean for index, mean in enumerate(self.means)} | {
            "count": torch.tensor(self.count)
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        for index, mean in enumerate(self.means):
            mean.copy_(state[f"mean.{index}"])
        self.count = int(state["count"])


def _gradient(rows: Tensor) -> Tensor:
    """The accumulated gradient; its absence means the rows were never used."""
    if rows.grad is None:
        raise RuntimeError("optimizer stepped before any backward pass reached the rows")
    if not rows.grad.isfinite().all():
        row = int((~rows.grad.isfinite().all(dim=-1)).nonzero()[0])
        raise NonFiniteError(
            f"the gradient of vector {row} is NaN or inf: expected finite numbers; try --precision fp32 or bf16"
        )
    return rows.grad
