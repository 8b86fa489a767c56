"""`dti evaluate --plan`: what a plan may say, what is done once, and what the table holds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dticli import bundled
from dticli.bundled import judge
from dticli.errors import InputError, UsageError
from dticli.evaluation import plan as plans
from dticli.evaluation.plan import Outcome
from tests.conftest import Outcome as Ended

Dti = Callable[..., Ended]

PLAN = """
model = "stickers"
subjects = ["dog"]
prompt_set = "stickers"
count = 1
image_judge = "stickers-b"
text_judge = "stickers-a"

[train]
steps = 1
batch_size = 1

[generate]
steps = 1
batch_size = 20

[arms.dti]
[arms.ti]
method = "ti"
lr = 0.05
[arms.ti-twice]
of = "ti"
magnitude = "2x"
[arms.class-word]
of = "init"
"""


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random judges in the place of the bundled ones."""
    torch.manual_seed(0)
    for name, kind in (("a", judge.DualEncoder), ("b", judge.Observer)):
        save_file(kind().state_dict(), tmp_path / f"{name}.safetensors")
    monkeypatch.setattr(judge, "weights", lambda name: tmp_path / f"{name}.safetensors")


@pytest.mark.usefixtures("strangers")
def test_a_plan_is_carried_out_once(dti: Dti, tmp_path: Path) -> None:
    """Words learned, judged and compared; again, nothing is done; a new arm is all that is done then."""
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(PLAN)
    first = dti("evaluate", "--plan", file, "--out", out, "--quiet", "--json")
    assert first.code == 0, first.err
    arms = {arm["arm"]: arm for arm in first.json["arms"]}
    assert list(arms) == ["dti", "ti", "ti-twice", "class-word"]
    assert arms["dti"]["norm"] == pytest.approx(1, abs=1e-4)
    assert arms["ti-twice"]["norm"] == pytest.approx(2, abs=1e-4)
    assert arms["dti"]["gain"]["value"] == pytest.approx(1)
    assert arms["class-word"]["lifted"] in (None, pytest.approx(1))
    assert json.loads((out / "results.json").read_text()) == first.json
    words, trials = sorted(out.glob("words/*.safetensors")), sorted(out.glob("trials/*.json"))
    assert (len(words), len(trials)) == (2, 4)
    before = [path.stat().st_mtime_ns for path in (*words, *trials)]

    again = dti("evaluate", "--plan", file, "--out", out, "--quiet")
    assert again.code == 0, again.err
    assert "judging" not in again.err
    assert [path.stat().st_mtime_ns for path in (*words, *trials)] == before
    table = [line for line in again.out.splitlines() if line.startswith("| ")]
    assert (out / "results.md").read_text().count("\n".join(table)) == 1
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in arms]

    file.write_text(PLAN + '[arms.long]\nof = "init"\nmagnitude = "4x"\n')
    third = dti("evaluate", "--plan", file, "--out", out, "--quiet", "--json")
    assert third.err.count("judging") == 1
    assert {arm["arm"]: arm for arm in third.json["arms"][:4]} == arms


@pytest.mark.usefixtures("strangers")
def test_a_damaged_outcome_is_judged_again(dti: Dti, tmp_path: Path) -> None:
    """A trial's record that cannot be read costs that trial alone, and gives the same figures."""
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(PLAN.split("[arms.dti]")[0] + '[arms.class-word]\nof = "init"\n')
    first = dti("evaluate", "--plan", file, "--out", out, "--quiet", "--json")
    (kept,) = out.glob("trials/*.json")
    kept.write_text("{")
    assert dti("evaluate", "--plan", file, "--out", out, "--quiet", "--json").json == first.json
    assert plans.read_outcome(kept) is not None


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("subjects = []", "at least one arm"),
        ('subjects = ["dgo"]', "did you mean 'dog'"),
        ("count = 0", "count = 0"),
        ("sedes = [1]", "did you mean 'seeds'"),
        ('prompt_set = "stikcers"', "no prompt set"),
        ("[train]\nstep = 1", "did you mean 'steps'"),
        ("[generate]\nguidance = -1.0", "guidance"),
        ('[arms."a b"]', "letters, digits"),
        ("[arms.a]\nlr = -1.0", "[arms.a]"),
        ('[arms.a]\nof = "b"', "expected init, dti"),
        ('[arms.a]\nof = "init"\nlr = 0.1', "lr beside of"),
        ("[arms.a]\nof = 1", "of beside of"),
    ],
)
def test_a_faulty_plan_is_named(change: str, part: str, tmp_path: Path) -> None:
    """One line that says where the fault is, before anything is learned."""
    table = change.startswith("[")
    lines = {"subjects": 'subjects = ["dog"]', "arms": "[arms.dti]"}
    if change.startswith("subjects"):
        del lines["subjects"]
    file = tmp_path / "plan.toml"
    file.write_text("\n".join([*lines.values(), change] if table else [change, *lines.values()]))
    with pytest.raises((UsageError, InputError)) as raised:
        plans.read(str(file))
    assert part in str(raised.value)


def test_own_subjects_lie_beside_the_plan(tmp_path: Path) -> None:
    """Photos are found beside the file; a subject without them, or without a noun, is named with all the others."""
    photos = bundled.photos("dog")[0].parent
    (tmp_path / "rex").symlink_to(photos)
    file = tmp_path / "plan.toml"
    file.write_text('[arms.dti]\n[subjects.rex]\nphotos = "rex"\ninit = "dog"\n')
    (subject,) = plans.read(str(file)).subjects
    assert (subject.name, subject.noun, len(subject.album.photos)) == ("rex", "dog", 5)
    file.write_text(
        '[arms.dti]\n[subjects.rex]\nphotos = "rax"\ninit = "dog"\n[subjects.tom]\nphotos = "rex"\n'
    )
    with pytest.raises(InputError, match=r"\[subjects.rex\].*\[subjects.tom\] expected photos and init"):
        plans.read(str(file))


@pytest.mark.parametrize("name", ["stickers", "stickers-tuning"])
def test_the_plans_that_come_with_dti_can_be_carried_out(name: str) -> None:
    """Tuning and reporting subjects do not mix, and every arm is read."""
    plan = plans.read(name)
    role = "tuning" if name == "stickers-tuning" else "reporting"
    assert {s.name for s in plan.subjects} == {s.name for s in bundled.subjects() if s.role == role}
    assert plan.arms[0].name == "dti"


def test_the_papers_plan_wants_its_photos() -> None:
    """It is read up to the photos, which it does not come with, and names all thirty subjects."""
    with pytest.raises(InputError) as raised:
        plans.read("paper")
    assert str(raised.value).count("[subjects.") == 30


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("evaluate",), "expected token files and --photos, or --plan"),
        (("evaluate", "--plan", "stickers", "--count", 2), "--plan beside --count"),
        (("evaluate", "--plan", "none"), "expected paper, stickers, stickers-tuning"),
    ],
)
def test_plan_and_files_do_not_mix(dti: Dti, command: tuple[object, ...], part: str) -> None:
    """What is said twice or not at all is one line."""
    outcome = dti(*command)
    assert (outcome.code, part in outcome.error) == (2, True)


BASE = Outcome("dti", "a", 0, 1.0, 0.5, 0.8, 0.2, {"noun": 1.0, "style": 0.5}, 0.5)


def test_the_summary_is_over_subjects() -> None:
    """Means over seeds first, ratios paired over subjects, and the lift between chance and the class word."""
    outcomes = [
        BASE,
        replace(BASE, seed=1, alignment=0.6),
        replace(BASE, subject="b", alignment=0.5, leakage=None),
        replace(BASE, arm="ti", alignment=0.35, norm=8.0, elements={"noun": 0.0}),
        replace(BASE, arm="ti", subject="b", alignment=0.25),
        replace(BASE, arm="word", alignment=1.0),
        replace(BASE, arm="word", subject="b", alignment=0.6),
    ]
    arms = [plans.Arm("dti", {}), plans.Arm("ti", {}), plans.Arm("word", {}, of="init")]
    file = plans.PlanFile(subjects=("a", "b"), arms={}, prompt_set="stickers", count=2)
    plan = plans.Plan("p", file, tuple(arms), ())
    dti, ti, word = plans.summarise(plan, "m", outcomes).arms
    assert dti.alignment.value == pytest.approx((0.7 + 0.5) / 2)
    assert ti.gain == plans.Mean(*3 * [pytest.approx(0.5)])
    assert (dti.trials, ti.norm) == (3, 4.5)
    assert dti.elements == {"noun": 1.0, "style": 0.5}
    assert ti.elements == {"noun": 0.5, "style": 0.5}
    assert (dti.leakage, word.lifted) == (0.5, pytest.approx(1))
    assert dti.lifted == pytest.approx((0.6 - 0.2) / (0.8 - 0.2))
    assert ti.lifted == pytest.approx((0.3 - 0.2) / (0.8 - 0.2))


def test_a_ratio_to_nothing_is_none() -> None:
    """Where the first arm fits nothing there is no ratio, and the table leaves it empty."""
    outcomes = [replace(BASE, alignment=0.0), replace(BASE, arm="ti")]
    file = plans.PlanFile(subjects=("a",), arms={}, prompt_set="stickers")
    plan = plans.Plan("p", file, (plans.Arm("dti", {}), plans.Arm("ti", {})), ())
    result = plans.summarise(plan, "m", outcomes)
    assert result.arms[1].gain is None
    assert "None" not in result.markdown()
