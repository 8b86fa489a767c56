"""Models that are broken or hostile: each is one line, before anything is built that would never end."""

import json
import pickle
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from dticli import bundled
from dticli.errors import ModelError
from dticli.models import choice, contents, loading
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
ENDLESS = 10**9


def index(**changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def config(part: str, **changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (file,) = (
            (model / part).glob("*config.json")
            if part != "tokenizer"
            else [model / part / "tokenizer_config.json"]
        )
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def content(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda model: (model / file).write_bytes(data) and None


def gone(*names: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for name in names:
            shutil.rmtree(model / name) if (model / name).is_dir() else (model / name).unlink()

    return change


def pickled(part: str, value: object) -> Callable[[Path], None]:
    """Weights as a pickle, and no others."""

    def change(model: Path) -> None:
        for file in (model / part).glob("*.safetensors"):
            file.unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        (model / part / name).write_bytes(pickle.dumps(value))

    return change


def truncated(part: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (file,) = (model / part).glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-100])

    return change


def lacking(part: str, pattern: str) -> Callable[[Path], None]:
    """Without the first tensor of such a name."""

    def change(model: Path) -> None:
        (file,) = (model / part).glob("*.safetensors")
        tensors = load_file(file)
        tensors.pop(next(name for name in sorted(tensors) if re.search(pattern, name)))
        save_file(tensors, file, {"format": "pt"})

    return change


def without_words(model: Path) -> None:
    """What is left says what kind of tokenizer it is, and nothing else."""
    for file in (model / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


class Hostile:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit(99)",))


DENOISER, ENCODER = "unet", "text_encoder"
BROKEN: dict[str, Callable[[Path], None]] = {
    "an empty entry": index(unet=[]),
    "an entry of one": index(unet=["diffusers"]),
    "an entry of numbers": index(vae=[1, 2]),
    "an entry of null": index(text_encoder=None),
    "a tokenizer that is a string": index(tokenizer="CLIPTokenizer"),
    "a scheduler that is a table": index(scheduler={"a": 1}),
    "a class that is not there": index(unet=["diffusers", "NoSuchModel"]),
    "a library that is not there": index(unet=["no_such_library", "UNet2DConditionModel"]),
    "a class of another kind": index(tokenizer=["transformers", "CLIPTextModel"]),
    "a function for a class": index(tokenizer=["transformers", "pipeline"]),
    "a pipeline of numbers": index(_class_name=3),
    "a pipeline in a list": index(_class_name=["StableDiffusionPipeline"]),
    "an index of null": content("model_index.json", b"null"),
    "an index that is a list": content("model_index.json", b"[]"),
    "an index that is a page": content("model_index.json", b"<!doctype html><title>Sign in</title>"),
    "an index that is empty": content("model_index.json", b""),
    "an index of bytes": content("model_index.json", b"\xff\xfe\x00"),
    "an index without end": content("model_index.json", b"[" * 1_000_000),
    "a config that is a list": content("unet/config.json", b"[]"),
    "a config that is cut off": content("vae/config.json", b'{"in_channels": '),
    "a config that is missing": gone("unet/config.json"),
    "layers without end": config(DENOISER, layers_per_block=ENDLESS),
    "layers without end in a list": config(DENOISER, transformer_layers_per_block=[1, ENDLESS]),
    "layers without end in an encoder": config(ENCODER, num_hidden_layers=ENDLESS),
    "layers without end within": config(ENCODER, text_config={"num_hidden_layers": ENDLESS}),
    "channels of text": config(DENOISER, in_channels="four"),
    "channels that do not divide": config(DENOISER, block_out_channels=[7, 13]),
    "fewer channels than weights": config("vae", latent_channels=1),
    "another width than the weights": config(ENCODER, hidden_size=8),
    "an activation that is none": config(ENCODER, hidden_act="nonsense"),
    "betas of no known kind": config("scheduler", beta_schedule="nonsense"),
    "betas of text": config("scheduler", beta_start="low"),
    "weights cut off": truncated(DENOISER),
    "weights of an encoder cut off": truncated(ENCODER),
    "an encoder's weights that lack one": lacking(ENCODER, r"fc1\.weight"),
    "an encoder's weights that lack its table": lacking(ENCODER, r"token_embedding"),
    "a denoiser's weights that lack one": lacking(DENOISER, r"attn.*\.weight"),
    "an autoencoder's weights that lack one": lacking("vae", r"conv.*\.weight"),
    "the weights of another class": index(text_encoder=["transformers", "BertModel"]),
    "a scheduler of no levels": config("scheduler", num_train_timesteps=0),
    "a scheduler whose levels are text": config("scheduler", num_train_timesteps="many"),
    "weights that are a page": content("unet/diffusion_pytorch_model.safetensors", b"<!doctype html>"),
    "a header of a terabyte": content(
        "vae/diffusion_pytorch_model.safetensors", (2**40).to_bytes(8, "little") + b"{}"
    ),
    "weights that are code": pickled(DENOISER, Hostile()),
    "weights of an encoder that are code": pickled(ENCODER, Hostile()),
    "weights that are a list": pickled(DENOISER, [1, 2]),
    "no denoiser": gone("unet"),
    "no tokenizer": gone("tokenizer"),
    "a tokenizer without words": without_words,
    "no autoencoder": gone("vae"),
}


@pytest.mark.filterwarnings("ignore")  # what the libraries say of broken models on their way to an error
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_one_line(dti: Dti, tmp_path: Path, case: str) -> None:
    """Exit code 4, one line, and within seconds, whatever the libraries raise."""
    model = tmp_path / "model"
    shutil.copytree(bundled.model_folder(), model)
    BROKEN[case](model)
    signal.alarm(120)
    try:
        outcome = dti("generate", "a dog", "--model", model, "--steps", 1, "-o", tmp_path / "out")
    finally:
        signal.alarm(0)
    assert (outcome.code, len(outcome.error) < 600) == (4, True), outcome.err[:600]
    assert not list(tmp_path.glob("out/*.png"))


@dataclass
class Processor:
    tokenizer: Any


def test_a_tokenizer_without_words_is_found_inside_of_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some pipelines hold one, which handles pictures too."""
    model, load = tmp_path / "model", DiffusionPipeline.from_pretrained
    shutil.copytree(bundled.model_folder(), model)
    without_words(model)

    def with_processor(*arguments: Any, **options: Any) -> Any:
        pipe = load(*arguments, **options)
        pipe.tokenizer = Processor(pipe.tokenizer)
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", with_processor)
    with pytest.raises(ModelError, match="knows no words"):
        loading.load(choice.choose(str(model)), torch.device("cpu"), torch.float32)


def test_a_lack_of_memory_does_not_blame_the_model(
    dti: Dti, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file cannot be mapped or a tensor not be made, downloading again would not help; code 5, at each library's call."""

    def scarce(*_: object, **__: object) -> Any:
        raise RuntimeError("unable to mmap 346143 bytes from file <weights>: Cannot allocate memory (12)")

    draw = ("generate", "<dog>", "-t", dog, "--model", "stickers", "--steps", 1, "-o", tmp_path / "out")
    for place, command in {
        "diffusers.DiffusionPipeline.from_pretrained": draw,
        "diffusers.StableDiffusionPipeline.__call__": draw,
        "dticli.models.embeddings.safe_open": ("inspect-norms", "stickers"),
        "transformers.AutoTokenizer.from_pretrained": ("inspect-norms", "stickers"),
        "transformers.CLIPTokenizer.from_pretrained": ("inspect-norms", "stickers"),
        "dticli.models.single_file.safe_open": ("models", "stickers"),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, scarce)
            outcome = dti(*command)
        if outcome.code == 0 and "Tokenizer" in place:
            continue  # the other of the two is in use
        assert (outcome.code, "memory" in outcome.error, "download" in outcome.error) == (5, True, False), (
            place
        )


def test_every_public_model_has_fewer_layers_than_the_bound() -> None:
    """The deepest in use, with room to spare; widths and channels are no layers."""
    deep = {"num_layers": 60, "num_hidden_layers": 64, "depth": 40, "layers_per_block": 2}
    wide = {
        "block_out_channels": [320, 1280, 5120],
        "hidden_size": 8192,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    }
    assert not list(contents._deep(deep | wide | {"text_config": deep | wide}))


def test_aligning_keeps_ties_and_values() -> None:
    """A weight that lies off its boundary is moved there; what shared it shares it still."""
    storage = torch.arange(260, dtype=torch.float32)
    module = torch.nn.Linear(16, 16, bias=False)
    module.weight = torch.nn.Parameter(storage[1:257].view(16, 16), requires_grad=False)
    module.tied = module.weight
    before = module.weight.clone()
    loading.align(module)
    assert module.weight.data_ptr() % 64 == 0
    assert module.tied is module.weight
    assert torch.equal(module.weight, before)
