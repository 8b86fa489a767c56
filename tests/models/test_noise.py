"""What the denoiser predicts and which noise it knows: read from any model, or refused before it is trained on."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from dticli.errors import ModelError
from dticli.models import choice, contents, families, loading, single_file
from dticli.models.families.shape import Diffusion, is_flow
from tests import original_layout, tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
CPU = torch.device("cpu")
EPSILON, V = {"prediction_type": "epsilon"}, {"prediction_type": "v_prediction"}
ZERO = V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
MARK = torch.tensor([])
SD2_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny pipeline in diffusers layout."""
    done: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name)
            tiny.build(name).save_pretrained(done[name])
        return done[name]

    return make


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, torch.Tensor]]:
    return {name: original_layout.tensors(tiny.build(name)) for name in ("sd1", "sdxl")}


def told(folder: Path, copy: Path, **changes: Any) -> Path:
    """A copy of a model whose scheduler config says something else."""
    shutil.copytree(folder, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def checkpoint(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path


MARKED: dict[str, tuple[str, dict[str, torch.Tensor], dict[str, str], dict[str, Any]]] = {
    "nothing": ("sdxl", {}, {}, {}),
    "NoobAI": ("sdxl", {"v_pred": MARK, "ztsnr": MARK}, {}, ZERO),
    "v without zero SNR": ("sdxl", {"v_pred": MARK}, {}, V),
    "zero SNR alone": ("sdxl", {"ztsnr": MARK}, {}, {}),
    "SD1 with v": ("sd1", {"v_pred": MARK}, {}, V),
    "SD1 with zero SNR, which its sampler lacks": ("sd1", {"v_pred": MARK, "ztsnr": MARK}, {}, ZERO),
    "ModelSpec v": ("sdxl", {}, {"modelspec.prediction_type": "v"}, V),
    "ModelSpec v, marked": ("sdxl", {"ztsnr": MARK}, {"modelspec.prediction_type": "v"}, ZERO),
    "ModelSpec epsilon": ("sdxl", {}, {"modelspec.prediction_type": "epsilon"}, EPSILON),
    "ModelSpec of another kind": ("sdxl", {}, {"modelspec.prediction_type": "flow"}, {}),
    "mark against metadata": ("sdxl", {"v_pred": MARK}, {"modelspec.prediction_type": "epsilon"}, V),
}


@pytest.mark.parametrize("case", MARKED)
def test_a_checkpoint_says_what_it_predicts(
    case: str, folders: Callable[[str], Path], weights: Any, tmp_path: Path
) -> None:
    """Its scheduler is the base's with what the file says, whatever that base predicts, and trains to that target."""
    name, marks, metadata, expected = MARKED[case]
    file = checkpoint(tmp_path / "model.safetensors", weights[name] | marks, metadata)
    # The other prediction than the file's, so that it must win; both where it says none.
    for own in [each for each in (EPSILON, V) if each["prediction_type"] != expected.get("prediction_type")]:
        base = told(folders(name), tmp_path / own["prediction_type"], **own)
        model = choice.choose(str(file), base=str(base))
        pipe = loading.load(model, CPU, torch.float32)
        config = dict(pipe.scheduler.config)
        assert {key: config.get(key) for key in own | expected} == own | expected
        process = contents.process(model, contents.family(model))
        latents, noise = torch.full((1, 4, 8, 8), 2.0), torch.full((1, 4, 8, 8), 3.0)
        level = torch.tensor([500])
        target = process.target(latents, noise, level)
        if (own | expected)["prediction_type"] == "epsilon":
            assert torch.equal(target, noise)
            continue
        # v = alpha n - sigma x, alpha^2 the cumulated product of what is left of the signal.
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        roots = (1 - betas).cumprod(0).sqrt()
        if "rescale_betas_zero_snr" in expected:
            roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        alpha = roots[500].item()
        assert target.flatten()[0].item() == pytest.approx(alpha * 3 - (1 - alpha**2) ** 0.5 * 2, abs=1e-5)


@pytest.mark.parametrize(("spread", "expected"), [(0.3, V), (0.02, EPSILON)])
def test_the_two_kinds_of_sd2_are_told_apart_by_a_weight(
    spread: float, expected: dict[str, Any], tmp_path: Path
) -> None:
    """The 768 px model predicts v and the 512 px one epsilon; names and shapes are the same."""
    bias = spread * torch.tensor([1.0, -1.0]).repeat(160)
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(1, 1024),
        SD2_BIAS: bias,
    }
    file = single_file.read(checkpoint(tmp_path / "sd2.safetensors", tensors))
    assert file.noise == expected
    said = {"modelspec.prediction_type": "v"}
    assert single_file.read(checkpoint(tmp_path / "said.safetensors", tensors, said)).noise == V


def test_a_word_of_a_v_checkpoint_is_that_of_the_v_folder(
    dti: Dti, folders: Callable[[str], Path], weights: Any, photos: Path, tmp_path: Path
) -> None:
    """Learned on the marked file, on a folder that says the same, and with `--prediction v`: one word; another than epsilon's."""
    (tmp_path / "one.toml").write_text('templates = ["a photo of {}"]')
    marked = checkpoint(tmp_path / "marked.safetensors", weights["sdxl"] | {"v_pred": MARK})
    plain = checkpoint(tmp_path / "plain.safetensors", weights["sdxl"])
    base = ("--base", folders("sdxl"))
    runs = {
        "marked": ("--model", marked, *base),
        "folder": ("--model", told(folders("sdxl"), tmp_path / "v", **V)),
        "asked": ("--model", plain, *base, "--prediction", "v"),
        "asked of a folder": ("--model", folders("sdxl"), "--prediction", "v"),
        "epsilon": ("--model", marked, *base, "--prediction", "epsilon"),
        "plain": ("--model", plain, *base),
    }
    learned = {}
    for name, options in runs.items():
        out = tmp_path / "out" / f"{name.replace(' ', '-')}.safetensors"
        outcome = dti(
            *("train", photos, "--token", "<dog>", "--init", "dog", "-o", out, "--quiet", *options),
            *("--config", tmp_path / "one.toml", "--steps", 2, "--resolution", tiny.FAMILIES["sdxl"].size),
            *("--batch-size", 1, "--accumulate", 1),
        )
        assert outcome.code == 0, outcome.err
        assert ("predicts v_prediction" in outcome.err) is (name in ("marked", "asked", "asked of a folder"))
        # What must be said again when drawing is said.
        assert ("--prediction" in outcome.out) is ("--prediction" in options)
        learned[name] = load_file(out)["clip_l"]
    # How weights are stored may change last bits; another target changes the direction.
    apart = (learned["marked"] - learned["plain"]).norm()
    for name in ("folder", "asked", "asked of a folder"):
        assert (learned[name] - learned["marked"]).norm() < 1e-2 * apart, name
    assert (learned["epsilon"] - learned["plain"]).norm() < 1e-2 * apart


@pytest.mark.parametrize("mark", ["edm_vpred.sigma_max", "edm_mean"])
def test_checkpoints_of_edm_are_refused(mark: str, tmp_path: Path) -> None:
    """CosXL and Playground 2.5 are of SDXL's shapes, and predict something else."""
    tensors = {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1280, 2816), mark: torch.zeros(1)}
    with pytest.raises(ModelError, match=f"EDM.*{mark}.*choose another --model"):
        single_file.read(checkpoint(tmp_path / "edm.safetensors", tensors))


STRANGE = {
    "EDM": {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5},
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    "flow sigmas": {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True},
    "flow prediction": {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
    "trigonometric flow": {"_class_name": "SCMScheduler"},
    "consistency model": {"_class_name": "CMStochasticIterativeScheduler"},
    "a prediction of its own": {"_class_name": "DDIMScheduler", "prediction_type": "residual"},
    "betas of its own": {"_class_name": "DDIMScheduler", "beta_schedule": "exp"},
    "no scheduler": {"_class_name": "Nothing"},
}


@pytest.mark.parametrize("case", STRANGE)
def test_noise_that_is_not_trained_is_refused_before_anything_is_loaded(
    case: str,
    dti: Dti,
    folders: Callable[[str], Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--check` says it too."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    path = shutil.copytree(folders("sd1"), tmp_path / "model") / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(STRANGE[case]))
    word = ("--token", "<dog>", "--init", "dog", "-o", tmp_path / "dog.safetensors")
    for options in ((), ("--check",)):
        outcome = dti("train", photos, *word, "--model", tmp_path / "model", *options)
        assert outcome.code == 4, outcome.err
        assert "scheduler" in outcome.error


def test_a_flow_model_is_trained_with_a_flows_sampler_only(
    dti: Dti, folders: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    """The other way round: SD3's families with diffusion's noise, and a prediction asked of a flow."""
    word = ("--token", "<dog>", "--init", "dog", "-o", tmp_path / "dog.safetensors", "--check")
    path = shutil.copytree(folders("sd3"), tmp_path / "model") / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    outcome = dti("train", photos, *word, "--model", tmp_path / "model")
    assert (outcome.code, "DDIMScheduler" in outcome.error) == (4, True), outcome.err
    outcome = dti("train", photos, *word, "--model", folders("sd3"), "--prediction", "v")
    assert (outcome.code, "--prediction v" in outcome.error) == (2, True), outcome.err


def schedulers() -> list[str]:
    return sorted(
        name
        for name in dir(diffusers)
        if name.endswith("Scheduler")
        and inspect.isclass(getattr(diffusers, name))
        and name != "KarrasVeScheduler"
    )


@pytest.mark.parametrize("name", schedulers())
@pytest.mark.filterwarnings("ignore")
def test_every_scheduler_of_diffusers_is_trained_with_its_own_noise_or_refused(name: str) -> None:
    """By what the scheduler itself makes of its betas; those that have none are refused."""
    try:
        own = getattr(diffusers, name)()
    except (ImportError, ValueError, TypeError):
        pytest.skip("it cannot be made with its defaults here")
    try:
        process = Diffusion.of(own)
    except ModelError:
        # CogVideoX moves its noise levels for videos.
        assert not hasattr(own, "alphas_cumprod") or is_flow(own) or name.startswith("CogVideoX")
        return
    signal = torch.as_tensor(own.alphas_cumprod).float()
    assert torch.allclose(process.scheduler.alphas_cumprod, signal, atol=1e-6)
    assert process.scheduler.config.prediction_type == own.config.get("prediction_type", "epsilon")


EVEN = {"sana", "sana_sprint", "wan"}


@pytest.mark.parametrize("name", tiny.cases())
def test_every_family_knows_its_own_noise(name: str) -> None:
    """From the config alone, each tiny pipeline's process is what its family trains, at the levels it trains it.

    Of even draws: all timesteps alike; sigma itself in the paper's SANA and Wan; else SD3's shift, 3 u / (1 + 2 u).
    """
    pipe = tiny.build(name)
    family = families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, "tiny")
    process = family.code.process(pipe.scheduler)
    assert isinstance(process, Diffusion) is not is_flow(pipe.scheduler)
    middle = 500 if isinstance(process, Diffusion) else 0.5 if name in EVEN else 0.75
    assert process.levels(torch.tensor([0.5])).item() == pytest.approx(middle)
