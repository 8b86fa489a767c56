"""The best of the states that a run kept: which one that is, how it is said, and where the choice counts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dticli.cli import run as dti_run
from dticli.evaluation import best
from dticli.evaluation.measure import PromptScore
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
LEARN = ("--token", "<dog>", "--init", "dog", "--model", "stickers", "--resolution", 16, "--batch-size", 1)
JUDGED = ("--prompt-set", "stickers", "--steps", 1, "--size", 16, "--quiet", "--json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """The folder of a run that kept two states far apart."""
    word = tmp_path_factory.mktemp("best") / "dog.safetensors"
    arguments = ["train", photos, *LEARN, "--steps", 2, "--keep", 2, "--lr", 1, "--quiet", "--out", word]
    assert dti_run([str(each) for each in arguments]) == 0
    return word.with_suffix(".run")


def score(likeness: float, alignment: float) -> PromptScore:
    return PromptScore("{}", likeness, alignment, {}, None)


def test_what_is_lost_on_either_side_counts() -> None:
    """Of a likeness without the prompt, a prompt without likeness, and some of both, the last is best; by hand."""
    scores = {
        10: [score(0.9, 0.1), score(0.8, 0.2), score(0.9, 0.1)],
        20: [score(0.5, 0.5), score(0.6, 0.6), score(0.4, 0.7)],
        30: [score(-0.2, 1.0), score(0.1, 1.0), score(0.0, 1.0)],
    }
    first, second, third = best.ranked(scores)
    assert [state.step for state in (first, second, third)] == [10, 20, 30]
    assert second.behind is None
    assert second.score.value == pytest.approx((0.25 + 0.36 + 0.28) / 3)
    assert third.score.value == pytest.approx(0.1 / 3)
    assert first.behind
    assert first.behind.value == pytest.approx((0.16 + 0.20 + 0.19) / 3)
    assert first.is_clearly_worse
    assert not second.is_clearly_worse


def test_what_chance_explains_is_not_clearly_worse() -> None:
    """A state that is better for as many prompts as it is worse for; of equal ones, the earliest is best."""
    generator = np.random.default_rng(0)
    likeness = generator.uniform(0.4, 0.6, size=(2, 20))
    likeness[1] = likeness[0][::-1] - 1e-3
    first, second = best.ranked({step: [score(each, 1.0) for each in likeness[step]] for step in (0, 1)})
    assert first.behind is None
    assert not second.is_clearly_worse
    same = best.ranked({step: [score(0.5, 0.5)] * 2 for step in (3, 1, 2)})
    assert [state.step for state in same if state.behind is None] == [3]


@pytest.mark.usefixtures("five_prompts")
def test_the_choice_is_a_word_everywhere(dti: Dti, run: Path, photos: Path, tmp_path: Path) -> None:
    """Its figures are those of `evaluate`; `RUN@best` is then that state, and says why; a run that goes on forgets it."""
    before = dti("info", f"{run}@best")
    assert (before.code, f"dti best {run}" in before.error) == (3, True)
    chosen = dti(run, "--best", *JUDGED)
    assert chosen.code == 0, chosen.err
    states = {state["step"]: state for state in chosen.json["states"]}
    assert sorted(states) == [1, 2]
    by = ("--image-judge", "stickers-b", "--text-judge", "stickers-b", "--count", 1, "--photos", photos)
    words = dti("evaluate", f"{run}@1", f"{run}@2", *by, *JUDGED).json["words"]
    for step, word in zip((1, 2), words, strict=True):
        assert states[step]["likeness"] == word["likeness"]
        assert states[step]["alignment"] == word["alignment"]
        products = [max(0.0, each["likeness"]) * each["alignment"] for each in word["prompts"]]
        assert states[step]["score"]["value"] == pytest.approx(sum(products) / len(products))
    assert chosen.json["step"] == max(states, key=lambda step: states[step]["score"]["value"])
    used = dti("info", f"{run}@best", "--json")
    assert used.json["metadata"]["dti.steps"] == str(chosen.json["step"])
    assert f"is step {chosen.json['step']}: {chosen.json['how']}" in used.err
    assert dti("report", run, "--out", tmp_path / "report.html").code == 0
    assert f"step {chosen.json['step']}: the highest mean" in (tmp_path / "report.html").read_text()
    longer = ("--steps", 3, "--keep", 2, "--lr", 1, "--quiet", "--resume", "--force")
    assert dti("train", photos, *LEARN, *longer, "--out", run.with_suffix(".safetensors")).code == 0
    assert dti("info", f"{run}@best").code == 3


@pytest.mark.parametrize(
    "content", ["", "[]", '{"step": "x", "how": ""}', '{"step": Infinity, "how": ""}', "[" * 10**5]
)
def test_a_choice_that_cannot_be_read_is_one_line(dti: Dti, tmp_path: Path, content: str) -> None:
    """Damaged, or of another program; it says how to choose again."""
    run = tmp_path / "dog.run"
    run.mkdir()
    (run / "best.json").write_text(content)
    outcome = dti("info", f"{run}@best")
    assert (outcome.code, f"dti best {run}" in outcome.error) == (3, True)


def test_a_run_without_states_has_no_best_one(dti: Dti, tmp_path: Path) -> None:
    (tmp_path / "dog.run").mkdir()
    outcome = dti("best", tmp_path / "dog.run")
    assert (outcome.code, "--keep" in outcome.error) == (2, True)
