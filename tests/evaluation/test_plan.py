"""`dti evaluate --plan`: what a plan may say, what is done once, and what the table holds."""

import json
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dticli import bundled
from dticli.dataclass_json import to_json
from dticli.errors import InputError, UsageError
from dticli.evaluation import execution, measure, prompts, summary, trials
from dticli.evaluation import plan as plans
from dticli.evaluation.prompt import Prompt, Reading
from dticli.evaluation.summary import Outcome
from dticli.learn import jobs
from dticli.models.choice import Model
from dticli.settings import GenerateSettings, ModelSettings, TrainSettings
from dticli.words import base_model, token_reading
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
resolution = 16

[generate]
steps = 1
batch_size = 20
size = "16"

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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.md", "mine"),
        ("results.json", "mine"),
        ("results.json", "{}"),
        ("results.json", '{"plan": "small", "arms": 3, "outcomes": []}'),
    ],
)
def test_results_that_a_plan_did_not_write_are_kept(
    dti: Dti, tmp_path: Path, name: str, content: str
) -> None:
    """It replaces its own as it goes on; files that only have their names are someone's."""
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(PLAN)
    out.mkdir()
    (out / name).write_text(content)
    outcome = dti("evaluate", "--plan", file, "--out", out, "--quiet")
    assert (outcome.code, name in outcome.error, "--force" in outcome.error) == (2, True, True)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, content)]


@pytest.mark.usefixtures("strangers", "five_prompts")
def test_a_plan_is_carried_out_once(dti: Dti, tmp_path: Path) -> None:
    """Words learned together, judged and compared; again, nothing is done; a new arm is all that is done then."""
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(PLAN)
    first = dti("evaluate", "--plan", file, "--out", out, "--together", 2, "--quiet", "--json")
    assert first.code == 0, first.err
    assert first.err.splitlines()[:3] == [
        "model: stickers (as chosen)",
        "words 1 to 2 of 2: dti, dog, seed 0; ti, dog, seed 0",
        f"the runs are kept in {out / 'words'}",
    ]
    arms = {arm["arm"]: arm for arm in first.json["arms"]}
    assert list(arms) == ["dti", "ti", "ti-twice", "class-word"]
    assert arms["dti"]["norm"] == pytest.approx(1, abs=1e-4)
    assert arms["ti-twice"]["norm"] == pytest.approx(2, abs=1e-4)
    assert arms["dti"]["gain"]["value"] == pytest.approx(1)
    assert json.loads((out / "results.json").read_text()) == first.json
    words, trials = sorted(out.glob("words/*.safetensors")), sorted(out.glob("trials/*.json"))
    assert (len(words), len(trials), len(list(out.glob("pictures/*/*.png")))) == (2, 4, 4 * 5)
    before = [path.stat().st_mtime_ns for path in (*words, *trials)]

    again = dti("evaluate", "--plan", file, "--out", out, "--quiet")
    assert again.code == 0, again.err
    assert "judging" not in again.err
    assert [path.stat().st_mtime_ns for path in (*words, *trials)] == before
    given = dict.fromkeys(GenerateSettings.model_fields)
    kept = execution.carried_out(plans.read(str(file)), given, out)
    assert kept is not None
    assert json.loads(to_json(kept)) == first.json
    file.write_text(PLAN.replace("lr = 0.05", "lr = 0.06"))
    assert execution.carried_out(plans.read(str(file)), given, out) is None
    table = [line for line in again.out.splitlines() if line.startswith("| ")]
    assert (out / "results.md").read_text().count("\n".join(table)) == 1
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in arms]

    file.write_text(PLAN + '[arms.long]\nof = "init"\nmagnitude = "4x"\n')
    third = dti("evaluate", "--plan", file, "--out", out, "--quiet", "--json")
    assert third.err.count("judging") == 1
    assert {arm["arm"]: arm for arm in third.json["arms"][:4]} == arms
    forced = dti("evaluate", "--plan", file, "--out", out, "--together", 2, "--quiet", "--json", "--force")
    assert forced.json == third.json
    assert all(path.stat().st_mtime_ns > time for path, time in zip((*words, *trials), before, strict=True))


@pytest.mark.usefixtures("strangers", "five_prompts")
def test_a_damaged_outcome_is_judged_again(dti: Dti, tmp_path: Path) -> None:
    """A trial's record that cannot be read costs that trial alone, and gives the same figures."""
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(PLAN.split("[arms.dti]")[0] + '[arms.class-word]\nof = "init"\n')
    first = dti("evaluate", "--plan", file, "--out", out, "--quiet", "--json")
    (kept,) = out.glob("trials/*.json")
    kept.write_text("{")
    assert dti("evaluate", "--plan", file, "--out", out, "--quiet", "--json").json == first.json
    assert summary.read_outcome(kept, plans.read(str(file)).trials[0]) is not None
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"norm": None}))
    assert summary.read_outcome(kept, plans.read(str(file)).trials[0]) is None


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("subjects = []", "at least one arm"),
        ('subjects = ["dog", "dog"]', "subjects contains a duplicate"),
        ("seeds = [1, 1]", "seeds contains a duplicate"),
        ("subjects = 'dog'", "subjects"),
        ('subjects = ["dgo"]', "did you mean 'dog'"),
        ("count = 0", "count = 0"),
        ("sedes = [1]", "did you mean 'seeds'"),
        ('prompt_set = "stikcers"', "no prompt set"),
        ("[train]\nstep = 1", "did you mean 'steps'"),
        ("[generate]\nguidance = -1.0", "guidance"),
        ("[generate]\nseed = 1", "[generate]: seed: pictures follow the plan's seeds"),
        ('[arms."a b"]', "letters, digits"),
        ("[arms.a]\nlr = -1.0", "[arms.a]"),
        ('[arms.a]\nof = "b"', "expected init, dti"),
        ('[arms.a]\nof = "init"\nlr = 0.1', "correct lr"),
        ("[arms.a]\nof = 1", "both as strings"),
        ('[arms.a]\nof = "init"\nmagnitude = "init"', "may set nothing but magnitude"),
        ("[arms.init]", "not init"),
        ("[arms.a]\nseed = 1", "[arms.a]: seed: expected in"),
        ('[train]\nprecision = "bf16"\nphotos = "x"', "photos, precision: expected in"),
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
    (tmp_path / "prompts.txt").write_text("{} in the snow")
    file = tmp_path / "plan.toml"
    file.write_text('[arms.dti]\n[subjects.rex]\nphotos = "rex"\ninit = "dog"\n')
    (subject,) = plans.read(str(file)).subjects
    assert (subject.name, subject.noun, len(subject.album.photos)) == ("rex", "dog", 5)
    file.write_text(
        '[arms.dti]\n[subjects.rex]\nphotos = "rax"\ninit = "dog"\n[subjects.tom]\nphotos = "rex"\n'
    )
    with pytest.raises(InputError, match=r"\[subjects.rex\].*\[subjects.tom\] expected photos and init"):
        plans.read(str(file))


def test_token_files_lie_beside_the_plan(tmp_path: Path) -> None:
    """Where words start from, and what the prior pulls towards: for all arms and for one; a word stays a word."""
    file = tmp_path / "plan.toml"
    file.write_text(
        'subjects = ["dog"]\nprompt_set = "stickers"\n[generate]\nbase = "banana"\n[train]\nprior = "a.safetensors"\n'
        '[arms.dti]\ninit = "b.safetensors"\n[arms.word]\ninit = "banana"\n'
    )
    (tmp_path / "banana").mkdir()
    plan = plans.read(str(file))
    assert plan.file.train["prior"] == str(tmp_path / "a.safetensors")
    assert plan.file.generate["base"] == str(tmp_path / "banana")
    assert [arm.train["init"] for arm in plan.arms] == [str(tmp_path / "b.safetensors"), "banana"]


@pytest.mark.parametrize(
    ("name", "role", "count"),
    [
        ("stickers", "reporting", 12),
        ("stickers-long", "reporting", 12),
        ("stickers-noto", "reporting", 8),
        ("stickers-tuning", "tuning", 4),
        ("stickers-ablations", "reporting", 3),
    ],
)
def test_the_plans_that_come_with_dti_can_be_carried_out(name: str, role: str, count: int) -> None:
    """Tuning and reporting subjects do not mix, and every arm is read."""
    plan = plans.read(name)
    assert len(plan.subjects) == count
    assert {s.name for s in plan.subjects} <= {s.name for s in bundled.subjects() if s.role == role}
    assert plan.arms[0].name == "dti"


def test_the_papers_plan_finds_its_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thirty subjects lie where its header has them cloned, in the present folder; those that are not there are named."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        plans.read("paper")
    assert str(raised.value).count("[subjects.") == 30
    (tmp_path / "dreambooth" / "dataset").mkdir(parents=True)
    for name in re.findall(r"\[subjects\.(\w+)\]", str(raised.value)):
        (tmp_path / "dreambooth" / "dataset" / name).symlink_to(bundled.photos("dog")[0].parent)
    plan = plans.read("paper")
    assert {subject.noun for subject in plan.subjects} >= {"dog", "cat", "vase", "stuffed animal"}
    assert len(plan.trials) == 4 * 30


@pytest.mark.usefixtures("strangers", "five_prompts")
def test_an_arm_starts_from_each_subjects_class_word(dti: Dti, tmp_path: Path) -> None:
    """`{}` in init is the class word, and the words say so."""
    file, out = tmp_path / "plan.toml", tmp_path / "out"
    file.write_text(
        PLAN.split("[arms.dti]")[0].replace('["dog"]', '["dog", "owl"]') + '[arms.cross]\ninit = "cross:{}"\n'
    )
    ended = dti("evaluate", "--plan", file, "--out", out, "--quiet")
    assert ended.code == 0, ended.err
    starts = {
        word.name.split("-")[0]: token_reading.read(word).metadata["dti.init"]
        for word in out.glob("words/*.safetensors")
    }
    assert starts == {"dog": "cross:dog", "owl": "cross:owl"}


@pytest.mark.usefixtures("strangers", "five_prompts")
def test_a_word_that_fails_costs_itself_alone(dti: Dti, tmp_path: Path) -> None:
    """The others are learned, judged and written; the command says which failed and ends with its code."""
    file, out = tmp_path / "small.toml", tmp_path / "out"
    (tmp_path / "rex").mkdir()
    for photo in bundled.photos("dog"):
        (tmp_path / "rex" / photo.name).write_bytes(photo.read_bytes())
    head = PLAN.split("[arms.dti]")[0].replace('subjects = ["dog"]\n', "")
    arms = '[arms.dti]\n[arms.lost]\ninit = "random"\nprior = "xyzzy7"\n[arms.class-word]\nof = "init"\n'
    file.write_text(f'{head}{arms}[subjects.rex]\nphotos = "rex"\ninit = "dog"\n')
    outcome = dti("evaluate", "--plan", file, "--out", out, "--quiet")
    assert outcome.code == 2, outcome.err
    assert "lost, rex, seed 0: the model does not know" in outcome.err
    assert "1 trials or ways failed" in outcome.err
    kept = json.loads((out / "results.json").read_text())
    assert [arm["arm"] for arm in kept["arms"]] == ["dti", "class-word"]
    assert (kept["done"], kept["trials"], len(kept["failed"])) == (2, 3, 1)


@pytest.mark.usefixtures("strangers", "five_prompts")
def test_a_piece_that_cannot_be_judged_ends_nothing_else(dti: Dti, tmp_path: Path) -> None:
    """A damaged word is named, everything else is judged, and what was known before is never taken out of the table."""
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(PLAN)
    assert dti("evaluate", "--plan", file, "--out", out, "--quiet").code == 0
    # Another arm, whose word will be learned, and a free word that is damaged: its record is there, a new length of it is not.
    words = {
        path: token_reading.read(path).metadata["dti.method"] for path in out.glob("words/*.safetensors")
    }
    (free,) = (path for path, method in words.items() if method == "ti")
    free.write_text("no word")
    file.write_text(
        PLAN + '[arms.long]\nof = "ti"\nmagnitude = "4x"\n[arms.late]\nof = "init"\nmagnitude = "3x"\n'
    )
    outcome = dti("evaluate", "--plan", file, "--out", out, "--quiet")
    assert (outcome.code, "1 trials or ways failed" in outcome.err) == (3, True)
    kept = json.loads((out / "results.json").read_text())
    assert [arm["arm"] for arm in kept["arms"]] == ["dti", "ti", "ti-twice", "class-word", "late"]
    assert kept["failed"][0].startswith("long, dog, seed 0: ")


def test_what_is_told_of_an_error_holds_no_frames() -> None:
    """A word that failed must not keep the model it failed on: frames of its traceback hold it."""
    try:
        raise InputError("no photos")
    except InputError as error:
        told = execution._told("dti, dog, seed 0", error)
    assert (type(told), str(told), told.__traceback__, told.__context__) == (
        InputError,
        "no photos",
        None,
        None,
    )


def marks(change: str, model: str = "m") -> tuple[str, str]:
    """Marks of the first trial's word and pictures under a plan."""
    name, _, text = change.partition("=")
    lines = [line for line in PLAN.splitlines() if not line.startswith(f"{name.strip()} =")]
    place = lines.index("[train]") + (1 if name.strip() in TrainSettings.model_fields else 0)
    lines.insert(place, change if text else "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.toml"
        file.write_text("\n".join(lines))
        plan = plans.read(str(file))
    opened = base_model.open_model(dict.fromkeys(ModelSettings.model_fields) | {"model": "stickers"}, ())
    trial = plan.trials[0]
    own = {"token": "<dog>", "init": "dog", "seed": trial.seed} | dict(trial.subject.source)
    job = jobs.one(opened, [trial.arm.train, plan.file.train, own], Path("word.safetensors"), None)
    settings = GenerateSettings.model_validate(plan.file.generate)
    return trials.word_mark(job, model), trials.pictures_mark(plan, trial, job, settings, model)


@pytest.mark.parametrize(
    ("change", "word", "pictures"),
    [
        ("kappa = 0.5", True, True),
        ('templates = ["the {}"]', True, True),
        ("steps = 2", True, True),
        ("seeds = [3]", True, True),
        ('subjects = ["cat"]', True, True),
        ('prompt_set = "stickers-complex"', False, True),
        ("count = 2", False, True),
        ('image_judge = "stickers-a"', False, False),
        ("checkpoint_steps = 7", False, False),
    ],
)
def test_marks_know_what_decides(change: str, word: bool, pictures: bool) -> None:
    """What decides a word or its pictures gives them another name; what does not, keeps it. Other weights are other words."""
    before, after = marks(""), marks(change)
    assert (before[0] != after[0], before[1] != after[1]) == (word, pictures)
    assert marks("", model="n")[0] != before[0]


def test_a_plan_means_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos and token files are known by what they hold, not by the way the plan was named."""
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "rex").symlink_to(bundled.photos("dog")[0].parent)
    (folder / "plan.toml").write_text('[arms.dti]\nlr = 0.01\n[subjects.rex]\nphotos = "rex"\ninit = "dog"\n')
    opened = base_model.open_model(dict.fromkeys(ModelSettings.model_fields) | {"model": "stickers"}, ())
    found = set()
    for place, name in (
        (tmp_path, "plans/plan.toml"),
        (folder, "plan.toml"),
        (folder, str(folder / "plan.toml")),
    ):
        monkeypatch.chdir(place)
        trial = plans.read(name).trials[0]
        own = {"token": "<rex>", "init": "dog", "seed": 0} | dict(trial.subject.source)
        job = jobs.one(opened, [trial.arm.train, own], Path("word.safetensors"), None)
        found.add(trials.word_mark(job, "m"))
    assert len(found) == 1


def test_marks_know_the_precision_that_auto_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device where `auto` is another precision, words and pictures are others; a precision that was named stays itself."""
    before = marks("")
    monkeypatch.setattr(
        "dticli.models.devices.pick_precision",
        lambda precision, device: "bf16" if precision == "auto" else precision,
    )
    assert not set(marks("")) & set(before)


def test_older_weight_files_and_links_make_a_model(tmp_path: Path) -> None:
    """A folder of .bin files is known by them, and what is linked into a folder belongs to it."""
    for name in ("a", "b"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "w.bin").write_text(name)
        (tmp_path / f"linked-{name}").mkdir()
        (tmp_path / f"linked-{name}" / "unet").symlink_to(tmp_path / name / "unet")
    found = {name: trials.weights_mark(tmp_path / name) for name in ("a", "b", "linked-a", "linked-b")}
    assert (found["linked-a"], found["linked-b"]) == (found["a"], found["b"])
    assert found["a"] != found["b"]


def test_what_a_single_file_borrows_makes_another_model(tmp_path: Path) -> None:
    """The same file with another base, and the same folder in another variant."""
    for name in ("own", "base", "other"):
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((4,), float(len(name)))}, tmp_path / name / "w.safetensors")
    own, base, other = (Model(name, "folder", str(tmp_path / name), "") for name in ("own", "base", "other"))
    kinds = [own, replace(own, variant="fp16"), replace(own, base=base), replace(own, base=other)]
    assert len({trials.model_mark(kind) for kind in kinds}) == 4


def test_a_weight_file_is_known_by_its_ends(tmp_path: Path) -> None:
    """Another value in a file of the same size is another model."""
    save_file({"a": torch.zeros(100_000)}, tmp_path / "w.safetensors")
    before = trials.weights_mark(tmp_path)
    save_file(
        {"a": torch.zeros(100_000).index_fill(0, torch.tensor([99_999]), 1.0)}, tmp_path / "w.safetensors"
    )
    assert trials.weights_mark(tmp_path) != before


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("evaluate",), "expected token files and --photos, or --plan"),
        (("evaluate", "--plan", "stickers", "--count", 2), "--plan cannot be combined with --count"),
        (
            ("evaluate", "--plan", "none"),
            "expected paper, stickers, stickers-ablations, stickers-long, stickers-noto, stickers-steps, stickers-tuning",
        ),
        (("evaluate", "--plan", "stickers", "--seed", 2), "--plan cannot be combined with --seed"),
    ],
)
def test_plan_and_files_do_not_mix(dti: Dti, command: tuple[object, ...], part: str) -> None:
    """What is said twice or not at all is one line."""
    outcome = dti(*command)
    assert (outcome.code, part in outcome.error) == (2, True)


BASE = Outcome("dti", "a", 0, 1.0, 0.5, 0.8, 0.2, {"noun": 1.0, "style": 0.5}, 0.5)


def planned(*arms: plans.Arm) -> plans.Plan:
    file = plans.PlanFile(subjects=("a", "b"), arms={}, prompt_set="stickers", count=2)
    return plans.Plan("p", file, arms, (), prompts.read("stickers"))


def chart_points(svg: str) -> dict[str, float]:
    """Each arm's height in the chart, found by the name beside its point."""
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    circles = {each.get("fill"): float(each.get("cy", "")) for each in root.iter(f"{space}circle")}
    return {
        str(each.text): circles[each.get("fill")] for each in root.iter(f"{space}text") if each.get("fill")
    }


def test_the_chart_puts_better_arms_higher() -> None:
    """By alignment, an arm a point, named."""
    arms = {"dti": 0.9, "ti": 0.3, "word": 0.6}
    outcomes = [replace(BASE, arm=arm, alignment=value) for arm, value in arms.items()]
    result = summary.summarise(planned(*(plans.Arm(arm, {}) for arm in arms)), "m", outcomes)
    heights = chart_points(result.chart())
    assert heights["dti"] < heights["word"] < heights["ti"]
    assert heights["word"] - heights["dti"] == pytest.approx(heights["ti"] - heights["word"], abs=0.2)


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
    plan = planned(plans.Arm("dti", {}), plans.Arm("ti", {}), plans.Arm("word", {}, of="init"))
    result = summary.summarise(plan, "m", outcomes)
    dti, ti, word = result.arms
    assert chart_points(result.chart()).keys() == {"dti", "ti", "word"}
    assert dti.alignment.value == pytest.approx((0.7 + 0.5) / 2)
    assert ti.gain == measure.Mean(*3 * [pytest.approx(0.5)])
    # in a, 0.35 against the mean of 0.8 and 0.6; in b, 0.25 against 0.5
    assert ti.differences["alignment"] == measure.Mean(*map(pytest.approx, (-0.3, -0.35, -0.25)))
    assert ti.differences["noun"].value == pytest.approx((-1 + 0) / 2)
    assert "look" not in ti.differences
    assert {each.value for each in dti.differences.values()} == {0.0}
    compared = result.markdown().partition("Each arm minus dti")[2].splitlines()[2:]
    assert [line.split(" | ")[0] for line in compared if line.startswith("| ")][:4] == [
        "| arm",
        "| ---",
        "| ti",
        "| word",
    ]
    assert (dti.trials, ti.norm) == (3, 4.5)
    assert dti.elements == {"noun": 1.0, "style": 0.5}
    assert ti.elements == {"noun": 0.5, "style": 0.5}
    assert dti.leakage == 0.5
    for arm, lift in ((dti, (0.6 - 0.2) / (0.8 - 0.2)), (ti, (0.3 - 0.2) / (0.8 - 0.2)), (word, 1.0)):
        assert arm.lifted is not None
        assert arm.lifted.value == pytest.approx(lift)


def test_what_cannot_be_said_is_left_empty() -> None:
    """No ratio to nothing, no interval of one subject, no lift without chance."""
    outcomes = [replace(BASE, alignment=0.0, chance=None), replace(BASE, arm="word", chance=None)]
    result = summary.summarise(planned(plans.Arm("dti", {}), plans.Arm("word", {}, of="init")), "m", outcomes)
    word = result.arms[1]
    assert (word.gain, word.lifted) == (None, None)
    assert str(word.alignment) == "0.800"
    assert "None" not in result.markdown()
    assert (
        "Each arm minus" not in summary.summarise(planned(plans.Arm("dti", {})), "m", outcomes[:1]).markdown()
    )
    assert "None" not in result.chart()


def test_chance_is_what_other_prompts_get() -> None:
    """A judge that scores by the prompt's number: pictures of each prompt get the mean of the three after it."""

    class Numbers:
        def require(self, prompts: object, noun: str) -> None: ...

        def read(self, images: object, prompt: Prompt, noun: str) -> Reading:
            return Reading((float(prompt.template),))

    five = [Prompt(str(number)) for number in range(5)]
    expected = np.mean([(place + shift) % 5 for place in range(5) for shift in (1, 2, 3)])
    assert measure.chance(five, [[]] * 5, "dog", Numbers()) == pytest.approx(expected)
    assert measure.chance(five[:1], [[]], "dog", Numbers()) is None
