"""The page of results says what was measured, and the gate opens on harm alone."""

from types import SimpleNamespace

import pytest

from dticli.bundled.recipe import cache, ceilings, check, diagnosis, gate, pairs, results, shards, steps
from dticli.bundled.recipe.__main__ import _parser
from dticli.bundled.recipe.check import Recall
from dticli.bundled.recipe.gate import Tally
from dticli.errors import ModelError
from dticli.evaluation.measure import Mean


def gated(nouns, others):
    """A gate of 100 prompts, right answers by scale 1, 8 and 16."""
    scales = (1.0, 8.0, 16.0)
    inside = {"position": 1.0, "position in states": 0.5, "degrees a block": 19.04}
    pictures = {
        scale: {"noun": Tally(noun, 100), "setting": Tally(other, 100)}
        for scale, noun, other in zip(scales, nouns, others, strict=True)
    }
    return gate.GateReport(100, {scale: inside for scale in scales}, {}, pictures, pictures[1.0])


@pytest.mark.parametrize(
    ("nouns", "others", "passed"),
    [
        ((80, 60, 20), (90, 79, 70), True),
        ((80, 30, 20), (90, 79, 70), False),
        ((80, 60, 20), (90, 81, 70), False),
        ((80, 60, 60), (90, 85, 79), True),
        ((80, 90, 90), (90, 95, 95), False),
    ],
)
def test_the_gate_opens_on_harm_to_others_while_the_noun_is_seen(nouns, others, passed):
    """Ten points of the other elements must go, at 8x or 16x, where the noun is still seen half as often."""
    assert gated(nouns, others).passed is passed


@pytest.mark.parametrize(
    ("step", "option", "known"),
    [
        ("results", "--parts", results.PARTS),
        ("results", "--plans", results.PLANS),
        ("world", "--kinds", shards.KINDS),
    ],
)
def test_unknown_names_are_refused(step, option, known, tmp_path, monkeypatch, capsys):
    """In one line, with those that are known, before anything is measured or drawn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert steps.run(_parser().parse_args([step, option, next(iter(known)), "gates"])) == 2
    said = capsys.readouterr().out
    assert f"{option} gates: expected some of {', '.join(known)}" in said


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """An empty cache and folder, and measurements that count how often they are made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    calls = []
    for sheet in results.SHEETS.values():
        (cache.folder(sheet.parent.name) / sheet.name).write_bytes(sheet.name.encode())
    table = dict.fromkeys(check.BARS, Recall(90, 100))

    def checking(*given):
        calls.append("check")
        return check.CheckReport(given[0], 26.4, {"a": table, "b": dict.fromkeys(check.BARS, Recall(8, 10))})

    def gating(*given):
        calls.append("gate")
        return gated((80, 60, 20), (90, 79, 70))

    def learning(*given):
        calls.append("ceilings")
        figures = {
            "identified": Mean(0.7, 0.64, 0.76),
            "look": Mean(0.8, 0.75, 0.85),
            "noun": Mean(0.9, 0.86, 0.94),
        }
        whole = figures | {"rest": Mean(0.98, 0.97, 0.99)}
        kinds = {kind: whole for kind in ceilings.BARS} | {"photos": figures}
        kinds |= {"drawn": whole | {"noun": Mean(0.88, 0.824, 0.93)}}
        return ceilings.CeilingsReport({"a": kinds, "b": kinds})

    def diagnosing(*given):
        calls.append("diagnosis")
        row = {"noun": Mean(0.9, 0.8, 1.0), "identified": Mean(0.5, 0.4, 0.6), "look": Mean(0.6, 0.5, 0.7)}
        return diagnosis.DiagnosisReport(
            {"class word": row | {"loss": Mean(0.35124, 0.3, 0.4), "loss on the thing": Mean(0.7, 0.6, 0.8)}}
        )

    def pairing(*given):
        calls.append("pairs")
        whole = {"both": Mean(0.5, 0.4, 0.6), "own": Mean(0.7, 0.6, 0.8), "look": Mean(0.6, 0.5, 0.7)}
        way = dict.fromkeys(
            (
                "thing at the ends",
                "thing in between",
                "hue",
                "hue by chance",
                "build",
                "length in the middle",
            ),
            Mean(0.9, 0.8, 1.0),
        )
        return pairs.PairsReport(
            {name: {"learned word": whole} for name in "ab"}, {name: {"slerp": way} for name in "ab"}
        )

    monkeypatch.setattr(ceilings, "run", learning)
    monkeypatch.setattr(pairs, "run", pairing)
    monkeypatch.setattr(diagnosis, "run", diagnosing)
    monkeypatch.setattr(check, "run", checking)
    monkeypatch.setattr(gate, "run", gating)
    return calls


def carried_out(plan):
    out = cache.folder("results") / plan
    out.mkdir()
    (out / "results.md").write_text(f"table of {plan}\n")
    return 0


def test_the_page_holds_every_measurement_and_none_is_made_twice(measured, monkeypatch, tmp_path):
    """Bars with verdicts by the lower end, the curve, a section a plan; a second call measures nothing."""
    ran = []

    def run(command, **_):
        ran.append(command[command.index("--plan") + 1])
        code = carried_out(ran[-1]) if len(ran) <= len(results.PLANS) else 0
        return results.subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(results.subprocess, "run", run)
    (tmp_path / "docs").mkdir()
    lines = []
    results.run(300, 0, lines.append, results.PLANS)
    page = (tmp_path / "docs/results.md").read_text()
    assert "| noun | 80% | 90.0% (82.6% of 100) passed | 80.0% (49.0% of 10) FAILED |" in page
    assert "| background | 90% | 90.0% (82.6% of 100) FAILED" in page
    assert "the row *drawn* misses too: identified (64.0%, bar 65%), noun (82.4%, bar 85%)." in page
    assert "26.40 dB on 300 such pictures (bar 27: FAILED)" in page
    assert "| 8x | 79% | 60% | 79% | 100% | 50% | 19.0 |" in page
    assert "| 1x, alone | 90% | 80% | 90% |  |  |  |" in page
    learned = next(line for line in page.splitlines() if line.startswith("| learned word |"))
    assert (
        "70% (64% to 76%), bar 65%: 64.0% FAILED | 70% (64% to 76%) | 80% (75% to 85%), bar 75%: 75.0% passed |"
        in learned
    )
    assert "| class word | 0.3512 | 0.7000 | 50% (40% to 60%) |" in page
    assert "| learned word | 50% (40% to 60%) | 70% (60% to 80%) |  | 60% (50% to 70%) |" in page
    assert "| slerp | 90% (80% to 100%) |" in page
    assert all(f"## Plan `{plan}`\n\ntable of {plan}\n" in page for plan in results.PLANS)
    for sheet in results.SHEETS.values():
        assert f"](pictures/{sheet.name})" in page
        assert (tmp_path / "docs/pictures" / sheet.name).read_bytes() == sheet.name.encode()
    results.run(300, 0, lines.append, results.PLANS)
    assert (tmp_path / "docs/results.md").read_text() == page
    assert measured == ["ceilings", "diagnosis", "pairs", "check", "gate"]


def test_a_plan_that_failed_writes_no_page(measured, monkeypatch, tmp_path):
    """Half a result is none."""
    monkeypatch.setattr(
        results.subprocess, "run", lambda command, **_: results.subprocess.CompletedProcess(command, 5)
    )
    with pytest.raises(ModelError, match="exit code 5"):
        results.run(300, 0, print, results.PLANS)
    assert not (tmp_path / "docs/results.md").exists()


def test_a_plan_that_is_not_asked_for_is_said_not_to_be_measured(measured, monkeypatch, tmp_path):
    """Plans take hours, and the rest of the page stands without them."""
    monkeypatch.setattr(results.subprocess, "run", lambda *_, **__: pytest.fail("carried out"))
    (tmp_path / "docs").mkdir()
    results.run(300, 0, print)
    page = (tmp_path / "docs/results.md").read_text()
    assert page.count(results.UNMEASURED) == len(results.PLANS)


def test_a_plan_that_was_carried_out_stays_on_the_page(measured, monkeypatch, tmp_path):
    """Where all of it was done on these weights, whether it is asked for again or not; what is half done is not measured."""
    (tmp_path / "docs").mkdir()
    whole, half, *others = results.PLANS
    for plan in (whole, half):
        (cache.folder("results") / plan).mkdir()

    def carried_out(plan, given, folder):
        assert given["precision"] == "bf16"
        assert folder == cache.folder("results") / plan.name
        return SimpleNamespace(markdown=lambda: f"table of {plan.name}\n") if plan.name == whole else None

    monkeypatch.setattr(results.execution, "carried_out", carried_out)
    results.run(300, 0, print)
    page = (tmp_path / "docs/results.md").read_text()
    assert f"## Plan `{whole}`\n\ntable of {whole}\n" in page
    assert page.count(results.UNMEASURED) == 1 + len(others)


def test_a_part_that_is_not_asked_for_is_said_not_to_be_measured_until_it_was(measured, tmp_path):
    """What was measured on the same weights before stands on the page whether it is asked for or not."""
    (tmp_path / "docs").mkdir()
    results.run(300, 0, print, parts=["check"])
    page = (tmp_path / "docs/results.md").read_text()
    assert page.count(results.UNMEASURED) == 3 + len(results.PLANS)
    assert f"## Which part limits the words\n\n{results.UNMEASURED}" in page
    assert not (tmp_path / "docs/pictures/diagnosis.png").exists()
    results.run(300, 0, print, parts=["gate"])
    assert (tmp_path / "docs/results.md").read_text().count(results.UNMEASURED) == 2 + len(results.PLANS)
    assert measured == ["ceilings", "check", "gate"]
