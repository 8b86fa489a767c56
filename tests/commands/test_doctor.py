"""`dti doctor`: what it finds on this machine, and on broken ones."""

import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from dticli import bundled
from dticli.commands import doctor
from dticli.errors import ModelError
from tests.conftest import Outcome

Dti = Callable[..., Outcome]


def test_here_everything_works(dti: Dti) -> None:
    """Every check has a line, and where nothing is a problem the exit code is 0."""
    outcome = dti("doctor", "--offline", "--json")
    findings = {finding["name"]: finding for finding in outcome.json["findings"]}
    assert {
        "python",
        "torch",
        "diffusers",
        "computing",
        "memory",
        "bundled model",
        "cache",
    } <= findings.keys()
    assert findings["torch"]["found"] == torch.__version__
    assert "hub" not in findings
    assert outcome.code == (5 if any(each["state"] == "problem" for each in findings.values()) else 0)
    assert all(each["advice"] for each in findings.values() if each["state"] != "ok")


def test_problems_end_with_code_5(dti: Dti, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are listed with their remedy, and named in the error."""
    monkeypatch.setattr(doctor, "MIN_PYTHON", (99, 0))
    outcome = dti("doctor", "--offline")
    assert (outcome.code, "python" in outcome.error) == (5, True)
    assert "problem python" in outcome.out
    assert "install Python" in outcome.out


def test_an_old_or_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings it up to date."""
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=999", "diffusers>=0.1"])
    real = metadata.version

    def version(name: str) -> str:
        if name == "pillow":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {finding.name: finding for finding in doctor.libraries()}
    assert (found["torch"].state, found["torch"].advice) == ("problem", "pip install 'torch>=999'")
    assert found["diffusers"].state == "ok"
    assert (found["pillow"].state, found["pillow"].advice) == ("problem", "pip install 'pillow'")


def test_broken_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that cannot multiply is a problem."""

    def fail(*args: Any) -> None:
        raise RuntimeError("illegal instruction\nmore")

    monkeypatch.setattr(torch, "ones", fail)
    finding = doctor.torch_works()
    assert (finding.state, finding.found) == ("problem", "illegal instruction")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that torch sees, one that it does not, one that is hidden from it, and none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (2**30, 2**34))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Fast")
    assert [finding.found for finding in doctor.devices()] == ["Fast, 1.0 of 16.0 GiB free"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    for name in doctor.HIDING:
        monkeypatch.delenv(name, raising=False)
    assert [finding.state for finding in doctor.devices()] == ["problem"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (hidden,) = doctor.devices()
    assert (hidden.state, "CUDA_VISIBLE_DEVICES=''" in hidden.found) == ("note", True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert [finding.state for finding in doctor.devices()] == ["note"]


def test_little_memory_and_a_missing_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note, and a problem."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30, total=2**31))
    assert doctor.memory().state == "note"

    def missing() -> Path:
        raise ModelError("no weights")

    monkeypatch.setattr(bundled, "model_folder", missing)
    assert doctor.bundled_model().state == "problem"


def test_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Interrupted downloads are counted; a full disk is noted; one that cannot be written is a problem."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    blobs = tmp_path / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "1.incomplete").write_bytes(b"half")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    assert [(each.name, each.state) for each in doctor.cache()] == [("cache", "note"), ("downloads", "note")]

    def refuse(**options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert [each.state for each in doctor.cache()] == ["problem"]


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noted with its reason; an answer with or without a login is told apart."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    silent = doctor.hub()
    assert (silent.state, "does not answer" in silent.found) == ("note", True)
    monkeypatch.setattr(doctor, "_ask", lambda address: None)
    for token, state in ((None, "note"), ("secret", "ok")):
        monkeypatch.setattr(huggingface_hub, "get_token", lambda token=token: token)
        finding = doctor.hub()
        assert finding.state == state
        assert "secret" not in finding.found


def test_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing says what it would be good for."""
    uses = {
        "pillow_heif": "HEIC",
        "imageio_ffmpeg": "MP4",
        "tensorboard": "--tracker tensorboard",
        "wandb": "--tracker wandb",
        "chafa": "terminal",
    }
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in uses else find_spec(name))
    found = {each.name: each for each in doctor.plugins()}
    assert found.keys() == uses.keys()
    for name, use in uses.items():
        assert (found[name].state, use in str(found[name].advice)) == ("note", True)


@pytest.mark.parametrize("error", [ImportError("no libx.so"), RuntimeError("no GPU\nmore"), AttributeError()])
def test_a_plugin_that_cannot_be_imported(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it raises is noted, and the other plugins are looked at."""
    (tmp_path / "broken_plugin.py").write_text(f"raise {error!r}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "PLUGINS", {"broken_plugin": "X: pip install x", "json": "Y"})
    broken, whole = doctor.plugins()
    reason = (str(error) or type(error).__name__).splitlines()[0]
    assert (broken.state, broken.found) == ("note", f"installed, and cannot be imported: {reason}")
    assert whole.state == "ok"
