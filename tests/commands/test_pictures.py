"""`dti generate` and `dti interpolate` as a user runs them, on the bundled model."""

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import BatchFeature

from dticli import bundled, console
from dticli.draw import pictures, pipeline
from dticli.errors import EnvironmentProblem, InputError
from dticli.models import memory
from dticli.words import base_model, token_reading, token_writing
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
QUICK = ("--steps", 2, "--quiet", "--model", "stickers")


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image).astype(int)


def stock(file: Path, prompts: list[str], *, scheduler: bool = False, **options: object) -> list[np.ndarray]:
    """What diffusers alone draws with the token file."""
    pipe = StableDiffusionPipeline.from_pretrained(bundled.model_folder(), dtype=torch.float32)
    pipe.load_textual_inversion(file)
    if scheduler:
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    images = pipe(prompts, generator=generators, num_inference_steps=2, guidance_scale=3.0, **options).images
    return [np.asarray(image).astype(int) for image in images]


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ":diffusers.schedulers.scheduling_euler_discrete"
)
def test_pictures_are_those_of_a_stock_pipeline(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Same batch, scheduler, seeds and negative prompt: the same pixels as diffusers with load_textual_inversion."""
    prompt, negative = "a photo of <dog> in the snow", "a cat"
    options = ("--count", 2, "--batch-size", 2, "--negative", negative, "--scheduler", "euler")
    outcome = dti("generate", prompt, "-t", dog, "-o", tmp_path, *options, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    ours = [pixels(Path(each["file"])) for each in outcome.json["pictures"]]
    theirs = stock(dog, [prompt] * 2, scheduler=True, negative_prompt=[negative] * 2)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not np.array_equal(ours[0], ours[1])


def test_the_line_follows_the_steps_of_each_picture(
    dti: Dti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three pictures of two steps, two at once: after each first step, and after each picture; never backwards."""
    told: list[tuple[float, tuple[str, ...]]] = []

    class Line:
        def update(self, done: float, *parts: str) -> None:
            told.append((done, parts))

    monkeypatch.setattr(console, "progress", lambda total, **options: nullcontext(Line()))
    how = ("--model", "stickers", "--steps", 2, "--size", 16, "--batch-size", 2)
    assert dti("generate", "a dog", "--count", 3, "-o", tmp_path, *how).code == 0
    assert told == [
        (1.0, ("picture 1/3", "step 1/2")),
        (1, ("picture 1/3",)),
        (2, ("picture 2/3",)),
        (2.5, ("picture 3/3", "step 1/2")),
        (3, ("picture 3/3",)),
    ]


def test_batch_size_does_not_change_pictures(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Every picture has noise of its own: one at a time or three at once differ by rounding alone."""
    for size in (1, 3):
        dti(
            "generate",
            "<dog>",
            "-t",
            dog,
            "-o",
            tmp_path / str(size),
            "--count",
            3,
            "--batch-size",
            size,
            *QUICK,
        )
    single, together = (sorted((tmp_path / size).iterdir()) for size in "13")
    assert [file.name for file in single] == [file.name for file in together]
    assert all(np.abs(pixels(a) - pixels(b)).max() <= 2 for a, b in zip(single, together, strict=True))


def test_the_word_changes_the_picture(dti: Dti, dog: Path, cat: Path, tmp_path: Path) -> None:
    """Two words at once, each where the prompt says."""
    outcome = dti("generate", "a <dog>", "a <cat>", "-t", dog, "-t", cat, "-o", tmp_path, *QUICK, "--json")
    first, second = (pixels(Path(each["file"])) for each in outcome.json["pictures"])
    assert not np.array_equal(first, second)


def test_size_is_width_by_height(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """As everywhere; one that does not suit is named as it was given."""
    outcome = dti("generate", "<dog>", "-t", dog, "-o", tmp_path, "--size", "64x128", *QUICK)
    assert outcome.code == 0, outcome.err
    assert pixels(next(tmp_path.iterdir())).shape == (128, 64, 3)
    assert outcome.err.splitlines() == ["model: stickers (as chosen)"]
    outcome = dti("generate", "<dog>", "-t", dog, "-o", tmp_path, "--size", "33x47", *QUICK)
    assert (outcome.code, "size 33x47" in outcome.error, "try 32x48" in outcome.error) == (2, True, True)


def test_pictures_say_how_they_were_made(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """PNG text holds prompt, seed, model, tokens and settings; names sort in the order of drawing."""
    outcome = dti(
        "generate", "a photo of <dog>", "-t", dog, "-o", tmp_path, "--count", 2, "--seed", 7, *QUICK
    )
    files = sorted(tmp_path.iterdir())
    assert outcome.out.split() == [str(file) for file in files]
    with Image.open(files[1]) as image:
        text = image.text
    assert (text["prompt"], text["seed"], text["model"]) == ("a photo of <dog>", "8", "stickers")
    assert "<dog>" in text["tokens"]
    assert "steps=2" in text["settings"]


def test_prompts_from_a_file_and_stdin(
    dti: Dti, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt a line, empty lines left out, and a grid with a row a prompt."""
    (tmp_path / "prompts.txt").write_text("a <dog>\n\na photo of <dog>\n")
    grid = tmp_path / "grid.png"
    options = ("-t", dog, "--count", 3, "--batch-size", 3, "--grid", grid, *QUICK)
    outcome = dti("generate", "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "a", *options)
    assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "a").iterdir())) == 6
    assert pixels(grid).shape == (2 * 64 + 2, 3 * 64 + 2 * 2, 3)
    monkeypatch.setattr("sys.stdin", io.StringIO("a <dog>\n"))
    assert dti("generate", "--prompts", "-", "-t", dog, "-o", tmp_path / "b", *QUICK).code == 0


def test_words_that_share_a_name_can_be_renamed(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """`-t NAME=FILE` gives a word another name; two words of one name are refused with that remedy."""
    outcome = dti("generate", "<dog> and <rex>", "-t", dog, "-t", f"<rex>={dog}", "-o", tmp_path, *QUICK)
    assert outcome.code == 0, outcome.err
    outcome = dti("generate", "<dog>", "-t", dog, "-t", dog, "-o", tmp_path, "--force", *QUICK)
    assert (outcome.code, "NAME=FILE" in outcome.error) == (2, True)


BAD: dict[str, tuple[tuple[object, ...], int, tuple[str, ...]]] = {
    "no prompt": ((), 2, ("prompt",)),
    "no word": (("a photo of a dog",), 2, ("<dog>",)),
    "cut off": (("grass " * 60 + "<dog>",), 3, ("shorten",)),
    "unknown scheduler": (("<dog>", "--scheduler", "magic"), 2, ("magic", "euler")),
    "odd size": (("<dog>", "--size", "63"), 2, ("63", "64")),
    "bad size": (("<dog>", "--size", "big"), 2, ("size",)),
    "no size": (("<dog>", "--size", "0"), 2, ("size", "8 to 8192")),
    "a flat size": (("<dog>", "--size", "64x0"), 2, ("size", "8 to 8192")),
    "a huge size": (("<dog>", "--size", "100000"), 2, ("size", "8 to 8192")),
    "a size of many digits": (("<dog>", "--size", "9" * 5000), 2, ("size", "8 to 8192")),
    "a huge count": (("<dog>", "--count", "1000000000"), 2, ("--count", "10000")),
    "a huge batch": (("<dog>", "--batch-size", "1000000000"), 2, ("--batch-size", "4096")),
    "no file": (("<dog>", "-t", "missing.safetensors"), 3, ("missing.safetensors",)),
    "no prompts file": (("--prompts", "missing.txt"), 2, ("missing.txt",)),
    "negative seed": (("<dog>", "--seed", "-2"), 2, ("--seed",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_one_line(dti: Dti, dog: Path, tmp_path: Path, case: str) -> None:
    """Every mistake is one line with the remedy and the right exit code, and draws nothing."""
    options, code, parts = BAD[case]
    outcome = dti("generate", *options, "-t", dog, "-o", tmp_path / "out", *QUICK)
    assert outcome.code == code, outcome.err
    assert all(part in outcome.error for part in parts), outcome.error
    assert list(tmp_path.rglob("*.png")) == []


def test_more_steps_than_there_are_levels_of_noise(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Found before the model is loaded: no scheduler has more than a thousand."""
    outcome = dti("generate", "<dog>", "-t", dog, "--model", "stickers", "--steps", 1001, "-o", tmp_path)
    assert (outcome.code, "1000" in outcome.error) == (2, True)


def test_existing_pictures_are_kept_without_force(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Drawing into the same folder again goes on with the numbers and says so; `--force` begins anew."""
    (tmp_path / "0007-mine.jpg").write_bytes(b"mine")
    draw = ("generate", "<dog>", "-t", dog, "-o", tmp_path, *QUICK)
    assert dti(*draw).code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert [path.name for path in sorted(before)] == ["0000-dog-0.png", "0007-mine.jpg"]
    outcome = dti(*draw, "--count", 2)
    assert (outcome.code, "going on with 0001" in outcome.err) == (0, True)
    assert outcome.out.split() == [str(tmp_path / name) for name in ("0001-dog-0.png", "0002-dog-1.png")]
    assert {path: path.read_bytes() for path in before} == before
    assert dti(*draw, "--force").out.split() == [str(tmp_path / "0000-dog-0.png")]


def test_two_that_draw_into_one_folder_keep_both(
    dti: Dti, dog: Path, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process wrote while the model was loaded stays as it is; with `--force` it is replaced, as was asked."""
    out, strip, load = tmp_path / "out", tmp_path / "strip.png", pipeline.load
    theirs = [out / "0000-dog-0.png", tmp_path / "grid.png", strip]

    def meanwhile(*arguments: Any) -> Any:
        for file in theirs:
            file.write_bytes(b"theirs")
        return load(*arguments)

    monkeypatch.setattr(pipeline, "load", meanwhile)
    draw = ("generate", "<dog>", "-t", dog, "-o", out, "--grid", theirs[1], "--json", *QUICK)
    outcome = dti(*draw)
    assert outcome.code == 0, outcome.err
    assert outcome.json["pictures"][0]["file"] == str(out / "0000-dog-0-2.png")
    assert outcome.json["grid"] == str(tmp_path / "grid-2.png")
    assert outcome.err.count("written by another process meanwhile") == 2
    strip.unlink()
    outcome = dti("interpolate", dog, cat, "--frames", 2, "-o", strip, "--json", *QUICK)
    assert outcome.json["file"] == str(tmp_path / "strip-2.png")
    assert {file.read_bytes() for file in theirs} == {b"theirs"}
    assert pixels(tmp_path / "strip-2.png").shape == (64, 130, 3)
    assert dti(*draw, "--force").json["pictures"][0]["file"] == str(theirs[0])
    assert pixels(theirs[0]).shape == (64, 64, 3)


def test_one_picture_can_have_a_name(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """`-o one/a.png` is that file for one picture; for more it is an error, and what is there stays."""
    file = tmp_path / "one" / "a.png"
    draw = ("generate", "<dog>", "-t", dog, "-o", file, *QUICK)
    outcome = dti(*draw)
    assert (outcome.code, outcome.out.split()) == (0, [str(file)])
    before = file.read_bytes()
    for options, part in ((("--count", 2), "--grid"), ((), "--force")):
        outcome = dti(*draw, *options)
        assert (outcome.code, part in outcome.error) == (2, True)
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == before


def test_what_was_drawn_is_no_photo(dti: Dti, dog: Path, cat: Path, photos: Path, tmp_path: Path) -> None:
    """Pictures, grids, strips and animations may lie among the photos, in every format that keeps a program's name."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    draw = ("generate", "<dog>", "-t", dog, "-o", folder / "drawn", *QUICK)
    for suffix in ("png", "jpg", "webp", "gif", "tiff"):
        assert dti(*draw, "--grid", folder / f"grid.{suffix}").code == 0
    for suffix in ("png", "gif", "webp"):
        way = ("interpolate", dog, cat, "-n", 2, "-o", folder / f"way.{suffix}")
        assert dti(*way, *QUICK).code == 0
    outcome = dti(
        "train", folder, "--token", "<dog>", "--init", "dog", "--model", "stickers", "--check", "--json"
    )
    assert [each["name"] for each in outcome.json["photos"]] == [
        path.name for path in sorted(photos.iterdir())
    ]
    assert len(outcome.json["skipped"]) == 5 + 5 + 3
    assert {reason for _, reason in outcome.json["skipped"]} == {"drawn by dti"}


def test_token_files_of_other_models(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Another width is refused; the same width with another vocabulary warns."""
    from tests import tiny

    tiny.build("sd1").save_pretrained(tmp_path / "tiny")
    outcome = dti("generate", "<dog>", "-t", dog, "-o", tmp_path, "--model", tmp_path / "tiny", "--steps", 2)
    assert (outcome.code, "256" in outcome.error, "32" in outcome.error) == (3, True, True)
    pipe = StableDiffusionPipeline.from_pretrained(bundled.model_folder(), dtype=torch.float32)
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.neg_()
    pipe.save_pretrained(tmp_path / "finetune")
    outcome = dti(
        "generate", "<dog>", "-t", dog, "-o", tmp_path, "--model", tmp_path / "finetune", "--steps", 2
    )
    assert outcome.code == 0
    assert "warning: <dog> was learned on stickers" in outcome.err


def test_interpolation_ends_are_the_words_own_pictures(
    dti: Dti, dog: Path, cat: Path, tmp_path: Path
) -> None:
    """The first and last frames are what each word draws by itself from the same noise."""
    strip = tmp_path / "strip.png"
    options = ("--prompt", "a photo of {}", "--frames", 3, "-o", strip, *QUICK)
    outcome = dti("interpolate", dog, cat, *options)
    assert outcome.code == 0, outcome.err
    frames = [pixels(strip)[:, start : start + 64] for start in (0, 66, 132)]
    for frame, file, word in ((frames[0], dog, "<dog>"), (frames[2], cat, "<cat>")):
        dti("generate", f"a photo of {word}", "-t", file, "-o", tmp_path / word, *QUICK)
        assert np.array_equal(frame, pixels(next((tmp_path / word).iterdir())))
    assert not np.array_equal(frames[0], frames[1])


def test_interpolation_as_animation(dti: Dti, dog: Path, cat: Path, tmp_path: Path) -> None:
    """A GIF holds every frame for its share of the time; three words make two legs."""
    out = tmp_path / "morph.gif"
    outcome = dti("interpolate", dog, cat, dog, "--frames", 5, "-o", out, "--seconds", 1, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    assert len(outcome.json["degrees"]) == 2
    with Image.open(out) as image:
        assert (image.n_frames, image.info["duration"]) == (5, 200)


def test_an_animation_goes_back_the_way_it_came(dti: Dti, dog: Path, cat: Path, tmp_path: Path) -> None:
    """`--ping-pong` repeats the inner frames backwards; with two prompts every frame shows both, as strips do in rows."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a {} on grass\n")
    options = ("--prompt", "a photo of {}", "--prompts", prompts, "--frames", 3, *QUICK)
    for name in ("strip.png", "morph.gif"):
        back = ("--ping-pong",) if name == "morph.gif" else ()
        outcome = dti("interpolate", dog, cat, *options, *back, "-o", tmp_path / name)
        assert outcome.code == 0, outcome.err
    strip = pixels(tmp_path / "strip.png")
    assert strip.shape == (2 * 64 + 2, 3 * 64 + 2 * 2, 3)
    assert not np.array_equal(strip[:64], strip[66:])
    with Image.open(tmp_path / "morph.gif") as image:
        assert (image.n_frames, image.size) == (4, (64, 130))
        shown = []
        for index in range(4):
            image.seek(index)
            shown.append(np.asarray(image.convert("RGB")).astype(int))
    assert np.array_equal(shown[1], shown[3])
    assert not np.array_equal(shown[0], shown[2])


def test_a_grid_between_three_words_is_a_triangle_of_them(
    dti: Dti, dog: Path, cat: Path, tmp_path: Path
) -> None:
    """Its corners are the words' own pictures, its edges are paths, and two words make no grid."""
    fox = tmp_path / "fox.safetensors"
    ((_, rows),) = load_file(dog).items()
    token_writing.write(
        fox, replace(token_reading.read(dog), name="<fox>").with_vectors({"clip_l": -rows + 0.1})
    )
    sheet, strip = tmp_path / "grid.png", tmp_path / "strip.png"
    outcome = dti("interpolate", dog, cat, fox, "--grid", "--frames", 3, "-o", sheet, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["frames"] == 6
    drawn = pixels(sheet)
    assert drawn.shape == (3 * 66 - 2, 3 * 66 - 2, 3)
    assert (drawn[:64, :66] == 255).all()
    assert dti("interpolate", cat, fox, "--frames", 3, "-o", strip, *QUICK).code == 0
    assert np.array_equal(drawn[132:], pixels(strip))
    assert dti("interpolate", dog, "-o", strip, "--force", dog, "--frames", 2, *QUICK).code == 0
    assert np.array_equal(drawn[:64, 66:130], pixels(strip)[:, :64])
    refused = dti("interpolate", dog, cat, "--grid", "-o", tmp_path / "no.png", *QUICK)
    assert (refused.code, "three or four" in refused.error) == (2, True)
    beside = dti("interpolate", dog, cat, fox, "--grid", "--ping-pong", "-o", tmp_path / "no.png", *QUICK)
    assert (beside.code, "--ping-pong" in beside.error) == (2, True)


def test_frames_can_be_spaced_by_what_a_judge_sees(
    dti: Dti, dog: Path, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge to whom everything happens in the second half sends the frames there, and sees them evenly spaced."""

    class Eyes:
        """Sees how far along a picture was drawn: unit features that turn by nothing, then by 60 degrees."""

        def features(self, images: list[Image.Image]) -> torch.Tensor:
            turned = torch.tensor([max(0.0, position - 0.5) * 2 for position in asked[-1]]) * torch.pi / 3
            return torch.stack([turned.cos(), turned.sin()], dim=1)

    asked: list[list[float]] = []
    draw = pipeline.draw_mixes

    def drawn(
        loaded: object, opened: object, way: list[tuple[float, float]], *rest: object, **options: object
    ):
        asked.append([second for _, second in way])
        return draw(loaded, opened, way, *rest, **options)

    monkeypatch.setattr(pipeline, "draw_mixes", drawn)
    monkeypatch.setattr("dticli.evaluation.judges.likeness", lambda *_, **__: Eyes())
    options = ("--frames", 5, "--image-judge", "any", "-o", tmp_path / "strip.png", *QUICK)
    outcome = dti("interpolate", dog, cat, *options, "--json")
    assert outcome.code == 0, outcome.err
    assert asked[0] == [0, 0.25, 0.5, 0.75, 1]
    assert asked[1] == pytest.approx([0, 0.625, 0.75, 0.875, 1])
    spacing = outcome.json["spacing"]
    assert (spacing["before"], spacing["after"]) == pytest.approx((2, 1), abs=1e-4)


def test_a_mix_is_the_slerp_point_of_two_words(dti: Dti, dog: Path, cat: Path, tmp_path: Path) -> None:
    """`dti mix` writes it, by NumPy's reckoning, as a token file that draws; its file says what it was made of."""
    mix = tmp_path / "mix.safetensors"
    outcome = dti("mix", dog, cat, "--weights", "3,1", "-o", mix, "--json")
    assert outcome.code == 0, outcome.err
    a, b, between = (next(iter(load_file(file).values()))[0].double().numpy() for file in (dog, cat, mix))
    lengths = [np.linalg.norm(each) for each in (a, b)]
    theta = np.arccos(a @ b / lengths[0] / lengths[1])
    expected = (np.sin(0.75 * theta) * a / lengths[0] + np.sin(0.25 * theta) * b / lengths[1]) / np.sin(theta)
    np.testing.assert_allclose(between, expected * lengths[0] ** 0.75 * lengths[1] ** 0.25, atol=1e-6)
    assert [part["degrees"]["clip_l"] for part in outcome.json["parts"]] == pytest.approx(
        [np.degrees(theta) / 4, np.degrees(theta) * 3 / 4], abs=1e-2
    )
    metadata = token_reading.read(mix).metadata
    assert metadata["dti.weights"] == "0.75,0.25"
    assert metadata["dti.between"].startswith("<dog> sha256:")
    assert dti("generate", "a <mix>", "-t", mix, "-o", tmp_path / "out", *QUICK).code == 0


def test_bad_mixes(dti: Dti, dog: Path, cat: Path, tmp_path: Path) -> None:
    """One file, weights of another number or that are no numbers, a name prompts cannot use, a file in the way."""
    for wrong, part in (
        ((dog,), "two or more"),
        ((dog, cat, "--weights", "1"), "such as 2,1"),
        ((dog, cat, "--weights", "1,two"), "such as 2,1"),
        ((dog, cat, "--weights", "0,0"), "try 2,1,1"),
        ((dog, cat, "--weights", "1e308,1e308"), "try 2,1,1"),
        ((dog, cat, "--token", "a mix"), "write '<"),
        ((dog, cat, "-o", dog), "--force"),
    ):
        outcome = dti("mix", *wrong)
        assert (outcome.code, part in outcome.error) == (2, True), outcome.err


def test_bad_interpolations(dti: Dti, dog: Path, cat: Path, photos: Path, tmp_path: Path) -> None:
    """One file, different vector counts, a prompt without a place, an unknown format: one line each."""
    assert dti("interpolate", dog, *QUICK).code == 2
    assert "{}" in dti("interpolate", dog, cat, "--prompt", "a dog", *QUICK).error
    two = tmp_path / "two.safetensors"
    options = (
        "--init",
        "dog",
        "--vectors",
        2,
        "--steps",
        1,
        "--batch-size",
        1,
        "--model",
        "stickers",
        "-o",
        two,
    )
    assert dti("train", photos, "--token", "<two>", *options).code == 0
    outcome = dti("interpolate", dog, two, "-o", tmp_path / "strip.png", *QUICK)
    assert (outcome.code, "--vectors" in outcome.error) == (3, True)
    cut = dti("interpolate", dog, cat, "--prompt", "grass " * 60 + "{}", "-o", tmp_path / "s.png", *QUICK)
    assert (cut.code, "shorten" in cut.error) == (3, True)


def test_names_that_cannot_be_written_cost_no_drawing(
    dti: Dti, dog: Path, cat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown formats, and MP4 where its writer is missing, are found before a model is chosen."""
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(base_model, "open_model", lambda *_: pytest.fail("a model was chosen"))
    for command, code, part in (
        (("interpolate", dog, cat, "-o", tmp_path / "strip.xyz"), 2, ".png"),
        (("interpolate", dog, cat, "-o", tmp_path / "morph.mp4"), 5, "dticli[video]"),
        (("interpolate", dog, cat, "-n", 100, "-o", tmp_path / "a.gif", "--seconds", 1), 2, "--seconds 2,"),
        (
            ("interpolate", dog, cat, "-n", 51, "--ping-pong", "-o", tmp_path / "a.gif", "--seconds", 1.9),
            2,
            "100 frames",
        ),
        (("interpolate", dog, cat, "-o", tmp_path / "a.gif", "--seconds", "inf"), 2, "600"),
        (("generate", "a dog", "-t", dog, "-o", tmp_path), 2, "no text contains <dog>"),
    ):
        outcome = dti(*command, *QUICK)
        assert (outcome.code, part in outcome.error) == (code, True), outcome.err
    monkeypatch.undo()
    outcome = dti("generate", "<dog>", "-t", dog, "-o", tmp_path, "--grid", tmp_path / "grid.xyz", *QUICK)
    assert (outcome.code, list(tmp_path.glob("*.png"))) == (2, [])


def noise(width: int, height: int) -> Image.Image:
    drawn = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(drawn).resize((width, height), Image.Resampling.BICUBIC)


def test_a_video_shows_frames_in_their_own_size(tmp_path: Path) -> None:
    """No side is stretched to a multiple of the codec's; an odd one gets a line of white."""
    pytest.importorskip("imageio.v3")
    program = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    for size, shown in (((72, 130), (130, 72)), ((71, 129), (130, 72))):
        frame = noise(*size)
        pictures.save_animation(tmp_path / "morph.mp4", [frame] * 3, 1)
        decode = [program, "-i", tmp_path / "morph.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        raw = subprocess.run(decode, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
        video = np.frombuffer(raw, np.uint8).reshape(3, *shown, 3)
        # What compression loses of it; stretched to the next multiple of 16, it differs by 30 and more.
        assert np.abs(video[0][: size[1], : size[0]].astype(int) - np.asarray(frame)).mean() < 8


# imageio leaves the pipe to a program that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ffmpeg_that_does_not_work_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, before the drawing; where it fails, in one line."""
    pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(EnvironmentProblem, match="IMAGEIO_FFMPEG_EXE"):
        pictures.require_animation(tmp_path / "morph.mp4", 3, 1)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(shutil.which("false")))
    with pytest.raises(EnvironmentProblem, match=r"ffmpeg failed .*write \.gif"):
        pictures.save_animation(tmp_path / "morph.mp4", [noise(64, 64)] * 3, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("suffix", "size"),
    [(".jpg", (65_504, 8)), (".webp", (16, 16_400)), (".gif", (65_544, 8)), (".avif", (32_776, 16))],
)
def test_what_a_format_cannot_hold_is_reduced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, size: tuple[int, int]
) -> None:
    """A strip or grid that took its time to draw is not lost: it is written as large as can be, which is told."""
    file = tmp_path / f"strip{suffix}"
    pictures.save_image(file, Image.new("RGB", size, "red"))
    with Image.open(file) as image:
        assert max(image.size) == pictures.LARGEST[str(image.format)]
        assert image.size[0] / size[0] == pytest.approx(image.size[1] / size[1], abs=0.2)
    assert f"{size[0]}x{size[1]} pixels are more than strip{suffix} can hold" in caplog.text


def test_an_animation_lasts_as_long_as_it_should(tmp_path: Path) -> None:
    """GIF counts in hundredths of a second: what is cut off one frame comes to another."""
    colours = np.random.default_rng(0).integers(0, 256, (70, 1, 1, 3), np.uint8)
    frames = [Image.fromarray(each).resize((8, 8)) for each in colours]
    for suffix in (".gif", ".webp"):
        pictures.save_animation(tmp_path / f"morph{suffix}", frames, 2)
        with Image.open(tmp_path / f"morph{suffix}") as image:
            assert image.n_frames == 70
            lasting = []
            for index in range(70):
                image.seek(index)
                image.load()
                lasting.append(image.info["duration"])
        assert sum(lasting) == 2000
        assert set(lasting) == {20, 30}


def test_a_broken_picture_of_ours_is_told(tmp_path: Path) -> None:
    """Whatever Pillow says of it: what is no chunk where one should be is an error of syntax there."""
    file = tmp_path / "0.png"
    pictures.save_image(file, noise(64, 64))
    whole = file.read_bytes()
    length = whole.index(b"IDAT") - 4
    for broken in (whole[:200], whole[:length] + b"\0\0\0\x08" + whole[length + 4 :], b""):
        file.write_bytes(broken)
        with pytest.raises(InputError, match="delete it"):
            pictures.read(file)


def test_a_word_that_no_file_brings_is_told(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """`<cat>` without its file is drawn as text, with a warning; the words that were loaded are not warned of."""
    outcome = dti("generate", "<dog> and <cat>", "-t", dog, "-o", tmp_path / "a", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "<cat> is read as ordinary text" in outcome.err
    assert "<dog> is read as" not in outcome.err
    outcome = dti("generate", "a", "photo", "of", "<dog>", "-t", dog, "-o", tmp_path / "b", *QUICK)
    assert (outcome.code, "quotes" in outcome.error) == (2, True)


def test_words_of_two_kinds_do_not_mix_unsaid(dti: Dti, dog: Path, cat: Path, tmp_path: Path) -> None:
    """Between words of different pooling one must be chosen, which is recorded; of different vocabularies, there is a warning."""
    other = tmp_path / "cat.safetensors"
    read = token_reading.read(cat)
    strange = read.metadata | {"dti.pooling": "eos", "dti.tables": "other"}
    token_writing.write(other, replace(read, name="<dog>", metadata=strange))
    mix = tmp_path / "mix.safetensors"
    outcome = dti("mix", dog, other, "-o", mix)
    assert (outcome.code, "--pooling" in outcome.error) == (2, True)
    outcome = dti("interpolate", dog, other, "-o", tmp_path / "strip.png", *QUICK)
    assert (outcome.code, "--pooling" in outcome.error) == (2, True)
    outcome = dti("mix", dog, other, "-o", mix, "--pooling", "eos")
    assert outcome.code == 0, outcome.err
    assert "vocabularies differ" in outcome.err
    assert token_reading.read(mix).metadata["dti.pooling"] == "eos"


def test_pictures_that_the_safety_checker_blacked_out_are_told(
    dti: Dti, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many, and that it was the model's filter; a judge gets them as they were drawn."""

    def check(images: torch.Tensor, clip_input: object) -> tuple[torch.Tensor, list[bool]]:
        return torch.cat([images[:1] * 0, images[1:]]), [True] + [False] * (len(images) - 1)

    pipe = StableDiffusionPipeline.from_pretrained(bundled.model_folder(), dtype=torch.float32)
    pipe.feature_extractor = lambda images, return_tensors: BatchFeature({"pixel_values": torch.zeros(1)})
    asked = []

    def load(*_: object, safety_checker: bool) -> StableDiffusionPipeline:
        asked.append(safety_checker)
        pipe.safety_checker = check if safety_checker else None
        return pipe

    monkeypatch.setattr(memory, "load", load)
    outcome = dti("generate", "<dog>", "-t", dog, "-o", tmp_path, "--count", 2, "--batch-size", 2, *QUICK)
    assert outcome.code == 0, outcome.err
    assert "1 of 2 pictures are black" in outcome.err
    judging = (
        "--image-judge",
        "stickers-b",
        "--text-judge",
        "stickers-b",
        "--prompt-set",
        "stickers",
        "-n",
        1,
    )
    outcome = dti("evaluate", dog, "--photos", bundled.photos("dog")[0].parent, *judging, *QUICK)
    assert outcome.code == 0, outcome.err
    assert asked == [True, False]


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ":diffusers.schedulers.scheduling_euler_discrete"
)
def test_a_word_of_sdxl_draws_the_same_in_a_stock_pipeline(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """Learned in both encoders, two vectors, loaded by two stock calls: the same pixels."""
    from tests import tiny

    tiny.build("sdxl").save_pretrained(tmp_path / "xl")
    file = tmp_path / "dog.safetensors"
    learn = (
        "--init",
        "red dog",
        "--steps",
        2,
        "--batch-size",
        1,
        "--resolution",
        16,
        "--model",
        tmp_path / "xl",
    )
    assert dti("train", photos, "--token", "<dog>", "-o", file, *learn).code == 0
    draw = ("--steps", 2, "--size", 16, "--model", tmp_path / "xl", "-o", tmp_path / "out")
    outcome = dti("generate", "a photo of <dog>", "-t", file, *draw, "--json")
    assert outcome.code == 0, outcome.err
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path / "xl", dtype=torch.float32)
    word = load_file(file)
    assert [len(rows) for rows in word.values()] == [2, 2]
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = (getattr(pipe, name + suffix) for name in ("text_encoder", "tokenizer"))
        pipe.load_textual_inversion(word[key], token="<dog>", text_encoder=encoder, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(0)
    stock = pipe("a photo of <dog>", height=16, width=16, num_inference_steps=2, generator=generator).images[
        0
    ]
    assert np.array_equal(pixels(Path(outcome.json["pictures"][0]["file"])), np.asarray(stock))
