"""Ways between learned words in a plan: drawn and judged once, and what their figures say."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dticli.bundled import judge
from dticli.errors import UsageError
from dticli.evaluation import passages
from dticli.evaluation import plan as plans
from dticli.evaluation.passages import Passage
from tests.conftest import Outcome as Ended

Dti = Callable[..., Ended]

PLAN = """
model = "stickers"
subjects = ["dog", "cat", "owl"]
prompt_set = "prompts.txt"
count = 1
image_judge = "stickers-b"
text_judge = "stickers-a"
[train]
steps = 1
batch_size = 1
[generate]
steps = 1
[passages]
frames = 3
count = 2
[arms.dti]
[arms.class-word]
of = "init"
"""


def passage(to_first: tuple[float, ...], to_second: tuple[float, ...]) -> Passage:
    return Passage("dti", "slerp", "dog", "cat", 60.0, to_first, to_second)


def test_a_monotone_way_never_leads_back() -> None:
    """Each frame nearer to the second and farther from the first: nothing leads back, and the middle is half as alike."""
    even = passage((0.8, 0.4, 0.2), (0.2, 0.4, 0.8))
    assert even.backward == 0
    assert even.kept == pytest.approx(0.5)


def test_a_way_that_turns_round_leads_back() -> None:
    """Of 0.6 + 0.3 + 0.9 of change, the 0.3 lead back."""
    assert passage((0.6, 0.3, 0.5, 0.0), (0.0, 0.3, 0.2, 0.6)).backward == pytest.approx(0.3 / 1.8)


def test_a_way_without_change_has_no_direction() -> None:
    """Not 0, which would be a perfect way."""
    assert math.isnan(passage((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).backward)


def test_results_are_means_over_pairs() -> None:
    """One row an arm and path, in the order they came."""
    ways = [passage((0.8, 0.4, 0.2), (0.2, 0.4, 0.8)), passage((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))]
    (result,) = passages.summarise(ways)
    assert (result.arm, result.path, result.pairs, result.degrees) == ("dti", "slerp", 2, 60.0)
    assert result.kept.value == pytest.approx((0.5 + 1) / 2)


def test_likeness_is_by_frame() -> None:
    """Two pictures a frame, against two photos: the mean of four cosines."""
    photos = torch.eye(2)
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8]])
    assert passages.likenesses(features, photos, 2) == pytest.approx((0.5, 0.7))


def test_passages_are_carried_out_once(dti: Dti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dog to cat for each arm on each path; the owl has no partner; given again, nothing is drawn."""
    torch.manual_seed(0)
    save_file(judge.Observer().state_dict(), tmp_path / "b.safetensors")
    save_file(judge.DualEncoder().state_dict(), tmp_path / "a.safetensors")
    monkeypatch.setattr(judge, "weights", lambda name: tmp_path / f"{name}.safetensors")
    (tmp_path / "plan.toml").write_text(PLAN.replace("prompts.txt", "stickers").replace("owl", "fox"))
    give = ("evaluate", "--plan", tmp_path / "plan.toml", "--out", tmp_path / "out", "--quiet", "--json")
    first = dti(*give)
    assert first.code == 0, first.err
    found = {(row["arm"], row["path"]): row for row in first.json["passages"]}
    assert list(found) == [(arm, path) for arm in ("dti", "class-word") for path in ("slerp", "lerp")]
    assert {row["pairs"] for row in found.values()} == {1}
    words = {
        each["dti.token"]: rows
        for each, rows in (_word(file) for file in (tmp_path / "out/words").glob("*.safetensors"))
    }
    cosine = torch.cosine_similarity(words["<dog>"], words["<cat>"], dim=0).item()
    assert found["dti", "slerp"]["degrees"] == pytest.approx(math.degrees(math.acos(cosine)), abs=0.01)
    assert len(list((tmp_path / "out/pictures").glob("*/00[0-2]-[01].png"))) == 4 * 3 * 2

    again = dti(*give)
    assert again.json == first.json
    assert "judging" not in again.err
    report = (tmp_path / "out/results.md").read_text()
    assert "| dti | slerp | 1 | " in report
    assert "0 is a monotone way" in report


def _word(file: Path) -> tuple[dict[str, str], torch.Tensor]:
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        metadata = content.metadata()
    (rows,) = load_file(file).values()
    return metadata, rows.flatten()


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("frames = 2", "frames"),
        ('prompt = "a dog"', "prompt"),
        ('paths = ["walk"]', "slerp"),
        ("paths = []", "paths"),
        ("stops = 3", "stops"),
    ],
)
def test_a_faulty_passage_is_named(line: str, part: str, tmp_path: Path) -> None:
    """Before anything is learned."""
    file = tmp_path / "plan.toml"
    file.write_text(f'subjects = ["dog", "cat"]\nprompt_set = "stickers"\n[passages]\n{line}\n[arms.dti]\n')
    with pytest.raises(UsageError, match=part):
        plans.read(str(file))


def test_a_plan_without_passages_has_none(tmp_path: Path) -> None:
    """Nor a table of them."""
    file = tmp_path / "plan.toml"
    file.write_text('subjects = ["dog", "cat"]\nprompt_set = "stickers"\n[arms.dti]\n')
    plan = plans.read(str(file))
    assert plan.ways == ()
    assert plans.summarise(plan, "stickers", []).passages == ()
