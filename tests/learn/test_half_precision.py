"""Gradients in fp16 that overflow cost one more try, and not the run."""

import math

import pytest
import torch

from dticli.errors import NonFiniteError
from dticli.learn.trainer import Learner, StepReport
from tests import trainings
from tests.trainings import training

CPU = torch.device("cpu")


def learned(scale: float, dtype: torch.dtype = torch.float16) -> tuple[Learner, list[StepReport]]:
    """Two steps that begin with a loss scale."""
    task, learner = training("sd1", CPU, dtype)
    learner.loss_scale.fill_(scale)
    return learner, list(trainings.fit(task, learner))


def test_an_overflowing_step_is_computed_again_with_half_the_scale() -> None:
    """What is learned is what the scale that it ends with learns from the start, bit for bit."""
    learner, reports = learned(2.0**30)
    found = learner.loss_scale.item()
    assert 1 < found < 2.0**30
    assert math.log2(found).is_integer()
    other, others = learned(found)
    assert other.loss_scale.item() == found
    assert [each.loss for each in reports] == [each.loss for each in others]
    assert all(torch.equal(a, b) for a, b in zip(learner.leaves, other.leaves, strict=True))


def test_the_scale_leaves_no_trace_in_what_is_learned() -> None:
    """Gradients in fp16 are as long as in float32, whose loss is not scaled."""
    (_, half), (_, whole) = learned(1024.0), learned(1024.0, torch.float32)
    assert half[0].gradient["clip_l"] == pytest.approx(whole[0].gradient["clip_l"], rel=0.05)


def test_the_scale_is_part_of_the_state() -> None:
    """A run that goes on starts with the scale that it had, or it would not be the same run."""
    learner, _ = learned(2.0**30)
    _, fresh = training("sd1", CPU, torch.float16)
    assert fresh.loss_scale != learner.loss_scale
    fresh.restore(learner.state())
    assert fresh.loss_scale == learner.loss_scale


def test_what_overflows_at_any_scale_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halving ends at one; then the optimizer says what to try."""
    task, learner = training("sd1", CPU, torch.float16)
    leaf = learner.leaves[0]
    leaf.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match="--precision"):
        next(trainings.fit(task, learner))
    assert learner.loss_scale == 1
