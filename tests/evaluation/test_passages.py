"""Ways between learned words in a plan: drawn and judged once, and what their figures say."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dticli import bundled
from dticli.bundled.world import words
from dticli.errors import UsageError
from dticli.evaluation import execution, passages, summary, trials
from dticli.evaluation import plan as plans
from dticli.evaluation.passages import Passage
from dticli.settings import GenerateSettings
from tests.conftest import Outcome as Ended

Dti = Callable[..., Ended]

PLAN = """
model = "stickers"
subjects = ["dog", "cat", "fox"]
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
[passages]
frames = 3
count = 2
[arms.dti]
[arms.class-word]
of = "init"
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "plan.toml"
    file.write_text(text)
    return file


def passage(to_first: tuple[float, ...], to_second: tuple[float, ...]) -> Passage:
    return Passage("dti", "slerp", "dog", "cat", 60.0, to_first, to_second)


# ------------------------------------------------------------------------- figures


def test_a_monotone_way_never_leads_back() -> None:
    """Each frame nearer to the second and farther from the first: nothing leads back, and the middle is half as alike."""
    even = passage((0.8, 0.4, 0.2), (0.2, 0.4, 0.8))
    assert even.backward == 0
    assert (even.inner, even.ends) == (0.4, 0.8)


def test_a_way_that_turns_round_leads_back() -> None:
    """Of 0.6 + 0.3 + 0.9 of change, the 0.3 lead back."""
    assert passage((0.6, 0.3, 0.5, 0.0), (0.0, 0.3, 0.2, 0.6)).backward == pytest.approx(0.3 / 1.8)


def test_a_way_without_change_has_no_direction() -> None:
    """Not 0, which would be a perfect way; nor does rounding make one."""
    assert passage((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).backward is None
    assert passage((0.5, 0.5 + 1e-7, 0.5), (0.5, 0.5, 0.5)).backward is None


def test_results_are_over_pairs() -> None:
    """A row an arm and path, in the order they came; pairs without change have no direction, and weak ends count little."""
    even, weak = (
        passage((0.8, 0.4, 0.2), (0.2, 0.4, 0.8)),
        passage((0.02, 0.02, 0.02), (0.02, 0.02, 0.02)),
    )
    back = replace(passage((0.6, 0.3, 0.5, 0.0), (0.0, 0.3, 0.2, 0.6)), path="lerp")
    slerp, lerp = passages.summarise([even, back, weak])
    assert (slerp.arm, slerp.path, slerp.pairs, slerp.degrees) == ("dti", "slerp", 2, 60.0)
    assert slerp.backward is not None
    assert slerp.backward.value == 0
    assert slerp.kept is not None
    assert slerp.kept.value == pytest.approx(0.42 / 0.82)
    assert lerp.path == "lerp"
    assert lerp.backward is not None
    assert lerp.backward.value == pytest.approx(0.3 / 1.8)


def test_what_is_like_nothing_has_no_share() -> None:
    """Ends without likeness: no figure, and an empty cell."""
    (result,) = passages.summarise([passage((0.0, 0.1, 0.0), (0.0, 0.1, 0.0))])
    assert result.kept is None
    assert list(passages.lines([result]))[-1].endswith("|  |")


class Colours:
    """Red is one thing, blue another; what is between is like both."""

    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        values = torch.tensor([image.convert("RGB").getpixel((0, 0)) for image in images], dtype=torch.float)
        return torch.nn.functional.normalize(values, dim=-1)


def test_frames_are_held_against_the_photos_of_either_end(tmp_path: Path) -> None:
    """Two pictures a frame, from red to blue; the first subject's photos are red, the second's blue."""
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), colour).save(tmp_path / name / "1.png")
    file = written(
        tmp_path,
        'prompt_set = "stickers"\n[passages]\nframes = 3\npaths = ["lerp"]\n[arms.dti]\n'
        '[subjects.rex]\nphotos = "red"\ninit = "dog"\n[subjects.tom]\nphotos = "blue"\ninit = "cat"\n',
    )
    (way,) = plans.read(str(file)).ways
    shown = [(255, 0, 0), (255, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 255), (0, 0, 255)]
    found = trials.passage(way, 60.0, [Image.new("RGB", (8, 8), colour) for colour in shown], Colours())
    assert (found.arm, found.path, found.first, found.second) == ("dti", "lerp", "rex", "tom")
    assert found.to_first == pytest.approx((1, 0.5, 0))
    assert found.to_second == pytest.approx((0, 0.5, 1))


# ------------------------------------------------------------------------ in a plan


@pytest.mark.usefixtures("strangers", "five_prompts")
def test_passages_are_carried_out_once(dti: Dti, tmp_path: Path) -> None:
    """Dog to cat for each arm on each path; the fox has no partner; given again, only what is damaged is judged."""
    give = ("evaluate", "--plan", written(tmp_path, PLAN), "--out", tmp_path / "out", "--quiet", "--json")
    first = dti(*give)
    assert first.code == 0, first.err
    found = {(row["arm"], row["path"]): row for row in first.json["passages"]}
    assert list(found) == [(arm, path) for arm in ("dti", "class-word") for path in ("slerp", "lerp")]
    assert {row["pairs"] for row in found.values()} == {1}
    rows = dict(_word(file) for file in (tmp_path / "out/words").glob("*.safetensors"))
    cosine = torch.cosine_similarity(rows["<dog>"], rows["<cat>"], dim=0).item()
    assert found["dti", "slerp"]["degrees"] == pytest.approx(math.degrees(math.acos(cosine)), abs=0.01)
    assert len(list((tmp_path / "out/pictures").glob("*/00[0-2]-[01].png"))) == 4 * 3 * 2

    kept = next(
        file for file in (tmp_path / "out/trials").glob("*.json") if "slerp" in file.read_text() and "dti" in file.read_text()
    )  # fmt: skip
    whole = json.loads(kept.read_text())
    read, given = plans.read(str(tmp_path / "plan.toml")), dict.fromkeys(GenerateSettings.model_fields)
    assert execution.carried_out(read, given, tmp_path / "out") is not None
    kept.write_text("{")
    assert execution.carried_out(read, given, tmp_path / "out") is None
    for damaged in ("{", json.dumps(whole | {"degrees": None}), json.dumps(whole | {"to_first": [0.5]})):
        kept.write_text(damaged)
        again = dti(*give)
        assert again.json == first.json
        assert again.err.count("judging") == 1
    report = (tmp_path / "out/results.md").read_text()
    assert "| dti | slerp | 1 | " in report
    assert "0 is a monotone path" in report


def _word(file: Path) -> tuple[str, torch.Tensor]:
    with safe_open(file, "pt") as content:
        (key,) = content.keys()
        return content.metadata()["dti.token"], content.get_tensor(key).flatten()


@pytest.mark.usefixtures("strangers", "five_prompts")
def test_two_of_one_class_and_two_of_different_size(
    dti: Dti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same class word twice leads nowhere; between one piece and two there is no way, which costs that way alone."""
    monkeypatch.setattr(words, "LOOKED", (*words.LOOKED, "red fox"))
    photos = bundled.photos("dog")[0].parent
    own = {"rex": "dog", "bello": "dog", "red": "red fox", "tom": "cat"}
    tables = [f'[subjects.{name}]\nphotos = "{photos}"\ninit = "{init}"\n' for name, init in own.items()]
    head = PLAN.replace('subjects = ["dog", "cat", "fox"]\n', "").replace("[arms.dti]\n", "")
    plan, out = written(tmp_path, head + "".join(tables)), tmp_path / "out"
    outcome = dti("evaluate", "--plan", plan, "--out", out, "--quiet")
    assert outcome.code == 3, outcome.err
    assert "2 trials or ways failed; the others are in" in outcome.err
    kept = json.loads((out / "results.json").read_text())
    assert [each.split(":")[0] for each in kept["failed"]] == [
        f"class-word, red to tom, {path}" for path in ("slerp", "lerp")
    ]
    assert [(row["pairs"], row["backward"]) for row in kept["passages"]] == [(1, None), (1, None)]
    assert kept["done"] == 4


def frames_mark(change: str, tmp_path: Path) -> str:
    """Mark of the class word's frames from dog to cat by SLERP, with one line of the plan's passages changed."""
    file = written(
        tmp_path, PLAN.replace("[arms.dti]\n", "").replace("[passages]\n", f"[passages]\n{change}\n")
    )
    plan = plans.read(str(file))
    settings = GenerateSettings.model_validate(plan.file.generate)
    return trials.frames_mark(plan, plan.ways[0], [None, None], settings, "m")


@pytest.mark.parametrize(
    ("change", "drawn"),
    [('prompt = "a {} at sea"', True), ('paths = ["slerp"]', False)],
)
def test_a_plan_draws_only_what_is_new(change: str, drawn: bool, tmp_path: Path) -> None:
    """Other frames for another prompt; the same for a plan with another path."""
    assert (frames_mark(change, tmp_path) != frames_mark("", tmp_path)) is drawn


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("frames = 2", "frames"),
        ('prompt = "a dog"', "prompt"),
        ('paths = ["walk"]', "slerp"),
        ("paths = []", "paths"),
        ('paths = ["lerp", "lerp"]', "contains a duplicate"),
        ("stops = 3", "stops"),
    ],
)
def test_a_faulty_passage_is_named(line: str, part: str, tmp_path: Path) -> None:
    """Before anything is learned."""
    text = f'subjects = ["dog", "cat"]\nprompt_set = "stickers"\n[passages]\n{line}\n[arms.dti]\n'
    with pytest.raises(UsageError, match=part):
        plans.read(str(written(tmp_path, text)))


def test_one_subject_has_nowhere_to_go(tmp_path: Path) -> None:
    """And a plan that does not ask for ways has none."""
    text = 'subjects = ["dog"]\nprompt_set = "stickers"\n{}[arms.dti]\n'
    with pytest.raises(UsageError, match="expected two or more"):
        plans.read(str(written(tmp_path, text.format("[passages]\n"))))
    plan = plans.read(str(written(tmp_path, text.format(""))))
    assert plan.ways == ()
    assert summary.summarise(plan, "stickers", []).passages == ()
