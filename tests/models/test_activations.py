"""What a step takes besides weights is known before any weight is read."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dticli import bundled
from dticli.models import activations, choice, contents, families
from dticli.models.activations import Activations
from tests import tiny, trainings
from tests.trainings import training

CPU = torch.device("cpu")


def estimated(name: str, side: int, batch_size: int, *, low_memory: bool = False) -> Activations | None:
    model = choice.choose(name)
    found = contents.family(model)
    size = (side, side)
    return activations.of_training(model, found, torch.float32, size, batch_size, low_memory=low_memory)


def kept(name: str) -> int:
    """Bytes that torch keeps for the backward pass of a real step, besides weights."""
    task, learner = training(name, CPU, torch.float32)
    weights = {
        each.untyped_storage().data_ptr()
        for part in task.pipe.components.values()
        if isinstance(part, torch.nn.Module)
        for each in part.parameters()
    }
    found: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        next(trainings.fit(task, learner))
    return sum(found.values())


@pytest.mark.parametrize("name", tiny.cases("sd1", "sdxl"))
def test_a_step_takes_what_the_backward_pass_keeps_and_little_more(name: str, tmp_path: Path) -> None:
    """Of a step with real numbers, whose saved tensors torch itself hands out."""
    tiny.build(name).save_pretrained(tmp_path)
    found = estimated(str(tmp_path), tiny.FAMILIES[name].size, 2)
    assert found is not None
    real = kept(name)
    # The word itself, of two vectors there, is not in the estimate.
    assert 0.9 * real < found.step < 1.5 * real


def test_activations_grow_with_what_is_seen_at_once() -> None:
    """Twice the pictures take twice the memory, four times the pixels about four times; computing twice takes less."""
    one, two, large = (estimated(bundled.MODEL_NAME, *each) for each in ((64, 1), (64, 2), (128, 1)))
    slim = estimated(bundled.MODEL_NAME, 64, 2, low_memory=True)
    assert one is not None
    assert two is not None
    assert large is not None
    assert slim is not None
    assert two.step == pytest.approx(2 * one.step, rel=0.15)
    assert two.encoding == one.encoding
    assert 3 < large.step / one.step < 5
    assert large.encoding == pytest.approx(4 * one.encoding, rel=0.15)
    assert slim.step < 0.5 * two.step
    assert slim.encoding == two.encoding


@pytest.mark.parametrize("name", tiny.cases("zimage"))
def test_a_model_that_looks_at_numbers_is_not_estimated(name: str, tmp_path: Path) -> None:
    """Z-Image cuts its prompts by their masks: None, and no guess."""
    tiny.build(name).save_pretrained(tmp_path)
    assert families.of_index(contents.index(choice.choose(str(tmp_path))), name).name == "z_image"
    assert estimated(str(tmp_path), tiny.FAMILIES[name].size, 1) is None
