"""Words that learn side by side: each learns what it learns alone, and what befalls one leaves the others alone."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dticli import bundled
from dticli.errors import DtiError, NumericalError
from dticli.learn import trainer
from dticli.learn.run_folder import Log, read_log
from dticli.learn.trainer import Lane, StepReport
from dticli.models import families
from tests import tiny, trainings
from tests.conftest import Outcome

CPU = torch.device("cpu")
Subjects = Callable[..., Outcome]

# Of one model, so that they can learn together; all are called <dog>, as the trials of a plan may be.
KINDS: Mapping[str, dict[str, Any]] = {
    "the paper's": {"seed": 1},
    "scheduled": {"seed": 2, "schedule": "cosine", "average": True, "batch_size": 1, "accumulate": 3},
    "free": {"method": "ti", "lr": 0.005, "pooling": "mixed"},
    "zero pads": {
        "seed": 4,
        "zero_pad": True,
        "optimizer": "adamw",
        "train_magnitude": True,
        "steps": 2,
        "pooling": "eos",
    },
    "masks and whole photos": {"crop": "none", "seed": 3},
}


def lane(pipe: Any, size: int, **own: Any) -> Lane:
    """A word of four steps that has not begun; its captions name things that others may be called."""
    task, learner = trainings.training(pipe, CPU, torch.float32, **{"resolution": size, "steps": 4, **own})
    texts = ["a photo of <dog>", "<dog> beside <cat>", "a <dog> on grass"]
    return Lane(replace(task, captions=dict.fromkeys(task.captions, texts)), learner)


def masked(one: Lane) -> Lane:
    """The lane, with a mask on every second photo."""
    encoded = one.task.latents
    weights = [
        torch.linspace(0, 2, mean.shape[-2] * mean.shape[-1]).view(mean.shape[-2:]) if place % 2 else None
        for place, mean in enumerate(encoded.mean)
    ]
    return Lane(replace(one.task, latents=replace(encoded, weights=weights)), one.learner)


def learned(lanes: list[Lane]) -> list[tuple[list[StepReport], dict[str, Tensor]]]:
    """The reports and the rows of each lane, after all have learned together."""
    reports: dict[Lane, list[StepReport]] = {each: [] for each in lanes}
    for outcomes in trainings.fit_together(lanes):
        for each, outcome in outcomes:
            assert isinstance(outcome, StepReport), outcome
            reports[each].append(outcome)
    return [
        (reports[each], {key: rows.detach().clone() for key, rows in each.learner.learned.rows.items()})
        for each in lanes
    ]


def require_alike(
    together: tuple[list[StepReport], dict[str, Tensor]], alone: tuple[list[StepReport], dict[str, Tensor]]
) -> None:
    """Compare losses, gradients and rows: they differ by what sums in another order differ by."""
    for ours, theirs in zip(together[0], alone[0], strict=True):
        assert ours.step == theirs.step
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        for key, lengths in theirs.gradient.items():
            assert ours.gradient[key] == pytest.approx(lengths, rel=1e-2)
    for key, rows in alone[1].items():
        cosine = torch.nn.functional.cosine_similarity(together[1][key], rows, dim=-1)
        assert cosine.min() > 1 - 1e-5, (key, cosine)


def test_a_word_learns_in_company_what_it_learns_alone() -> None:
    """Whatever its optimizer, batch, pooling, schedule and number of steps, and whatever those of the others."""
    pipe, size = tiny.build("sd1"), tiny.FAMILIES["sd1"].size

    def lanes() -> list[Lane]:
        return [
            (masked if kind.startswith("masks") else lambda each: each)(lane(pipe, size, **own))
            for kind, own in KINDS.items()
        ]

    together = learned(lanes())
    for place, each in enumerate(lanes()):
        (alone,) = learned([each])
        assert len(alone[0]) == each.task.optimisation.steps
        require_alike(together[place], alone)
        turned = [report.angle for report in alone[0]]
        assert turned[-1] > 1e-3, "the word did not move, and this test proves nothing"


@pytest.mark.parametrize("name", tiny.distinct())
def test_words_of_every_family_learn_together(name: str) -> None:
    """With several encoders, conditioning in lists and packed latents, two words get the losses and rows they get alone."""
    pipe, size = tiny.build(name), tiny.FAMILIES[name].size

    def lanes() -> list[Lane]:
        return [lane(pipe, size, steps=1, batch_size=1, seed=seed) for seed in (5, 6)]

    together = learned(lanes())
    for found, each in zip(together, lanes(), strict=True):
        require_alike(found, *learned([each]))
    assert together[0][0][0].loss != together[1][0][0].loss


def test_a_gradient_that_is_none_ends_its_word_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of NaN make a loss of NaN: the others' gradients have nothing of it."""
    pipe, size = tiny.build("sd1"), tiny.FAMILIES["sd1"].size
    first, second = (lane(pipe, size, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        first.learner.leaves[0].fill_(torch.nan)
    ended: list[tuple[Lane, DtiError]] = []
    reports = []
    for outcomes in trainings.fit_together([first, second]):
        ended += [(each, error) for each, error in outcomes if isinstance(error, DtiError)]
        reports += [report for each, report in outcomes if each is second and isinstance(report, StepReport)]
    ((who, error),) = ended
    assert who is first
    assert isinstance(error, NumericalError)
    rows = {key: each.detach() for key, each in second.learner.learned.rows.items()}
    require_alike((reports, rows), *learned([lane(pipe, size, seed=2)]))


def test_fp16_scales_the_loss_of_each_word_by_itself() -> None:
    """One word's gradients overflow, and its scale is halved until they do not; the other's scale stays."""
    pipe, size = tiny.build("sd1"), tiny.FAMILIES["sd1"].size
    lanes = []
    for seed in (1, 2):
        task, learner = trainings.training(pipe, CPU, torch.float16, resolution=size, seed=seed)
        lanes.append(Lane(task, learner))
    lanes[0].learner.loss_scale.fill_(2.0**30)
    before = lanes[1].learner.loss_scale.item()
    found = learned(lanes)
    assert 1 < lanes[0].learner.loss_scale < 2.0**30
    assert lanes[1].learner.loss_scale == before
    assert all(rows.isfinite().all() for _, each in found for rows in each.values())


# ---------------------------------------------------------------------- as a user meets it


@pytest.fixture
def subjects(dti: Callable[..., Outcome], tmp_path: Path) -> Subjects:
    """`dti train --subjects` of three words with two photos each, on the bundled model; two learn together."""
    lines = ['model = "stickers"', "resolution = 16", "steps = 6", "batch_size = 2", 'schedule = "cosine"']
    for name in ("dog", "cat", "fox"):
        (tmp_path / name).mkdir()
        for photo in bundled.photos(name)[:2]:
            (tmp_path / name / photo.name).write_bytes(photo.read_bytes())
        lines += [f"[{name}]", f'photos = "{name}"', f'init = "{name}"']
    (tmp_path / "subjects.toml").write_text("\n".join(lines))

    def call(out: str, *options: object, together: int = 2) -> Outcome:
        fixed = ["--subjects", tmp_path / "subjects.toml", "-o", tmp_path / out, "--together", together]
        return dti("train", *fixed, "--checkpoint-steps", 2, "--checkpoint-seconds", 1000, *options)

    return call


def rows_in(folder: Path) -> dict[str, Tensor]:
    """Name of each token file in a folder to its rows."""
    return {path.stem: next(iter(load_file(path).values())) for path in sorted(folder.glob("*.safetensors"))}


def test_words_of_a_file_learn_together(subjects: Subjects, tmp_path: Path) -> None:
    """Two and then one: words, logs and what is said of them are those of one at a time."""
    for out, together in (("alone", 1), ("company", 2)):
        outcome = subjects(out, "--json", together=together)
        assert outcome.code == 0, outcome.err
        assert [word["token"] for word in outcome.json["words"]] == ["<dog>", "<cat>", "<fox>"]
    assert "2 words step" in outcome.err
    # What holds for all of them is said once, and nothing that was not asked for.
    said = outcome.err.splitlines()
    assert said.count("loading stickers ...") == 1
    kept = [
        f"the runs are kept in {tmp_path / 'company'}",
        f"the run is kept in {tmp_path / 'company' / 'fox.run'}",
    ]
    assert [line for line in said if "kept in" in line] == kept
    assert not any("starting from the beginning" in line for line in said)
    alone, company = rows_in(tmp_path / "alone"), rows_in(tmp_path / "company")
    assert list(company) == ["cat", "dog", "fox"]
    for name, rows in alone.items():
        assert torch.nn.functional.cosine_similarity(company[name], rows).min() > 1 - 1e-5, name
        logs = [read_log(tmp_path / out / f"{name}.run") for out in ("alone", "company")]
        assert [entry["step"] for entry in logs[1]] == [1, 2, 3, 4, 5, 6]
        for key in ("loss", "smoothed", "angle"):
            assert [entry[key] for entry in logs[1]] == pytest.approx([e[key] for e in logs[0]], rel=1e-3)
    # One that is left over is alone.
    assert torch.equal(company["fox"], alone["fox"])


def test_words_go_on_together_to_the_same_bytes(
    subjects: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while one word logs its fourth step: what comes of --resume is what an uninterrupted run gives."""
    assert subjects("whole", "--quiet").code == 0
    append = Log.append

    def stop(self: Log, entry: dict[str, Any]) -> None:
        if entry["step"] == 4 and "cat" in str(self.path):
            raise KeyboardInterrupt
        append(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "append", stop)
        assert subjects("broken", "--quiet").code == 130
    assert not list((tmp_path / "broken").glob("*.safetensors"))
    outcome = subjects("broken", "--resume", "--quiet")
    assert outcome.code == 0, outcome.err
    said = outcome.err.splitlines()
    assert f"continuing 2 words after step 2 of 6, from {tmp_path / 'broken'}" in said
    assert f"nothing to continue in {tmp_path / 'broken' / 'fox.run'}: starting from the beginning" in said
    whole, broken = rows_in(tmp_path / "whole"), rows_in(tmp_path / "broken")
    assert all(torch.equal(broken[name], rows) for name, rows in whole.items())
    assert len(read_log(tmp_path / "broken" / "dog.run")) == 6


def test_what_words_share_is_said_once(subjects: Subjects, tmp_path: Path) -> None:
    """A photo that cannot be used is named once, with its folder, however many words are learned from it."""
    file = tmp_path / "subjects.toml"
    file.write_text(file.read_text() + '\n[rex]\nphotos = "dog"\ninit = "dog"\n')
    for name in ("dog", "cat"):
        (tmp_path / name / "broken.jpg").write_bytes(b"")
    outcome = subjects("out", "--steps", 1)
    assert outcome.code == 0, outcome.err
    said = [f"warning: {tmp_path / name}: skipped broken.jpg: empty" for name in ("dog", "cat")]
    assert [line for line in outcome.err.splitlines() if "broken" in line] == said


def test_a_word_that_fails_leaves_its_company_learning(
    subjects: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN at the fourth step of one word, and a start that another does not have: each is named, with its last good state."""
    assert subjects("whole", "--quiet").code == 0
    whole = trainer._losses

    def losses(placed: Any, process: Any, lanes: list[Lane], part: int) -> list[Tensor]:
        found = whole(placed, process, lanes, part)
        spoiled = [each.step == 3 and each.task.batches.word == "<dog>" for each in lanes]
        return [loss * torch.nan if bad else loss for loss, bad in zip(found, spoiled, strict=True)]

    monkeypatch.setattr(trainer, "_losses", losses)
    file = tmp_path / "subjects.toml"
    file.write_text(file.read_text().replace('init = "fox"', 'init = "cross:xyzzy7"'))
    outcome = subjects("broken", "--json")
    assert outcome.code == 6, outcome.err
    kept = tmp_path / "broken" / "dog.run" / "checkpoint-00000002.safetensors"
    assert "error: <dog>: the loss of step 4 is nan" in outcome.err
    assert str(kept) in outcome.err
    assert "2 of 3 words failed: <dog>, <fox>" in outcome.err.splitlines()[-1]
    assert [word["token"] for word in outcome.json["words"]] == ["<cat>"]
    assert kept.is_file()
    cat, alone = (rows_in(tmp_path / out)["cat"] for out in ("broken", "whole"))
    assert torch.nn.functional.cosine_similarity(cat, alone).min() > 1 - 1e-5


def test_words_that_do_not_fit_together_are_told_how_many_do(
    subjects: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by trying, as for one word; with the advice the same command goes through."""
    family = families.of_name("sd")
    assert family
    predict = family.code.predict

    def short_of_memory(pipe: Any, noisy: Tensor, level: Tensor, conditioning: Any) -> Tensor:
        if len(noisy) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(pipe, noisy, level, conditioning)

    trainings.recoded(monkeypatch, family, predict=short_of_memory)
    outcome = subjects("out", "--quiet")
    assert outcome.code == 5
    assert outcome.err.count("--together 1 would fit, and learn the same") == 2
    assert list(rows_in(tmp_path / "out")) == ["fox"]
    assert subjects("out", "--quiet", "--resume", together=1).code == 0
    assert list(rows_in(tmp_path / "out")) == ["cat", "dog", "fox"]


def test_a_preview_in_company_shows_its_own_word(
    subjects: Subjects, dti: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Pixel for pixel the picture that `generate` makes of the state kept there."""
    seen = ("--preview", "a photo of {} in the snow", "--preview-steps", 1, "--preview-negative", "blurry")
    assert subjects("out", *seen, "--keep", 1, "--quiet").code == 0
    for name in ("dog", "cat"):
        run = tmp_path / "out" / f"{name}.run"
        how = ("--size", 16, "--steps", 1, "--model", "stickers", "--quiet", "--negative", "blurry")
        prompt = f"a photo of <{name}> in the snow"
        assert dti("generate", prompt, "-t", f"{run}@6", *how, "--out", tmp_path / f"{name}-drawn").code == 0
        (drawn,), preview = tmp_path.glob(f"{name}-drawn/*.png"), max(run.glob("previews/*.png"))
        with Image.open(preview) as ours, Image.open(drawn) as theirs:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs)), name
            assert ours.info["prompt"] == prompt
        assert (run / "report.html").is_file()


def test_company_is_for_several_words(dti: Callable[..., Outcome], photos: Path) -> None:
    """One word has none, and where nothing is learned there is none either."""
    outcome = dti("train", photos, "--token", "<dog>", "--init", "dog", "--together", 2)
    assert (outcome.code, "--subjects" in outcome.error) == (2, True)
    outcome = dti("evaluate", "dog.safetensors", "--photos", photos, "--together", 2)
    assert (outcome.code, "--plan" in outcome.error) == (2, True)
