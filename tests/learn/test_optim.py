"""The optimizers against NumPy computations of the paper's equations, geoopt, and torch's own AdamW."""

import math

import geoopt
import numpy as np
import pytest
import torch
from torch import Tensor

from dticli.errors import NonFiniteError
from dticli.learn.optim import AdamW, Average, RiemannianSGD, step_length


def unit(seed: int, shape: tuple[int, int]) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def leaf(values: np.ndarray) -> Tensor:
    return torch.tensor(values, requires_grad=True)


@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_rsgd_follows_the_papers_equations(beta: float, kappa: float) -> None:
    """Twenty steps of two encoders equal a NumPy loop over the equations, prior and moving average included."""
    shapes, lr = [(2, 5), (2, 9)], 0.05
    v = [unit(i, shape) for i, shape in enumerate(shapes)]
    mu = [unit(10 + i, shape) for i, shape in enumerate(shapes)]
    leaves = [leaf(each) for each in v]
    optimizer = RiemannianSGD(leaves, prior=[torch.tensor(m) for m in mu], kappa=kappa, beta=beta)
    average = [np.zeros((2, 1)) for _ in shapes]
    for step in range(1, 21):
        gradients = [
            np.random.default_rng(100 * step + i).standard_normal(shape) for i, shape in enumerate(shapes)
        ]
        for rows, gradient in zip(leaves, gradients, strict=True):
            rows.grad = torch.tensor(gradient)
        lengths = optimizer.step(lr)
        for i, gradient in enumerate(gradients):
            g = gradient - kappa * mu[i]
            g = g - (v[i] * g).sum(1, keepdims=True) * v[i]
            square = (g**2).sum(1, keepdims=True)
            average[i] = beta * average[i] + (1 - beta) * square
            g = g / np.sqrt(average[i] / (1 - beta**step))
            v[i] = v[i] - lr * g
            v[i] = v[i] / np.linalg.norm(v[i], axis=1, keepdims=True)
            np.testing.assert_allclose(leaves[i].detach().numpy(), v[i], atol=1e-12)
            np.testing.assert_allclose(lengths[i].numpy(), np.sqrt(square[:, 0]), rtol=1e-12)


def test_rsgd_without_prior_is_geoopts_retraction_of_a_unit_tangent() -> None:
    """One step equals geoopt's sphere: project, normalise, retract."""
    v, gradient, manifold = torch.tensor(unit(0, (3, 8))), torch.tensor(unit(1, (3, 8))), geoopt.Sphere()
    rows = leaf(v.numpy())
    rows.grad = gradient.clone()
    RiemannianSGD([rows], prior=None, kappa=0.0).step(0.02)
    g = manifold.egrad2rgrad(v, gradient)
    expected = manifold.retr(v, -0.02 * g / manifold.norm(v, g, keepdim=True))
    assert torch.allclose(rows.detach(), expected, atol=1e-14)


def test_rsgd_descends_to_the_mean_direction() -> None:
    """With decreasing steps, maximising mu.v finds mu."""
    mu, rows = torch.tensor(unit(0, (1, 16))), leaf(unit(1, (1, 16)))
    optimizer = RiemannianSGD([rows], prior=None, kappa=0.0)
    for step in range(400):
        rows.grad = None
        (-(mu * rows).sum()).backward()
        optimizer.step(0.1 * (1 - step / 400))
    assert (mu * rows).sum() > 0.9999


def test_rsgd_leaves_a_row_without_gradient_in_place() -> None:
    """A zero gradient is not divided by its zero length."""
    rows = leaf(unit(0, (2, 4)))
    rows.grad = torch.stack([torch.zeros(4), torch.ones(4)]).double()
    before = rows.detach().clone()
    lengths = RiemannianSGD([rows], prior=None, kappa=0.0).step(0.1)[0]
    assert torch.equal(rows[0], before[0])
    assert not torch.equal(rows[1], before[1])
    assert lengths[0] == 0


@pytest.mark.parametrize(
    "make", [lambda rows: RiemannianSGD(rows, prior=None, kappa=0.0), lambda rows: AdamW(rows)]
)
def test_a_nan_gradient_is_refused_and_changes_nothing(make) -> None:  # type: ignore[no-untyped-def]
    """NaN names the vector; the direction survives."""
    rows = leaf(unit(0, (2, 4)))
    rows.grad = torch.tensor([[0.0] * 4, [float("nan")] * 4]).double()
    before = rows.detach().clone()
    with pytest.raises(NonFiniteError, match="vector 1"):
        make([rows]).step(0.1)
    assert torch.equal(rows.detach(), before)


def test_adamw_on_free_rows_is_torchs() -> None:
    """The baseline is torch's AdamW to the bit, weight decay included."""
    ours, theirs = leaf(unit(0, (2, 8))), leaf(unit(0, (2, 8)))
    baseline, reference = (
        AdamW([ours], weight_decay=0.01),
        torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.01),
    )
    for step in range(10):
        ours.grad = torch.tensor(unit(step, (2, 8)))
        theirs.grad = ours.grad.clone()
        baseline.step(0.05)
        reference.step()
    assert torch.equal(ours, theirs)
    assert (ours.norm(dim=-1) - 1).abs().min() > 1e-3


def test_adamw_with_retraction_stays_on_the_sphere() -> None:
    """Directions keep length one while AdamW moves them towards the target."""
    mu, rows = torch.tensor(unit(0, (1, 16))), leaf(unit(1, (1, 16)))
    optimizer = AdamW([rows], retracting=True)
    for _ in range(300):
        rows.grad = None
        (-(mu * rows).sum()).backward()
        optimizer.step(0.01)
        assert abs(rows.norm().item() - 1) < 1e-12
    assert (mu * rows).sum() > 0.99


@pytest.mark.parametrize("retracting", [True, False])
def test_adamws_prior_pulls_towards_it(retracting: bool) -> None:
    """With no other gradient, a row turns towards mu: the prior is part of the gradient, as -kappa mu."""
    mu, rows = torch.tensor(unit(0, (1, 16))), leaf(unit(1, (1, 16)))
    before = (mu * rows).sum().item()
    optimizer = AdamW([rows], retracting=retracting, prior=[mu], kappa=0.1)
    lengths = []
    for _ in range(50):
        rows.grad = torch.zeros_like(rows)
        lengths += optimizer.step(0.01)
    assert torch.nn.functional.cosine_similarity(rows, mu).item() > before + 0.2
    # Across the row, kappa sin(angle) of it is left.
    assert lengths[0].item() == pytest.approx(0.1 * ((1 - before**2) ** 0.5 if retracting else 1.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: RiemannianSGD(rows, prior=None, kappa=0.0, beta=0.9),
        lambda rows: AdamW(rows, retracting=True),
    ],
)
def test_state_restores_exactly(make) -> None:  # type: ignore[no-untyped-def]
    """Stopping after five of ten steps and restoring gives the same bytes as going on."""

    def run(rows: Tensor, optimizer: RiemannianSGD | AdamW, steps: range) -> None:
        for step in steps:
            rows.grad = torch.tensor(unit(step, (2, 8)))
            optimizer.step(0.02)

    whole = leaf(unit(50, (2, 8)))
    run(whole, make([whole]), range(10))
    first = leaf(unit(50, (2, 8)))
    before = make([first])
    run(first, before, range(5))
    second = leaf(first.detach().numpy().copy())
    after = make([second])
    after.restore({name: value.clone() for name, value in before.state().items()})
    run(second, after, range(5, 10))
    assert torch.equal(second, whole)


@pytest.mark.parametrize(
    ("schedule", "lengths"),
    [
        ("constant", [0.08, 0.08, 0.08, 0.08]),
        ("linear", [0.08, 0.06, 0.04, 0.02]),
        ("cosine", [0.08, 0.04 + 0.04 * 0.5**0.5, 0.04, 0.04 - 0.04 * 0.5**0.5]),
    ],
)
def test_step_lengths_fall_from_the_first_to_nothing(schedule: str, lengths: list[float]) -> None:
    assert [step_length(schedule, 0.08, step, 4) for step in range(4)] == pytest.approx(lengths)


def test_the_average_on_a_great_circle_is_at_the_mean_angle() -> None:
    """Points on one circle average to the point at the mean of their angles, whatever the order; plain numbers to their mean."""
    angles = [0.3, 1.1, 0.2, 0.9, -0.4]
    row, number = torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1, 1)
    average = Average([row, number], unit=1)
    for angle in angles:
        row.copy_(torch.tensor([[math.cos(angle), math.sin(angle), 0.0]]))
        number.fill_(angle)
        average.add()
        # As a run that stops after every step and goes on from its checkpoint.
        kept = {name: each.clone() for name, each in average.state().items()}
        average = Average([row, number], unit=1)
        average.restore(kept)
    mean = sum(angles) / len(angles)
    assert average.means[0][0].tolist() == pytest.approx([math.cos(mean), math.sin(mean), 0], abs=1e-6)
    assert average.means[1].item() == pytest.approx(mean, abs=1e-6)
