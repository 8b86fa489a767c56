"""Captions as other trainers write them: encodings, suffixes, places for the word, lists of every shape, what is unused."""

import json
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest
from PIL import Image

from dticli import files
from dticli.errors import InputError
from dticli.learn import initial_rows
from dticli.models import choice, contents
from dticli.photos import albums, captions
from dticli.photos.albums import Photo
from dticli.photos.captions import Captioning, Captions
from tests import tiny
from tests.conftest import Outcome
from tests.tiny.tokenizers import clip_tokenizer

TEXT = "Füße eines <dog>"


BESIDE = Captioning("<dog>", sidecar=True)


def listed(file: Path) -> Captioning:
    return Captioning("<dog>", list_file=str(file))


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Photo, ...]:
    """`a.png`, `sub/a.png` and `sub/b.JPG`, all different."""
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "sub/a.png", "sub/b.JPG")):
        Image.new("RGB", (64, 64), (number * 90, 0, 0)).save(tmp_path / "set" / name)
    return albums.read(tmp_path / "set").photos


def texts(said: Captions, folder: Path) -> dict[str, tuple[str, ...]]:
    return {path.relative_to(folder / "set").as_posix(): each for path, each in said.texts.items()}


# Beside each photo

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("encoding", [*ENCODINGS, "big-endian utf-16"])
def test_every_encoding_with_a_mark_is_read(encoding: str, photos: tuple[Photo, ...], tmp_path: Path) -> None:
    """UTF-8 needs none; Windows writes the others."""
    data = ("\ufeff" + TEXT).encode("utf-16-be") if " " in encoding else TEXT.encode(encoding)
    (tmp_path / "set" / "a.txt").write_bytes(data)
    said = captions.read(photos[:1], BESIDE)
    assert texts(said, tmp_path) == {"a.png": (TEXT,)}
    assert files.decoded(data) == TEXT


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "shift-jis"])
def test_other_encodings_say_what_to_do(encoding: str, photos: tuple[Photo, ...], tmp_path: Path) -> None:
    text = "犬の写真 <dog>" if encoding == "shift-jis" else TEXT
    (tmp_path / "set" / "a.txt").write_bytes(text.encode(encoding))
    (problem,) = captions.read(photos[:1], BESIDE).problems
    assert "a.txt" in problem
    assert "save it as UTF-8" in problem


@pytest.mark.parametrize(
    "name", ["a.txt", "a.TXT", "a.Txt", "a.caption", "a.CAPTION", "a.png.txt", "a.png.caption", "a.PNG.TXT"]
)
def test_suffixes_of_sidecars(name: str, photos: tuple[Photo, ...], tmp_path: Path) -> None:
    """`.txt` and `.caption`, in capitals or not, after the photo's name with or without its suffix."""
    (tmp_path / "set" / name).write_text("<dog>")
    said = captions.read(photos[:1], BESIDE)
    assert (texts(said, tmp_path) == {"a.png": ("<dog>",)}) is (name != "a.PNG.TXT")


def test_a_photos_capitals_do_not_matter_to_its_suffix(photos: tuple[Photo, ...], tmp_path: Path) -> None:
    (tmp_path / "set" / "sub" / "b.txt").write_text("<dog>")
    assert texts(captions.read(photos[2:], BESIDE), tmp_path) == {"sub/b.JPG": ("<dog>",)}


PLACED = ("{}", "[name]", "[trigger]", "[NAME]", "<dog>")


@pytest.mark.parametrize("place", PLACED)
def test_every_trainers_place_is_the_words(place: str, photos: tuple[Photo, ...], tmp_path: Path) -> None:
    """Beside a photo and in a list; twice in a caption too."""
    (tmp_path / "set" / "a.txt").write_text(f"{place} near a {place}")
    said = captions.read(photos[:1], BESIDE)
    assert texts(said, tmp_path) == {"a.png": ("<dog> near a <dog>",)}
    (tmp_path / "list.jsonl").write_text(json.dumps({"file": "a.png", "text": f"a photo of {place}"}))
    said = captions.read(photos[:1], listed(tmp_path / "list.jsonl"))
    assert texts(said, tmp_path) == {"a.png": ("a photo of <dog>",)}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n \n"])
def test_several_lines_are_several_captions(end: str, photos: tuple[Photo, ...], tmp_path: Path) -> None:
    (tmp_path / "set" / "a.txt").write_bytes(f"a <dog>{end}{{}} on grass{end}".encode())
    said = captions.read(photos[:1], BESIDE)
    assert texts(said, tmp_path) == {"a.png": ("a <dog>", "<dog> on grass")}
    (tmp_path / "set" / "a.txt").write_bytes(f"a <dog>{end}on grass".encode())
    (problem,) = captions.read(photos[:1], BESIDE).problems
    assert "caption 2 of 2 of a.png lacks <dog>" in problem


def test_a_caption_has_a_bound(photos: tuple[Photo, ...], tmp_path: Path) -> None:
    """What no model reads takes a tokenizer minutes: beside a photo and in a list."""
    (tmp_path / "set" / "a.txt").write_text("a <dog>" + " grass" * 4000)
    (problem,) = captions.read(photos[:1], BESIDE).problems
    assert "a.png has 24007 characters: expected at most 20000" in problem
    (tmp_path / "list.jsonl").write_text(json.dumps({"file": "a.png", "text": "a <dog>" + " grass" * 4000}))
    (problem,) = captions.read(photos[:1], listed(tmp_path / "list.jsonl")).problems
    assert "24007 characters" in problem


# One list for all

NAMES = {
    "plain": ("a.png", "sub/a.png"),
    "dot": ("./a.png", "./sub/a.png"),
    "back-slash": ("a.png", "sub\\a.png"),
    "dot and back-slash": (".\\a.png", ".\\sub\\a.png"),
    "absolute": ("{}/a.png", "{}/sub/a.png"),
    "of another machine": ("C:\\me\\dogs\\a.png", "C:\\me\\dogs\\sub\\a.png"),
    "below a folder": ("dogs/a.png", "dogs/sub/a.png"),
}


def jsonl(rows: list[tuple[str, str]], file: str, text: str) -> str:
    return "".join(json.dumps({file: name, text: said}) + "\n" for name, said in rows)


def table(rows: list[tuple[str, str]], file: str, text: str, separator: str = ",") -> str:
    return "\r\n".join([f"{file}{separator}{text}", *(f'{name}{separator}"{said}"' for name, said in rows)])


LISTS: dict[str, tuple[str, Callable[..., str]]] = {
    "JSON lines": ("list.jsonl", jsonl),
    "JSON lines of another suffix": ("list.json", jsonl),
    "CSV": ("list.csv", table),
    "CSV in capitals": ("LIST.CSV", table),
    "CSV of Excel": ("list.csv", lambda *given: table(*given, separator=";")),
    "TSV": ("list.tsv", lambda *given: table(*given, separator="\t")),
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("names", NAMES)
def test_lists_of_every_shape(kind: str, names: str, photos: tuple[Photo, ...], tmp_path: Path) -> None:
    """Paths as any system and any place writes them; two photos of one name are told apart by their folders."""
    name, write = LISTS[kind]
    first, second = (each.format(tmp_path / "set") for each in NAMES[names])
    for file, text in (("file", "text"), ("file_name", "caption"), ("image", "prompt")):
        content = write([(second, "<dog>, on grass"), (first, "a <dog>")], file, text)
        for encoding in ("utf-8", "utf-16"):
            (tmp_path / name).write_bytes(content.encode(encoding))
            said = captions.read(photos[:2], listed(tmp_path / name))
            assert texts(said, tmp_path) == {"a.png": ("a <dog>",), "sub/a.png": ("<dog>, on grass",)}


def test_a_name_alone_is_enough_and_lines_add_up(photos: tuple[Photo, ...], tmp_path: Path) -> None:
    """Two lines, a list of texts, and a text of two lines are each two captions."""
    for rows in (
        [{"file": "b.JPG", "text": "a <dog>"}, {"file": "b.JPG", "text": "<dog>!"}],
        [{"file": "b.JPG", "text": ["a <dog>", "<dog>!"]}],
        [{"file": "b.JPG", "text": "a <dog>\n<dog>!"}],
    ):
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
        said = captions.read(photos, listed(tmp_path / "list.jsonl"))
        assert texts(said, tmp_path) == {"sub/b.JPG": ("a <dog>", "<dog>!")}
        assert len(said.problems) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a.png,a <dog>\n",
        "name,words\na.png,<dog>",
        "file,text\n,<dog>",
        'file,text\na.png,"<dog>',
        "file\na.png",
    ],
)
def test_tables_without_what_is_needed_are_refused_or_lack_captions(
    content: str, photos: tuple[Photo, ...], tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(content)
    if content in ("", "a.png,a <dog>\n"):
        # No row below the first line.
        assert len(captions.read(photos, listed(tmp_path / "list.csv")).problems) == 3
        return
    with pytest.raises(InputError, match=r"line [12] .* begins with file,text"):
        captions.read(photos, listed(tmp_path / "list.csv"))


# Unused


@pytest.mark.parametrize(
    "name", ["a.txt", "a.TXT", "a.caption", "a.png.txt", "metadata.jsonl", "captions.csv", "sub/b.txt"]
)
def test_captions_that_are_there_and_not_used_are_said_once(
    name: str, photos: tuple[Photo, ...], dti: Callable[..., Outcome], tmp_path: Path
) -> None:
    """By `--check` and by the run; not where they are asked for, nor for other texts."""
    (tmp_path / "set" / "readme.txt").write_text("about")
    assert captions.read(photos, Captioning("<dog>")).remark is None
    (tmp_path / "set" / name).write_text("<dog>")
    word = ("--token", "<dog>", "--init", "dog", "--model", "stickers", "-o", tmp_path / "dog.safetensors")
    outcome = dti("train", tmp_path / "set", *word, "--check")
    assert outcome.out.count(Path(name).name) == 1, outcome.out
    assert "--captions sidecar" in outcome.out
    assert captions.read(photos, BESIDE).remark is None


def test_a_run_says_it_too(photos: tuple[Photo, ...], dti: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "set" / "a.txt").write_text("<dog>")
    word = ("--token", "<dog>", "--init", "dog", "--model", "stickers", "-o", tmp_path / "dog.safetensors")
    outcome = dti("train", tmp_path / "set", *word, "--steps", 1, "--batch-size", 1, "--quiet")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("a.txt") == 1


# Longer than is read


@pytest.mark.parametrize(("vectors", "limit", "fits"), [(1, inf, 27), (4, inf, 24), (1, 20, 15), (4, 20, 12)])
def test_captions_that_are_cut_off_are_named(
    vectors: int, limit: float, fits: int, photos: tuple[Photo, ...]
) -> None:
    """A tokenizer's limit of 32 pieces, begin and end among them, or the pipeline's; each vector of the word is a piece."""
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 32
    pieces = len(tokenizer("grass grass").input_ids) - len(tokenizer("grass").input_ids)
    assert pieces == 1
    for count, cut in ((fits, False), (fits + 1, True)):
        said = Captions({photos[0].path: ("a photo <dog> " + "grass " * count,)}, ())
        found = captions.cut(said, [tokenizer], "<dog>", vectors, limit)
        assert bool(found) is cut, found
        assert not cut or f"and {min(32, limit)} are read" in found[0]


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux1_dev", "pixart_sigma"])
def test_how_much_a_pipeline_reads_is_what_its_call_says(name: str, tmp_path: Path) -> None:
    """Of T5, fewer pieces than its tokenizer allows."""
    tiny.build(name).save_pretrained(tmp_path)
    assert (
        contents.text_limit(choice.choose(str(tmp_path)))
        == {
            "sd1": inf,
            "sd3": 256,
            "flux1_dev": 512,
            "pixart_sigma": 300,
        }[name]
    )


@pytest.mark.parametrize(
    ("init", "vectors", "expected"),
    [
        ("dog", None, 1),
        ("dog", 3, 3),
        ("dog grass", None, 2),
        ("mean", None, 1),
        ("cross:dog grass", None, 2),
    ],
)
def test_how_many_pieces_a_word_takes(init: str, vectors: int | None, expected: int) -> None:
    """As many as its start has, unless it is said."""
    assert initial_rows.count([clip_tokenizer()], init, vectors) == expected


# Other texts


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_prompts_and_settings_are_read_alike(
    encoding: str, dti: Callable[..., Outcome], tmp_path: Path
) -> None:
    """A file of prompts, and one of settings, in every encoding; others say what to do."""
    (tmp_path / "prompts.txt").write_text("ein Füßchen", encoding=encoding)
    (tmp_path / "one.toml").write_text("steps = 0  # Füße", encoding=encoding)
    outcome = dti("generate", "--prompts", tmp_path / "prompts.txt", "--model", "stickers", "--size", "7")
    assert (outcome.code, "size = '7'" in outcome.error) == (2, True), outcome.err
    outcome = dti("train", tmp_path, "--config", tmp_path / "one.toml", "--model", "stickers")
    assert (outcome.code, "steps = 0" in outcome.error) == (2, True), outcome.err
    (tmp_path / "prompts.txt").write_bytes("Füßchen".encode("latin-1"))
    (tmp_path / "one.toml").write_bytes("# Füßchen".encode("latin-1"))
    for arguments in (
        ("generate", "--prompts", tmp_path / "prompts.txt"),
        ("train", "--config", tmp_path / "one.toml"),
    ):
        outcome = dti(*arguments, "--model", "stickers")
        assert (outcome.code, "save it as UTF-8" in outcome.error) == (2, True), outcome.err
