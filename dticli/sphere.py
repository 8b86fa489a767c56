"""The unit sphere: normalise, tangent, retract, angle, slerp, Frechet mean.

Directions are the rows of a tensor (..., width), each of length one; every function works row by row and keeps dtype and
device. Symbols follow arXiv:2512.13672, section 3.
"""

import torch
from torch import Tensor

from dticli.errors import NonFiniteError, NumericalError


def normalize(rows: Tensor) -> Tensor:
    """Scale every row to length one.

    Args:
        rows: (..., width), any length but zero.

    Raises:
        NonFiniteError: a row holds NaN or inf; names the row.
        NumericalError: a row is zero and has no direction; names the row.
    """
    _require_finite(rows, "row")
    # Dividing by the largest entry first keeps the squares of very long and very short rows inside the float range.
    scaled = rows / rows.abs().amax(dim=-1, keepdim=True)
    if not scaled.isfinite().all():
        row = _first(~scaled.isfinite().all(dim=-1))
        raise NumericalError(
            f"row {row} is zero: expected a vector with a direction; choose another one to start from"
        )
    return scaled / scaled.norm(dim=-1, keepdim=True)


def tangent(direction: Tensor, vector: Tensor) -> Tensor:
    """Project `vector` onto the tangent space at `direction`: g - (v.g) v.

    Args:
        direction: unit rows v, (..., width).
        vector: g, same shape, any length.
    """
    return vector - (direction * vector).sum(dim=-1, keepdim=True) * direction


def retract(direction: Tensor, step: Tensor) -> Tensor:
    """Move by `step` and return to the unit sphere.

    Args:
        direction: unit rows, (..., width).
        step: tangent rows, same shape; a row of length s turns atan(s) radians.

    Raises:
        NonFiniteError: a row of either holds NaN or inf; names the row.

    Source: arXiv:2512.13672, section 3; geoopt `Sphere.retr`.
    """
    _require_finite(step, "step of row")
    return normalize(direction + step)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between unit rows in radians, shape (...).

    `2 atan2(|a - b|, |a + b|)` is exact near 0 and pi, where acos of a float32 dot product is off by 1e-2.

    Source: W. Kahan, "How futile are mindless assessments of roundoff", section 12.
    """
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Walk the great circle from `a` (t = 0) to `b` (t = 1) at constant speed.

    Args:
        a, b: unit rows, (..., width).
        t: a number, or a tensor that broadcasts against the rows' shape (...); ends are returned exactly.

    Raises:
        NumericalError: rows are antipodal, so that no shortest path is singled out; names the row.

    Source: K. Shoemake, "Animating rotation with quaternion curves", 1985; arXiv:2512.13672, section 3.
    """
    theta = angle(a, b)[..., None]
    # Within float error of pi the sine below is noise, and so would be the plane in which to turn.
    opposite = torch.pi - theta < 4 * torch.finfo(theta.dtype).eps ** 0.5
    if opposite.any():
        raise NumericalError(
            f"row {_first(opposite[..., 0])} of the two directions are opposite: expected an angle below 180 degrees; "
            "interpolate through a third token"
        )
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)[..., None]
    # sin(t x) / sin(x) through sinc has no 0/0: as x -> 0 the weights become those of a straight line.
    sine = torch.sinc(theta / torch.pi)
    weight_a = (1 - t) * torch.sinc((1 - t) * theta / torch.pi) / sine
    weight_b = t * torch.sinc(t * theta / torch.pi) / sine
    path = normalize(weight_a * a + weight_b * b)
    return torch.where(t == 0, a, torch.where(t == 1, b, path))


def frechet_mean(directions: Tensor, weights: Tensor | None = None, iterations: int = 1000) -> Tensor:
    """The direction with the least weighted sum of squared angles to all of `directions`.

    Args:
        directions: unit rows, (count, ..., width), within half a sphere of each other.
        weights: positive, (count,), of sum 1; None: all the same.
        iterations: upper bound on the fixed-point steps; stops once a step turns less than float error.

    Returns:
        unit rows, (..., width).

    Raises:
        NumericalError: rows lie opposite each other, so that no direction is singled out; names the row.

    Source: X. Pennec, "Intrinsic statistics on Riemannian manifolds", 2006, algorithm 1.
    """
    count = len(directions)
    shares = directions.new_full((count,), 1 / count) if weights is None else weights
    shares = shares.reshape(count, *[1] * (directions.ndim - 1))
    start = (shares * directions).sum(dim=0)
    eps = torch.finfo(start.dtype).eps
    # As in `slerp`: what is left of rows that cancel each other is noise.
    _require_on_one_side(start.norm(dim=-1) > 4 * eps**0.5)
    mean = normalize(start)
    for _ in range(iterations):
        _require_on_one_side((torch.pi - angle(mean, directions) > 4 * eps**0.5).all(dim=0))
        step = (shares * log(mean, directions)).sum(dim=0)
        mean = exp(mean, step)
        if step.norm(dim=-1).max() <= 4 * eps:
            break
    return mean


def _require_on_one_side(holds: Tensor) -> None:
    if not holds.all():
        raise NumericalError(
            f"row {_first(~holds)} of the directions have no mean, because some are opposite: expected angles below 180 degrees; "
            "leave one out, or give one more weight"
        )


def exp(direction: Tensor, step: Tensor) -> Tensor:
    """Follow the great circle from `direction` along tangent `step`; a row of length s turns s radians.

    Args:
        direction: unit rows, (..., width).
        step: tangent rows, same shape.

    Raises:
        NonFiniteError: a row of either holds NaN or inf; names the row.
    """
    length = step.norm(dim=-1, keepdim=True)
    return normalize(length.cos() * direction + torch.sinc(length / torch.pi) * step)


def log(direction: Tensor, target: Tensor) -> Tensor:
    """The tangent at `direction` that `exp` carries to `target`, (..., width); its length is the angle in radians.

    Args:
        direction, target: unit rows, (..., width), not opposite each other: there, the tangent's direction is noise.
    """
    across = tangent(direction, target)
    length = across.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(across.dtype).tiny)
    return across / length * angle(direction, target)[..., None]


def _require_finite(rows: Tensor, what: str) -> None:
    if not rows.isfinite().all():
        row = _first(~rows.isfinite().all(dim=-1))
        raise NonFiniteError(
            f"{what} {row} holds NaN or inf: expected finite numbers; try --precision fp32 or a smaller --lr"
        )


def _first(mask: Tensor) -> int:
    """Index of the first true entry, counted over all rows."""
    return int(mask.reshape(-1).nonzero()[0])
