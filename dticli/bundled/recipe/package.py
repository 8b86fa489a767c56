"""Step `package`: write the model and its judges into the package."""

from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save
from torch import Tensor

from dticli.bundled import judge, model_folder
from dticli.errors import ModelError

from . import assembly, cache
from .training import RecipeLog

MOST_BYTES = 48 * 2**20


def ship(log: RecipeLog) -> None:
    """Write the recipe's model and judges into the package.

    Raises:
        ModelError: the weights have more than MOST_BYTES.
    """
    half = {name: _half(load_file(file)) for name, file in _judge_files().items()}
    size = _weight_bytes(assembly.built()) + sum(
        value.nbytes for state in half.values() for value in state.values()
    )
    if size > MOST_BYTES:
        raise ModelError(
            f"the weights take {size / 2**20:.1f} MiB: at most {MOST_BYTES / 2**20:.0f} MiB ship; shrink a part"
        )
    assembly.assemble(model_folder())
    judge.weights("a").parent.mkdir(exist_ok=True)
    for name, state in half.items():
        cache.write_bytes(judge.weights(name), save(state))
    log(f"package: {size / 2**20:.1f} MiB of weights in {model_folder()} and {judge.weights('a').parent}")


def _judge_files() -> dict[Literal["a", "b"], Path]:
    return {"a": assembly.judge_a(), "b": assembly.judge_b()}


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def _weight_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.rglob("*.safetensors"))
