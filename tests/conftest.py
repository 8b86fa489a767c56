"""Fixtures shared by the tests: one short training on the bundled model, and a way to call the command line."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dticli import bundled
from dticli.cli import run
from tests import hub_server
from tests.hub_server import Hub
from tests.zygote import Zygote


@dataclass(frozen=True)
class Outcome:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error, which must be a single line and the last one."""
        lines = self.err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert errors == lines[-1:], self.err
        return errors[0].removeprefix("error: ")


@pytest.fixture
def dti(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `dti ARGUMENTS` in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run offline: whoever asks the hub gets a refused connection at once."""
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("DTI_MODEL", raising=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and a client that knows no other; its cache is empty."""
    with hub_server.running() as local:
        template = f"{local.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        # Whoever runs the tests may have said that theirs is not to be asked.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", local.url)
        # The client that module-level functions share took its address on import.
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", local.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield local


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random judges in the place of the bundled ones."""
    import torch
    from safetensors.torch import save_file

    from dticli.bundled import judge

    torch.manual_seed(0)
    for name, kind in (("a", judge.DualEncoder), ("b", judge.Observer)):
        save_file(kind().state_dict(), tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(judge, "weights", lambda name: tmp_path / f"{name}.safetensors")


@pytest.fixture
def five_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five prompts of the set `stickers`, from all over it, in the place of all twenty."""
    from dticli.evaluation import stickers

    few = stickers.simple()[::4]
    monkeypatch.setattr(stickers, "simple", lambda: few)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """A process that has imported everything, for tests that need processes."""
    started = Zygote()
    yield started
    started.close()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos of a dog."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in bundled.photos("dog"):
        (folder / photo.name).write_bytes(photo.read_bytes())
    return folder


def _train(folder: Path, photos: Path, word: str) -> Path:
    file = folder / f"{word}.safetensors"
    arguments = [
        "train",
        photos,
        "--token",
        f"<{word}>",
        "--init",
        word,
        "--steps",
        3,
        "--batch-size",
        1,
        "-o",
        file,
    ]
    assert run([*map(str, arguments), "--model", "stickers", "--quiet"]) == 0
    return file


@pytest.fixture(scope="session")
def dog(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A token file of `<dog>`, learned for three steps on the bundled model."""
    return _train(tmp_path_factory.mktemp("dog"), photos, "dog")


@pytest.fixture(scope="session")
def cat(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A token file of `<cat>`."""
    return _train(tmp_path_factory.mktemp("cat"), photos, "cat")
