"""Resume and the run folder, as a user meets them; `test_faults` breaks runs in every other place."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dticli import bundled
from dticli.errors import InputError
from dticli.learn import checkpoint, run_folder
from dticli.learn.run_folder import Log, RunFolder
from dticli.models import families
from dticli.words.placement import FreeWord, place
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
Train = Callable[..., Outcome]
STEPS = 6
VARIANTS: dict[str, tuple[object, ...]] = {
    "rsgd": ("--beta", 0.9, "--accumulate", 2),
    "adamw": ("--optimizer", "adamw", "--lr", 0.005, "--train-magnitude"),
    "ti": ("--method", "ti", "--lr", 0.005),
    "scheduled": ("--schedule", "cosine", "--average", "--train-magnitude"),
    "vectors": ("--vectors", 2, "--crop", "random", "--flip", "--crops", 2),
}


@pytest.fixture
def album(photos: Path, tmp_path: Path) -> Path:
    """Two photos of the test's own."""
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("1.png", "2.png"):
        shutil.copy(photos / name, folder)
    return folder


@pytest.fixture
def train(dti: Dti, album: Path, tmp_path: Path) -> Train:
    """`dti train` of one word, always in the same place, with a checkpoint every second step."""

    def call(*options: object, steps: int = STEPS) -> Outcome:
        fixed = [
            "--token",
            "<dog>",
            "--init",
            "dog",
            "--model",
            "stickers",
            "--batch-size",
            1,
            "--resolution",
            16,
        ]
        often = ["--checkpoint-steps", 2, "--checkpoint-seconds", 1000, "--steps", steps, "--quiet"]
        return dti("train", album, *fixed, *often, "--out", tmp_path / "dog.safetensors", *options)

    return call


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch, train: Train) -> Train:
    """The same, killed while it logs step 4: the state of step 2 is left."""

    def call(*options: object) -> Outcome:
        append = Log.append

        def stop(self: Log, entry: dict[str, Any]) -> None:
            if entry["step"] == 4:
                raise KeyboardInterrupt
            append(self, entry)

        with monkeypatch.context() as patched:
            patched.setattr(Log, "append", stop)
            outcome = train(*options)
        assert outcome.code == 130
        return outcome

    return call


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(
    train: Train, interrupt: Train, tmp_path: Path, options: tuple[object, ...]
) -> None:
    """Whatever learns the word, token file, final state and log are the same."""
    assert train(*options).code == 0
    results = [tmp_path / "dog.safetensors", tmp_path / "dog.run" / "finished.safetensors"]
    whole, state = (path.read_bytes() for path in results)
    log = entries(tmp_path)
    interrupt("--force", *options)
    outcome = train("--resume", *options)
    assert outcome.code == 0, outcome.err
    assert "after step 2" in outcome.err
    assert results[0].read_bytes() == whole
    assert load_file(results[1]).keys() == safetensors_of(state, tmp_path).keys()
    for name, value in safetensors_of(state, tmp_path).items():
        assert torch.equal(load_file(results[1])[name], value), name
    assert entries(tmp_path) == log


def entries(folder: Path) -> list[dict[str, Any]]:
    """The log without the clock."""
    lines = [json.loads(line) for line in (folder / "dog.run" / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def safetensors_of(data: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "state").write_bytes(data)
    return load_file(folder / "state")


def test_more_steps_go_on_from_a_finished_run(train: Train, tmp_path: Path) -> None:
    """Four steps and two more are six; going on again changes nothing; going back is refused."""
    assert train().code == 0
    whole = (tmp_path / "dog.safetensors").read_bytes()
    assert train("--force", steps=4).code == 0
    assert (tmp_path / "dog.safetensors").read_bytes() != whole
    assert train("--resume").code == 0
    assert (tmp_path / "dog.safetensors").read_bytes() == whole
    assert train("--resume").code == 0
    assert (tmp_path / "dog.safetensors").read_bytes() == whole
    outcome = train("--resume", steps=5)
    assert (outcome.code, "steps is 5, and 6 are done" in outcome.error) == (2, True)


@pytest.mark.parametrize("option", [("--schedule", "linear"), ("--average",)])
def test_a_run_whose_steps_depend_on_their_number_keeps_it(
    train: Train, interrupt: Train, option: tuple[str, ...]
) -> None:
    """More steps would have made other steps from the first one on."""
    interrupt(*option)
    outcome = train("--resume", "--steps", 8, *option)
    assert outcome.code == 2
    assert "steps was 6 and is 8" in outcome.error


def test_an_unfinished_run_is_not_overwritten(train: Train, interrupt: Train, tmp_path: Path) -> None:
    """The error names both ways on; `--force` starts again."""
    interrupt()
    before = (tmp_path / "dog.run" / "checkpoint-00000002.safetensors").read_bytes()
    outcome = train()
    assert (outcome.code, "--resume" in outcome.error, "--force" in outcome.error) == (2, True, True)
    assert (tmp_path / "dog.run" / "checkpoint-00000002.safetensors").read_bytes() == before
    assert train("--force").code == 0


def test_a_run_is_no_word(train: Train, dti: Callable[..., Outcome], tmp_path: Path) -> None:
    """Its folder and its state are told from token files, and what to name instead is said."""
    train()
    for source, part in (
        ("dog.run", f"name {tmp_path / 'dog.safetensors'}, or a state"),
        ("dog.run/finished.safetensors", "the token file beside the run's folder"),
    ):
        outcome = dti("info", tmp_path / source)
        assert (outcome.code, part in outcome.error) == (3, True), outcome.err


def test_resume_without_anything_to_continue_says_so(train: Train, tmp_path: Path) -> None:
    """It starts afresh; but a token file that is there needs `--force` all the same."""
    outcome = train("--resume")
    assert (outcome.code, "starting from the beginning" in outcome.err) == (0, True)
    shutil.rmtree(tmp_path / "dog.run")
    assert train("--resume").code == 2


def spoil(photo: Path) -> None:
    data = bytearray(photo.read_bytes())
    photo.write_bytes(bytes(data) + b"\0")


def change_model(folder: Path) -> Path:
    """A copy of the bundled model with one weight changed."""
    pipe = StableDiffusionPipeline.from_pretrained(bundled.model_folder())
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(1e-3)
    pipe.save_pretrained(folder / "model")
    shutil.copy(bundled.model_folder() / "dti.toml", folder / "model")
    return folder / "model"


CHANGES: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "lr": (("--lr", 0.1), ("lr was 0.02 and is 0.1",)),
    "seed and flip": (("--seed", 3, "--flip"), ("seed was 0 and is 3", "flip was false and is true")),
    "init": (("--init", "cat"), ("init", "first rows")),
    "precision": (("--precision", "bf16"), ("precision",)),
    "property": (("--captions-file", "CAPTIONS"), ("captions of 1.png",)),
}


def test_changed_settings_are_refused_by_name(interrupt: Train, train: Train, tmp_path: Path) -> None:
    """Every difference is named, and the state stays as it was, so that the next one is refused by itself."""
    (tmp_path / "c.jsonl").write_text("".join(f'{{"file": "{n}.png", "text": "<dog>"}}\n' for n in (1, 2)))
    interrupt()
    kept = (tmp_path / "dog.run" / "checkpoint-00000002.safetensors").read_bytes()
    for case, (options, parts) in CHANGES.items():
        given = [tmp_path / "c.jsonl" if each == "CAPTIONS" else each for each in options]
        outcome = train("--resume", *given)
        assert outcome.code == 2, case
        assert all(part in outcome.error for part in parts), outcome.error
        assert (tmp_path / "dog.run" / "checkpoint-00000002.safetensors").read_bytes() == kept, case


def test_changed_photos_and_models_are_refused_by_name(
    interrupt: Train, train: Train, album: Path, photos: Path, tmp_path: Path
) -> None:
    """One that changed, one more, one less, and a model with the same name but another weight."""
    interrupt()
    original = (album / "1.png").read_bytes()
    spoil(album / "1.png")
    shutil.copy(photos / "3.png", album)
    (album / "2.png").unlink()
    outcome = train("--resume")
    assert outcome.code == 2
    for part in ("photo 1.png is another", "photo 2.png is gone", "photo 3.png is new"):
        assert part in outcome.error
    (album / "1.png").write_bytes(original)
    (album / "3.png").unlink()
    shutil.copy(photos / "2.png", album)
    outcome = train("--resume", "--model", change_model(tmp_path))
    assert (outcome.code, "weights" in outcome.error) == (2, True)
    assert train("--resume").code == 0


def test_damage_falls_back_to_the_checkpoint_before(train: Train, tmp_path: Path) -> None:
    """The last two are kept for that; if both are damaged, the error says what to do."""
    assert train().code == 0
    whole = (tmp_path / "dog.safetensors").read_bytes()
    run = tmp_path / "dog.run"
    assert train("--force", steps=4).code == 0
    (run / "finished.safetensors").rename(run / "checkpoint-00000004.safetensors")
    (run / "checkpoint-00000006.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    outcome = train("--resume")
    assert (outcome.code, "after step 4" in outcome.err) == (0, True)
    assert (tmp_path / "dog.safetensors").read_bytes() == whole
    (run / "finished.safetensors").write_bytes(b"")
    outcome = train("--resume")
    assert (outcome.code, "damaged" in outcome.error, "--force" in outcome.error) == (3, True, True)


def rewritten(path: Path, **changes: str) -> None:
    """Change a checkpoint's metadata."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() | changes
    save_file(load_file(path), path, metadata)


def test_a_newer_format_is_refused(interrupt: Train, train: Train, tmp_path: Path) -> None:
    """By its number, without guessing at its content."""
    interrupt()
    rewritten(tmp_path / "dog.run" / "checkpoint-00000002.safetensors", format=str(checkpoint.FORMAT + 1))
    outcome = train("--resume")
    assert (outcome.code, "newer" in outcome.error) == (2, True)


def test_another_machine_is_mentioned(interrupt: Train, train: Train, tmp_path: Path) -> None:
    """Other versions may round otherwise: the run goes on, with a warning."""
    interrupt()
    machine = json.loads((tmp_path / "dog.run" / "machine.json").read_text())
    path = tmp_path / "dog.run" / "checkpoint-00000002.safetensors"
    rewritten(path, machine=json.dumps(machine | {"dti.torch": "1.0"}))
    outcome = train("--resume")
    assert outcome.code == 0
    assert "dti.torch was 1.0" in outcome.err


def test_the_settings_of_a_run_repeat_it(
    train: Train, dti: Dti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--config run.toml` alone, from another folder, gives the same bytes."""
    assert train("--flip", "--kappa", 0.001).code == 0
    monkeypatch.chdir(tmp_path / "dog.run")
    outcome = dti("train", "--config", "run.toml", "--out", tmp_path / "again.safetensors", "-q")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "dog.safetensors").read_bytes()
    assert (tmp_path / "again.run" / "run.toml").read_bytes() == (
        tmp_path / "dog.run" / "run.toml"
    ).read_bytes()


def test_the_books_of_a_run(train: Train, tmp_path: Path) -> None:
    """Settings, machine, a line a step, and the last state; no lock and nothing temporary."""
    outcome = train("--json")
    run = tmp_path / "dog.run"
    assert outcome.json["folder"] == str(run)
    assert str(run) in outcome.err
    assert sorted(path.name for path in run.iterdir()) == [
        "finished.safetensors", "log.jsonl", "machine.json", "run.toml",
    ]  # fmt: skip
    assert {"dti.torch", "device", "threads", "python"} <= json.loads(
        (run / "machine.json").read_text()
    ).keys()
    log = entries(tmp_path)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["angle"] == pytest.approx(outcome.json["angle"], abs=1e-4)
    assert log[-1]["norm"] == pytest.approx(outcome.json["norm"])


def test_norms_can_be_followed_through_a_run(
    train: Train, interrupt: Train, dti: Dti, tmp_path: Path
) -> None:
    """`inspect-norms` reads the log of an unfinished run, a finished one, and says where there is none."""
    interrupt()
    assert "3 steps logged" in dti("inspect-norms", tmp_path / "dog.run").out
    assert train("--resume").code == 0
    report = dti("inspect-norms", tmp_path / "dog.run", "--json")
    assert [step["step"] for step in report.json["runs"][0]["steps"]] == [1, 2, 3, 4, 5, 6]
    outcome = dti("inspect-norms", tmp_path / "cat.run")
    assert (outcome.code, "no log" in outcome.error) == (3, True)


# One writer at a time


HOLD = """
import sys, time
from pathlib import Path
from dticli.learn.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_while_the_first_lives(train: Train, tmp_path: Path) -> None:
    """A run is another process's until that ends, even by a kill that leaves it no time to tidy up."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "dog.run"],
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        for option in ("--force", "--resume"):
            outcome = train(option)
            assert (outcome.code, "another process" in outcome.error) == (2, True)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()  # type: ignore[union-attr]
    assert (tmp_path / "dog.run" / "lock").exists()
    assert train(steps=1).code == 0
    assert not (tmp_path / "dog.run" / "lock").exists()


def test_what_is_in_the_way_of_a_run_is_kept(train: Train, tmp_path: Path) -> None:
    """A finished run whose token file was moved away, books of a run, and someone's own folder of that name."""
    run, target = tmp_path / "dog.run", tmp_path / "dog.safetensors"
    assert train(steps=1).code == 0
    target.rename(tmp_path / "moved.safetensors")
    for kept in ("finished.safetensors", "log.jsonl", "run.toml", "machine.json"):
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        outcome = train(steps=1)
        assert (outcome.code, "dog.run holds" in outcome.error, "--resume" in outcome.error) == (
            2,
            True,
            True,
        )
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        (run / kept).unlink()
    (run / "run.toml").touch()
    outcome = train("--resume", steps=1)
    assert (outcome.code, "nothing to continue" in outcome.err) == (0, True)
    shutil.rmtree(run)
    target.unlink()
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    (run / ".dti-notes").mkdir()
    assert train(steps=1).code == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert (run / ".dti-notes").is_dir()


BROKEN_LINES = [
    "null",
    "[]",
    '{"step": 3}',
    '{"step": "3"}',
    '{"step": 3, "loss": null}',
    "[" * 100_000,
    "\x00",
]


@pytest.mark.parametrize("line", BROKEN_LINES, ids=range(len(BROKEN_LINES)))
def test_a_line_that_lacks_what_its_readers_rely_on_ends_the_log(dti: Dti, tmp_path: Path, line: str) -> None:
    """Logs come damaged, by hand and from elsewhere: none reaches a reader half."""
    whole = {
        "step": 1,
        "loss": 0.5,
        "smoothed": 0.5,
        "angle": 1.0,
        "norm": {"clip_l": 1.0},
        "cosine_to_init": {"clip_l": 1.0},
    }
    folder = RunFolder(tmp_path / "dog.run")
    folder.path.mkdir()
    strange = [{**whole, "norm": {"clip_l": "1"}}, {**whole, "norm": []}, {**whole, "cosine_to_init": {}}]
    for last in (line, *map(json.dumps, strange)):
        folder.log.write_text(f"{json.dumps(whole)}\n{last}\n{json.dumps(whole)}\n")
        assert [entry["step"] for entry in run_folder.read_log(folder.path)] == [1]
        assert "1 steps logged" in dti("inspect-norms", folder.path).out


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    """Half a line, or a line of something else, is the end."""
    folder = RunFolder(tmp_path)
    figures = '"loss": 1, "smoothed": 1, "angle": 1, "norm": {}, "cosine_to_init": {}'
    folder.log.write_text(f'{{"step": 1, {figures}}}\n{{"step": 2, {figures}}}\n{{"st')
    assert [entry["step"] for entry in run_folder.read_log(tmp_path)] == [1, 2]


@pytest.mark.parametrize("key", ["step", "loss", "identity", "machine", "format"])
@pytest.mark.parametrize("value", ["", "x", "[]", "null", "-1", "{}", '{"a": 1}', '{"settings": [1]}'])
def test_hostile_metadata_is_damage(tmp_path: Path, key: str, value: str) -> None:
    """A checkpoint whose metadata was tampered with is refused."""
    path = tmp_path / "checkpoint-00000001.safetensors"
    identity = checkpoint.Identity({}, {}, {}, {})
    rows = {"clip_l": torch.ones(1, 4)}
    checkpoint.write(path, checkpoint.Checkpoint(1, 0.5, {"leaf.0": torch.ones(1, 4)}, rows, identity, {}))
    assert checkpoint.read(path).loss == 0.5
    rewritten(path, **{key: value})
    if (key, value) in (("machine", "{}"), ("loss", "-1")):
        assert checkpoint.read(path).rows["clip_l"].shape == (1, 4)
    else:
        with pytest.raises(InputError, match="damaged"):
            checkpoint.read(path)


def test_gradients_are_the_same_with_several_threads() -> None:
    """A row stands at many places, and the sum of its gradients must not depend on which thread comes first."""
    pipe = tiny.build("sd1")
    family = families.of_index({"_class_name": type(pipe).__name__, **pipe.config}, "sd1")
    rows = torch.randn(1, pipe.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    leaf = rows.requires_grad_()
    weights = torch.randn(256, 77, rows.shape[1], generator=torch.Generator().manual_seed(1))

    def gradient() -> torch.Tensor:
        with place(pipe, family.encoders, [FreeWord("<dog>", {"clip_l": leaf})]):
            ids = pipe.tokenizer(
                ["<dog>" * 60] * 256, padding="max_length", max_length=77, return_tensors="pt"
            )
            states = pipe.text_encoder.get_input_embeddings()(ids.input_ids)
        (found,) = torch.autograd.grad((states * weights).sum(), leaf)
        return found

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [gradient() for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)
