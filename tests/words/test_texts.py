"""Every text a user gives: a word in it is read as a word, all of it, wherever it stands."""

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dticli.draw import sampler
from dticli.draw.sampler import Shot
from dticli.errors import InputError, UsageError
from dticli.settings import GenerateSettings
from dticli.words import texts
from dticli.words.placement import FreeWord, embedding_modules, place, table
from tests import tiny
from tests.conftest import Outcome
from tests.models.test_families import built, family_of, frames, leaves, words

NAMES = [pytest.param(case.values[0], marks=case.marks, id=case.values[0]) for case in tiny.cases()]
PLACES = ("{} on grass", "a photo of {} on grass", "a photo of {}", "{}", "of  {} on", "a\n{} on", "a ( {} )")
BESIDE = ("a photo of {}, on grass", "a photo of {}.", "{}: a photo")
"""Where T5 and its kin cut off a space of their own, in stock diffusers too."""
T5S = {"t5xxl", "umt5xxl", "mt5xl", "pile_t5xl"}


@pytest.fixture(params=NAMES)
def pipe(request: pytest.FixtureRequest) -> Any:
    """A pipeline of each family, whose CLIP encoders pool at the end of text."""
    has_clip = "eos_token_id" in inspect.signature(tiny.TINY[request.param]).parameters
    return built(request.param, tiny.CLIP_EOS if has_clip else None)


def encoded(pipe: Any, text: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What enters each encoder's table, and what the denoiser gets."""
    family, ids, handles = family_of(pipe), {}, []
    for encoder in family.encoders:

        def record(module: Any, args: Any, key: str = encoder.key) -> None:
            ids[key] = args[0][0]

        for module in embedding_modules(getattr(pipe, encoder.component)):
            handles.append(module.register_forward_pre_hook(record, prepend=True))
    with torch.no_grad():
        conditioning = dict(leaves(family.code.encode(pipe, [text], frames(pipe, 1))))
    for handle in handles:
        handle.remove()
    return ids, conditioning


def test_a_word_with_the_row_of_a_known_one_is_that_word(pipe: Any) -> None:
    """At the start, in the middle, at the end, alone and beside punctuation: as many ids, and the same bits of conditioning."""
    require_likeness(pipe)


def require_likeness(pipe: Any, without: Collection[str] = ()) -> None:
    """Compare `dog` with a word that has the row which stands there, in every place but those and every encoder."""
    family = family_of(pipe)
    separates = any(each.key in T5S for each in family.encoders)
    for text in (*PLACES, *(() if separates else BESIDE)):
        if text in without:
            continue
        plain, expected = encoded(pipe, text.format("dog"))
        rows = {each.key: table(pipe, each)[:1].float() for each in family.encoders}
        with place(pipe, family.encoders, [FreeWord("<dog>", rows)]):
            found, _ = encoded(pipe, text.format("<dog>"))
        for encoder in family.encoders:
            ids, theirs = found[encoder.key], plain[encoder.key]
            assert len(ids) == len(theirs), (text, encoder.key)
            (there,) = (ids != theirs).nonzero().flatten().tolist()
            rows[encoder.key] = table(pipe, encoder)[theirs[[there]]].float()
        with place(pipe, family.encoders, [FreeWord("<dog>", rows)]):
            _, conditioning = encoded(pipe, text.format("<dog>"))
        for path, value in expected.items():
            assert torch.equal(conditioning[path], value), (text, path)


def test_a_word_written_out_as_diffusers_does_is_the_word(pipe: Any) -> None:
    """Three vectors, bare or written out, in capitals or not, give the same conditioning; twice is twice."""
    family, made = family_of(pipe), words(pipe, "<dog>", vectors=3)
    with place(pipe, family.encoders, made) as placement:
        expected = encoded(pipe, "a <dog> on grass")
        for text in (
            "a <dog> <dog>_1 <dog>_2 on grass",
            "a <dog><dog>_1<dog>_2 on grass",
            "a <Dog> on grass",
        ):
            for written in (text, placement.expand(text)):
                found = encoded(pipe, written)
                for path, value in expected[1].items():
                    assert torch.equal(found[1][path], value), (written, path)
        ids = encoded(pipe, "<dog> and <dog>")[0]
        for key, rows in placement.rows.items():
            assert torch.isin(ids[key], rows.ids).sum() == 6, key


def test_a_text_whose_word_the_denoiser_does_not_get_is_refused(pipe: Any) -> None:
    """Wherever it is cut: the longest text that passes has all the word's states, one more word before it has not."""
    family, made = family_of(pipe), words(pipe, "<dog>", "<cat>", vectors=3)
    with place(pipe, family.encoders, made) as placement:
        placement.require_read(family, ["a <dog>", "<cat>", "no word", "grass " * 2000])
        fits, cut = 0, 1100
        while cut - fits > 1:
            middle = (fits + cut) // 2
            try:
                placement.require_read(family, ["grass " * middle + "<dog>"])
                fits = middle
            except InputError:
                cut = middle
        with pytest.raises(InputError, match="<dog>"):
            placement.require_read(family, ["<cat>" + " grass" * cut + " <dog>"])
        assert 0 < fits < cut < 1100
        # Derived another way: the denoiser's input depends on every vector, and on the last one no more.
        for count, arrives in ((fits, True), (cut, False)):
            conditioning = family.code.encode(
                pipe, [placement.expand("grass " * count + "<dog>")], frames(pipe, 1)
            )
            sum(each.float().square().sum() for _, each in leaves(conditioning)).backward()
            lengths = [rows.grad[-1].norm().item() for rows in made[0].rows.values() if rows.grad is not None]
            assert (len(lengths) == len(family.encoders) and min(lengths) > 0) is arrives
            for rows in made[0].rows.values():
                rows.grad = None


def test_a_state_that_the_pipeline_drops_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that enters the encoder is not enough: Qwen-Image drops states, of its template, and here one more."""
    pipe = built("qwen_image", None)
    family, made = family_of(pipe), words(pipe, "<dog>")
    with place(pipe, family.encoders, made) as placement:
        placement.require_read(family, ["<dog> on grass"])
        dropped = pipe.prompt_template_encode_start_idx + 1
        monkeypatch.setattr(pipe, "prompt_template_encode_start_idx", dropped)
        placement.require_read(family, ["a <dog> on grass"])
        with pytest.raises(UsageError, match="receives only 0 of them"):
            placement.require_read(family, ["<dog> on grass"])


def test_a_negative_is_a_text(pipe: Any) -> None:
    """A word of three vectors in the negative alone: every vector enters every encoder, and cut off it is refused."""
    family, made = family_of(pipe), words(pipe, "<bad>", vectors=3)
    ids: dict[str, list[int]] = {each.key: [] for each in family.encoders}
    for encoder in family.encoders:

        def record(module: Any, args: Any, key: str = encoder.key) -> None:
            ids[key] += args[0].flatten().tolist()

        for module in embedding_modules(getattr(pipe, encoder.component)):
            module.register_forward_pre_hook(record, prepend=True)
    with place(pipe, family.encoders, made) as placement:
        wanted = {key: rows.ids.T.tolist() for key, rows in placement.rows.items()}
    side = tiny.FAMILIES[pipe.tiny_name].size
    settings = GenerateSettings(negative="<bad>, dark", steps=2, guidance=4.0, size=str(side))
    shots = [Shot("a dog", 0)]
    if "negative_prompt" not in inspect.signature(type(pipe).__call__).parameters:
        with pytest.raises(UsageError, match="takes no negative prompt"):
            list(sampler.sample(pipe, family, made, shots, settings))
        return
    assert len(list(sampler.sample(pipe, family, made, shots, settings))) == 1
    for key, each in ids.items():
        # Once to look whether it is read, and at least once to draw.
        assert all(sum(each.count(one) for one in spellings) >= 2 for spellings in wanted[key]), key
    settings = settings.model_copy(update={"negative": "grass " * 2000 + "<bad>"})
    with pytest.raises(InputError, match="<bad>"):
        list(sampler.sample(pipe, family, made, shots, settings))


@pytest.mark.parametrize(
    ("spoken", "complaint"),
    [
        (["a photo of a tree", "<bad>"], None),
        (["<bad>", "<bad>"], None),
        (["<BAD>"], None),
        (["bad"], "did you write bad for <bad>?"),
        (["<badd>"], "did you write <badd> for <bad>?"),
        (["a photo of a tree"], "no text contains <bad>"),
        (["a", "photo", "<bad>"], "a sentence goes into quotes"),
        (["<bad_1>"], "did you write <bad_1> for <bad>?"),
    ],
)
def test_a_word_that_no_text_has_is_said(spoken: list[str], complaint: str | None) -> None:
    """In some text is enough; otherwise the likeliest spelling is offered."""
    if complaint is None:
        texts.require_used(["<bad>"], spoken)
        return
    with pytest.raises(UsageError) as caught:
        texts.require_used(["<bad>"], spoken)
    texts.require_used(["<bad>"], ["tree"], "<bad>")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a (dog:1.2)",
        "(<dog>:0.5) in snow",
        "((<dog>)) in snow",
        "[[dog]]",
        "(<dog>)",
        "[<dog>]",
        "[cat:dog:0.5]",
        "[dog:0.5]",
        "[cat|dog]",
        "{red|blue} dog",
        "{{dog}}",
        "a dog BREAK grass",
        "a dog AND a cat",
        "<lora:name:0.8> a dog",
        "a dog++ in snow",
        "(a dog)++",
        "(a dog)1.3",
        "<dog>++",
        "embedding:dog in snow",
        "a dog::2 in snow",
        "<dog>:1.3 in snow",
        "a dog --ar 16:9",
        '("a dog", "a cat").blend(1, 0.5)',
        "a cat.swap(dog)",
        "{2$$red|blue} dog",
        "{red$$blue} dog",
        "a __animal__ in snow",
        "__animals/wild*__",
        r"a dog \(small\)",
        "a dog ADDCOL a cat",
        "ADDBASE a dog",
        "a dog AND_SALT a cat",
    ],
)
def test_the_syntax_of_other_programs_is_named(text: str) -> None:
    """What would be a weight or a command elsewhere."""
    assert "not supported" in (texts.unread([text]) or "")


@pytest.mark.parametrize(
    "text",
    [
        "a photo of <dog>, on grass",
        "a dog (small) and a cat",
        "[portrait] of a dog",
        "a dog at 10:30",
        "A PHOTO OF A DOG AND A CAT",
        "black-and-white",
        "{}",
        "<dog>-style",
        "ratio 16:9 (wide)",
        "bread and butter",
        "a dog -- a small one",
        "a dog: a photo",
        "<dog>: a photo",
        "snake_case and __",
        "a dog... and 3:15",
        "it costs $$ and {}",
        "a dog (a cat). And more",
    ],
)
def test_ordinary_text_is_left_in_peace(text: str) -> None:
    """Punctuation of sentences is no syntax."""
    assert texts.unread([text]) is None


HALF, LONG = "caf\udce9", "a dog, " * 4000
TAKERS: dict[str, tuple[list[object], int]] = {
    "a prompt": (["generate", "{}"], 2),
    "one of several prompts": (["generate", "a dog", "{}"], 2),
    "a negative": (["generate", "a dog", "--negative", "{}"], 2),
    "a prompt of words between": (["interpolate", "WORD", "WORD", "--prompt", "{}"], 2),
    "a prompt of a grid": (["compare", "WORD", "--prompt", "{}"], 2),
    "a negative of a grid": (["compare", "WORD", "--negative", "{}"], 2),
    "a preview": (["train", "PHOTOS", "--init", "dog", "--token", "<dog>", "--preview", "{}"], 2),
    "what previews do not show": (
        ["train", "PHOTOS", "--init", "dog", "--token", "<dog>", "--preview-negative", "{}"],
        2,
    ),
    "a start": (["train", "PHOTOS", "--token", "<dog>", "--init", "{}"], 2),
    "a start after an encoder": (["train", "PHOTOS", "--token", "<dog>", "--init", "cross:{}"], 2),
    "a prior": (["train", "PHOTOS", "--token", "<dog>", "--init", "dog", "--prior", "{}"], 2),
    "a name": (["train", "PHOTOS", "--init", "dog", "--token", "{}"], 2),
    "a sampler": (["generate", "a dog", "--scheduler", "{}"], 2),
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("text", [HALF, LONG], ids=["half a character", "long"])
def test_what_is_no_text_is_refused_before_the_work(
    taker: str, text: str, dti: Callable[..., Outcome], dog: Path, photos: Path, tmp_path: Path
) -> None:
    """Bytes that are not UTF-8, as a shell of another encoding hands on, and more than any model reads."""
    command, code = TAKERS[taker]
    places = {"WORD": dog, "PHOTOS": photos, "{}": f"{{}} {text}" if "--prompt" in command else text}
    out = () if command[0] == "train" else ("--out", tmp_path / "out.png")
    arguments = [
        each.replace("{}", text) if str(each).startswith("cross:") else places.get(str(each), each)
        for each in map(str, command)
    ]
    outcome = dti(*arguments, "--model", "stickers", *out)
    assert (outcome.code, outcome.error.isprintable()) == (code, True), outcome.err
    assert len(outcome.error) < 500


def test_syntax_of_other_programs_is_named_wherever_a_text_is_given(
    dti: Callable[..., Outcome], dog: Path, photos: Path, tmp_path: Path
) -> None:
    """In previews and in the prompts of a grid as in those of generate; once."""
    draw = ("--model", "stickers", "--size", 16, "--steps", 1, "--quiet", "--out", tmp_path / "grid.png")
    outcome = dti("compare", dog, "--prompt", "({}:1.2)", *draw)
    assert (outcome.code, outcome.err.count("not supported")) == (0, 1), outcome.err
    train = ("train", photos, "--token", "<dog>", "--init", "dog", "--model", "stickers", "--check")
    for option in (("--preview", "{} BREAK grass"), ("--preview-negative", "((dark))")):
        outcome = dti(*train, *option)
        assert (outcome.code, outcome.err.count("not supported")) == (0, 1), outcome.err
