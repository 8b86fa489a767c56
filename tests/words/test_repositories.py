"""Words on the hub: the real client against a server on this machine that speaks its protocol."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image, PngImagePlugin

from dticli.errors import EnvironmentProblem, InputError, UsageError
from dticli.words import card, conversion, repositories, token_reading, token_writing
from dticli.words.learned_word import Token
from tests.conftest import Outcome
from tests.hub_server import Hub, Repository

Dti = Callable[..., Outcome]
# Of the hub's client among its own libraries.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def server(hub: Hub) -> Hub:
    """A hub, and a client that knows no other."""
    return hub


@pytest.fixture
def word(tmp_path: Path) -> Path:
    """A token file of an SDXL word."""
    generator = torch.Generator().manual_seed(0)
    vectors = {
        key: torch.randn(2, width, generator=generator) for key, width in (("clip_l", 768), ("clip_g", 1280))
    }
    said = {
        "dti.model": "stabilityai/stable-diffusion-xl-base-1.0@main",
        "dti.model_kind": "hub",
        "dti.seed": "7",
        "modelspec.license": "cc-by-4.0",
        "modelspec.author": "A|da <b>*x*</b>",
    }
    path = tmp_path / "rex.safetensors"
    token_writing.write(path, conversion.described(Token.of("<rex>", vectors, said)))
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture that says what it shows, as `dti generate` writes it."""
    path = tmp_path / "A Picture.png"
    said = PngImagePlugin.PngInfo()
    said.add_text("prompt", "a photo of <rex> [in](snow)")
    Image.new("RGB", (4, 4)).save(path, pnginfo=said)
    return path


def files_of(token: Token, target: str = "dti") -> dict[str, bytes]:
    return {Path(name).name: content for name, content in conversion.export(token, target).items()}


def same(a: Token, b: Token) -> bool:
    return a.name == b.name and all(
        torch.equal(a.vectors[key], b.vectors[key]) for key in a.vectors | b.vectors
    )


def test_what_is_pushed_comes_back(dti: Dti, server: Hub, word: Path, picture: Path) -> None:
    """`dti push`, then `dti info` by its name: the same vectors, through large-file upload and one commit."""
    outcome = dti("push", word, "me/rex", "--picture", picture, "--json")
    assert outcome.code == 0, outcome.err
    found = server.repositories["me/rex"].files
    assert (
        sorted(outcome.json["files"])
        == sorted(set(found) - {".gitattributes"})
        == [
            "README.md",
            "images/0-a-picture.png",
            "learned_embeds.safetensors",
            "learned_embeds_2.safetensors",
            "rex.safetensors",
        ]
    )
    assert found["rex.safetensors"] == word.read_bytes()
    assert server.messages == ["Add <rex>"]
    assert any(request.startswith("PUT /upload/") for request in server.requests)
    outcome = dti("info", "me/rex", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["content_hash"] == token_writing.content_hash(token_reading.read(word))
    assert same(repositories.read("me/rex").token, token_reading.read(word))


def test_the_card_says_what_the_metadata_says(dti: Dti, server: Hub, word: Path, picture: Path) -> None:
    """Front matter that YAML reads, pictures with their prompts, usage; a stranger's text is no markup."""
    assert dti("push", word, "me/rex", "--picture", picture).code == 0
    card = server.repositories["me/rex"].files["README.md"].decode()
    _, front, body = card.split("---\n", 2)
    said = yaml.safe_load(front)
    assert said["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert (said["license"], said["instance_prompt"], said["library_name"]) == (
        "cc-by-4.0",
        "<rex>",
        "diffusers",
    )
    assert "textual_inversion" in said["tags"]
    (widget,) = said["widget"]
    assert widget == {"text": "a photo of <rex> [in](snow)", "output": {"url": "images/0-a-picture.png"}}
    assert "](images/0-a-picture.png)" in body
    assert 'weight_name="learned_embeds_2.safetensors", text_encoder=pipe.text_encoder_2' in body
    assert "dti generate" in body
    assert "<b>" not in body
    assert "[in](snow)" not in body
    assert r"A\|da &lt;b&gt;\*x\*&lt;/b&gt;" in body


def test_stock_diffusers_loads_what_was_pushed(dti: Dti, server: Hub, tmp_path: Path) -> None:
    """`load_textual_inversion("me/toy")` finds the word by the repository's name alone."""
    from tests import tiny

    pipe = tiny.build("sd1")
    rows = torch.randn(1, pipe.text_encoder.config.hidden_size)
    token_writing.write(
        tmp_path / "toy.safetensors", Token.of("<toy>", {"clip_l": rows}, {"dti.family": "sd"})
    )
    assert dti("push", tmp_path / "toy.safetensors", "me/toy").code == 0
    pipe.load_textual_inversion("me/toy")
    index = pipe.tokenizer.convert_tokens_to_ids("<toy>")
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[index].detach(), rows[0])


def test_pushing_again_needs_force(dti: Dti, server: Hub, word: Path) -> None:
    """A repository that holds files of these names is left alone until `--force` is given."""
    assert dti("push", word, "me/rex").code == 0
    before = dict(server.repositories["me/rex"].files)
    outcome = dti("push", word, "me/rex")
    assert (outcome.code, "--force" in outcome.error) == (2, True)
    assert server.repositories["me/rex"].files == before
    assert dti("push", word, "me/rex", "--force", "--message", "again").code == 0
    assert server.messages[-1] == "again"


def test_private_repositories(dti: Dti, server: Hub, word: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--private` makes one that strangers do not find."""
    assert dti("push", word, "me/rex", "--private").code == 0
    assert server.repositories["me/rex"].private
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    outcome = dti("info", "me/rex")
    assert (outcome.code, "private" in outcome.error) == (3, True)


def test_pushing_without_the_right_to(
    dti: Dti, server: Hub, word: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's name, no login, a name that is none, a card the hub refuses: one line each, nothing pushed."""
    outcome = dti("push", word, "you/rex")
    assert (outcome.code, "403" in outcome.error, "hf auth login" in outcome.error) == (5, True, True)
    for name in ("rex", "me/rex@main", "a/b/c", "me/rex:file.safetensors"):
        assert dti("push", word, name).code == 2
    server.refused_card = "license is unknown\nto us"
    outcome = dti("push", word, "me/rex")
    assert (outcome.code, "license is unknown" in outcome.error) == (2, True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    outcome = dti("push", word, "me/other")
    assert (outcome.code, "hf auth login" in outcome.error) == (5, True)
    assert "README.md" not in server.repositories["me/rex"].files
    assert "me/other" not in server.repositories


def test_pictures_must_be_pictures(dti: Dti, server: Hub, word: Path, tmp_path: Path) -> None:
    """Missing files, other suffixes and files that are no pictures are refused before the hub is asked."""
    (tmp_path / "fake.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    (tmp_path / "page.svg").write_text("<svg/>")
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "JPEG")
    (tmp_path / "jpeg.png").write_bytes(buffer.getvalue())
    for name in ("fake.png", "page.svg", "jpeg.png", "missing.png"):
        outcome = dti("push", word, "me/rex", "--picture", tmp_path / name)
        assert (outcome.code, name in outcome.error) == (3, True)
    assert server.requests == []


def test_what_cameras_add_to_pictures_stays_here(dti: Dti, server: Hub, word: Path, tmp_path: Path) -> None:
    """A photo goes out upright and without its EXIF data, which may tell the place."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010E] = "Mount Secret"
    Image.new("RGB", (8, 4)).save(tmp_path / "photo.jpg", exif=exif)
    assert b"Mount Secret" in (tmp_path / "photo.jpg").read_bytes()
    assert dti("push", word, "me/rex", "-p", tmp_path / "photo.jpg").code == 0
    pushed = server.repositories["me/rex"].files["images/0-photo.jpg"]
    assert b"Mount Secret" not in pushed
    with Image.open(io.BytesIO(pushed)) as image:
        assert (image.size, dict(image.getexif())) == ((4, 8), {})


# Names


def test_a_repository_of_the_concepts_library(dti: Dti, server: Hub) -> None:
    """`learned_embeds.bin` and `token_identifier.txt`, as thousands of public words are stored."""
    buffer = io.BytesIO()
    rows = torch.randn(768)
    torch.save({"<cat-toy>": rows}, buffer)
    files = {
        "learned_embeds.bin": buffer.getvalue(),
        "token_identifier.txt": b"<cat-toy>",
        "README.md": b"# cat",
    }
    files["concept_images/0.jpeg"] = b"picture"
    server.repositories["sd-concepts-library/cat-toy"] = Repository(files)
    outcome = dti("info", "sd-concepts-library/cat-toy", "--json")
    assert outcome.code == 0, outcome.err
    assert (outcome.json["token"], outcome.json["families"]) == ("<cat-toy>", ["sd"])
    assert torch.equal(repositories.read("sd-concepts-library/cat-toy").token.vectors["clip_l"], rows[None])
    assert not any("README" in request or "concept_images" in request for request in server.requests)


def test_revisions_and_files_of_a_repository(server: Hub, word: Path) -> None:
    """`user/name@revision`, and `user/name:file` where a repository holds several words."""
    data = word.read_bytes()
    other = token_writing.to_bytes(Token.of("<tom>", {"clip_l": torch.ones(1, 768)}, {}))
    server.repositories["a/two"] = found = Repository({"rex.safetensors": data, "tom.safetensors": other})
    with pytest.raises(InputError, match="several token files"):
        repositories.read("a/two")
    assert repositories.read("a/two:tom.safetensors").token.name == "<tom>"
    assert repositories.read(f"a/two@{found.sha}:rex.safetensors").token.name == "<rex>"
    with pytest.raises(InputError, match="no revision v2"):
        repositories.read("a/two@v2:rex.safetensors")
    for name in ("../rex.safetensors", "none.safetensors", "README.md"):
        with pytest.raises(InputError, match="holds no token file"):
            repositories.read(f"a/two:{name}")


def test_what_is_fetched_once_is_there_offline(server: Hub, word: Path, tmp_path: Path) -> None:
    """A word in the cache is read with `--offline`, and when the hub cannot be reached; others are not."""
    server.repositories["a/rex"] = Repository({"rex.safetensors": word.read_bytes(), "README.md": b""})
    first = repositories.read("a/rex").token
    asked = len(server.requests)
    assert same(repositories.read("a/rex", offline=True).token, first)
    assert len(server.requests) == asked
    with pytest.raises(EnvironmentProblem, match="--offline was given"):
        repositories.read("a/none", offline=True)


def test_words_and_models_are_told_apart(server: Hub, word: Path, tmp_path: Path) -> None:
    """A repository with a model index is a model's; of the rest, one with a token file is a word's."""
    server.repositories["a/model"] = Repository({"model_index.json": b"{}", "x.safetensors": b""})
    server.repositories["a/rex"] = Repository({"rex.safetensors": word.read_bytes()})
    server.repositories["a/nothing"] = Repository({"README.md": b""})
    assert [repositories.holds_token(name) for name in ("a/model", "a/rex", "a/nothing", "a/none")] == [
        False,
        True,
        False,
        False,
    ]
    assert repositories.holds_token(str(word))
    assert not repositories.holds_token("stickers")
    with pytest.raises(InputError, match="--model"):
        repositories.read("a/model")


def test_hub_repositories_that_would_do_harm(server: Hub, tmp_path: Path) -> None:
    """Files too large are not fetched, pickles with code are refused, and nothing lands outside the cache."""
    large = Repository({"large.bin": b""})
    large.files["large.bin"] = bytes(token_reading.MAX_PICKLE + 1)
    server.repositories["a/large"] = large
    with pytest.raises(InputError, match="whole model"):
        repositories.read("a/large")
    assert not any("resolve" in request for request in server.requests)
    server.repositories["a/paths"] = Repository({"../../evil.bin": b"x", "deep/evil.bin": b"x"})
    with pytest.raises(InputError, match="no token file"):
        repositories.read("a/paths")
    server.repositories["a/code"] = Repository({"learned_embeds.bin": b"cos\nsystem\n(S'touch /tmp/x'\ntR."})
    with pytest.raises(InputError, match="never run"):
        repositories.read("a/code")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_a_hub_that_answers_nonsense(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is one line with a way out."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentProblem, match=r"a/rex is not on this machine.*pass a file"):
        repositories.read("a/rex")
    with pytest.raises(EnvironmentProblem, match="check the network"):
        repositories.push("me/rex", {"README.md": b""}, private=False, message="x", force=False)


def test_paths_are_not_taken_for_repositories(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token file's path that does not exist is a missing file; the hub is not asked."""
    monkeypatch.chdir(tmp_path)
    for name in ("out/dog.safetensors", "dog.pt", str(tmp_path / "a"), "out/tokens/dog.bin"):
        with pytest.raises(InputError, match="no such file"):
            repositories.read(name)
    assert server.requests == []


def test_other_commands_take_hub_names(dti: Dti, server: Hub, dog: Path, tmp_path: Path) -> None:
    """`generate -t user/name`, renamed too, and `inspect-norms user/name`."""
    server.repositories["a/dog"] = Repository({"dog.safetensors": dog.read_bytes()})
    options = ("--steps", 1, "--quiet", "--size", 64)
    outcome = dti(
        "generate", "<dog> and <rex>", "-t", "a/dog", "-t", "<rex>=a/dog", "-o", tmp_path / "out", *options
    )
    assert outcome.code == 0, outcome.err
    outcome = dti("inspect-norms", "a/dog", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["models"][0]["standings"][0]["token"] == "<dog>"


def test_the_endpoint_of_the_environment(server: Hub, word: Path, tmp_path: Path) -> None:
    """A fresh process with HF_ENDPOINT pushes to this hub and reads from it."""
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_CACHE": str(tmp_path / "other"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    code = (
        "import sys; from dticli.cli import run; "
        f"sys.exit(run(['push', {str(word)!r}, 'me/rex']) or run(['info', 'me/rex']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "me/rex: <rex>" in done.stdout
    assert server.repositories["me/rex"].files["rex.safetensors"] == word.read_bytes()


def test_licences_and_cards_of_plain_words() -> None:
    """A licence the hub has no id for is named; a word without anything said has a card nevertheless."""
    token = Token.of("<dog>", {"*": torch.ones(1, 300)}, {"modelspec.license": "Do what you like"})
    front = yaml.safe_load(card.text("me/dog", token, []).split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "Do what you like")
    assert "base_model" not in front
    assert set(card.contents("me/dog", token, [])) == {"README.md", "dog.safetensors"}
    assert safetensors.torch.load(card.contents("me/dog", token, [])["dog.safetensors"]).keys() == {"<dog>"}
    with pytest.raises(UsageError, match="choose from dti"):
        conversion.export(token, "a1111")
