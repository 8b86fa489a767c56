"""`dti info` as a user runs it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Outcome

Dti = Callable[..., Outcome]


def test_our_own_file(dti: Dti, dog: Path) -> None:
    """Layout, width, norm, provenance and hash of a trained word, and that no other program but diffusers takes it."""
    outcome = dti("info", dog, "--json")
    assert outcome.code == 0, outcome.err
    said = outcome.json
    ((_, rows),) = load_file(dog).items()
    (vectors,) = said["vectors"]
    assert (vectors["encoder"], vectors["tensor"], vectors["width"], vectors["count"]) == (
        "clip_l",
        "<dog>",
        256,
        1,
    )
    assert vectors["norms"] == pytest.approx(rows.norm(dim=1).tolist())
    assert said["content_hash"] == hashlib.sha256(rows.numpy().astype("<f4").tobytes()).hexdigest()
    assert (said["families"], said["learned_on"]) == (["sd"], "stickers")
    assert said["metadata"]["dti.seed"] == "0"
    assert {each["program"] for each in said["programs"] if each["loads"] != "not"} == {"diffusers"}


def test_how_a_strangers_file_is_typed(dti: Dti, tmp_path: Path) -> None:
    """The text names each program and what to type in it, and what reading repaired."""
    save_file({"emb_params": torch.ones(768).half()}, tmp_path / "toy.safetensors")
    outcome = dti("info", tmp_path / "toy.safetensors")
    assert outcome.code == 0, outcome.err
    for text in (
        "in ComfyUI: embedding:toy",
        "in A1111: toy",
        "in InvokeAI: <toy>",
        "in dti: <toy>",
        "float16 [768] under emb_params",
        "repaired: a 1-D tensor",
        "family: sd (guessed)",
        "in Fooocus: no (Fooocus runs SDXL alone)",
    ):
        assert text in outcome.out, outcome.out


def test_a_folder_and_a_pickle(dti: Dti, tmp_path: Path) -> None:
    """A folder of the concepts library; its pickle is read as plain data."""
    torch.save({"<cat-toy>": torch.ones(768)}, tmp_path / "learned_embeds.bin")
    (tmp_path / "token_identifier.txt").write_text("<cat-toy>")
    said = dti("info", tmp_path, "--json").json
    assert (said["token"], said["container"]) == ("<cat-toy>", "pickle")


def test_hostile_text_does_not_reach_the_terminal(dti: Dti, tmp_path: Path) -> None:
    """Escapes in metadata, and names that cannot be a file's, are shown harmlessly or refused in a line."""
    said = {"modelspec.title": "\x1b[2Jgone\x9b", "dti.model": "a\nb\x07", "\x1b]0;x\x07": "\u202ereversed"}
    save_file({"<dog>": torch.ones(1, 768)}, tmp_path / "dog.safetensors", said)
    for options in ((), ("--json",)):
        outcome = dti("info", tmp_path / "dog.safetensors", *options)
        assert outcome.code == 0, outcome.err
        assert all(line.isprintable() for line in outcome.out.splitlines())
        assert "gone" in outcome.out
    save_file({"../\x1b[2J": torch.ones(1, 768)}, tmp_path / "evil.safetensors")
    outcome = dti("info", tmp_path / "evil.safetensors")
    assert (outcome.code, outcome.error.isprintable()) == (3, True)


def test_missing_and_damaged_files(dti: Dti, tmp_path: Path) -> None:
    """One line each, and what else to do."""
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    (tmp_path / "empty").mkdir()
    for name in ("cut.safetensors", "empty", "none.safetensors", "nothing"):
        outcome = dti("info", tmp_path / name)
        assert (outcome.code, name in outcome.error) == (3, True), outcome.err
