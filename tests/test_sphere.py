"""The unit sphere against closed forms and geoopt."""

import geoopt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dticli import sphere
from dticli.errors import NonFiniteError, NumericalError

EPS = {torch.float32: 1e-6, torch.float64: 1e-14}


def rows(seed: int, count: int, width: int, dtype: torch.dtype) -> Tensor:
    """Unit rows, normalised by NumPy."""
    values = np.random.default_rng(seed).standard_normal((count, width))
    return torch.tensor(values / np.linalg.norm(values, axis=1, keepdims=True)).to(dtype)


cases = given(
    seed=st.integers(0, 10**6),
    width=st.integers(2, 64),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)


@cases
@settings(max_examples=50, deadline=None)
def test_retract_stays_on_the_sphere_and_turns_atan(seed: int, width: int, dtype: torch.dtype) -> None:
    """Every retracted row has length one, and a tangent of length s turns atan(s) radians."""
    v = rows(seed, 3, width, dtype)
    g = sphere.tangent(v, rows(seed + 1, 3, width, dtype))
    if (g.norm(dim=-1) < 1e-2).any():
        return
    step = 0.3 * g / g.norm(dim=-1, keepdim=True)
    moved = sphere.retract(v, step)
    assert torch.allclose(moved.norm(dim=-1), torch.ones(3, dtype=dtype), atol=EPS[dtype])
    turned = sphere.angle(v, moved)
    assert torch.allclose(turned, torch.full_like(turned, np.arctan(0.3)), atol=20 * EPS[dtype])


@cases
@settings(max_examples=50, deadline=None)
def test_tangent_exp_and_log_agree_with_geoopt(seed: int, width: int, dtype: torch.dtype) -> None:
    """Projection, retraction, exponential and logarithm are those of geoopt's sphere."""
    manifold = geoopt.Sphere()
    v, u = rows(seed, 3, width, torch.float64), rows(seed + 1, 3, width, torch.float64)
    g = manifold.proju(v, u)
    assert torch.allclose(sphere.tangent(v, u), g, atol=1e-12)
    assert torch.allclose(sphere.retract(v, 0.1 * g), manifold.retr(v, 0.1 * g), atol=1e-12)
    assert torch.allclose(sphere.exp(v, g), manifold.expmap(v, g), atol=1e-12)
    if (sphere.angle(v, u) < 3).all():
        assert torch.allclose(sphere.exp(v, sphere.log(v, u)), u, atol=1e-7)


def test_ten_thousand_steps_stay_on_the_sphere() -> None:
    """Float32 rows still have length one after 10,000 retractions."""
    v, generator = rows(0, 4, 768, torch.float32), torch.Generator().manual_seed(0)
    for _ in range(10_000):
        g = sphere.tangent(v, torch.randn(v.shape, generator=generator))
        v = sphere.retract(v, 0.02 * g / g.norm(dim=-1, keepdim=True))
    assert (v.norm(dim=-1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("theta", [0.0, 1e-7, 1e-4, 0.5, np.pi / 2, 3.0, np.pi - 1e-4, np.pi])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angle_is_exact_everywhere(theta: float, dtype: torch.dtype) -> None:
    """Angles between constructed rows come back to a few units of float error, near 0 and pi too."""
    a = torch.tensor([1.0, 0.0], dtype=dtype)
    b = torch.tensor([np.cos(theta), np.sin(theta)], dtype=torch.float64).to(dtype)
    assert abs(sphere.angle(a, b).item() - theta) <= 4 * torch.finfo(dtype).eps


@cases
@settings(max_examples=50, deadline=None)
def test_slerp_walks_at_constant_speed(seed: int, width: int, dtype: torch.dtype) -> None:
    """SLERP hits its ends exactly, is symmetric, stays on the sphere, and turns t times the whole angle."""
    a, b = rows(seed, 2, width, dtype), rows(seed + 7, 2, width, dtype)
    whole = sphere.angle(a, b)
    if (whole > 3.1).any():
        return
    assert torch.equal(sphere.slerp(a, b, 0.0), a)
    assert torch.equal(sphere.slerp(a, b, 1.0), b)
    for t in (0.1, 0.25, 0.5, 0.9):
        point = sphere.slerp(a, b, t)
        assert torch.allclose(point.norm(dim=-1), torch.ones(2, dtype=dtype), atol=EPS[dtype])
        assert torch.allclose(sphere.angle(a, point), t * whole, atol=2000 * torch.finfo(dtype).eps)
        assert torch.allclose(point, sphere.slerp(b, a, 1 - t), atol=2000 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-8, 1e-4])
def test_slerp_between_nearly_equal_rows(gap: float) -> None:
    """Rows that almost coincide give the point between them, not 0/0."""
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([np.cos(gap), np.sin(gap)], dtype=torch.float64)
    middle = sphere.slerp(a, b, 0.5)
    assert torch.allclose(
        middle, torch.tensor([np.cos(gap / 2), np.sin(gap / 2)], dtype=torch.float64), atol=1e-15
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_near_the_antipode(dtype: torch.dtype) -> None:
    """An angle just below pi works; opposite rows are refused, because no path is singled out."""
    a = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    b = torch.tensor([np.cos(3.1), np.sin(3.1), 0.0], dtype=dtype)
    middle = sphere.slerp(a, b, 0.5)
    assert torch.allclose(middle, torch.tensor([np.cos(1.55), np.sin(1.55), 0.0], dtype=dtype), atol=1e-5)
    with pytest.raises(NumericalError, match="opposite"):
        sphere.slerp(a, -a, 0.5)


def test_frechet_mean_of_two_is_halfway_and_minimises() -> None:
    """For two rows the mean is the SLERP midpoint; for many, moving away from it costs."""
    a, b = rows(1, 1, 8, torch.float64)[0], rows(2, 1, 8, torch.float64)[0]
    assert torch.allclose(sphere.frechet_mean(torch.stack([a, b])), sphere.slerp(a, b, 0.5), atol=1e-9)
    centre = rows(3, 1, 8, torch.float64)[0]
    cloud = sphere.normalize(centre + 0.3 * rows(4, 20, 8, torch.float64))
    mean = sphere.frechet_mean(cloud)
    cost = sphere.angle(mean, cloud).square().sum()
    for seed in range(10):
        g = sphere.tangent(mean, rows(seed, 1, 8, torch.float64)[0])
        assert sphere.angle(sphere.exp(mean, 1e-3 * g), cloud).square().sum() > cost


def test_normalize_survives_extreme_lengths_and_names_bad_rows() -> None:
    """Rows of length 1e-30 and 1e30 keep their direction; zero and NaN rows are named."""
    v = rows(0, 2, 16, torch.float32)
    assert torch.allclose(sphere.normalize(v * torch.tensor([[1e-30], [1e30]])), v, atol=1e-6)
    with pytest.raises(NumericalError, match="row 1 is zero"):
        sphere.normalize(torch.stack([v[0], torch.zeros(16)]))
    with pytest.raises(NonFiniteError, match="row 0 holds NaN"):
        sphere.normalize(torch.full((1, 4), torch.nan))
    with pytest.raises(NonFiniteError, match="row 1"):
        sphere.retract(v, torch.stack([v[0] * 0, v[0] * torch.inf]))
