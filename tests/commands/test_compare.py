"""`dti compare`: which pictures stand where in the grid."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dticli.draw import sheets
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
HOW = ("--model", "stickers", "--size", 16, "--steps", 1, "--quiet")


def corner(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """(top, left) of the one place where a sheet shows a picture."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)[:, :, 0]
    (found,) = np.argwhere((windows == picture).reshape(*windows.shape[:2], -1).all(axis=-1))
    return int(found[0]), int(found[1])


def test_a_row_shows_one_prompt_and_noise_by_every_word(
    dti: Dti, dog: Path, cat: Path, tmp_path: Path
) -> None:
    """Each cell is the picture that `generate` draws; words of one name and rescaled twins have columns of their own."""
    shutil.copy(dog, tmp_path / "other.safetensors")
    out = tmp_path / "grid.png"
    prompts = ("a photo of {}", "{} in the snow")
    (tmp_path / "prompts.txt").write_text(f"{prompts[1]}\n")
    asked = ("--prompt", prompts[0], "--prompts", tmp_path / "prompts.txt")
    words = (dog, f"<kitty>={cat}")
    outcome = dti("compare", *words, "--rescale", "3x", *asked, "--out", out, "--json", *HOW)
    assert outcome.code == 0, outcome.err
    assert outcome.json["columns"] == ["dog", "dog, norm 3x", "<kitty>", "<kitty>, norm 3x"]
    assert outcome.json["rows"] == list(prompts)
    assert (
        dti(
            "convert", dog, "--rescale", "3x", "--to", "dti", "--model", "stickers", "--out", tmp_path / "t"
        ).code
        == 0
    )
    (twin,) = (tmp_path / "t").rglob("*.safetensors")
    sheet = np.asarray(Image.open(out).convert("RGB"))
    places = []
    for name, word in (("<dog>", dog), ("<dog>", twin), ("<kitty>", words[1])):
        texts = [prompt.replace("{}", name) for prompt in prompts]
        folder = tmp_path / f"pictures-{len(places)}"
        assert dti("generate", *texts, "-t", word, "--out", folder, *HOW).code == 0
        drawn = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(folder.iterdir())]
        places.append([corner(sheet, picture) for picture in drawn])
    tops = {tuple(top for top, _ in column) for column in places}
    lefts = [{left for _, left in column} for column in places]
    assert len(tops) == 1
    assert all(len(left) == 1 for left in lefts)
    assert [*lefts] == sorted(lefts, key=min)


def test_labels_never_lie_on_pictures() -> None:
    """However long they are: with black pictures on white, as many black pixels as the pictures have, and ink besides."""
    tiles = [[Image.new("RGB", (20, 20), "#010203")] * 3] * 2
    for long in ("a", "a very long prompt with many words " * 4, "x" * 100):
        sheet = np.asarray(sheets.labelled(tiles, [long] * 3, [long] * 2))
        assert (sheet == (1, 2, 3)).all(axis=-1).sum() == 6 * 20 * 20
        assert (sheet != 255).any(axis=-1).sum() > 6 * 20 * 20


def test_what_cannot_be_compared(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """A prompt without a place for the word, a run that keeps nothing, and a name no picture can have."""
    (tmp_path / "a.run").mkdir()
    for part, arguments in (
        ("{}", (dog, "--prompt", "a photo of <dog>")),
        ("--keep", (tmp_path / "a.run",)),
        (".png", (dog, "--out", tmp_path / "grid.txt")),
    ):
        outcome = dti("compare", *arguments)
        assert (outcome.code, part in outcome.error) == (2, True), outcome.err
