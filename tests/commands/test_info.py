"""`dti info` as a user runs it."""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dticli.words.programs import PROGRAMS
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


def test_a_folder_that_cannot_be_listed(dti: Dti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in it can be read all the same; of the folder itself, every command says what is wrong in one line."""
    save_file({"emb_params": torch.ones(768)}, tmp_path / "toy.safetensors")

    def refused(folder: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refused)
    assert dti("info", tmp_path / "toy.safetensors").code == 0
    outcome = dti("info", tmp_path)
    assert (outcome.code, "Permission denied" in outcome.error) == (3, True)
    outcome = dti("inspect-norms", tmp_path)
    assert (outcome.code, "expected a folder in diffusers layout" in outcome.error) == (4, True)


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


def rows(*widths: int, count: int = 2) -> list[torch.Tensor]:
    return [torch.ones(count, width) for width in widths]


SD, XL, SD3, FLUX = ((768,), (768, 1280), (768, 1280, 4096), (768, 4096))
CLIPS = ("clip_l", "clip_g")
OLD = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 768))})
FILES: dict[str, tuple[str, Any, str]] = {
    "ours for SD": ("toy.safetensors", {"<dog>": rows(*SD)[0]}, "diffusers:<dog> a1111 forge comfyui kohya sd.cpp swarmui "
                    "ai-toolkit:<dog> sdnext"),
    "ours for SDXL": ("toy.safetensors", dict(zip(CLIPS, rows(*XL), strict=True)), "a1111 forge comfyui fooocus invoke kohya "
                      "onetrainer swarmui ai-toolkit sdnext"),
    "ours for SD3": ("toy.safetensors", dict(zip((*CLIPS, "t5xxl"), rows(*SD3), strict=True)), "a1111 comfyui"),
    "ours for FLUX.1": ("toy.safetensors", dict(zip(("clip_l", "t5xxl"), rows(*FLUX), strict=True)), "comfyui"),
    "kohya's": ("toy.safetensors", {"emb_params": rows(*SD)[0]}, "a1111 forge comfyui invoke kohya sd.cpp swarmui ai-toolkit "
                "sdnext"),
    "kohya's pickle": ("toy.pt", {"emb_params": rows(*SD)[0]}, "a1111 forge comfyui invoke kohya sd.cpp ai-toolkit"),
    "half precision": ("toy.safetensors", {"emb_params": rows(*SD)[0].half()}, "a1111 forge comfyui invoke kohya swarmui "
                       "ai-toolkit sdnext"),
    "A1111's": ("toy.pt", {"string_to_param": {"*": rows(*SD)[0]}, "name": "cat"}, "diffusers:cat a1111 forge comfyui invoke "
                "kohya sd.cpp ai-toolkit:cat sdnext"),
    "A1111's of old": ("toy.pt", {"string_to_param": OLD, "name": "cat"}, "a1111 comfyui kohya sd.cpp"),
    "A1111's without a name": ("toy.pt", {"string_to_param": {"*": rows(*SD)[0]}}, "a1111 forge comfyui invoke kohya sd.cpp "
                               "ai-toolkit sdnext"),
    "the concepts library's": ("toy.bin", {"<cat>": torch.ones(768)}, "diffusers:<cat> a1111 forge comfyui invoke"),
    "OneTrainer's": ("toy.safetensors", {"emp_params": rows(*SD)[0]}, "a1111 forge comfyui kohya onetrainer sd.cpp ai-toolkit "
                     "sdnext"),
    "OneTrainer's for SANA": ("toy.safetensors", {"gemma": rows(2304)[0]}, "onetrainer"),
    "for SD 2": ("toy.safetensors", {"emb_params": rows(1024)[0]}, "a1111 forge comfyui invoke kohya sd.cpp swarmui ai-toolkit "
                 "sdnext"),
    "for SDXL, a pickle": ("toy.pt", dict(zip(CLIPS, rows(*XL), strict=True)), "a1111 forge comfyui fooocus invoke kohya "
                           "onetrainer"),
    "half a word": ("toy.safetensors", {"clip_g": rows(1280)[0]}, ""),
    "of no known model": ("toy.safetensors", {"emb_params": rows(300)[0]}, ""),
}  # fmt: skip
"""Kind of file: its name, content, and the programs that take it as it is, with what is typed where not by the rule below."""
TYPED = {
    "comfyui": "embedding:toy",
    "fooocus": "embedding:toy",
    "swarmui": "<embed:toy>",
    "invoke": "<toy>",
} | dict.fromkeys(("diffusers", "onetrainer", "ai-toolkit"), "<toy>")


@pytest.mark.parametrize("kind", FILES)
def test_what_is_true_of_a_kind_of_file(kind: str, dti: Dti, tmp_path: Path) -> None:
    """Which programs take it as it is and what is typed there; no other is said to, and advice names a conversion."""
    name, content, expected = FILES[kind]
    save_file(content, tmp_path / name) if name.endswith(".safetensors") else torch.save(
        content, tmp_path / name
    )
    said = dti("info", tmp_path / name, "--json").json["programs"]
    names = {each.title: each.name for each in PROGRAMS}
    typed = {}
    for each in expected.split():
        program, _, word = each.partition(":")
        typed[program] = word or TYPED.get(program, "toy")
    found = {names[each["program"]]: each["typed"] for each in said if each["loads"] == "as it is"}
    assert found == typed
    for each in said:
        assert each["loads"] != "converted" or "after dti convert --to" in each["remark"]
        assert each["loads"] != "not" or (each["typed"] is None and each["remark"])
