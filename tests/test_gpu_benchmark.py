"""The benchmark for cards takes every way through its script where there is none, on a tiny model: what it needs is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dticli.models import footprint, quantization
from tests.benchmarks import gpu

NOT_MEASURED = f"before\n\n{gpu.START}\n\nNot measured.\n\n{gpu.END}\nafter\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "gpu.md"
    path.write_text(NOT_MEASURED, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WARM_UP", 0)


def cells(page: Path) -> list[list[str]]:
    """Of all rows of all tables on a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]


def measured(page: Path, *options: object) -> list[list[str]]:
    """Rows of the shortest measurement of a tiny model."""
    tiny = ("--device", "cpu", "--model", "sd1", "--size", 32, "--preset-size", 32, "--steps", 1)
    assert gpu.main([str(each) for each in (*tiny, "--page", page, *options)]) == 0
    return cells(page)


def test_every_way_is_measured(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row each, with numbers; what surrounds the tables stays."""
    asked: list[str] = []
    compiled: list[dict[str, Any]] = []

    def config(index: Any, family: Any, kind: str, device: Any, dtype: Any) -> None:
        asked.append(kind)

    def traced(function: Callable[..., Any], **options: Any) -> Any:
        compiled.append(options)
        return lambda *args, **kwargs: function(*args, **kwargs)

    monkeypatch.setattr(footprint, "PRESETS", {"8gb": 8.0})
    # What rounds is not installed everywhere, and what compiles takes a minute.
    monkeypatch.setattr(quantization, "config", config)
    monkeypatch.setattr(torch, "compile", traced)
    rows = measured(page, "--batch", 1)
    ways = [row for row in rows if row[3] in gpu.WAYS]
    assert [row[:4] for row in ways] == [["sd1", "32", "1", name] for name in gpu.WAYS]
    for row in ways:
        assert float(row[4]) > 0, row
        assert row[5].endswith("%")
        assert row[6] == "not counted"
        assert float(row[7]) > 0
    assert asked.count("8bit") == 1
    assert compiled == [{}, {"mode": "reduce-overhead"}]
    presets = [row for row in rows if row[2] in footprint.PRESETS]
    assert [row[2:4] for row in presets] == [["8gb", "nothing"]]
    assert float(presets[0][6]) > 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n\n{gpu.START}\n")
    assert text.endswith(f"{gpu.END}\nafter\n")
    assert "Not measured" not in text


def test_every_shape_is_measured(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every way but those that take minutes for each; a word has as many pictures whatever the batch."""
    monkeypatch.setattr(gpu.Bench, "tried", lambda *arguments: gpu.Taken(0.5, 0.4, "3.2"))
    monkeypatch.setattr(footprint, "PRESETS", {})
    rows = measured(page, "--size", 32, 64, "--batch", 1, 4)
    found = [tuple(row[1:]) for row in rows if row[3] in gpu.WAYS]
    shapes = [("32", "1"), ("32", "4"), ("64", "1"), ("64", "4")]
    # 500 steps of 4 pictures.
    minutes = {"1": "16.7", "4": "4.2"}
    assert found == [
        (*shape, name, "0.500", "20 %", "3.2", minutes[shape[1]])
        for name, way in gpu.WAYS.items()
        for shape in shapes[: None if way.quick else 1]
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_training_step_can_be_compiled(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch can trace the denoiser of our step and of the bare one, and their backward passes."""
    compile: Callable[..., Any] = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile(function, backend="aot_eager", fullgraph=True)
    )
    rows = measured(page, "--batch", 1, "--way", "compile", "cuda-graphs")
    assert all(float(row[4]) > 0 for row in rows if row[3:4] and row[3] in gpu.WAYS)


def test_what_cannot_be_measured_says_why(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row that does not fit, or lacks a library, costs no other row."""
    monkeypatch.setitem(gpu.WAYS, "tf32", gpu.Way(out_of_memory))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(footprint, "PRESETS", {"8gb": 1e-9})
    rows = measured(page, "--batch", 1, "--way", "8bit", "tf32", "as-it-is")
    said = {row[3]: row[4] for row in rows if len(row) > 4}
    assert "pip install torchao" in said["8bit"]
    assert said["tf32"] == "does not fit"
    assert float(said["as-it-is"]) > 0
    assert any("no option makes it less" in row[3] for row in rows if row[2:3] == ["8gb"])


def out_of_memory(denoiser: torch.nn.Module) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_ways_leave_the_denoiser_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next row begins with the same strides, forward pass and precision."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    network = torch.nn.Conv2d(3, 5, 3)
    precision, strides = torch.get_float32_matmul_precision(), network.weight.stride()
    for way in (gpu.channels_last, gpu.tf32, gpu.compiled):
        with way(network):
            pass
        assert network.weight.stride() == strides
        assert network.forward == torch.nn.Conv2d.forward.__get__(network)
        assert torch.get_float32_matmul_precision() == precision
    with gpu.channels_last(network):
        assert network.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_card_is_asked_for_where_there_is_none(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written then."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--page", str(page)]) == 5
    assert "no CUDA device" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == NOT_MEASURED
