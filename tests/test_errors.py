"""How errors are told apart, and where foreign ones become ours."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dticli.errors import EnvironmentProblem, is_out_of_memory

SCARCE = """
import json, resource, sys
import numpy, safetensors.torch, torch
from PIL import Image
from dticli.errors import is_out_of_memory

folder = sys.argv[1]
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))

def mapped_storage():
    torch.UntypedStorage.from_file(f"{folder}/large.safetensors", False, 2**34)

def mapped_safetensors():
    with safetensors.safe_open(f"{folder}/large.safetensors", framework="pt") as file:
        file.get_tensor("a")

def picture():
    Image.new("RGB", (60_000, 60_000))

found = {}
for name, attempt in {
    "a tensor": lambda: torch.empty(2**34),
    "a convolution": lambda: torch.nn.functional.conv2d(torch.zeros(1, 1, 24_000, 24_000), torch.zeros(8, 1, 1, 1)),
    "attention": lambda: torch.nn.functional.softmax(torch.zeros(40_000, 1) @ torch.zeros(1, 40_000), -1),
    "bytes": lambda: bytearray(2**34),
    "an array": lambda: numpy.zeros(2**33, numpy.uint8).copy(),
    "a picture": picture,
    "a mapped file": mapped_storage,
    "mapped safetensors": mapped_safetensors,
}.items():
    try:
        attempt()
    except Exception as error:
        found[name] = (is_out_of_memory(error), f"{type(error).__module__}.{type(error).__name__}: {error}")
    else:
        found[name] = (None, "did not fail")
print(json.dumps(found))
"""


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    """A file of that size that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is not kept")
def test_the_systems_own_errors_of_memory_are_recognised(tmp_path: Path) -> None:
    """Under `ulimit -v`: what tensors, convolutions, arrays, pictures, and mapped files raise."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}}).encode()
    start = len(header).to_bytes(8, "little") + header
    sparse(tmp_path / "large.safetensors", len(start) + 2**34, start)
    program = subprocess.run(
        [sys.executable, "-c", SCARCE, tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[1],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(program.stdout)
    assert len(found) >= 8
    assert all(recognised for recognised, _ in found.values()), found


DEVICES = {
    "CUDA": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB"
    ),
    "CUDA's driver": RuntimeError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "HIP": torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 17.86 GiB, max allowed: 18.13 GiB)"),
    "MPS's buffers": RuntimeError("Invalid buffer size: 12.00 GiB"),
    "XPU": torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB"),
    "Windows": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"
    ),
    "the system": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    "C++": RuntimeError("std::bad_alloc"),
}
"""What devices that are not here raise, as their users report it."""


@pytest.mark.parametrize("name", DEVICES)
def test_devices_errors_of_memory_are_recognised(name: str) -> None:
    """As they are raised, and as what a library's own error came from; not where ours has explained it."""
    assert is_out_of_memory(DEVICES[name])
    try:
        try:
            raise DEVICES[name]
        except Exception:
            raise OSError("Can't load the weights: a damaged file?")  # noqa: B904 - as libraries do
    except OSError as error:
        wrapped = error
    assert is_out_of_memory(wrapped)
    with pytest.raises(EnvironmentProblem) as caught:
        raise EnvironmentProblem("stickers does not fit into the memory of cpu") from wrapped
    assert not is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (4) must match the size of tensor b (3)"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        KeyError("unet"),
        NotImplementedError("aten::memory_format on MPS"),
    ],
)
def test_other_errors_are_not_of_memory(error: Exception) -> None:
    """Least of all a full disk."""
    assert not is_out_of_memory(error)
