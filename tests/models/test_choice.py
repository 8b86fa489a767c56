"""Which model is chosen, and what is fetched of it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dticli import bundled
from dticli.errors import EnvironmentProblem, ModelError
from dticli.models import choice, contents, devices
from tests import tiny
from tests.conftest import Outcome
from tests.hub_server import Hub, Repository

Dti = Callable[..., Outcome]


@pytest.fixture
def remote(hub: Hub, tmp_path: Path) -> Hub:
    """The hub with a tiny SD1 model, `artist/tiny`."""
    tiny.build("sd1").save_pretrained(tmp_path / "model")
    files = {
        str(path.relative_to(tmp_path / "model")): path.read_bytes()
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    }
    hub.repositories["artist/tiny"] = Repository(files)
    return hub


def test_the_choice_of_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Option before the token file's own, before DTI_MODEL, before the default of the machine; the reason is told."""
    monkeypatch.setattr(devices, "has_cuda", lambda: False)
    assert choice.choose(None).name == bundled.MODEL_NAME
    monkeypatch.setattr(devices, "has_cuda", lambda: True)
    assert choice.choose(None).name == choice.DEFAULT_ON_CUDA
    assert choice.choose(None, device="cpu").name == bundled.MODEL_NAME
    monkeypatch.setenv("DTI_MODEL", "artist/environment")
    assert choice.choose(None).name == "artist/environment"
    assert choice.choose(None, recorded="artist/recorded").name == "artist/recorded"
    chosen = choice.choose("artist/option@v2", recorded="artist/recorded")
    assert (chosen.name, chosen.revision, chosen.why) == ("artist/option", "v2", "as chosen")


def test_a_folder_is_known_by_its_name_and_not_its_path(tmp_path: Path) -> None:
    """What is recorded must not tell where somebody keeps their models."""
    with pytest.raises(ModelError, match=r"model_index\.json"):
        choice.choose(str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model_index.json").write_text("{}")
    assert choice.choose(str(tmp_path / "mine")).label == "mine"


def test_a_model_of_the_hub_trains_and_draws(dti: Dti, remote: Hub, photos: Path, tmp_path: Path) -> None:
    """A line says at once how much would be downloaded; the word remembers its model; `--offline` then does without the hub."""
    file = tmp_path / "dog.safetensors"
    learn = ("--init", "dog", "--steps", 1, "--batch-size", 1, "--resolution", 16, "--model", "artist/tiny")
    outcome = dti("train", photos, "--token", "<dog>", "-o", file, *learn)
    assert outcome.code == 0, outcome.err
    assert "model: artist/tiny (as chosen; up to 0.0 GB to download)" in outcome.err.splitlines()[:2]
    asked = len(remote.requests)
    outcome = dti(
        "generate", "<dog>", "-t", file, "--steps", 1, "--size", 16, "-o", tmp_path / "out", "--offline"
    )
    assert outcome.code == 0, outcome.err
    assert "model: artist/tiny (the token file was learned on it)" in outcome.err.splitlines()[:2]
    assert len(remote.requests) == asked


def test_inspect_norms_fetches_text_encoders_only(dti: Dti, remote: Hub) -> None:
    """Norms need neither U-Net nor autoencoder."""
    outcome = dti("inspect-norms", "artist/tiny")
    assert outcome.code == 0, outcome.err
    weights = {request.split("/")[-2] for request in remote.requests if request.endswith(".safetensors")}
    assert weights == {"text_encoder"}


def test_models_the_hub_does_not_give(dti: Dti, remote: Hub) -> None:
    """No such model, and no such revision, are model errors that name it."""
    for name, part in (("artist/nothing", "artist/nothing"), ("artist/tiny@v9", "v9")):
        outcome = dti("inspect-norms", name)
        assert (outcome.code, part in outcome.error) == (4, True)


def test_a_gated_model_says_where_to_ask(dti: Dti, remote: Hub) -> None:
    """Whoever has not accepted the licence is told to."""
    remote.repositories["artist/tiny"].gated = True
    outcome = dti("inspect-norms", "artist/tiny")
    assert (outcome.code, "licence" in outcome.error) == (4, True)


def test_a_download_that_breaks_off_can_be_repeated(
    dti: Dti, remote: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken connection is an error of the environment, and leaves nothing that passes for the whole file."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    remote.repositories["artist/tiny"].cut = "text_encoder/model.safetensors"
    outcome = dti("inspect-norms", "artist/tiny")
    assert outcome.code == 5, outcome.err
    assert "network" in outcome.error
    remote.repositories["artist/tiny"].cut = None
    assert dti("inspect-norms", "artist/tiny").code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="where drivers show in /dev")
@pytest.mark.parametrize("node", ["nvidia0", "nvhost-gpu", "dxg", "kfd"])
def test_torch_is_asked_for_cuda_where_there_is_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """It costs seconds to ask; without a driver there is nothing to ask for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "DRIVERS_AT", tmp_path)
    assert not devices.has_cuda()
    (tmp_path / node).touch()
    assert devices.has_cuda()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not devices.has_cuda()


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for CUDA without it is an error of the environment; `auto` takes what there is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.pick_device("auto") == torch.device("cpu")
    with pytest.raises(EnvironmentProblem, match="--device cpu"):
        devices.pick_device("cuda")


@pytest.mark.parametrize(
    ("wanted", "device", "bf16", "dtype"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float16),
        ("fp16", "cpu", True, torch.float16),
    ],
)
def test_precision(
    wanted: str, device: str, bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 on CUDA that has it, else fp16; fp32 elsewhere; what is asked for wins."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    assert devices.pick_dtype(wanted, torch.device(device)) == dtype


def test_sizes_suit_the_family() -> None:
    """A side that is no multiple names the nearest one."""
    from dticli.errors import UsageError
    from dticli.models import families

    contents.require_multiple((64, 128), families.TABLE[0])
    with pytest.raises(UsageError, match=r"size 65x64 .*try 64$"):
        contents.require_multiple((64, 65), families.TABLE[0])


def test_variants_and_shards() -> None:
    """Only files of the wanted variant count, in one piece or several."""
    names = [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.fp16.safetensors",
        "model.fp16-00001-of-00002.safetensors",
    ]
    assert [contents._other_variant(name, None) for name in names] == [False, False, True, True]
    assert [contents._other_variant(name, "fp16") for name in names] == [True, True, False, False]
