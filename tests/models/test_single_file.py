"""Checkpoints in one file, in the layouts of their authors, as `--model`."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dticli.errors import ModelError, UsageError
from dticli.models import choice, contents, loading, single_file
from tests import original_layout, tiny
from tests.conftest import Outcome
from tests.hub_server import Hub, Repository

Dti = Callable[..., Outcome]
CPU = torch.device("cpu")
NET = "model.diffusion_model."
KINDS = ("sd1", "sd2", "sdxl", "sd3", "flux1_dev")
every_kind = pytest.mark.parametrize("name", tiny.cases(*KINDS))


@dataclasses.dataclass(frozen=True)
class Made:
    """A tiny pipeline as a folder, and as one file with a base that has no weight besides those the file lacks."""

    folder: Path
    file: Path
    base: Path


def _build(name: str) -> Any:
    pipe = tiny.build(name)
    if name == "sd3":
        # The original layout has no place for the projection of CLIP-L: it is the identity.
        pipe.text_encoder.text_projection.weight.data = torch.eye(pipe.text_encoder.config.hidden_size)
    return pipe


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The tiny pipeline of that name; FLUX.1's text encoders and autoencoder are in the base, as they were published."""
    done: dict[str, Made] = {}

    def make(name: str) -> Made:
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            pipe = _build(name)
            pipe.save_pretrained(root / "model")
            original_layout.write(root / f"{name}.safetensors", original_layout.tensors(pipe))
            lacking = {"vae", "text_encoder", "text_encoder_2"} if name.startswith("flux") else set()
            shutil.copytree(root / "model", root / "base")
            for path in (root / "base").glob("*/*.safetensors"):
                if path.parent.name not in lacking:
                    path.unlink()
            done[name] = Made(root / "model", root / f"{name}.safetensors", root / "base")
        return done[name]

    return make


@pytest.fixture(autouse=True)
def _tiny_flux(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers knows FLUX.1's single blocks in their one public width, 3072; narrower ones are split in the same ratio."""
    split = torch.split

    def scaled(tensor: torch.Tensor, sizes: Any, dim: int = 0) -> Any:
        if sizes == (3072, 3072, 3072, 12288):
            sizes = [size * tensor.shape[dim] // sum(sizes) for size in sizes]
        return split(tensor, sizes, dim)

    monkeypatch.setattr(torch, "split", scaled)


def load(name: Path, **options: Any) -> Any:
    return loading.load(choice.choose(str(name), **options), CPU, torch.float32)


@every_kind
def test_every_weight_is_the_folders_own(made: Callable[[str], Made], name: str) -> None:
    """The pipeline from the file has the folder's components, with the same bits in every tensor, and nothing missing."""
    ours, theirs = load(made(name).file, base=str(made(name).base)), load(made(name).folder)
    assert type(ours) is type(theirs)
    assert ours.components.keys() == theirs.components.keys()
    for key, part in theirs.components.items():
        mine = getattr(ours, key)
        assert type(mine) is type(part), key
        if not isinstance(part, torch.nn.Module):
            continue
        weights = part.state_dict()
        assert mine.state_dict().keys() == weights.keys()
        assert all(torch.equal(tensor, weights[each]) for each, tensor in mine.state_dict().items())
        assert all(torch.equal(buffer, part.get_buffer(each)) for each, buffer in mine.named_buffers())
        assert not mine.training
        assert not any(parameter.requires_grad for parameter in mine.parameters())
    assert dict(ours.scheduler.config) == dict(theirs.scheduler.config)
    if name == "sd3":
        assert ours.text_encoder_3.encoder.embed_tokens.weight is ours.text_encoder_3.shared.weight


def train(dti: Dti, photos: Path, out: Path, name: str, *options: object) -> dict[str, torch.Tensor]:
    """The word `<dog>`, learned in two steps; what the file holds."""
    size = tiny.FAMILIES[name].size
    (out.parent / "one.toml").write_text('templates = ["a photo of {}"]')
    config = ("--config", out.parent / "one.toml", "--steps", 2, "--resolution", size)
    batch = ("--batch-size", 1, "--accumulate", 1)
    outcome = dti(
        *("train", photos, "--token", "<dog>", "--init", "dog", "-o", out, "--quiet"),
        *config,
        *batch,
        *options,
    )
    assert outcome.code == 0, outcome.err
    return load_file(out)


@every_kind
def test_a_word_learned_on_the_file_is_the_folders(
    dti: Dti, made: Callable[[str], Made], photos: Path, tmp_path: Path, name: str
) -> None:
    """Learned on the one or on the other, the word has the same bits, and so has the picture drawn with it."""
    single = ("--model", made(name).file, "--base", made(name).base)
    whole = ("--model", made(name).folder)
    mine = train(dti, photos, tmp_path / "dog.safetensors", name, *single)
    theirs = train(dti, photos, tmp_path / "other.safetensors", name, *whole)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    pictures = []
    for model, out in ((single, "a"), (whole, "b")):
        size = ("--size", tiny.FAMILIES[name].size, "--steps", 1)
        word = ("-t", tmp_path / "dog.safetensors", "-o", tmp_path / out)
        outcome = dti("generate", "a photo of <dog>", *word, *model, *size, "--json")
        assert outcome.code == 0, outcome.err
        assert "differs" not in outcome.err
        pictures.append(np.asarray(Image.open(outcome.json["pictures"][0]["file"])))
    assert np.array_equal(*pictures)


def test_what_is_recorded_is_a_name(
    dti: Dti, made: Callable[[str], Made], photos: Path, tmp_path: Path
) -> None:
    """The token file has the checkpoint's name and no path; the run's settings have both, and do it again."""
    both = ("--model", made("sd1").file, "--base", made("sd1").base)
    rows = train(dti, photos, tmp_path / "dog.safetensors", "sd1", *both)
    with safe_open(tmp_path / "dog.safetensors", framework="pt") as file:
        said = file.metadata()
    assert (said["dti.model"], said["dti.model_kind"]) == ("sd1.safetensors", "file")
    assert not any(str(made("sd1").file.parent) in value for value in said.values())
    config = tmp_path / "dog.run" / "run.toml"
    assert str(made("sd1").file) in config.read_text()
    assert str(made("sd1").base) in config.read_text()
    outcome = dti("train", "--config", config, "-o", tmp_path / "again.safetensors", "--quiet")
    assert outcome.code == 0, outcome.err
    assert torch.equal(load_file(tmp_path / "again.safetensors")["<dog>"], rows["<dog>"])


@every_kind
def test_norms_and_parts_are_those_of_the_folder(dti: Dti, made: Callable[[str], Made], name: str) -> None:
    """`inspect-norms` and `models` say of the file what they say of the folder; the first takes it for no token."""
    for command, part in (("inspect-norms", "vocabularies"), ("models", "parameters"), ("models", "family")):
        mine = dti(command, made(name).file, "--base", made(name).base, "--json")
        theirs = dti(command, made(name).folder, "--json")
        assert (mine.code, theirs.code) == (0, 0), mine.err
        ((mine,), (theirs,)) = (each.json["models"] for each in (mine, theirs))
        assert mine[part] == theirs[part]
        assert mine["model"] == made(name).file.name


def test_words_stand_in_a_files_vocabulary(
    dti: Dti, made: Callable[[str], Made], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint and a token file, side by side; interpolation works too, and DTI_MODEL names the file."""
    monkeypatch.setenv("DTI_MODEL", str(made("sd1").file))
    base = ("--base", made("sd1").base)
    train(dti, photos, tmp_path / "dog.safetensors", "sd1", *base)
    for named in ((made("sd1").file,), ()):
        outcome = dti("inspect-norms", *named, tmp_path / "dog.safetensors", *base, "--json")
        assert outcome.code == 0, outcome.err
        assert outcome.json["models"][0]["standings"][0]["token"] == "<dog>"
    words = (tmp_path / "dog.safetensors", tmp_path / "dog.safetensors")
    outcome = dti(
        "interpolate",
        *words,
        *base,
        "-n",
        2,
        "--steps",
        1,
        "--size",
        16,
        "-o",
        tmp_path / "way.png",
        "--json",
    )
    assert outcome.code == 0, outcome.err
    assert outcome.json["model"] == "sd1.safetensors"
    assert "was learned on" not in outcome.err


# ----------------------------------------------------------------------------- what a file lacks


def without(made: Made, prefix: str, out: Path) -> Path:
    """The file without the tensors of that prefix."""
    kept = {name: each for name, each in load_file(made.file).items() if not name.startswith(prefix)}
    assert len(kept) < len(load_file(made.file))
    return original_layout.write(out, kept)


@pytest.mark.parametrize(
    ("name", "prefix", "component"),
    [
        ("sd1", "first_stage_model.", "vae"),
        ("sd1", "cond_stage_model.", "text_encoder"),
        ("sdxl", "conditioner.", "text_encoder"),
        ("sd3", "text_encoders.t5xxl.", "text_encoder_3"),
        ("sd3", "text_encoders.clip_l.", "text_encoder"),
    ],
)
def test_the_base_brings_what_the_file_lacks(
    dti: Dti, made: Callable[[str], Made], tmp_path: Path, name: str, prefix: str, component: str
) -> None:
    """Missing weights are the base's; one that has none of them either is refused, by name."""
    file = without(made(name), prefix, tmp_path / "part.safetensors")
    other = _build(name)
    for parameter in getattr(other, component).parameters():
        parameter.data.add_(1)
    other.save_pretrained(tmp_path / "other")
    pipe = load(file, base=str(tmp_path / "other"))
    expected = getattr(other, component).state_dict()
    assert all(
        torch.equal(each, expected[key]) for key, each in getattr(pipe, component).state_dict().items()
    )
    whole = load(made(name).folder)
    for key in ({"unet", "transformer", "vae", "text_encoder"} - {component}) & pipe.components.keys():
        theirs = getattr(whole, key).state_dict()
        assert all(torch.equal(each, theirs[at]) for at, each in getattr(pipe, key).state_dict().items())
    outcome = dti("generate", "a dog", "--model", file, "--base", made(name).base, "-o", tmp_path / "out")
    assert (outcome.code, f"holds no {component}," in outcome.error, "--base" in outcome.error) == (
        4,
        True,
        True,
    )


def test_a_base_without_an_encoder_decides(made: Callable[[str], Made], tmp_path: Path) -> None:
    """SD3 without T5 stays so, whatever the file holds."""
    tiny.build("sd3_no_t5").save_pretrained(tmp_path / "small")
    model = choice.choose(str(made("sd3").file), base=str(tmp_path / "small"))
    assert [each.key for each in contents.family(model).encoders] == ["clip_l", "clip_g"]
    assert loading.load(model, CPU, torch.float32).text_encoder_3 is None


@pytest.mark.parametrize(
    ("name", "tensor", "part"),
    [
        ("sd1", "cond_stage_model.transformer.text_model.final_layer_norm.bias", "text_encoder lacks"),
        (
            "sdxl",
            "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.bias",
            "text_encoder_2 lacks",
        ),
        ("sd3", "text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight", "text_encoder_3 lacks"),
        ("sd1", "first_stage_model.quant_conv.bias", "vae has 8 numbers fewer"),
        ("sd1", f"{NET}out.2.bias", "unet has 4 numbers fewer"),
    ],
)
def test_a_single_missing_tensor_is_noticed(
    dti: Dti, made: Callable[[str], Made], tmp_path: Path, name: str, tensor: str, part: str
) -> None:
    """Nothing is filled up with random numbers, or with those of the base."""
    file = without(made(name), tensor, tmp_path / "part.safetensors")
    outcome = dti("generate", "a dog", "--model", file, "--base", made(name).folder, "-o", tmp_path / "out")
    assert (outcome.code, part in outcome.error) == (4, True), outcome.err


def test_other_spellings_of_the_same(made: Callable[[str], Made], tmp_path: Path) -> None:
    """Averages of the weights, tables stored twice, position ids, prefixes and half precision make no difference."""
    tensors = load_file(made("sd3").file)
    table = "text_encoders.t5xxl.transformer.shared.weight"
    extra = {
        table.replace("shared", "encoder.embed_tokens"): tensors[table],
        "text_encoders.clip_l.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "model_ema.decay": torch.ones(()),
    }
    spelled = {name.replace("first_stage_model.", "vae."): each for name, each in (tensors | extra).items()}
    file = original_layout.write(tmp_path / "fancy.safetensors", spelled)
    pipe = load(file, base=str(made("sd3").base))
    whole = load(made("sd3").folder)
    for key in ("transformer", "vae", "text_encoder", "text_encoder_3"):
        theirs = getattr(whole, key).state_dict()
        assert all(torch.equal(each, theirs[at]) for at, each in getattr(pipe, key).state_dict().items())
    assert pipe.text_encoder_3.encoder.embed_tokens.weight is pipe.text_encoder_3.shared.weight
    half = {name: each.half() for name, each in load_file(made("sd1").file).items()}
    pipe = load(original_layout.write(tmp_path / "half.safetensors", half), base=str(made("sd1").base))
    assert torch.equal(
        pipe.unet.conv_in.weight, half["model.diffusion_model.input_blocks.0.0.weight"].float()
    )


# ----------------------------------------------------------------------------- the base on the hub


@pytest.fixture
def remote(hub: Hub, made: Callable[[str], Made]) -> Hub:
    """The hub with the usual base of SD1, in small."""
    folder = made("sd1").folder
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.repositories["stable-diffusion-v1-5/stable-diffusion-v1-5"] = Repository(files)
    return hub


def test_the_usual_base_comes_from_the_hub(
    dti: Dti, remote: Hub, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """Only configs and tokenizers are fetched, and what the file lacks; then `--offline` does without the hub."""
    draw = ("generate", "a dog", "--size", 16, "--steps", 1, "--model")
    outcome = dti(*draw, made("sd1").file, "-o", tmp_path / "a")
    assert outcome.code == 0, outcome.err
    assert (
        "model: sd1.safetensors (as chosen; base: stable-diffusion-v1-5/stable-diffusion-v1-5, "
        "the usual one of its kind; up to 0.0 GB to download)"
    ) in outcome.err.splitlines()[:2]
    assert not [request for request in remote.requests if request.endswith(".safetensors")]
    asked = len(remote.requests)
    assert dti(*draw, made("sd1").file, "-o", tmp_path / "b", "--offline").code == 0
    assert len(remote.requests) == asked
    part = without(made("sd1"), "first_stage_model.", tmp_path / "part.safetensors")
    assert (
        dti(*draw, part, "-o", tmp_path / "c", "--base", "stable-diffusion-v1-5/stable-diffusion-v1-5").code
        == 0
    )
    fetched = {request.split("/")[-2] for request in remote.requests if request.endswith(".safetensors")}
    assert fetched == {"vae"}
    described = dti("models", part, "--json").json["models"][0]["parameters"]
    assert described == dti("models", made("sd1").folder, "--json").json["models"][0]["parameters"]


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_usual_base_another_is_asked_for(
    dti: Dti, made: Callable[[str], Made], offline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing cached and no hub: the error names `--base`."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    outcome = dti("generate", "a dog", "--model", made("sdxl").file, *(["--offline"] if offline else []))
    assert outcome.code == 5, outcome.err
    assert "stabilityai/stable-diffusion-xl-base-1.0" in outcome.error
    assert "--base FOLDER" in outcome.error


@pytest.mark.parametrize(
    ("shapes", "base"),
    [
        ({f"{NET}input_blocks.0.0.weight": (320, 4, 3, 3)}, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        (
            {
                f"{NET}input_blocks.0.0.weight": (320, 4, 3, 3),
                f"{NET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
            },
            "stabilityai/stable-diffusion-2-1",
        ),
        (
            {
                f"{NET}label_emb.0.0.weight": (1280, 2816),
                "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
                "conditioner.embedders.1.model.token_embedding.weight": (49408, 1280),
            },
            "stabilityai/stable-diffusion-xl-base-1.0",
        ),
        ({f"{NET}label_emb.0.0.weight": (1280, 2816)}, "stabilityai/stable-diffusion-xl-base-1.0"),
        (
            {
                f"{NET}joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,),
                f"{NET}pos_embed": (1, 36864, 1536),
            },
            "stabilityai/stable-diffusion-3-medium-diffusers",
        ),
        (
            {
                "joint_blocks.0.context_block.adaLN_modulation.1.bias": (14592,),
                "joint_blocks.37.x_block.mlp.fc1.weight": (9728, 2432),
            },
            "stabilityai/stable-diffusion-3.5-large",
        ),
        (
            {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 64)},
            "black-forest-labs/FLUX.1-schnell",
        ),
        (
            {
                f"{NET}double_blocks.0.img_attn.norm.key_norm.scale": (128,),
                f"{NET}guidance_in.in_layer.bias": (3072,),
                f"{NET}img_in.weight": (3072, 64),
            },
            "black-forest-labs/FLUX.1-dev",
        ),
    ],
)
def test_public_checkpoints_are_known_by_their_header(
    shapes: dict[str, tuple[int, ...]], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and shapes of the public models lead to the public base."""
    monkeypatch.setattr(single_file, "_shapes", lambda path: shapes)
    assert single_file.read(Path("public.safetensors")).usual_base == base


# ----------------------------------------------------------------------------- files that are refused


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({"lora_unet_down_blocks_0.lora_up.weight": (4, 4)}, "a LoRA"),
        ({"unet.down_blocks.0.attn1.to_q.lora.up.weight": (4, 4)}, "a LoRA"),
        ({"transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (4, 4)}, "a LoRA"),
        ({"<dog>": (1, 32)}, "a token file"),
        ({"clip_l": (2, 32), "clip_g": (2, 48)}, "a token file"),
        ({"emb_params": (1, 32)}, "a token file"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3)}, "a single component"),
        ({"transformer_blocks.0.attn.to_q.weight": (4, 4)}, "a single component"),
        ({"control_model.time_embed.0.weight": (4, 4)}, "a ControlNet"),
        ({"weights": (4, 4, 4)}, "something else (1 tensors, such as 'weights')"),
        ({f"{NET}input_blocks.0.0.weight": (4, 9, 3, 3)}, "'inpainting'"),
        (
            {
                f"{NET}double_blocks.0.img_attn.norm.key_norm.scale": (4,),
                f"{NET}single_stream_modulation.lin.weight": (4, 4),
            },
            "'flux-2-dev'",
        ),
        (
            {
                f"{NET}input_blocks.0.0.weight": (4, 4, 3, 3),
                "cond_stage_model.transformer.embeddings.token_embedding.weight": (4, 4),
            },
            "its text_encoder in an unknown way",
        ),
    ],
)
def test_other_files_are_refused_for_what_they_are(
    dti: Dti, tmp_path: Path, tensors: dict[str, tuple[int, ...]], part: str
) -> None:
    """One line says what it looks like, and what was expected."""
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "file.safetensors")
    outcome = dti("generate", "a dog", "--model", tmp_path / "file.safetensors")
    assert outcome.code == 4, outcome.err
    assert part in outcome.error
    assert "expected a whole SD1, SD2, SDXL, SD3 or FLUX.1 checkpoint" in outcome.error


def test_files_that_cannot_be_read(dti: Dti, tmp_path: Path) -> None:
    """Pickles, damaged files and none at all."""
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for name, part in (
        ("model.ckpt", "convert"),
        ("broken.safetensors", "download"),
        ("none.safetensors", "no such file"),
    ):
        outcome = dti("models", tmp_path / name)
        assert (outcome.code, part in outcome.error) == (4, True), outcome.err


@pytest.mark.parametrize(
    ("name", "base", "part"),
    [("sdxl", "sd1", "family sdxl"), ("sd1", "sdxl", "family sd,"), ("sd3", "flux1_dev", "family sd3")],
)
def test_a_base_of_another_family_is_refused(
    dti: Dti, made: Callable[[str], Made], name: str, base: str, part: str
) -> None:
    """Both families are named, before any weight is read."""
    outcome = dti("models", made(name).file, "--base", made(base).folder)
    assert (outcome.code, part in outcome.error, "--base" in outcome.error) == (4, True, True)


def _same_family(name: str) -> Any:
    """A model of the family that the file of that name does not fit."""
    pipe = tiny.build(name)
    if name == "sd1":
        pipe.unet = type(pipe.unet).from_config({**pipe.unet.config, "cross_attention_dim": 24})
    return pipe


@pytest.mark.parametrize(
    ("name", "base", "part"),
    [
        # FLUX.1 dev embeds its guidance by 256 x 32 + 32 and 32 x 32 + 32 numbers.
        ("sd1", "sd1", "unet has"),
        ("sd2", "sd1", "does not fit"),
        ("flux1_dev", "flux1_schnell", "transformer has 9280 numbers more"),
        ("flux1_schnell", "flux1_dev", "transformer has 9280 numbers fewer"),
    ],
)
def test_a_base_of_another_kind_in_the_family_is_refused(
    dti: Dti, made: Callable[[str], Made], tmp_path: Path, name: str, base: str, part: str
) -> None:
    """Shapes that differ, tensors that are missing, and tensors without a place: nothing is left random or dropped."""
    _same_family(base).save_pretrained(tmp_path / "base")
    outcome = dti("generate", "a dog", "--model", made(name).file, "--base", tmp_path / "base")
    assert outcome.code == 4, outcome.err
    assert part in outcome.error
    assert outcome.error.endswith("choose another --base")


def test_a_base_is_for_files(dti: Dti, made: Callable[[str], Made]) -> None:
    """Beside a model in diffusers layout it would mean nothing; and a checkpoint is no base."""
    outcome = dti("models", made("sd1").folder, "--base", made("sd1").base)
    assert (outcome.code, "--base" in outcome.error) == (2, True)
    with pytest.raises(ModelError, match="check --base"):
        choice.choose(str(made("sd1").file), base=str(made("sd1").file))


def test_quantisation_is_refused(made: Callable[[str], Made]) -> None:
    """It would leave the file's weights as they are."""
    model = choice.choose(str(made("sd1").file), base=str(made("sd1").base))
    with pytest.raises(UsageError, match="--quantize"):
        loading.load(model, CPU, torch.float32, quantization=object())


def test_the_header_is_all_that_recognition_reads(
    dti: Dti, made: Callable[[str], Made], tmp_path: Path
) -> None:
    """A file whose weights are all NaN is recognised and counted."""
    tensors = {name: torch.full_like(each, torch.nan) for name, each in load_file(made("sdxl").file).items()}
    file = original_layout.write(tmp_path / "nan.safetensors", tensors)
    outcome = dti("models", file, "--base", made("sdxl").base, "--json")
    assert outcome.code == 0, outcome.err
    index = json.loads((made("sdxl").base / "model_index.json").read_text())
    assert set(outcome.json["models"][0]["parameters"]) <= index.keys()


@pytest.mark.parametrize("place", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json"])
def test_a_folder_cloned_without_its_large_files_is_known(
    dti: Dti, made: Callable[[str], Made], tmp_path: Path, place: str
) -> None:
    """Git leaves a pointer where a large file was: the file is named, with the command that fetches it."""
    folder = shutil.copytree(made("sd1").folder, tmp_path / "model")
    (folder / place).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 34\n")
    outcome = dti("generate", "a dog", "--model", folder, "-o", tmp_path / "out")
    assert outcome.code == 4, outcome.err
    assert f"{place} is a Git LFS pointer" in outcome.error
    assert "git lfs pull" in outcome.error
