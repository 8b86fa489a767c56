"""Several processes on one word, and several words on several processes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dticli import bundled, sphere
from dticli.errors import UsageError
from dticli.learn import initial_rows, trainer
from dticli.learn.hyperparameters import Batches, Optimisation
from dticli.learn.trainer import Task
from dticli.models import families
from dticli.models.families.shape import Frame
from dticli.photos.latents import Latents
from dticli.ranks import ALONE, Ranks, joined, launched
from dticli.settings import TrainSettings, resolve
from tests import tiny, trainings
from tests.conftest import Outcome
from tests.zygote import Zygote

Dti = Callable[..., Outcome]
STEPS = 20
QUICK = ("--steps", "3", "--quiet", "--model", "stickers")


@pytest.mark.parametrize(
    ("card", "nccl", "expected"),
    [(True, True, "cpu:gloo,cuda:nccl"), (True, False, "gloo"), (False, True, "gloo")],
)
def test_what_carries_gradients(
    card: bool, nccl: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL where there are cards and torch has it, which on Windows it has not."""
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **options: asked.append(backend)
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with joined(Ranks(0, 2, 0)):
        pass
    assert asked == [expected]


def learned(ranks: Ranks, batch: int) -> Tensor:
    """The row of a word after 20 steps of a tiny model in float64; beside its prior, the gradient's length counts too."""
    pipe = tiny.build("sd1").to(torch.float64)
    for module in (pipe.unet, pipe.text_encoder):
        module.requires_grad_(False)
    family = families.of_name("sd")
    assert family
    own = {"token": "<dog>", "init": "dog", "steps": STEPS, "batch_size": batch, "accumulate": 2}
    own |= {"lr": 0.1, "kappa": 0.01}
    settings = resolve(TrainSettings, own, vars(family.defaults))
    generator = torch.Generator().manual_seed(0)
    count, paths = 3, tuple(Path(f"{index}.png") for index in range(3))
    latents = Latents(
        mean=[torch.randn(4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(count)],
        std=[torch.full((4, 8, 8), 0.1, dtype=torch.float64)] * count,
        weights=[None] * count,
        frames=(Frame((64, 64), (0, 0), (64, 64)),) * count,
        paths=paths,
    )
    captions = dict.fromkeys(paths, ("a photo of <dog>", "<dog> in the snow"))
    rows, prior = (
        {key: each.double() for key, each in initial_rows.rows(pipe, family, word, 1, 0).items()}
        for word in ("dog", "cat")
    )
    mu = {key: sphere.normalize(each) for key, each in prior.items()}
    lengths = {"clip_l": torch.ones(1, 1, dtype=torch.float64)}
    how = Optimisation.of(settings)
    learner = trainer.learner("<dog>", how, rows, lengths, mu)
    task = Task(pipe, family, latents, captions, Batches.of(settings), how, ranks=ranks)
    reports = list(trainings.fit(task, learner))
    assert len(reports) == STEPS
    return learner.word.rows["clip_l"].detach()


def learned_by_a_rank(arguments: Sequence[str]) -> int:
    """Learn the row as one of the ranks, and write it to a file of its own in that folder."""
    team = launched()
    with joined(team):
        save_file({"row": learned(team, 2)}, Path(arguments[0]) / f"{team.rank}.safetensors")
    return 0


def test_two_ranks_take_the_steps_of_one_with_twice_the_batch(zygote: Zygote, tmp_path: Path) -> None:
    """Batch 2 on two processes against batch 4 on one: the same row to 1e-10 after 20 steps in float64, on both."""
    for each in zygote.ranks(2, tmp_path, tmp_path, function=f"{__name__}:{learned_by_a_rank.__name__}"):
        assert each.code == 0, each.err
    alone = learned(ALONE, 4)
    for rank in range(2):
        together = load_file(tmp_path / f"{rank}.safetensors")["row"]
        assert together.dtype == torch.float64
        assert (together - alone).abs().max().item() < 1e-10
    other = learned(ALONE, 2)
    assert (other - alone).abs().max().item() > 1e-4, (
        "the batch makes no difference here, and this test proves nothing"
    )


@pytest.mark.parametrize("option", ["--method ti", "--train-magnitude", "--optimizer adamw --lr 0.01"])
def test_two_processes_go_on_from_a_checkpoint(
    dti: Dti, zygote: Zygote, photos: Path, tmp_path: Path, option: str
) -> None:
    """The second process has no state of its own, and an optimizer that has not stepped yet has less of it."""
    learn = ["train", photos, "--token", "<dog>", "--init", "dog", *QUICK, *option.split()]
    file = tmp_path / "dog.safetensors"
    assert dti(*learn, "--batch-size", 2, "-o", file).code == 0
    longer = [*learn, "--batch-size", 1, "--steps", 5, "--resume"]
    both = zygote.ranks(2, tmp_path, *longer)
    assert [each.code for each in both] == [0, 0], both[0].err + both[1].err
    whole = tmp_path / "whole.safetensors"
    assert dti(*learn, "--batch-size", 2, "--steps", 5, "-o", whole).code == 0
    assert torch.nn.functional.cosine_similarity(row(file), row(whole)).item() > 1 - 1e-5


def row(file: Path) -> Tensor:
    (found,) = load_file(file).values()
    return found


def test_the_command_on_two_processes(dti: Dti, zygote: Zygote, photos: Path, tmp_path: Path) -> None:
    """One process writes and speaks; the word is that of one process with twice the batch, which can also go on from it."""
    learn = ["train", photos, "--token", "<dog>", "--init", "dog", *QUICK]
    first, second = zygote.ranks(2, tmp_path, *learn, "--batch-size", 1, "--json", "--tracker", "csv")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert json.loads(first.out)["steps"] == 3
    assert second.out == ""
    assert "model:" in first.err
    assert "model:" not in second.err
    assert len((tmp_path / "dog.run" / "log.jsonl").read_text().splitlines()) == 3
    assert len((tmp_path / "dog.run" / "metrics.csv").read_text().splitlines()) == 1 + 3
    # What one process needs to repeat it.
    assert "\nbatch_size = 2\n" in (tmp_path / "dog.run" / "run.toml").read_text()
    alone = tmp_path / "alone.safetensors"
    assert dti(*learn, "--batch-size", 2, "-o", alone).code == 0
    assert (
        torch.nn.functional.cosine_similarity(row(tmp_path / "dog.safetensors"), row(alone)).item() > 1 - 1e-6
    )
    longer = dti(*learn, "--batch-size", 2, "-o", tmp_path / "dog.safetensors", "--steps", 4, "--resume")
    assert longer.code == 0, longer.err


def subjects(folder: Path, text: str) -> Path:
    """A subjects file with photos of a dog and a cat beside it."""
    for name in ("dog", "cat"):
        (folder / name).mkdir()
        for photo in bundled.photos(name)[:2]:
            (folder / name / photo.name).write_bytes(photo.read_bytes())
    (folder / "subjects.toml").write_text(text)
    return folder / "subjects.toml"


BOTH = 'steps = 2\nbatch_size = 1\n[dog]\nphotos = "dog"\ninit = "dog"\n[cat]\nphotos = "cat"\ninit = "cat"\nseed = 3\n'


def test_words_are_split_over_processes(zygote: Zygote, tmp_path: Path) -> None:
    """With two words and two processes each learns one, and says so."""
    file = subjects(tmp_path, BOTH)
    results = zygote.ranks(2, tmp_path, "train", "--subjects", file, "--model", "stickers", "--json", "-q")
    assert [each.code for each in results] == [0, 0], results[0].err + results[1].err
    words = [[word["token"] for word in json.loads(each.out)["words"]] for each in results]
    assert words == [["<dog>"], ["<cat>"]]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "cat.safetensors",
        "dog.safetensors",
    ]


def test_words_of_a_file_are_those_learned_one_by_one(dti: Dti, tmp_path: Path, monkeypatch: Any) -> None:
    """Settings above the tables hold for all, a table's for its word, the command line's win; paths are beside the file."""
    file = subjects(tmp_path, BOTH.replace("steps = 2", "steps = 1"))
    monkeypatch.chdir(tmp_path)
    together = dti("train", "--subjects", file, *QUICK, "--json", "-o", tmp_path / "out")
    assert together.code == 0, together.err
    assert [word["steps"] for word in together.json["words"]] == [3, 3]
    learn = ("--batch-size", 1, "--seed", 3, *QUICK)
    assert dti("train", "cat", "--token", "<cat>", "--init", "cat", *learn).code == 0
    assert torch.equal(row(tmp_path / "cat.safetensors"), row(tmp_path / "out" / "cat.safetensors"))


def test_a_word_that_fails_does_not_stop_the_others(dti: Dti, tmp_path: Path, monkeypatch: Any) -> None:
    """A start the model does not know costs its own word alone; the exit code is that of its error."""
    file = subjects(tmp_path, BOTH.replace('init = "dog"', 'init = "cross:xyzzy7"'))
    monkeypatch.chdir(tmp_path)
    outcome = dti("train", "--subjects", file, *QUICK, "--json")
    assert outcome.code == 2
    assert "1 of 2 words failed: <dog>" in outcome.err.splitlines()[-1]
    assert [word["token"] for word in outcome.json["words"]] == ["<cat>"]
    assert row(tmp_path / "cat.safetensors").shape[0] == 1


def test_a_file_in_the_way_is_found_before_any_word_is_learned(
    dti: Dti, tmp_path: Path, monkeypatch: Any
) -> None:
    """The last word's file is there already: nothing is learned, and it is untouched; --force goes on."""
    file = subjects(tmp_path, BOTH)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.safetensors").write_bytes(b"mine")
    outcome = dti("train", "--subjects", file, *QUICK)
    assert (outcome.code, "cat.safetensors" in outcome.error) == (2, True)
    assert not (tmp_path / "dog.safetensors").exists()
    assert (tmp_path / "cat.safetensors").read_bytes() == b"mine"
    assert dti("train", "--subjects", file, *QUICK, "--force").code == 0


def test_all_words_are_checked(dti: Dti, tmp_path: Path) -> None:
    """`--check` reports on every word, and nothing is written."""
    file = subjects(tmp_path, BOTH)
    outcome = dti("train", "--subjects", file, *QUICK, "--check", "--json")
    assert outcome.code == 0, outcome.err
    assert [len(word["photos"]) for word in outcome.json["words"].values()] == [2, 2]
    assert not list(tmp_path.glob("*.safetensors"))


WRONG = {
    "no word": ("steps = 2", "names no word"),
    "a misspelt key in a table": (
        "[dog]\nphoto = 'x'",
        "[dog] unknown setting 'photo', did you mean 'photos'",
    ),
    "a wrong type above": ("steps = 'x'\n[dog]\ninit = 'dog'", "steps = 'x'"),
    "a model of its own": ("[dog]\nmodel = 'stickers'", "model in [dog]"),
    "one name twice": ("[dog]\ntoken = '<cat>'\n[cat]\ninit = 'cat'", "two words are called <cat>"),
    "no photos": ("[dog]\ninit = 'dog'", "no photos"),
    "two words in want": ("[dog]\ninit = 'dog'\n[cat]\nphotos = 'x'", "[dog] no photos"),
    "a word further down": ("[dog]\ninit = 'dog'\n[cat]\nphotos = 'x'", "[cat] --init is missing"),
    "photos that are not there": ("[dog]\ninit = 'dog'\nphotos = 'nothing'", "nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_subjects_are_one_line(dti: Dti, tmp_path: Path, case: str) -> None:
    """Every mistake is found before a model is loaded."""
    text, part = WRONG[case]
    (tmp_path / "subjects.toml").write_text(text)
    outcome = dti("train", "--subjects", tmp_path / "subjects.toml", *QUICK)
    assert outcome.code in (2, 3)
    assert part in outcome.error


def test_paths_are_beside_the_file(dti: Dti, tmp_path: Path, monkeypatch: Any) -> None:
    """Above the tables too, and where a setting names a file if there is one."""
    file = subjects(
        tmp_path, 'photos = "dog"\nbatch_size = 1\n[rex]\ninit = "start.safetensors"\n[tom]\ninit = "cat"\n'
    )
    assert (
        dti(
            "train",
            tmp_path / "dog",
            "--token",
            "<a>",
            "--init",
            "dog",
            *QUICK,
            "-o",
            tmp_path / "start.safetensors",
        ).code
        == 0
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = dti("train", "--subjects", file, *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    assert [word["token"] for word in outcome.json["words"]] == ["<rex>", "<tom>"]


def test_subjects_bring_their_own_photos(dti: Dti, photos: Path, tmp_path: Path) -> None:
    """Photos or a token beside a subjects file contradict it."""
    file = subjects(tmp_path, BOTH)
    assert "leave it out" in dti("train", photos, "--subjects", file).error
    assert "leave it out" in dti("train", "--token", "<dog>", "--subjects", file).error


def test_no_launcher_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher's variables, or with those of one process, nothing is shared."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launched() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="WORLD_SIZE"):
        launched()
