"""Token files for every program: layouts key by key, round trips, stock loaders, and what each program does with a file."""

import inspect
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dticli.errors import DtiError, InputError, UsageError
from dticli.models import families
from dticli.words import conversion, programs, token_reading
from dticli.words.learned_word import Token
from dticli.words.programs import PROGRAMS, PUBLISHED, SOLE, Described
from tests import tiny

NAME = "<sks-dog>"
TARGETS = [target for target in programs.TARGETS if target != "dti"]
# Written out by hand from the programs' loaders, independently of the table under test.
EXPECTED: dict[str, dict[str, list[str]]] = {
    "a1111": {"sd": ["emb_params"], "sdxl": ["clip_g", "clip_l"], "sd3": ["clip_g", "clip_l", "t5xxl"]},
    "comfyui": {
        "sd": ["clip_l"],
        "sdxl": ["clip_g", "clip_l"],
        "sd3": ["clip_g", "clip_l", "t5xxl"],
        "flux": ["clip_l", "t5xxl"],
        "pixart_sigma": ["t5xxl"],
        "chroma": ["t5xxl"],
        "hunyuandit": ["chinese_roberta", "mt5xl"],
    },
    "kohya": {"sd": ["emb_params"], "sdxl": ["clip_g", "clip_l"]},
    "invoke": {"sd": ["emb_params"], "sdxl": ["clip_g", "clip_l"]},
    "onetrainer": {
        "sd": ["emp_params"],
        "sdxl": ["clip_g", "clip_l"],
        "sd3": ["clip_g", "clip_l", "t5"],
        "flux": ["clip_l", "t5"],
        "sana": ["gemma"],
        "pixart_sigma": ["t5"],
        "chroma": ["t5"],
    },
}


def word(family: str, count: int = 2, **metadata: str) -> Token:
    """A word of a family's public model, its rows different in every number."""
    generator = torch.Generator().manual_seed(3)
    vectors = {
        key: torch.randn(count, width, generator=generator) for key, width in PUBLISHED[family][0].items()
    }
    return conversion.described(Token.of(NAME, vectors, {"dti.family": family, "dti.seed": "3", **metadata}))


def put(folder: Path, files: dict[str, bytes]) -> Path:
    """Write what `export` returns; the file, or the folder of several."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    first = folder / next(iter(files))
    return first.parent if first.parent != folder else first


def header(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("target", EXPECTED)
def test_layouts_key_by_key(target: str, family: str) -> None:
    """Each program gets the tensors its loader looks for, two-dimensional float32, or a refusal with alternatives."""
    token = word(family)
    if family not in EXPECTED[target]:
        with pytest.raises(UsageError, match=r"cannot be used in .*; choose from dti, diffusers"):
            conversion.export(token, target)
        return
    ((name, content),) = conversion.export(token, target).items()
    assert name == "sks-dog.safetensors"
    stored = safetensors.torch.load(content)
    assert sorted(stored) == EXPECTED[target][family]
    assert all(rows.ndim == 2 and rows.dtype == torch.float32 for rows in stored.values())
    # By the only tensor of that width: CLIP-L, CLIP-G and T5 all differ.
    for rows in token.vectors.values():
        (found,) = [each for each in stored.values() if each.shape == rows.shape]
        assert torch.equal(found, rows)


@pytest.mark.parametrize("family", PUBLISHED)
def test_diffusers_gets_a_file_for_each_encoder(family: str) -> None:
    """Numbered in the pipeline's order, each with one tensor under the word's name."""
    files = conversion.export(word(family), "diffusers")
    row = families.of_name(family)
    assert row
    numbers = ["", "_2", "_3"][: len(row.encoders)]
    assert list(files) == [f"sks-dog/learned_embeds{number}.safetensors" for number in numbers]
    for encoder, content in zip(row.encoders, files.values(), strict=True):
        stored = safetensors.torch.load(content)
        assert list(stored) == [NAME]
        assert torch.equal(stored[NAME], word(family).vectors[encoder.key])


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("target", TARGETS)
def test_round_trips_lose_nothing(target: str, family: str, tmp_path: Path) -> None:
    """A word that went to a program and came back is the canonical file again, byte for byte."""
    token = word(family, **{"modelspec.author": "Ada", "modelspec.license": "cc0-1.0"})
    canonical = conversion.export(token, "dti")
    if target != "diffusers" and family not in EXPECTED[target]:
        return
    there = put(tmp_path, conversion.export(token, target))
    back = conversion.described(conversion.read(there).token)
    assert conversion.export(back, "dti") == canonical


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_conversions_commute_with_the_canonical_file(family: str, tmp_path: Path) -> None:
    """From one program's file to another's directly, or by way of ours: the same bytes."""
    token = word(family)
    targets = ["diffusers", *(target for target in EXPECTED if family in EXPECTED[target])]
    direct = {target: conversion.export(token, target) for target in targets}
    for source in targets:
        read = conversion.described(conversion.read(put(tmp_path / source, direct[source])).token)
        assert {target: conversion.export(read, target) for target in targets} == direct


@pytest.mark.parametrize("layout", ["emb_params", "emp_params", "clip_l", NAME])
def test_foreign_files_convert_as_their_canonical_form_does(layout: str, tmp_path: Path) -> None:
    """A stranger's file, converted at once or by way of ours, gives the same bytes for every program."""
    path = tmp_path / "sks-dog.safetensors"
    safetensors.torch.save_file({layout: word("sd").vectors["clip_l"].half()}, path)
    foreign = conversion.described(conversion.read(path).token)
    ours = conversion.described(
        conversion.read(put(tmp_path / "ours", conversion.export(foreign, "dti"))).token
    )
    for target in ("dti", "diffusers", *(target for target in EXPECTED if "sd" in EXPECTED[target])):
        assert conversion.export(foreign, target) == conversion.export(ours, target)


# Stock diffusers


STOCK = {"sd": "sd1", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux1_dev"}


@pytest.mark.parametrize("family", STOCK)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_stock_diffusers_loads_the_files_of_every_encoder(family: str, tmp_path: Path) -> None:
    """`load_textual_inversion` on a pipeline of the family puts our rows under our name in each encoder.

    SD3's class has no loader, so diffusers' own mixin is added to it, as its documentation says.
    """
    from diffusers.loaders import TextualInversionLoaderMixin

    pipe = tiny.build(STOCK[family])
    row = families.of_name(family)
    assert row
    tables = [getattr(pipe, encoder.component).get_input_embeddings().weight for encoder in row.encoders]
    generator = torch.Generator().manual_seed(0)
    vectors = {
        encoder.key: torch.randn(2, table.shape[1], generator=generator)
        for encoder, table in zip(row.encoders, tables, strict=True)
    }
    folder = put(tmp_path, conversion.export(Token.of(NAME, vectors, {"dti.family": family}), "diffusers"))
    if not isinstance(pipe, TextualInversionLoaderMixin):
        pipe.__class__ = type("WithMixin", (TextualInversionLoaderMixin, type(pipe)), {})
    for encoder, file in zip(row.encoders, sorted(folder.iterdir()), strict=True):
        pipe.load_textual_inversion(
            str(file),
            text_encoder=getattr(pipe, encoder.component),
            tokenizer=getattr(pipe, encoder.tokenizer),
        )
        ids = getattr(pipe, encoder.tokenizer).convert_tokens_to_ids([NAME, f"{NAME}_1"])
        rows = getattr(pipe, encoder.component).get_input_embeddings().weight[ids]
        assert torch.equal(rows.detach(), vectors[encoder.key])


# Which family, and what a program does


@pytest.mark.parametrize("family", PUBLISHED)
def test_families_are_known_by_their_encoders(family: str) -> None:
    """Encoder keys and widths of each public model name its family; the table is that of the families."""
    row = families.of_name(family)
    assert row
    assert [list(variant) for variant in PUBLISHED[family]] == [[e.key for e in row.encoders]] * len(
        PUBLISHED[family]
    )
    for variant in PUBLISHED[family]:
        assert family in programs.candidates(variant)


@pytest.mark.parametrize(
    ("widths", "recorded", "expected"),
    [
        ({SOLE: 768}, None, ("sd",)),
        ({"clip_h": 1024}, None, ("sd",)),
        ({SOLE: 2304}, None, ("sana", "lumina2", "sana_sprint")),
        ({SOLE: 4096}, "wan", ("wan",)),
        ({SOLE: 256}, None, ()),
        ({"clip_l": 256}, "sd", ("sd",)),
        ({"clip_l": 768, "clip_g": 1280}, None, ("sdxl",)),
        ({"clip_l": 768, "clip_g": 1280}, "sd3", ("sd3",)),
        ({"clip_l": 768, "clip_g": 1280}, "sana", ("sdxl",)),
        ({"clip_g": 1280}, None, ()),
        ({SOLE: 768}, "no such family", ("sd",)),
    ],
)
def test_what_a_file_says_and_its_widths_decide_the_family(
    widths: dict[str, int], recorded: str | None, expected: tuple[str, ...]
) -> None:
    """The recorded family goes first if it has these encoders."""
    assert programs.candidates(widths, recorded) == expected


def test_words_of_unknown_models_are_refused() -> None:
    """The bundled model's words fit no other program, and the message says why."""
    token = Token.of("<dog>", {"clip_l": torch.ones(1, 256)}, {"dti.family": "sd"})
    assert set(conversion.export(token, "dti")) == {"dog.safetensors"}
    for target in EXPECTED:
        with pytest.raises(
            UsageError, match=r"width 256, and .* runs no sd model of that width; choose from dti"
        ):
            conversion.export(token, target)
    with pytest.raises(UsageError, match="--model"):
        conversion.export(Token.of("<dog>", {SOLE: torch.ones(1, 300)}, {}), "a1111")


def test_families_a_program_stores_differently_must_be_told_apart() -> None:
    """Gemma's 2304 may be a word of SANA, Lumina or SANA-Sprint: the same for diffusers, not for OneTrainer."""
    token = Token.of("<dog>", {"gemma2_2b": torch.ones(1, 2304)}, {})
    assert list(conversion.export(token, "diffusers")) == ["dog/learned_embeds.safetensors"]
    with pytest.raises(UsageError, match=r"sana or lumina2 or sana_sprint.*--model"):
        conversion.export(token, "onetrainer")
    assert "gemma" in safetensors.torch.load(
        next(iter(conversion.export(conversion.of_family(token, "sana"), "onetrainer").values()))
    )


def loads(**changes: Any) -> dict[str, str]:
    """Program name to what it does with a word, SD 1.x unless said otherwise."""
    base: dict[str, Any] = {"word": "<dog>", "stem": "dog", "family": "sd", "names": {"clip_l": "<dog>"}}
    described = Described(**({**base, "widths": {"clip_l": 768}} | changes))
    return {each.name: programs.verdict(each, described).loads for each in PROGRAMS}


XL = {"family": "sdxl", "widths": {"clip_l": 768, "clip_g": 1280}}
BOTH = {"clip_l": "clip_l", "clip_g": "clip_g"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "diffusers a1111 forge comfyui kohya sd.cpp swarmui ai-toolkit sdnext"),
        (
            {"names": {"clip_l": "emb_params"}},
            "a1111 forge comfyui invoke kohya sd.cpp swarmui ai-toolkit sdnext",
        ),
        (
            {"names": {"clip_l": "emp_params"}},
            "a1111 forge comfyui kohya onetrainer sd.cpp ai-toolkit sdnext",
        ),
        (
            {"names": {"clip_l": "string_to_param.*"}, "container": "pickle", "called": "dog"},
            "diffusers a1111 forge comfyui invoke kohya sd.cpp ai-toolkit sdnext",
        ),
        # diffusers goes by the name in the file.
        (
            {"names": {"clip_l": "string_to_param.*"}, "container": "pickle"},
            "a1111 forge comfyui invoke kohya sd.cpp ai-toolkit sdnext",
        ),
        (
            {"names": {"clip_l": "string_to_param.*"}, "container": "old pickle", "called": "dog"},
            "a1111 comfyui kohya sd.cpp",
        ),
        ({"names": {"clip_l": "string_to_param.*"}, "container": "picture", "called": "dog"}, "a1111 forge"),
        ({"container": "pickle"}, "diffusers a1111 forge comfyui kohya sd.cpp ai-toolkit"),
        (
            {"names": {"clip_l": "emp_params"}, "container": "pickle"},
            "a1111 forge comfyui kohya onetrainer sd.cpp ai-toolkit",
        ),
        # Any name but another program's key is a word's to diffusers.
        (
            {"names": {"clip_l": "My Dog"}, "called": "My Dog"},
            "diffusers a1111 forge comfyui kohya sd.cpp swarmui ai-toolkit sdnext",
        ),
        ({"partial": True}, ""),
        # As in the concepts library; InvokeAI takes the name only of these.
        ({"flat": True}, "diffusers a1111 forge comfyui invoke"),
        ({"flat": True, "names": {"clip_l": "emb_params"}}, "a1111 forge comfyui"),
        (
            {"flat": True, "names": {"clip_l": "string_to_param.*"}, "container": "pickle", "called": "dog"},
            "diffusers comfyui",
        ),
        ({**XL, "names": BOTH, "flat": True}, ""),
        ({**XL, "names": dict.fromkeys(BOTH, "<dog>"), "split": True, "flat": True}, "diffusers"),
        ({"halves": True}, "diffusers a1111 forge comfyui kohya swarmui ai-toolkit sdnext"),
        ({"stem": "my dog"}, "diffusers a1111 forge kohya sd.cpp ai-toolkit sdnext"),
        ({"stem": "<dog>"}, "diffusers comfyui kohya sd.cpp swarmui ai-toolkit sdnext"),
        (
            {**XL, "names": BOTH},
            "a1111 forge comfyui fooocus invoke kohya onetrainer swarmui ai-toolkit sdnext",
        ),
        ({**XL, "names": BOTH, "container": "pickle"}, "a1111 forge comfyui fooocus invoke kohya onetrainer"),
        ({**XL, "names": dict.fromkeys(BOTH, "<dog>"), "split": True}, "diffusers"),
        (
            {"family": "sd3", "widths": PUBLISHED["sd3"][0], "names": {**BOTH, "t5xxl": "t5xxl"}},
            "a1111 comfyui",
        ),
        ({"family": "sd3", "widths": PUBLISHED["sd3"][0], "names": {**BOTH, "t5xxl": "t5"}}, "onetrainer"),
        ({"family": "wan", "widths": {"umt5xxl": 4096}, "names": {"umt5xxl": "<dog>"}}, "diffusers"),
        ({"family": None, "widths": {SOLE: 300}}, ""),
        ({"widths": {"clip_l": 256}}, "diffusers"),
    ],
)
def test_which_programs_take_a_file_as_it_is(changes: dict[str, Any], expected: str) -> None:
    """By the table of loaders in the notes: names of tensors, dimensions, dtypes, file names and encoders."""
    assert sorted(name for name, how in loads(**changes).items() if how == "as it is") == sorted(
        expected.split()
    )


def test_words_are_typed_as_each_program_wants() -> None:
    """`<dog>`, `dog`, `embedding:dog`, and the usage hint names them all."""
    described = Described("<dog>", "dog", "sdxl", BOTH, XL["widths"])  # type: ignore[arg-type]
    typed = {each.name: programs.verdict(each, described).typed for each in PROGRAMS}
    assert typed["comfyui"] == typed["fooocus"] == "embedding:dog"
    assert typed["a1111"] == typed["forge"] == "dog"
    assert typed["invoke"] == typed["diffusers"] == "<dog>"
    assert typed["swarmui"] == "<embed:dog>"
    hint = programs.usage_hint("<dog>", "sdxl", XL["widths"], 2)  # type: ignore[arg-type]
    assert all(text in hint for text in ("embedding:dog", "A1111, Forge, SD.Next: dog", "<embed:dog>"))
    assert programs.usage_hint("<dog>", "sd", {"clip_l": 256}, 1) == "dti, diffusers: <dog>"
    said = programs.usage_hint("<dog>", "sana", {"gemma2_2b": 2304}, 3)
    assert said == "dti: <dog>; diffusers: <dog> <dog>_1 <dog>_2"


FOREIGN = {
    "A1111": lambda rows: {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows},
        "name": "sks dog",
        "step": 500,
    },
    "A1111, unnamed": lambda rows: {"string_to_param": {"*": rows}, "name": None},
    "A1111, old": lambda rows: {
        "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)}),
        "name": "sks-dog",
    },
    "diffusers, old": lambda rows: {"<Sks Dog>": rows[0]},
    "kohya": lambda rows: {"emb_params": rows},
    "OneTrainer": lambda rows: {"emp_params": rows.half()},
}


@pytest.mark.parametrize("name", [*PUBLISHED, *FOREIGN])
def test_advice_is_followed_by_success(name: str, tmp_path: Path) -> None:
    """Whoever converts a file as a program's line says gets one which that program takes as it is, and types it as said."""
    if name in FOREIGN:
        path = tmp_path / "my dog.pt"
        torch.save(FOREIGN[name](torch.ones(2, 768)), path)
        source = conversion.read(path)
    else:
        source = conversion.read(put(tmp_path, conversion.export(word(name), "dti")))
    for each in PROGRAMS:
        found = programs.verdict(each, source.described(), source.families)
        if found.loads == "converted":
            written = conversion.export(conversion.described(source.token), each.target)
            again = conversion.read(put(tmp_path / each.name, written))
            after = programs.verdict(each, again.described(), again.families)
            assert (after.loads, after.typed) == ("as it is", found.typed), each.name


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_stock_diffusers_types_a_foreign_file_as_said(name: str, tmp_path: Path) -> None:
    """Where it takes a pickle as it is, the vocabulary then holds what is to be typed; elsewhere it fails or needs a name."""
    pipe = tiny.build("sd1")
    width = pipe.text_encoder.get_input_embeddings().weight.shape[1]
    torch.save(FOREIGN[name](torch.ones(2, width)), tmp_path / "my dog.pt")
    source = conversion.read(tmp_path / "my dog.pt").of_family("sd")
    verdict = programs.verdict(programs.program("diffusers"), source.described())
    if verdict.loads == "as it is":
        pipe.load_textual_inversion(str(tmp_path / "my dog.pt"))
        assert verdict.typed in pipe.tokenizer.get_vocab()
        return
    try:
        pipe.load_textual_inversion(str(tmp_path / "my dog.pt"))
    except Exception:
        # Of whatever class: it does not load.
        return
    assert f"{source.token.name}" not in pipe.tokenizer.get_vocab()


@pytest.mark.parametrize("family", PUBLISHED)
def test_vectors_are_typed_apart_where_diffusers_does_not_expand(family: str) -> None:
    """By the code of each pipeline: only some call `maybe_convert_prompt`, which turns `<w>` into `<w> <w>_1 ...`."""
    row = families.of_name(family)
    assert row
    (kind,) = [getattr(diffusers, name) for name in row.pipelines]
    expands = "maybe_convert_prompt" in inspect.getsource(kind)
    spelled = programs.typed(programs.program("diffusers"), "<w>", "w", family, 3)
    assert spelled == ("<w>" if expands else "<w> <w>_1 <w>_2")
    assert programs.typed(programs.program("diffusers"), "<w>", "w", family, 1) == "<w>"


@pytest.mark.parametrize("family", [name for name, (first, *_) in PUBLISHED.items() if len(first) > 1])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_part_of_a_word_loads_nowhere_as_it_is(family: str, metadata: bool, tmp_path: Path) -> None:
    """One of diffusers' files for several encoders, with its provenance or without; the folder is the word."""
    for number, (name, content) in enumerate(conversion.export(word(family), "diffusers").items()):
        stored = safetensors.torch.load(content)
        path = tmp_path / Path(name).name
        path.write_bytes(content if metadata else safetensors.torch.save(stored))
        if not metadata and number == 0:
            # Nothing tells the first one, alone, from a word of one encoder.
            continue
        source = conversion.read(path)
        for each in PROGRAMS:
            verdict = programs.verdict(each, source.described(), source.families)
            assert verdict.loads == "not", (name, each.name)
            if each.name in ("diffusers", "a1111"):
                assert "pass the folder" in str(verdict.remark)
        if metadata:
            with pytest.raises(UsageError, match="pass the folder"):
                conversion.export(source.token, "diffusers")
    first = conversion.read(tmp_path / "learned_embeds.safetensors")
    assert {programs.verdict(each, first.described(), first.families).loads for each in PROGRAMS} == {"not"}


def test_onetrainers_gemma_is_sanas(tmp_path: Path) -> None:
    """The program trains words in Gemma for SANA only; under any other name they may be Lumina's."""
    for name, expected in (("gemma", ("sana",)), ("gemma2_2b", ("sana", "lumina2", "sana_sprint"))):
        safetensors.torch.save_file({name: torch.ones(2, 2304)}, tmp_path / "dog.safetensors")
        source = conversion.read(tmp_path / "dog.safetensors")
        assert source.families == expected
        told = {each.name: programs.verdict(each, source.described(), source.families) for each in PROGRAMS}
        assert (told["onetrainer"].loads == "as it is") is (name == "gemma")
        # The same for both, so that it need not be known.
        assert told["diffusers"].typed == "<dog> <dog>_1"
    assert "sana or lumina2 or sana_sprint" in str(told["onetrainer"].remark)


def test_every_fact_has_a_source() -> None:
    """Every program says where it was read, and whoever has no target of its own names another's."""
    for program in PROGRAMS:
        assert "(run)" in program.source or "(read)" in program.source
        assert program.target in programs.TARGETS
        assert program.writes.keys() <= {family.name for family in families.TABLE}


# Metadata


def test_metadata_programs_look_for() -> None:
    """Title, architecture and the hash of the bytes after the header; no date unless it is given; no number."""
    ((_, content),) = conversion.export(word("sdxl"), "dti").items()
    said = header(content)["__metadata__"]
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"
    assert (said["modelspec.title"], said["modelspec.sai_model_spec"]) == ("sks-dog", "1.0.1")
    assert "modelspec.date" not in said
    assert all(isinstance(value, str) for value in said.values())
    assert not any(key.startswith("ss_") for key in said)


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("architecture", [None, "stable-diffusion-v2-768-v"])
def test_the_specification_is_claimed_with_all_it_demands_or_not_at_all(
    family: str, architecture: str | None
) -> None:
    """ModelSpec: a file that names its version MUST name architecture, implementation and title."""
    for variant in PUBLISHED[family]:
        said = programs.modelspec("<dog>", family, variant, 1, architecture)
        must = {f"modelspec.{name}" for name in ("sai_model_spec", "architecture", "implementation", "title")}
        assert must <= said.keys() or must & said.keys() == {"modelspec.title"}
    if family in ("sd", "sdxl", "sd3"):
        said = programs.modelspec("<dog>", family, PUBLISHED[family][0], 1)
        names = {"sd": "v1", "sdxl": "xl-v1-base", "sd3": "v3-medium"}
        assert said["modelspec.architecture"] == f"stable-diffusion-{names[family]}/textual-inversion"


def test_metadata_is_kept_and_the_architecture_is_not_guessed() -> None:
    """What a file says stays; SD 2's two architectures share a width, so neither is claimed."""
    token = Token.of("<dog>", {"clip_l": torch.ones(1, 1024)}, {"modelspec.title": "A dog", "x": "y"})
    described = conversion.described(token, {"author": "Ada", "date": "2025-12-31"})
    assert described.metadata["modelspec.title"] == "A dog"
    assert described.metadata["x"] == "y"
    assert described.metadata["modelspec.author"] == "Ada"
    assert described.metadata["modelspec.date"] == "2025-12-31"
    assert "modelspec.architecture" not in described.metadata
    assert conversion.described(described).metadata == described.metadata


def test_the_page_says_what_each_program_does_with_a_word() -> None:
    """The table in docs/token-files.md: which programs load a word as it is trained, and which after a conversion."""
    page = (Path(__file__).parents[2] / "docs" / "token-files.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| [^|]+ \(`(\w+)`\) \|(.*)\|(.*)\|$", page, re.MULTILINE)
    said = {
        (family, loads, re.sub(r" \(.*\)", "", title))
        for family, *cells in table
        for loads, cell in zip(("as it is", "converted"), cells, strict=True)
        for title in cell.strip().split(", ")
        if title
    }
    found = set()
    for family, (widths, *_) in PUBLISHED.items():
        names = {key: key if len(widths) > 1 else programs.WORD for key in widths}
        for each in PROGRAMS:
            verdict = programs.verdict(each, Described(NAME, NAME.strip("<>"), family, names, widths))
            if verdict.loads != "not" and each.remarks.get(family) != programs._MIXIN:
                found.add((family, verdict.loads, each.title))
    assert said == found


# Folders


def test_a_folder_of_the_concepts_library(tmp_path: Path) -> None:
    """`learned_embeds.bin` beside `token_identifier.txt`: the key names the word, else the identifier does."""
    rows = torch.randn(768)
    (tmp_path / "token_identifier.txt").write_text("<cat-toy>")
    torch.save({"<cat-toy>": rows}, tmp_path / "learned_embeds.bin")
    source = conversion.read(tmp_path)
    assert source.token.name == "<cat-toy>"
    assert torch.equal(source.token.vectors["clip_l"], rows[None])
    torch.save(rows, tmp_path / "learned_embeds.bin")
    assert conversion.read(tmp_path).token.name == "<cat-toy>"


def test_the_reference_implementations_two_files_are_one_word(tmp_path: Path) -> None:
    """`learned_embeds` and `learned_embeds_2` without metadata are told apart by their widths."""
    rows = word("sdxl").vectors
    safetensors.torch.save_file({"<dog>": rows["clip_l"]}, tmp_path / "learned_embeds.safetensors")
    safetensors.torch.save_file({"<dog>": rows["clip_g"]}, tmp_path / "learned_embeds_2.safetensors")
    read = conversion.read(tmp_path)
    assert read.described().split
    assert {key: each.tolist() for key, each in read.token.vectors.items()} == {
        key: each.tolist() for key, each in rows.items()
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["dog.safetensors", "README.md"], ["dog.safetensors"]),
        (
            ["dog.safetensors", "learned_embeds.safetensors", "learned_embeds_2.safetensors"],
            ["dog.safetensors"],
        ),
        (["learned_embeds_2.bin", "learned_embeds.bin"], ["learned_embeds.bin", "learned_embeds_2.bin"]),
        (["learned_embeds.bin", "learned_embeds.safetensors"], ["learned_embeds.safetensors"]),
        (["learned_embeds.bin", "learned_embeds-steps-500.bin"], ["learned_embeds.bin"]),
        (["dog.pt", "dog.safetensors"], ["dog.safetensors"]),
        (["dog.pt"], ["dog.pt"]),
        (["a.safetensors", "b.safetensors"], None),
        (["images/a.safetensors", ".hidden.safetensors", "..\\a.bin"], None),
        ([], None),
    ],
)
def test_which_files_of_a_folder_are_the_word(names: list[str], expected: list[str] | None) -> None:
    """One file of any tool, or diffusers' for each encoder; never hidden ones or those of other folders."""
    if expected is None:
        with pytest.raises(InputError, match="expected"):
            conversion.files_of_a_word(names, "here")
    else:
        assert conversion.files_of_a_word(names, "here") == expected


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    """Two files of different words or of no known model are refused in one line."""
    for second, width in (("<cat>", 1280), ("<dog>", 77)):
        safetensors.torch.save_file({"<dog>": torch.ones(1, 768)}, tmp_path / "learned_embeds.safetensors")
        safetensors.torch.save_file({second: torch.ones(1, width)}, tmp_path / "learned_embeds_2.safetensors")
        with pytest.raises(InputError, match="expected one word's"):
            conversion.read(tmp_path)


# Rescaling


def test_rescaling_keeps_directions(tmp_path: Path) -> None:
    """Every vector gets the vocabulary's mean length, by NumPy's reckoning, and twice is once."""
    from dticli.models import embeddings
    from dticli.words import norms

    table = embeddings.Table("text_encoder", torch.randn(50, 24).numpy(), tuple(map(str, range(50))))
    vocabulary = {"clip_l": norms.summary(table)}
    token = Token.of("<dog>", {SOLE: torch.randn(3, 24) * 40}, {})
    once = conversion.rescaled(token, vocabulary, "mean")
    before, after = (each.double().numpy() for each in (token.vectors[SOLE], once.vectors["clip_l"]))
    mean = np.linalg.norm(table.rows.astype(np.float64), axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), mean, rtol=1e-6)
    np.testing.assert_allclose(
        after / mean, before / np.linalg.norm(before, axis=1, keepdims=True), atol=1e-6
    )
    twice = conversion.rescaled(once, vocabulary, "mean")
    np.testing.assert_allclose(twice.vectors["clip_l"].numpy(), after, rtol=1e-6)
    assert once.metadata["dti.rescaled"] == "mean"


# Fuzzing


TEXT = st.text(max_size=12)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or the error it has for users."""
    try:
        return function(*arguments)
    except DtiError as error:
        return error


def fuzz(
    keys: list[str], shape: list[int], dtype: torch.dtype, metadata: dict[str, str], folder: Path
) -> None:
    """Write a file of tensors like these, and read, describe and convert whatever comes out."""
    path = folder / "fuzzed.safetensors"
    tensors = {key: torch.ones(shape).to(dtype) for key in keys}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    source = outcome(conversion.read, path)
    if isinstance(source, InputError):
        assert str(source).isprintable()
        return
    for program in PROGRAMS:
        assert programs.verdict(program, source.described()).loads in ("as it is", "converted", "not")
    described = conversion.described(source.token)
    for target in programs.TARGETS:
        files = outcome(conversion.export, described, target)
        if isinstance(files, UsageError):
            assert str(files).isprintable()
            continue
        for name, content in files.items():
            assert Path(name).is_absolute() is False
            assert ".." not in Path(name).parts
            token_reading.read(put(folder / "out", {Path(name).name: content}))


SHAPES = st.lists(st.sampled_from([1, 2, 3]) | st.sampled_from([0, 257]), max_size=2).flatmap(
    lambda head: st.sampled_from([[], [24], [256], [768], [1024], [1280], [2304], [4096]]).map(
        lambda tail: head + tail
    )
)
KEYS = st.lists(
    st.sampled_from(
        ["clip_l", "clip_g", "t5xxl", "t5", "emb_params", "emp_params", "<dog>", "gemma", "clip_h", "*"]
    )
    | TEXT,
    max_size=3,
    unique=True,
).map(lambda keys: [key for key in keys if key != "__metadata__"])
DTYPES = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.float64]
)
SAID = st.dictionaries(
    st.sampled_from(["dti.family", "dti.encoder", "dti.name", "modelspec.title", "dti.original_name"]),
    st.sampled_from(["sd", "sdxl", "sana", "wan", "clip_l", "t5xxl", "*", "<dog>"]) | TEXT,
    max_size=3,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(keys=KEYS, shape=SHAPES, dtype=DTYPES, metadata=SAID)
def test_any_file_is_converted_or_refused_in_one_line(
    keys: list[str],
    shape: list[int],
    dtype: torch.dtype,
    metadata: dict[str, str],
    scratch: Path,
) -> None:
    """Whatever names, shapes, dtypes and metadata a file has, every program gets a file it can read, or a refusal."""
    fuzz(keys, shape, dtype, metadata, scratch)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(keys=KEYS, shape=SHAPES, dtype=DTYPES, metadata=SAID)
def test_any_file_at_length(
    keys: list[str],
    shape: list[int],
    dtype: torch.dtype,
    metadata: dict[str, str],
    scratch: Path,
) -> None:
    """The same, for minutes."""
    fuzz(keys, shape, dtype, metadata, scratch)
