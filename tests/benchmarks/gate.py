"""Run a program that trains, and stop it after every optimizer step until it is told to go on.

    python -m tests.benchmarks.gate READ WRITE (-m MODULE | SCRIPT) [ARGUMENT ...]

READ and WRITE are descriptors. After each step a line with the process's seconds of CPU time goes to WRITE; a byte from READ lets
it go on, and the end of READ ends it. Any program that steps a `torch.optim` optimizer will do; dti's own are known as well.
"""

import importlib.abc
import importlib.util
import os
import runpy
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Watch(importlib.abc.MetaPathFinder):
    """Changes a module as soon as it has been imported."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]):
        self.name, self.change = name, change

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec
        assert spec.loader
        load = spec.loader.exec_module

        def loaded(module: ModuleType) -> None:
            load(module)
            self.change(module)

        spec.loader.exec_module = loaded  # type: ignore[method-assign]
        return spec


def main() -> None:
    """Run the program behind the gate."""
    read, write = (int(each) for each in sys.argv[1:3])

    def passed(*_: Any) -> None:
        os.write(write, f"{time.process_time()}\n".encode())
        if not os.read(read, 1):
            os._exit(0)

    def after(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **options: Any) -> Any:
            found = step(*args, **options)
            passed()
            return found

        return stepped

    def gate_learner(module: ModuleType) -> None:
        module.Learner.step = after(module.Learner.step)

    sys.meta_path.insert(
        0, _Watch("torch.optim.optimizer", lambda it: it.register_optimizer_step_post_hook(passed))
    )
    sys.meta_path.insert(0, _Watch("dticli.learn.trainer", gate_learner))
    if sys.argv[3] == "-m":
        sys.argv = sys.argv[4:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = sys.argv[3:]
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
