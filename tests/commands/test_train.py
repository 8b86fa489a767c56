"""`dti train` as a user runs it, on the bundled model."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from dticli import bundled
from dticli.models import families
from tests.conftest import Outcome
from tests.trainings import recoded

Dti = Callable[..., Outcome]
QUICK = ("--steps", 2, "--batch-size", 1, "--quiet", "--model", "stickers")


def train(dti: Dti, photos: Path, out: Path, *options: object) -> Outcome:
    return dti("train", photos, "--token", "<dog>", "--init", "dog", "--out", out, *QUICK, *options)


def vocabulary() -> torch.Tensor:
    """Rows of the bundled model's embedding table, read without dti; rows of zeros belong to no word."""
    return table()[table().norm(dim=1) > 0]


def table() -> torch.Tensor:
    """All of it."""
    tensors = load_file(bundled.model_folder() / "text_encoder" / "model.safetensors")
    return next(value for name, value in tensors.items() if name.endswith("token_embedding.weight")).float()


def row(word: str) -> torch.Tensor:
    """A word's row of that table."""
    pieces = json.loads((bundled.model_folder() / "tokenizer" / "tokenizer.json").read_text())["model"][
        "vocab"
    ]
    return table()[pieces[f"{word}</w>"]]


def test_the_norm_is_the_vocabularys_mean(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """The file holds one float32 row as long as the mean row of the table, to 1e-5."""
    outcome = train(dti, photos, tmp_path / "dog.safetensors", "--json")
    assert outcome.code == 0
    (rows,) = load_file(tmp_path / "dog.safetensors").values()
    assert rows.dtype == torch.float32
    assert rows.shape == (1, vocabulary().shape[1])
    assert abs(rows.norm().item() - vocabulary().norm(dim=1).mean().item()) < 1e-5
    assert outcome.json["norm"] == pytest.approx(outcome.json["vocabulary_norm"])


def test_two_steps_turn_by_at_most_two_step_lengths(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """Each step turns by atan(lr): after two, the angle to the init word lies between 0 and twice that."""
    outcome = train(dti, photos, tmp_path / "dog.safetensors", "--lr", 0.1, "--json")
    assert 0.0 < outcome.json["angle"] <= 2 * torch.rad2deg(torch.atan(torch.tensor(0.1))).item() + 1e-4


def test_repeating_a_run_gives_the_same_bytes(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """Seed and settings decide everything; another seed gives another word."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(dti, photos, tmp_path / f"{name}.safetensors", "--seed", seed).code == 0
    first, again, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_accumulation_is_a_larger_batch(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """Two batches of one sum up to a batch of two, up to the order of float sums."""
    train(dti, photos, tmp_path / "a.safetensors", "--batch-size", 2)
    train(dti, photos, tmp_path / "b.safetensors", "--batch-size", 1, "--accumulate", 2)
    (a,), (b,) = (load_file(tmp_path / f"{name}.safetensors").values() for name in "ab")
    assert torch.allclose(a, b, atol=1e-4)
    assert torch.nn.functional.cosine_similarity(a, b).item() > 0.99999


def test_textual_inversion_leaves_the_norm_free(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """`--method ti` starts from the init row itself, and AdamW's first step moves every coordinate by lr."""
    train(
        dti,
        photos,
        tmp_path / "dog.safetensors",
        "--method",
        "ti",
        "--lr",
        0.05,
        "--steps",
        1,
        "--weight-decay",
        0,
    )
    (rows,) = load_file(tmp_path / "dog.safetensors").values()
    moved = (rows[0] - row("dog")).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.05), atol=1e-3)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("median", lambda norms: norms.quantile(0.5)),
        ("min", lambda norms: norms.min()),
        ("max", lambda norms: norms.max()),
        ("0.75", lambda norms: torch.tensor(0.75)),
        ("3x", lambda norms: 3 * norms.mean()),
    ],
)
def test_magnitude_rules(
    dti: Dti, photos: Path, tmp_path: Path, rule: str, expected: Callable[..., torch.Tensor]
) -> None:
    """`--magnitude` takes statistics of the vocabulary, numbers and multiples of its mean."""
    train(dti, photos, tmp_path / "dog.safetensors", "--magnitude", rule)
    (rows,) = load_file(tmp_path / "dog.safetensors").values()
    assert rows.norm().item() == pytest.approx(expected(vocabulary().norm(dim=1)).item(), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer", "adamw", "--lr", 0.005),
        ("--beta", 0.9),
        ("--prior", "none"),
        ("--prior", "cat"),
        ("--init", "mean"),
        ("--init", "random"),
        ("--init", "cross:dog"),
        ("--vectors", 2),
        ("--flip", "--crops", 2),
        ("--precision", "bf16"),
        ("--deterministic",),
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_options_train_a_word(dti: Dti, photos: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    """Every way to learn ends with a finite word of the vocabulary's mean norm."""
    outcome = train(dti, photos, tmp_path / "dog.safetensors", *options)
    asked = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert outcome.code == 0, outcome.err
    assert asked is ("--deterministic" in options)
    (rows,) = load_file(tmp_path / "dog.safetensors").values()
    assert rows.isfinite().all()
    assert rows.norm(dim=1).tolist() == pytest.approx(
        [vocabulary().norm(dim=1).mean().item()] * len(rows), rel=1e-3
    )
    assert len(rows) == (2 if "--vectors" in options else 1)


def test_a_learned_magnitude_changes(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """`--train-magnitude` moves the norm by about lr, in the logarithm, each step."""
    train(dti, photos, tmp_path / "dog.safetensors", "--train-magnitude", "--lr", 0.05, "--steps", 1)
    (rows,) = load_file(tmp_path / "dog.safetensors").values()
    ratio = rows.norm() / vocabulary().norm(dim=1).mean()
    assert ratio.log().abs().item() == pytest.approx(0.05, rel=0.02)


def test_a_phrase_gives_one_vector_a_piece(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """ "red dog" starts two vectors, one from each word."""
    outcome = train(dti, photos, tmp_path / "dog.safetensors", "--init", "red dog", "--lr", 1e-6)
    assert outcome.code == 0, outcome.err
    (rows,) = load_file(tmp_path / "dog.safetensors").values()
    wanted = torch.stack([row("red"), row("dog")])
    assert torch.nn.functional.cosine_similarity(rows, wanted).tolist() == pytest.approx([1, 1], abs=1e-4)


def test_a_word_can_start_from_a_token_file(dti: Dti, photos: Path, dog: Path, tmp_path: Path) -> None:
    """`--init FILE` goes on from another word's direction."""
    outcome = train(dti, photos, tmp_path / "more.safetensors", "--init", dog, "--lr", 1e-6)
    assert outcome.code == 0, outcome.err
    (before,), (after,) = load_file(dog).values(), load_file(tmp_path / "more.safetensors").values()
    assert torch.nn.functional.cosine_similarity(before, after).item() > 0.99999


def test_metadata_says_how_it_was_made_and_holds_no_path(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """Provenance is complete; the folder the photos came from is nobody's business."""
    train(dti, photos, tmp_path / "dog.safetensors", "--kappa", 0.001)
    with safe_open(tmp_path / "dog.safetensors", "pt") as file:
        metadata = file.metadata()
    expected = {
        "dti.token": "<dog>",
        "dti.init": "dog",
        "dti.model": "stickers",
        "dti.method": "dti",
        "dti.kappa": "0.001",
    }
    assert expected.items() <= metadata.items()
    assert {"dti.tables", "dti.torch", "dti.version", "dti.seed", "dti.steps", "dti.lr"} <= metadata.keys()
    # Its width fits no other program, so it claims no architecture.
    assert "modelspec.architecture" not in metadata
    assert not any(str(part) in value for value in metadata.values() for part in (tmp_path, photos))


def test_captions_beside_the_photos(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """`--captions sidecar` trains on each photo's own text, and names a caption without the word."""
    for photo in photos.iterdir():
        (tmp_path / photo.name).write_bytes(photo.read_bytes())
        (tmp_path / photo.name).with_suffix(".txt").write_text("a photo of <dog>\n")
    assert train(dti, tmp_path, tmp_path / "out" / "dog.safetensors", "--captions", "sidecar").code == 0
    (tmp_path / "3.txt").write_text("a photo of a dog")
    outcome = train(dti, tmp_path, tmp_path / "out" / "b.safetensors", "--captions", "sidecar")
    assert (outcome.code, "3.png" in outcome.error, "<dog>" in outcome.error) == (3, True, True)
    (tmp_path / "3.txt").unlink()
    outcome = train(dti, tmp_path, tmp_path / "out" / "b.safetensors", "--captions", "sidecar")
    assert (outcome.code, "3.txt" in outcome.error) == (3, True)


def test_captions_in_one_file(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """`--captions-file` takes JSON lines; a photo without one is named."""
    captions = tmp_path / "captions.jsonl"
    lines = [f'{{"file": "{photo.name}", "text": "a photo of <dog>"}}' for photo in sorted(photos.iterdir())]
    captions.write_text("\n".join(lines))
    assert train(dti, photos, tmp_path / "a.safetensors", "--captions-file", captions).code == 0
    captions.write_text("\n".join(lines[:-1]))
    outcome = train(dti, photos, tmp_path / "b.safetensors", "--captions-file", captions)
    assert (outcome.code, "5.png" in outcome.error) == (3, True)


def test_progress_is_on_stderr_and_the_result_on_stdout(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """Without a terminal a line is printed now and then; stdout ends with how to use the word."""
    outcome = dti(
        "train",
        photos,
        "--token",
        "<dog>",
        "--init",
        "dog",
        "-o",
        tmp_path / "dog.safetensors",
        "--steps",
        2,
        "--batch-size",
        1,
    )
    assert outcome.code == 0
    assert "step 2/2" in outcome.err
    for part in ("loss", "angle", "norm", "steps/s", "left"):
        assert part in outcome.err
    assert 'dti generate "a photo of <dog>"' in outcome.out
    assert any(line.startswith("model: stickers") for line in outcome.err.splitlines()[:2])


BAD: dict[str, tuple[tuple[object, ...], int, tuple[str, ...]]] = {
    "no brackets": (("--token", "<dog"), 2, ("<dog>",)),
    "capitals": (("--token", "<Dog>"), 2, ("capitals", "<dog>")),
    "empty init": (("--init", "  "), 2, ("--init",)),
    "cross without word": (("--init", "cross"), 2, ("cross:dog",)),
    "negative lr": (("--lr", -1), 2, ("lr = -1.0: expected greater than 0",)),
    "zero lr": (("--lr", 0), 2, ("lr",)),
    "nan kappa": (("--kappa", "nan"), 2, ("kappa",)),
    "no steps": (("--steps", 0), 2, ("--steps",)),
    "bad magnitude": (("--magnitude", "huge"), 2, ("magnitude", "mean")),
    "odd resolution": (("--resolution", 63), 2, ("63", "64")),
    "unknown model": (("--model", "./nowhere"), 4, ("nowhere", "--model")),
    "out is a folder": (("--out", "."), 5, ("folder",)),
    "out has another suffix": (("--out", "dog.pt"), 2, (".safetensors",)),
    "unknown option": (("--stpes", 3), 2, ("--stpes",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_one_line(
    dti: Dti, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Every mistake is one line with the remedy, the right exit code, and no file left behind."""
    options, code, parts = BAD[case]
    monkeypatch.chdir(tmp_path)
    outcome = train(dti, photos, tmp_path / "dog.safetensors", *options)
    assert outcome.code == code, outcome.err
    assert all(part in outcome.error for part in parts), outcome.error
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_a_token_of_the_vocabulary_is_refused(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """A name the tokenizer knows already would train that word's row instead."""
    pipe = StableDiffusionPipeline.from_pretrained(bundled.model_folder())
    pipe.tokenizer.add_tokens(["<dog>"])
    pipe.save_pretrained(tmp_path / "model")
    options = ("--model", tmp_path / "model", "--resolution", 64)
    for check in ((), ("--check",)):
        outcome = train(dti, photos, tmp_path / "dog.safetensors", *options, *check)
        assert (outcome.code, "already in" in outcome.error) == (2, True)
        assert "photos" not in outcome.out


def test_missing_and_unreadable_photos(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """No photos and only broken ones are errors; one broken one is skipped with a warning."""
    folder = tmp_path / "photos"
    assert train(dti, folder, tmp_path / "a.safetensors").code == 3
    folder.mkdir()
    assert "no photos" in train(dti, folder, tmp_path / "a.safetensors").error
    (folder / "broken.png").write_bytes(b"not a picture")
    outcome = train(dti, folder, tmp_path / "a.safetensors")
    assert (outcome.code, "broken.png" in outcome.error) == (3, True)
    (folder / "good.png").write_bytes((photos / "1.png").read_bytes())
    outcome = train(dti, folder, tmp_path / "a.safetensors")
    assert outcome.code == 0
    assert "broken.png" in outcome.err


def test_an_existing_file_is_kept_without_force(dti: Dti, photos: Path, dog: Path, tmp_path: Path) -> None:
    """The remedy is named, and nothing is trained first."""
    target = tmp_path / "dog.safetensors"
    target.write_bytes(b"precious")
    outcome = train(dti, photos, target)
    assert (outcome.code, "--force" in outcome.error) == (2, True)
    assert target.read_bytes() == b"precious"
    assert train(dti, photos, target, "--force").code == 0
    assert target.read_bytes() != b"precious"


def test_a_caption_longer_than_the_encoder_reads_is_refused(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """A word beyond the last token would never be trained."""
    captions = tmp_path / "captions.jsonl"
    text = "dog " * 60 + "<dog>"
    captions.write_text(
        "\n".join(f'{{"file": "{each.name}", "text": "{text}"}}' for each in photos.iterdir())
    )
    outcome = train(dti, photos, tmp_path / "a.safetensors", "--captions-file", captions)
    assert (outcome.code, "shorten" in outcome.error) == (3, True)


def test_check_reports_and_stops(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """`--check` looks at the photos, writes nothing, and needs no training."""
    outcome = train(dti, photos, tmp_path / "dog.safetensors", "--check")
    assert outcome.code == 0
    assert "5 photos" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_photos_are_checked_before_a_word_is_thought_of(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """`--check` needs no name and no class word; what it finds is what it finds with them."""
    bare = dti("train", photos, "--model", "stickers", "--check", "--json")
    assert (bare.code, "word" in bare.err) == (0, False), bare.err
    named = train(dti, photos, tmp_path / "dog.safetensors", "--check", "--json").json
    assert {**bare.json, "memory": None} == {**named, "memory": None}
    assert dti("train", photos, "--model", "stickers").code == 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--init", "vase", "--check"), "has not learned 'vase': expected a word that it knows"),
        (("--init", "dgo"), "dragon or dog?"),
        (("--init", "dog", "--prior", "pupy"), "did you mean puppy"),
    ],
)
def test_a_word_the_model_was_never_told_is_found_before_it_is_loaded(
    dti: Callable[..., Outcome], photos: Path, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    """Letters of the bundled vocabulary have rows of zeros, which point nowhere; `--check` says so too."""
    out = tmp_path / "v.safetensors"
    outcome = dti("train", photos, "--token", "<v>", "--model", "stickers", "-o", out, *options)
    assert (outcome.code, part in outcome.error) == (2, True), outcome.err
    assert not out.with_suffix(".run").exists()


def test_a_word_of_a_folder_says_how_its_model_is_found_again(
    dti: Dti, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line holds `--model` with the folder; without it another model draws, and a warning says which was meant."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    for part in bundled.model_folder().iterdir():
        (folder / part.name).symlink_to(part)
    learned = train(dti, photos, Path("dog.safetensors"), "--model", folder)
    assert shlex.split(learned.out.splitlines()[-1])[-4:] == ["-t", "dog.safetensors", "--model", str(folder)]
    for options, warned in (((), True), (("--model", "stickers"), False)):
        drawn = dti("generate", "<dog>", "-t", "dog.safetensors", "--steps", 1, "--force", *options)
        assert drawn.code == 0, drawn.err
        assert ("warning: <dog> was learned on" in drawn.err) == warned


def test_a_token_file_to_start_from_is_looked_for_at_once(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """`--check` knows that it is not there."""
    outcome = train(dti, photos, tmp_path / "dog.safetensors", "--init", "none.safetensors", "--check")
    assert (outcome.code, "none.safetensors: no such file" in outcome.error) == (3, True)


def test_ops_that_cannot_repeat_their_bytes_are_named(
    dti: Dti, photos: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model needs one, --deterministic is an error of one line, in training as in drawing."""
    family = families.of_name("sd")
    assert family
    predict, decode = family.code.predict, AutoencoderKL.decode

    def scattered(values: torch.Tensor) -> torch.Tensor:
        # One that torch refuses on the CPU too.
        return values.put_(torch.tensor([0]), torch.zeros(1, dtype=values.dtype))

    recoded(monkeypatch, family, predict=lambda pipe, noisy, *rest: predict(pipe, scattered(noisy), *rest))
    monkeypatch.setattr(
        AutoencoderKL, "decode", lambda vae, z, **options: decode(vae, scattered(z), **options)
    )
    draw = ("generate", "<dog>", "-t", dog, "--steps", 1, "--out", tmp_path / "drawn", "--quiet")
    try:
        for outcome in (
            train(dti, photos, tmp_path / "dog.safetensors", "--deterministic"),
            dti(*draw, "--deterministic"),
        ):
            assert (outcome.code, "put_ does not have a deterministic" in outcome.error) == (5, True)
            assert "leave the option out" in outcome.error
    finally:
        torch.use_deterministic_algorithms(False)
