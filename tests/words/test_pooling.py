"""Where CLIP's pooled state is read, and what follows from it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dticli import bundled
from dticli.errors import UsageError
from dticli.learn.run_folder import read_log
from dticli.models import families
from dticli.models.families import Family
from dticli.models.families.shape import Frame
from dticli.words import pooling
from dticli.words.placement import FreeWord, place, table
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
POOLED = {"sdxl": "text_embeds", "sd3": "pooled_projections", "flux1_dev": "pooled_projections"}
PROMPTS = ["a photo of <dog> on grass", "a photo of <dog> in snow with a red hat"]


def conditioning(name: str, eos: int, choice: pooling.Pooling, prompts: list[str]) -> torch.Tensor:
    """The pooled states a tiny pipeline conditions on, (prompts, width)."""
    pipe = tiny.build(name, eos_token_id=eos)
    family: Family = families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, name)
    pooling.choose(pipe, family.encoders, choice)
    rows = {each.key: table(pipe, each)[:1].clone() for each in family.encoders}
    size = tiny.FAMILIES[name].size
    frame = Frame((size, size), (0, 0), (size, size))
    with torch.no_grad(), place(pipe, family.encoders, [FreeWord("<dog>", rows)]):
        found = family.code.encode(pipe, prompts, [frame] * len(prompts))
    return found.get("added_cond_kwargs", found)[POOLED[name]]


@pytest.mark.parametrize("name", POOLED)
def test_stock_pooling_does_not_see_what_follows_a_word(name: str) -> None:
    """With the public configs' id the pooled state stands at the word; at the end of text it sees the whole prompt."""
    stock, eos = (conditioning(name, 2, choice, PROMPTS) for choice in ("stock", "eos"))
    assert torch.equal(stock[0], stock[1])
    assert (eos[0] - eos[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", POOLED)
def test_pooling_at_the_end_of_text_is_that_of_a_true_config(name: str) -> None:
    """An encoder whose config knew its end of text from the start gives the same bits, with and without words."""
    for prompts in (PROMPTS, ["a photo of a dog"]):
        ours = conditioning(name, 2, "eos", prompts)
        assert torch.equal(ours, conditioning(name, tiny.CLIP_EOS, "stock", prompts))


@pytest.mark.parametrize("name", POOLED)
def test_prompts_without_words_pool_alike(name: str) -> None:
    """The choice changes nothing where no word was added to the prompt."""
    stock, eos = (conditioning(name, 2, choice, ["a photo of a dog"]) for choice in ("stock", "eos"))
    assert torch.equal(stock, eos)


@pytest.mark.parametrize("name", POOLED)
def test_the_order_of_loading_changes_nothing_at_the_end_of_text(name: str) -> None:
    """Stock pooling stands at whichever of two words was loaded last; at the end of text both orders read alike."""
    first, second = (
        [pooled_of_two(name, choice, swapped) for swapped in (False, True)] for choice in ("stock", "eos")
    )
    assert not torch.allclose(*first)
    assert torch.equal(*second)


def pooled_of_two(name: str, choice: pooling.Pooling, swapped: bool) -> torch.Tensor:
    """The pooled state of a prompt with two words, loaded in either order."""
    pipe = tiny.build(name, eos_token_id=2)
    family: Family = families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, name)
    pooling.choose(pipe, family.encoders, choice)
    words = [
        FreeWord(label, {each.key: table(pipe, each)[row : row + 1].clone() for each in family.encoders})
        for row, label in ((1, "<dog>"), (5, "<cat>"))
    ]
    size = tiny.FAMILIES[name].size
    frame = Frame((size, size), (0, 0), (size, size))
    with torch.no_grad(), place(pipe, family.encoders, words[::-1] if swapped else words):
        found = family.code.encode(pipe, ["<dog> beside <cat> on grass"], [frame])
    return found.get("added_cond_kwargs", found)[POOLED[name]]


def test_mixed_pooling_takes_turns() -> None:
    """Even steps pool as stock does, odd ones at the end of text; other choices hold at every step."""
    assert [pooling.at_step("mixed", step) for step in range(4)] == ["stock", "eos", "stock", "eos"]
    assert {pooling.at_step("eos", step) for step in range(4)} == {"eos"}


def test_pooling_can_be_taken_back() -> None:
    """After the end of text, stock stands where the config says again."""
    pipe = tiny.build("sdxl", eos_token_id=2)
    family: Family = families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, "sdxl")
    for choice in ("eos", "stock"):
        pooling.choose(pipe, family.encoders, choice)
    assert pipe.text_encoder_2.text_model.eos_token_id == 2


def test_a_word_of_mixed_pooling_suits_both() -> None:
    """It goes with words of either kind; alone it is drawn as stock diffusers draws it."""
    mixed = {"dti.pooling": "mixed"}
    assert pooling.recorded([("<a>", mixed)]) == "stock"
    assert pooling.recorded([("<a>", mixed), ("<b>", {"dti.pooling": "eos"})]) == "eos"
    assert pooling.recorded([("<a>", mixed), ("<b>", {})]) == "stock"


def test_words_of_different_pooling_need_a_choice() -> None:
    """Files that do not say were learned with stock pooling; one pooling must serve a whole prompt."""
    assert pooling.recorded([]) == "stock"
    assert pooling.recorded([("<a>", {"dti.pooling": "eos"}), ("<b>", {"dti.pooling": "eos"})]) == "eos"
    with pytest.raises(UsageError, match="--pooling"):
        pooling.recorded([("<a>", {"dti.pooling": "eos"}), ("<b>", {})])
    with pytest.raises(UsageError, match="<dog> and <dog>"):  # two versions of one word
        pooling.recorded([("<dog>", {"dti.pooling": "eos"}), ("<dog>", {})])


@pytest.mark.filterwarnings(*tiny.FAMILIES["sdxl"].warnings)
def test_a_word_remembers_its_pooling(dti: Dti, tmp_path: Path) -> None:
    """`train` records it, `generate` follows it, and says so when told otherwise."""
    tiny.build("sdxl").save_pretrained(tmp_path / "model")
    (tmp_path / "config.toml").write_text('templates = ["a photo of {}"]')
    file, model = tmp_path / "dog.safetensors", ("--model", tmp_path / "model")
    photos = bundled.photos("dog")[0].parent
    learn = (
        "train",
        photos,
        "--token",
        "<dog>",
        "--init",
        "dog",
        "-o",
        file,
        "--config",
        tmp_path / "config.toml",
    )
    quick = ("--steps", 1, "--batch-size", 1, "--resolution", 16, "--quiet")
    assert dti(*learn, *model, *quick, "--pooling", "eos").code == 0
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata()["dti.pooling"] == "eos"

    def draw(*options: object) -> tuple[bytes, str]:
        out = tmp_path / f"{len(options)}-{options[-1] if options else ''}"
        drawn = dti(
            *("generate", "<dog> in snow", "-t", file, "-o", out, "--steps", 2, "--size", 64, "--quiet"),
            *model,
            *options,
        )
        assert drawn.code == 0, drawn.err
        return Image.open(next(out.glob("*.png"))).tobytes(), drawn.err

    own, eos, stock = draw(), draw("--pooling", "eos"), draw("--pooling", "stock")
    assert own[0] == eos[0] != stock[0]
    assert ["pooling" in said for _, said in (own, eos, stock)] == [False, False, True]
    losses = {}
    for choice in ("stock", "eos", "mixed"):
        assert (
            dti(*learn, *model, *quick, "--pooling", choice, "--steps", 2, "--lr", 1e-12, "--force").code == 0
        )
        losses[choice] = [entry["loss"] for entry in read_log(file.with_suffix(".run"))]
    # The word stands still at that rate: every step shows which pooling it had.
    assert losses["mixed"] == [losses["stock"][0], losses["eos"][1]] != losses["stock"]
    assert not any("pooling" in draw("--pooling", each, "--force")[1] for each in ("stock", "eos"))
