"""Low memory learns the same, quantised weights nearly the same, and the estimate is what is loaded."""

import contextlib
import copy
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dticli import bundled, randomness
from dticli.draw.sampler import sample, shots
from dticli.errors import EnvironmentProblem
from dticli.models import choice, contents, devices, families, footprint, loading, memory, quantization
from dticli.models.activations import Activations
from dticli.models.choice import Model
from dticli.models.families import Family
from dticli.models.families.shape import Frame, pipe_device
from dticli.models.footprint import Weights
from dticli.photos import albums, latents
from dticli.randomness import Key
from dticli.settings import GenerateSettings, ModelSettings, TrainSettings, Trait, resolve
from dticli.words import placement
from dticli.words.placement import FreeWord, place
from tests import tiny
from tests.conftest import Outcome
from tests.hub_server import Hub, Repository
from tests.trainings import recoded

Dti = Callable[..., Outcome]
CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
every_family = pytest.mark.parametrize("name", tiny.distinct())
PROMPTS = ["a photo of <dog> on grass", "<dog> in the snow"]
DROPOUT = 0.3
SAID = {"token": "<dog>", "init": "dog", "steps": 1, "lr": 0.1, "kappa": 0.0, "resolution": 64}


def family_of(pipe: Any) -> Family:
    return families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, "tiny")


def frozen(pipe: Any) -> Any:
    """As `loading.load` hands it over."""
    for module in modules(pipe).values():
        module.requires_grad_(False).eval()
        loading._without_cache(module)
    return pipe


def modules(pipe: Any) -> dict[str, nn.Module]:
    return {name: each for name, each in pipe.components.items() if isinstance(each, nn.Module)}


def with_dropout(pipe: Any) -> Any:
    """The pipeline with text encoders of the same weights, whose configs ask for dropout wherever they can."""
    for encoder in family_of(pipe).encoders:
        module = getattr(pipe, encoder.component)
        config = copy.deepcopy(module.config)
        for part in (config, config.get_text_config()):
            for key, value in vars(part).items():
                if "dropout" in key and isinstance(value, int | float):
                    setattr(part, key, DROPOUT)
        made = type(module)(config)
        made.load_state_dict(module.state_dict())
        setattr(pipe, encoder.component, made)
    return frozen(pipe)


def word(pipe: Any, name: str = "<dog>") -> FreeWord:
    """A word with random rows as long as the vocabulary's."""
    rows = {}
    for encoder in family_of(pipe).encoders:
        table = placement.table(pipe, encoder)
        direction = randomness.normal(Key(0, "row", encoder.key), (1, table.shape[1]))
        rows[encoder.key] = (direction / direction.norm() * table.norm(dim=-1).mean()).requires_grad_()
    return FreeWord(name, rows)


def step(pipe: Any, side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of two pictures, and the gradient of the word's rows."""
    family, learned = family_of(pipe), word(pipe)
    code, frames = family.code, [Frame((side, side), (0, 0), (side, side))] * 2
    process = code.process(pipe.scheduler)
    with torch.no_grad():
        raw, _ = code.posterior(pipe, randomness.normal(Key(0, "pixels"), (2, 3, side, side)).clamp(-1, 1))
        clean = code.to_latents(pipe, raw)
    noise, level = (
        randomness.normal(Key(0, "noise"), tuple(clean.shape)),
        process.levels(torch.tensor([0.2, 0.7])),
    )
    with place(pipe, family.encoders, [learned]) as placed:
        conditioning = code.encode(pipe, [placed.expand(each) for each in PROMPTS], frames)
        prediction = code.predict(pipe, process.add_noise(clean, noise, level), level, conditioning)
        loss = (prediction - process.target(clean, noise, level)).square().mean()
        loss.backward()
    return loss.detach(), {key: rows.grad for key, rows in learned.rows.items()}  # type: ignore[misc]


@dataclass(frozen=True)
class Seen:
    """What happened in layers: how often each ran, and through which the gradient passed."""

    times: Counter[str]
    passed: set[str]


@contextlib.contextmanager
def watched(pipe: Any) -> Iterator[Seen]:
    """Watch the layers of text encoders, and the attention of the denoiser."""
    seen, handles = Seen(Counter(), set()), []
    denoiser = family_of(pipe).code.denoiser(pipe)
    for component, module in modules(pipe).items():
        for path, part in module.named_modules():
            name = f"{component}.{path}"
            if isinstance(part, GradientCheckpointingLayer):
                # Its own hooks do not run when it is computed again: those of what it computes first do.
                first = next(each for each in part.modules() if not list(each.children()))
                handles.append(first.register_forward_hook(_count(seen, name)))
                handles.append(part.register_forward_hook(_pass(seen, name)))
            elif module is denoiser and type(part).__name__.endswith("Attention"):
                handles.append(part.register_forward_hook(_count(seen, name)))
                handles.append(part.register_forward_hook(_pass(seen, name)))
    yield seen
    for handle in handles:
        handle.remove()


def _count(seen: Seen, name: str) -> Callable[..., None]:
    return lambda *arguments: seen.times.update([name])


def _pass(seen: Seen, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        if first.requires_grad:
            first.register_hook(lambda gradient: seen.passed.add(name))

    return hook


# diffusers keeps these activations: it has no checkpoints there.
KEPT = {
    "lumina2": "transformer.context_refiner",
    "hunyuandit": "transformer.",
    "krea2": "transformer.text_fusion",
}


# ---------------------------------------------------------------------------- training


@every_family
def test_low_memory_learns_the_same(name: str) -> None:
    """Loss and gradients bit for bit, dropout in every config; and every layer that the gradient passes runs twice.

    In training mode every one of these encoders drops something, so that a wrong mode would be seen.
    """
    pipe, side = with_dropout(tiny.build(name)), tiny.FAMILIES[name].size
    with watched(pipe) as before:
        loss, gradients = step(pipe, side)
    for encoder in family_of(pipe).encoders:
        module = getattr(pipe, encoder.component).train()
        _, dropped = step(pipe, side)
        assert not torch.allclose(dropped[encoder.key], gradients[encoder.key], rtol=1e-3), encoder.key
        module.eval()
    memory.economize(pipe, family_of(pipe), CPU)
    with watched(pipe) as after:
        again, others = step(pipe, side)
    assert torch.equal(loss, again)
    for key, gradient in gradients.items():
        assert gradient.any()
        assert torch.equal(gradient, others[key]), key
    assert set(before.times.values()) == {1}
    twice = {each for each in before.passed if not each.startswith(KEPT.get(name, " "))}
    assert {each for each in twice if after.times[each] == 2} == twice
    for component in (each.component for each in family_of(pipe).encoders):
        layers = {each for each in before.times if each.startswith(f"{component}.")}
        assert {each for each in layers if after.times[each] == 2} == layers & twice != set()
    assert name == "hunyuandit" or any(each.startswith(("unet.", "transformer.")) for each in twice)


@every_family
def test_only_what_a_step_needs_goes_to_the_device(name: str) -> None:
    """Encoders and denoiser; the autoencoder and all else stay on the CPU."""
    pipe = frozen(tiny.build(name))
    family = family_of(pipe)
    memory.economize(pipe, family, META)
    there = {key for key, each in modules(pipe).items() if next(each.parameters()).is_meta}
    denoiser = next(key for key, each in modules(pipe).items() if each is family.code.denoiser(pipe))
    assert there == {denoiser, *(each.component for each in family.encoders)}


def some_crops(side: int) -> list[albums.Crop]:
    photos = albums.read(bundled.photos("dog")[0].parent, None).photos[:1]
    return list(albums.crops(photos, albums.Cropping(side, "center", 1, False, 8, 0)))


@every_family
def test_small_pictures_need_no_tiles(name: str) -> None:
    """With tiles allowed, latents of a picture that is smaller than one are the same bits."""
    pipe, family = frozen(tiny.build(name)), family_of(tiny.build(name))
    crops = some_crops(tiny.FAMILIES[name].size)
    whole = latents.encode(pipe, family, crops, CPU)
    memory.tile(pipe.vae)
    assert pipe.vae.use_tiling
    assert torch.equal(whole.mean[0], latents.encode(pipe, family, crops, CPU).mean[0])


def test_pictures_that_do_not_fit_are_encoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole where that fits; otherwise in tiles, whose latents are near those of the whole, and not the same."""
    pipe = loading.load(choice.choose(bundled.MODEL_NAME), CPU, torch.float32)
    family, crops = family_of(pipe), some_crops(128)
    whole = latents.encode_low_memory(pipe, family, crops, CPU).mean[0]
    assert not pipe.vae.use_tiling
    posterior = family.code.posterior

    def short(pipe: Any, pixels: Tensor) -> Any:
        if not pipe.vae.use_tiling:
            raise torch.OutOfMemoryError("out of memory")
        return posterior(pipe, pixels)

    recoded(monkeypatch, family, posterior=short)
    encoded = latents.encode_low_memory(pipe, family, crops, CPU)
    tiled = encoded.mean[0]
    assert encoded.tiled
    assert not pipe.vae.use_tiling, "the next word's photos would be tiled too"
    assert not torch.equal(whole, tiled)
    assert torch.nn.functional.cosine_similarity(whole.flatten(), tiled.flatten(), dim=0) > 0.95


@pytest.fixture
def train(dti: Dti, photos: Path, tmp_path: Path) -> Dti:
    def call(name: str, *options: object) -> Outcome:
        fixed = ["--token", "<dog>", "--init", "dog", "--model", "stickers", "--resolution", 16, "--quiet"]
        return dti(
            "train", photos, *fixed, "--batch-size", 2, "--out", tmp_path / f"{name}.safetensors", *options
        )

    return call


def test_a_run_may_change_to_low_memory(train: Dti, tmp_path: Path) -> None:
    """It decides nothing that is learned: a run that goes on with it ends with the same bytes."""
    assert {"low_memory", "quantize"} & TrainSettings.named(Trait.INCIDENTAL) == {"low_memory"}
    assert train("whole", "--steps", 3).code == 0
    assert train("low", "--steps", 1).code == 0
    outcome = train("low", "--steps", 3, "--low-memory", "--resume")
    assert outcome.code == 0, outcome.err
    words = [load_file(tmp_path / f"{name}.safetensors")["<dog>"] for name in ("whole", "low")]
    assert torch.equal(*words)


def short_of_memory(monkeypatch: pytest.MonkeyPatch, fits: Callable[[int, bool], bool]) -> None:
    """A denoiser for which memory is out unless `fits` says so of the pictures and whether activations are kept."""
    family = families.of_name("sd")
    assert family
    whole = family.code.predict

    def predict(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Any) -> Tensor:
        if not fits(len(noisy), pipe.unet.is_gradient_checkpointing):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(pipe, noisy, level, conditioning)

    recoded(monkeypatch, family, predict=predict)


def test_out_of_memory_finds_out_whether_low_memory_helps(
    train: Dti, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, or with smaller batches; following the advice makes the run go through."""
    short_of_memory(monkeypatch, lambda count, slim: slim)
    outcome = train("dog", "--steps", 1)
    assert (outcome.code, "--low-memory would fit" in outcome.error) == (5, True)
    assert train("dog", "--steps", 1, "--low-memory", "--resume").code == 0
    short_of_memory(monkeypatch, lambda count, slim: slim and count == 1)
    outcome = train("dog", "--steps", 1, "--force")
    assert "--low-memory --batch-size 1 --accumulate 2 would fit" in outcome.error
    short_of_memory(monkeypatch, lambda count, slim: False)
    outcome = train("dog", "--steps", 1, "--force")
    assert (outcome.code, "--quantize 8bit" in outcome.error) == (5, True)


def test_a_model_that_does_not_fit_says_what_takes_less(train: Dti, monkeypatch: pytest.MonkeyPatch) -> None:
    """At loading too, with the options that are not in use yet and take less on this device: a CPU has nowhere to offload to."""

    def full(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loading, "load", full)
    outcome = train("dog", "--steps", 1)
    assert outcome.code == 5
    assert all(each in outcome.error for each in ("--quantize 8bit", "--precision bf16"))
    assert not any(each in outcome.error for each in ("--low-memory", "4bit"))
    assert "--precision" not in train("dog", "--steps", 1, "--precision", "bf16").error
    monkeypatch.setattr(footprint, "OWN_MEMORY", frozenset({"cpu"}))
    assert "--low-memory" in train("dog", "--steps", 1).error
    assert "--low-memory" not in train("dog", "--steps", 1, "--low-memory").error


# ---------------------------------------------------------------------------- drawing


def drawn(pipe: Any, name: str) -> np.ndarray:
    """A picture of a word."""
    settings = GenerateSettings(steps=2, size=str(tiny.FAMILIES[name].size))
    learned = FreeWord("<dog>", {key: rows.detach() for key, rows in word(pipe).rows.items()})
    (picture,) = sample(pipe, family_of(pipe), [learned], shots(["a photo of <dog>"], 0, 1), settings)
    return np.asarray(picture.image)


@every_family
def test_words_work_in_an_offloaded_pipeline(name: str) -> None:
    """The picture is the same with accelerate's hooks around every component, and tiles."""
    expected = drawn(frozen(tiny.build(name)), name)
    pipe = frozen(tiny.build(name))
    memory.offload(pipe, CPU)
    assert pipe.vae.use_tiling
    assert not hasattr(pipe.text_encoder, "_hf_hook")
    pipe.enable_model_cpu_offload(device="cpu")
    assert hasattr(pipe.text_encoder, "_hf_hook")
    assert np.array_equal(drawn(pipe, name), expected)


def test_prompts_go_where_an_offloaded_encoder_computes() -> None:
    """Its weights wait on the CPU and say nothing about that."""
    pipe = tiny.build("sd1")
    assert pipe_device(pipe) == CPU
    accelerate.cpu_offload_with_hook(pipe.text_encoder, execution_device=META)
    assert next(pipe.text_encoder.parameters()).device == CPU
    assert pipe_device(pipe) == META


def test_generate_with_low_memory(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """The command draws the same picture."""
    for folder, options in (("a", ()), ("b", ("--low-memory",))):
        outcome = dti("generate", "<dog>", "-t", dog, "--steps", 2, "-o", tmp_path / folder, *options)
        assert outcome.code == 0, outcome.err
    a, b = (next((tmp_path / folder).glob("*.png")) for folder in ("a", "b"))
    assert np.array_equal(*(np.asarray(albums.Image.open(each)) for each in (a, b)))


# ---------------------------------------------------------------------------- quantisation


def index_of(name: str, folder: Path) -> dict[str, Any]:
    tiny.build(name).save_pretrained(folder)
    return contents.index(choice.choose(str(folder)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sdxl", {"unet"}),
        ("flux1_dev", {"transformer", "text_encoder_2"}),
        ("hunyuandit", {"transformer", "text_encoder_2"}),
        ("sana", {"transformer", "text_encoder"}),
    ],
)
def test_large_components_are_rounded(name: str, expected: set[str], tmp_path: Path) -> None:
    """The denoiser and large text encoders; CLIP, BERT and the autoencoder stay as they are."""
    index = index_of(name, tmp_path)
    assert set(quantization.rounded(index, families.of_index(index, name))) == expected


def test_what_rounds_must_be_installed(monkeypatch: pytest.MonkeyPatch, train: Dti) -> None:
    """Nothing installed is one line that says what to install; some things work on some devices only."""
    family = families.TABLE[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for kind in ("8bit", "4bit"):
        with pytest.raises(EnvironmentProblem, match=r"pip install 'dticli\[quantize\]'"):
            quantization.config({}, family, kind, CUDA, torch.bfloat16)
    with pytest.raises(EnvironmentProblem, match="4bit does not work on cpu"):
        quantization.config({}, family, "4bit", CPU, torch.float32)
    assert quantization.config({}, family, "none", CPU, torch.float32) is None
    outcome = train("dog", "--steps", 1, "--quantize", "8bit")
    assert (outcome.code, "pip install torchao" in outcome.error) == (5, True)
    outcome = train("dog", "--check", "--quantize", "8bit")
    assert (outcome.code, "pip install torchao" in outcome.error) == (5, True)


def bytes_of(pipe: Any) -> dict[str, int]:
    """What the loaded weights of each component take, with the scales of those that are rounded."""
    found = {}
    for component, module in modules(pipe).items():
        kept = {id(each) for each in module.state_dict(keep_vars=True).values()}
        tensors = {id(each): each for each in [*module.parameters(), *module.buffers()] if id(each) in kept}
        found[component] = sum(map(_bytes, tensors.values()))
    return found


def _bytes(tensor: Tensor) -> int:
    if type(tensor).__name__ == "Int8Tensor":
        return _bytes(tensor.qdata) + _bytes(tensor.scale)  # type: ignore[attr-defined]
    state = getattr(tensor, "quant_state", None)
    scales = [state.absmax] if state is not None else [getattr(tensor, "SCB", None)]
    return tensor.numel() * tensor.element_size() + sum(_bytes(each) for each in scales if each is not None)


def loaded(folder: Path, quantize: str) -> Any:
    model = choice.choose(str(folder))
    settings = ModelSettings(quantize=quantize, precision="fp32", device="cpu")  # type: ignore[arg-type]
    return memory.load(model, contents.family(model), settings, CPU)


def cosines(name: str, folder: Path, quantize: str) -> dict[str, float]:
    """Between the gradients of a word in the model as it is, and quantised."""
    tiny.build(name).save_pretrained(folder)
    whole, fewer = (loaded(folder, each) for each in ("none", quantize))
    for encoder in family_of(whole).encoders:
        assert torch.equal(placement.table(whole, encoder), placement.table(fewer, encoder))
    (_, a), (_, b) = (step(pipe, tiny.FAMILIES[name].size) for pipe in (whole, fewer))
    assert all(not torch.equal(a[key], b[key]) for key in a)
    return {key: torch.nn.functional.cosine_similarity(a[key], b[key]).item() for key in a}


def require_same_bytes(folder: Path, quantize: str) -> None:
    model = choice.choose(str(folder))
    family, index, shapes = contents.family(model), contents.index(model), contents.shapes(model)
    weights = footprint._weigh(shapes, index, family, "fp32", quantize)
    for component, size in bytes_of(loaded(folder, quantize)).items():
        assert weights.components[component] * 1e9 == pytest.approx(size, rel=2e-3), component


QUANTISED = tiny.cases(
    "sd1", "flux1_dev", "sana", "wan", "qwen_image", "zimage", "pixart_sigma", "hunyuandit"
)
NOISE = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@NOISE
@pytest.mark.parametrize("name", QUANTISED)
def test_words_are_learned_on_weights_of_8_bits(name: str, tmp_path: Path) -> None:
    """torchao on the CPU: tables are untouched, gradients reach every row and keep their direction, bytes are as estimated."""
    pytest.importorskip("torchao")
    assert min(cosines(name, tmp_path, "8bit").values()) > 0.99
    require_same_bytes(tmp_path, "8bit")


@NOISE
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize("name", QUANTISED)
def test_words_are_learned_with_bitsandbytes(
    name: str, quantize: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on bitsandbytes, which computes on the CPU too: only a check in diffusers asks for a GPU.

    At 4 bits, random networks as narrow as these are rounded worse than wide ones.
    """
    pytest.importorskip("bitsandbytes")
    from diffusers.quantizers.bitsandbytes import bnb_quantizer

    monkeypatch.setattr(quantization, "BACKENDS", (_everywhere(quantization.BACKENDS[0]),))
    # Its packing for one kind of CPU needs wider matrices than these.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    for kind in (bnb_quantizer.BnB4BitDiffusersQuantizer, bnb_quantizer.BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(kind, "validate_environment", lambda self, **options: None)
        monkeypatch.setattr(kind, "update_device_map", lambda self, device_map: {"": "cpu"})
    assert min(cosines(name, tmp_path, quantize).values()) > {"8bit": 0.99, "4bit": 0.4}[quantize]
    require_same_bytes(tmp_path, quantize)


def _everywhere(backend: quantization.Backend) -> quantization.Backend:
    return replace(backend, devices=frozenset({"cpu", "cuda"}))


@NOISE
def test_the_commands_work_quantised(dti: Dti, train: Dti, tmp_path: Path) -> None:
    """Train, continue, and draw; a run cannot go on with other weights."""
    pytest.importorskip("torchao")
    outcome = train("dog", "--steps", 1, "--quantize", "8bit", "--low-memory")
    assert outcome.code == 0, outcome.err
    outcome = train("dog", "--steps", 2, "--resume")
    assert (outcome.code, "quantize was" in outcome.error) == (2, True)
    assert train("dog", "--steps", 2, "--quantize", "8bit", "--resume").code == 0
    drawing = ("generate", "<dog>", "-t", tmp_path / "dog.safetensors", "--steps", 2, "-o", tmp_path / "out")
    outcome = dti(*drawing, "--quantize", "8bit")
    assert outcome.code == 0, outcome.err


# ---------------------------------------------------------------------------- estimate


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_family
def test_weights_are_what_is_loaded(name: str, precision: str, tmp_path: Path) -> None:
    """Bytes of every component, from headers alone, are those of the pipeline that training loads."""
    tiny.build(name).save_pretrained(tmp_path)
    model = choice.choose(str(tmp_path))
    family = contents.family(model)
    weights = next(
        each
        for each in footprint.table(model, family, contents.shapes(model))
        if (each.precision, each.quantize) == (precision, "none")
    )
    actual = bytes_of(loading.load(model, CPU, devices.dtype(precision), safety_checker=False))
    # Of small layers that diffusers keeps in float32, headers do not tell. Some have them, and this Wan is nothing else.
    near = {("wan", "bf16"): 0.07, ("krea2", "bf16"): 0.01}.get((name, precision), 1e-3)
    assert {key: value * 1e9 for key, value in weights.components.items()} == pytest.approx(actual, rel=near)
    total, vae = sum(actual.values()), actual["vae"]
    size = 4 / devices.dtype(precision).itemsize
    parts = {"unet", "transformer"} | {encoder.component for encoder in family.encoders}
    assert weights.total * 1e9 == pytest.approx(total, rel=near)
    assert weights.at_once * 1e9 == pytest.approx(total - vae + size * vae, rel=near)
    step = sum(value for key, value in actual.items() if key in parts)
    assert weights.low_memory * 1e9 == pytest.approx(max(size * vae, step), rel=near)


def estimate(
    monkeypatch: pytest.MonkeyPatch, folder: Path, room: float, device: torch.device, **settings: Any
) -> footprint.Memory:
    """The estimate where `room` bytes are free."""
    monkeypatch.setattr(devices, "pick_device", lambda wanted: device)
    monkeypatch.setattr(footprint, "free", lambda device: room)
    model = choice.choose(str(folder), device="cpu")
    found = footprint.estimate(
        model, contents.family(model), ModelSettings(**{"precision": "fp32"} | settings)
    )
    assert found
    return found


def test_options_are_the_mildest_that_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing where the weights fit; one more option each time that there is less room; none where nothing helps."""
    tiny.build("pixart_sigma").save_pretrained(tmp_path)
    model = choice.choose(str(tmp_path))
    matrices = {"vae": {"conv.weight": (8, 8, 3, 3)}, "text_encoder": {"q.weight": (512, 512)}}
    monkeypatch.setattr(
        contents, "shapes", lambda model: matrices | {"transformer": {"q.weight": (1024, 512)}}
    )
    table = {
        (each.precision, each.quantize): each
        for each in footprint.table(model, contents.family(model), contents.shapes(model))
    }
    whole = table["fp32", "none"]
    for room, expected in (
        (whole.at_once, ()),
        (whole.low_memory, ("--low-memory",)),
        (table["bf16", "none"].low_memory, ("--low-memory", "--precision bf16")),
        (table["bf16", "8bit"].low_memory, ("--low-memory", "--precision bf16", "--quantize 8bit")),
        (table["bf16", "4bit"].low_memory, ("--low-memory", "--precision bf16", "--quantize 4bit")),
        (0, ()),
    ):
        found = estimate(monkeypatch, tmp_path, room * 1e9, CUDA)
        assert found.options == expected
        text = " ".join(found.lines())
        assert ("they fit" in text) is (room == whole.at_once)
        assert " ".join(expected) in text


def test_the_cpu_saves_nothing_by_offloading_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, low memory is not among the options, and weights take what they take."""
    tiny.build("sd1").save_pretrained(tmp_path)
    model = choice.choose(str(tmp_path))
    half = next(
        each
        for each in footprint.table(model, contents.family(model), contents.shapes(model))
        if each.precision == "bf16"
    )
    found = estimate(monkeypatch, tmp_path, half.at_once * 1e9, CPU)
    assert found.options == ("--precision bf16",)
    assert estimate(monkeypatch, tmp_path, 0, CPU, low_memory=True).needed == found.needed


@pytest.fixture
def steep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model of 4.3 GB in float32 on a card, with 3 GB of activations for every picture, or 1 GB when computed twice."""
    tiny.build("pixart_sigma").save_pretrained(tmp_path)
    shapes = {"vae": {"conv.weight": (8, 8, 3, 3)}, "text_encoder": {"q.weight": (1024, 512)}}
    monkeypatch.setattr(
        contents, "shapes", lambda model: shapes | {"transformer": {"q.weight": (2**15, 2**15)}}
    )
    monkeypatch.setattr(devices, "pick_device", lambda wanted: CUDA)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)

    def activations(
        model: Any, family: Any, dtype: Any, size: Any, batch: int, *, low_memory: bool
    ) -> Activations:
        return Activations(0, round(batch * (1e9 if low_memory else 3e9)))

    monkeypatch.setattr(footprint, "of_training", activations)
    return choice.choose(str(tmp_path), device="cpu")


BATCHES = "--accumulate {} --batch-size {}"


@pytest.mark.parametrize(
    ("batch", "precision", "preset", "expected"),
    [
        (1, "bf16", "8gb", ""),
        (4, "bf16", "24gb", ""),
        (4, "bf16", "12gb", BATCHES.format(2, 2)),
        (4, "bf16", "8gb", BATCHES.format(4, 1)),
        (9, "bf16", "12gb", BATCHES.format(3, 3)),
        (4, "fp32", "8gb", BATCHES.format(4, 1)),
        (4, "fp32", "24gb", ""),
    ],
)
def test_a_preset_changes_what_it_must(
    batch: int, precision: str, preset: str, expected: str, steep: Model
) -> None:
    """The same steps from smaller batches come first; what is estimated stays under the card's memory."""
    settings = resolve(TrainSettings, SAID, {"batch_size": batch, "precision": precision})
    found = footprint.fitted(steep, contents.family(steep), settings, preset)
    assert " ".join(found.changed) == expected
    weights = 2**30 * (2 if precision == "bf16" else 4) / 1e9
    assert found.needed == pytest.approx(weights + 3 * found.settings.batch_size, rel=0.01)
    assert found.needed <= footprint.PRESETS[preset]
    assert found.settings.batch_size * found.settings.accumulate == batch
    assert "by the estimate" in str(found)


def test_a_preset_goes_on_to_what_is_less_exact_and_leaves_what_was_said(
    steep: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where batches are as small as can be: low memory, bf16, fewer bits; said settings stay; and it may not be enough."""
    settings, family = (
        resolve(TrainSettings, SAID, {"batch_size": 2, "precision": "fp32"}),
        contents.family(steep),
    )
    for room, expected in (
        (6.0, "--accumulate 2 --batch-size 1 --low-memory"),
        (4.0, "--accumulate 2 --batch-size 1 --low-memory --precision bf16"),
        (2.5, "--accumulate 2 --batch-size 1 --low-memory --precision bf16 --quantize 8bit"),
        (1.8, "--accumulate 2 --batch-size 1 --low-memory --precision bf16 --quantize 4bit"),
    ):
        monkeypatch.setitem(footprint.PRESETS, "8gb", room)
        assert " ".join(footprint.fitted(steep, family, settings, "8gb").changed) == expected
    monkeypatch.setitem(footprint.PRESETS, "8gb", 4.5)
    kept = footprint.fitted(steep, family, settings, "8gb", ["batch_size", "steps"])
    assert " ".join(kept.changed) == "--low-memory --precision bf16"
    for said in (["precision"], ["low_memory", "quantize", "precision"]):
        monkeypatch.setitem(footprint.PRESETS, "8gb", 1.0)
        with pytest.raises(EnvironmentProblem, match="no option makes it less"):
            footprint.fitted(steep, family, settings, "8gb", said)


def test_a_preset_is_told_and_used(
    dti: Dti, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has the batches that the notice names; several words are refused."""
    heavy = 4 * 10**9
    monkeypatch.setattr(footprint, "of_training", lambda *given, **options: Activations(0, given[4] * heavy))
    base = (
        "train",
        photos,
        "--token",
        "<dog>",
        "--init",
        "dog",
        "--model",
        "stickers",
        "--preset",
        "8gb",
        "--check",
    )
    outcome = dti(*base, "--json")
    assert "preset 8gb: --accumulate 4 --batch-size 1; " in outcome.err
    assert outcome.json["memory"]["activations"] == 4
    assert "preset 8gb: nothing to change" in dti(*base, "--batch-size", 1).err
    # Before the file is even looked for.
    outcome = dti("train", "--subjects", tmp_path / "words.toml", "--preset", "8gb")
    assert (outcome.code, "combined with --subjects" in outcome.error) == (2, True), outcome.err


def test_check_and_models_say_the_same(dti: Dti, train: Dti) -> None:
    """`dti train --check` and `dti models` tell the same numbers, in text and in JSON."""
    checked = train("dog", "--check", "--precision", "fp32", "--steps", 1, "--json").json["memory"]
    (described,) = dti("models", "stickers", "--json").json["models"]
    assert checked["weights"] == next(each for each in described["weights"] if each["precision"] == "fp32")
    assert checked["needed"] == pytest.approx(checked["weights"]["at_once"] + checked["activations"])
    assert checked["free"] > 0
    total = sum(path.stat().st_size for path in bundled.model_folder().glob("*/*.safetensors"))
    # Its files are float16, and have headers.
    assert checked["weights"]["total"] * 1e9 == pytest.approx(2 * total, rel=0.01)
    assert f"weights: {Weights(**checked['weights'])}" in train("dog", "--check", "--steps", 1).out
    assert f"weights: {Weights(**checked['weights'])}" in dti("models", "stickers").out


def test_the_hub_is_asked_for_headers_only(dti: Dti, hub: Hub, tmp_path: Path) -> None:
    """A model that was never downloaded is weighed too, and is not downloaded by that; offline it is not asked about."""
    tiny.build("sdxl").save_pretrained(tmp_path / "model")
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    hub.repositories["artist/tiny"] = Repository(
        {str(path.relative_to(tmp_path / "model")): path.read_bytes() for path in files}
    )
    (local,) = dti("models", tmp_path / "model", "--json").json["models"]
    outcome = dti("models", "artist/tiny", "--json")
    assert outcome.code == 0, outcome.err
    (remote,) = outcome.json["models"]
    assert (remote["parameters"], remote["weights"]) == (local["parameters"], local["weights"])
    assert len(remote["weights"]) == 4
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    (offline,) = dti("models", "artist/tiny", "--offline", "--json").json["models"]
    assert (offline["parameters"], offline["weights"]) == ({}, [])


@pytest.mark.parametrize(("gigabytes", "shown"), [(0.0163, "16 MB"), (0.999, "999 MB"), (1.0, "1.00 GB")])
def test_small_models_are_weighed_in_megabytes(gigabytes: float, shown: str) -> None:
    """Three figures or so, at any size."""
    assert footprint._shown(gigabytes) == shown
