"""Step `results`: measure the shipped model, carry out plans, and write docs/results.md.

Measurements on the same weights are cached, so the step can be interrupted and repeated.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from dticli import atomic
from dticli.bundled import judge, model_folder
from dticli.bundled.world import looks
from dticli.errors import ModelError
from dticli.evaluation import execution, stickers
from dticli.evaluation import plan as evaluation_plan
from dticli.evaluation.markdown import table
from dticli.evaluation.measure import Mean
from dticli.evaluation.trials import SCORING, weights_mark
from dticli.settings import GenerateSettings

from . import cache, ceilings, check, diagnosis, gate, pairs
from .training import RecipeLog

UNMEASURED = "Not measured on these weights."
PLANS = ("stickers", "stickers-long", "stickers-noto", "stickers-ablations")
GATE_PROMPTS = 100
TARGET = Path("docs/results.md")
PARTS = ("diagnosis", "pairs", "check", "gate")
SHEETS = {"ceilings": Path("ceilings/words.png"), "diagnosis": Path("diagnosis/diagnosis.png")}
"""Part to its picture on the page, as a path in the cache."""
PRECISION = "bf16"
"""Precision of plans, as of check and gate; processors that support it train in two thirds of the time and draw in half."""
Report = TypeVar("Report")


def run(
    samples: int, seed: int, log: RecipeLog, plans: Sequence[str] = (), parts: Sequence[str] = PARTS
) -> None:
    """Measure what has not been measured on these weights, and write docs/results.md relative to the current folder.

    Args:
        plans: those of PLANS to carry out, which takes hours.
        parts: those of PARTS to measure. Other plans and parts are on the page if they were measured on these weights before;
            otherwise the page says that they are not measured.
    """
    mark = f"{weights_mark(model_folder())}-{weights_mark(judge.weights('a').parent)}-{SCORING}-{seed}"
    model = model_folder()
    learned = _once(f"ceilings-{mark}", ceilings.CeilingsReport, lambda: ceilings.run(seed, model, log))
    measured: dict[str, tuple[str, type, Callable[[], object]]] = {
        "diagnosis": ("", diagnosis.DiagnosisReport, lambda: diagnosis.run(seed, model, log)),
        "pairs": ("", pairs.PairsReport, lambda: pairs.run(seed, model, log)),
        "check": (f"-{samples}", check.CheckReport, lambda: check.run(samples, seed, model, log)),
        "gate": (f"-{GATE_PROMPTS}", gate.GateReport, lambda: gate.run(GATE_PROMPTS, seed, model, log)),
    }
    found = {
        part: _once(f"{part}-{mark}{how}", kind, measure)
        for part, (how, kind, measure) in measured.items()
        if part in parts or _file(f"{part}-{mark}{how}").is_file()
    }
    claims = {plan: _carry_out(plan) if plan in plans else _carried_out(plan) for plan in PLANS}
    page = [
        *_opening(learned),
        *_words(learned),
        *(line for part in PARTS for line in _section(part, found.get(part))),
        *_plans(claims),
        "",
    ]
    for sheet in (SHEETS[part] for part in ("ceilings", *found) if part in SHEETS):
        target = TARGET.parent / "pictures" / sheet.name
        target.parent.mkdir(exist_ok=True)
        atomic.write_bytes(target, (cache.root() / sheet).read_bytes())
    atomic.write_bytes(TARGET, "\n".join(page).encode())
    log(f"results: wrote {TARGET}")


def _once(name: str, kind: type[Report], measure: Callable[[], Report]) -> Report:
    """The cached report of this name; measured now if there is none."""
    file, form = _file(name), TypeAdapter(kind)
    if not file.is_file():
        cache.write_bytes(file, form.dump_json(measure(), indent=1))
    return form.validate_json(file.read_bytes())


def _file(name: str) -> Path:
    return cache.folder("results") / f"{name}.json"


def _carry_out(plan: str) -> str:
    """The report of a plan, as `dti evaluate` writes it.

    Raises:
        ModelError: the command failed.
    """
    out = cache.folder("results") / plan
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dticli", "evaluate", "--plan", plan),
            *("--out", str(out), "--precision", PRECISION, "--quiet"),
        ],
        stdout=subprocess.DEVNULL,
    )
    if done.returncode:
        raise ModelError(f"plan {plan} ended with exit code {done.returncode}: expected 0; see above")
    return (out / "results.md").read_text(encoding="utf-8")


def _carried_out(plan: str) -> str:
    """The report of a plan that was carried out on these weights before, or UNMEASURED."""
    out = cache.folder("results") / plan
    given = dict.fromkeys(GenerateSettings.model_fields) | {"precision": PRECISION}
    before = execution.carried_out(evaluation_plan.read(plan), given, out) if out.is_dir() else None
    return before.markdown() if before else UNMEASURED


# ------------------------------------------------------------------------------- page


def _opening(learned: ceilings.CeilingsReport) -> Iterator[str]:
    words = learned.judged["b"]
    yield "# Results"
    yield ""
    yield (
        "On the bundled model, a word learned from five photos is identified among "
        f"{stickers.CANDIDATES} things in {words['learned word']['identified'].value:.0%} of its pictures (its class word: "
        f"{words['class word']['identified'].value:.0%}), and {words['learned word']['rest'].value:.0%} of the rest of the "
        "prompt is seen. These are means over twelve subjects that no setting was tuned on, with the defaults of `dti train`, by "
        "judge B; the sections below put them into context. *FAILED* marks a minimum (bar) that was set before the measurement "
        "and is not met. The plans' words were trained for longer."
    )
    yield ""
    yield "Written by `python -m dticli.bundled.recipe results`. The two judges, A and B, were trained independently."


def _words(learned: ceilings.CeilingsReport) -> Iterator[str]:
    yield from ("", "## Learned words, with lower and upper bounds", "")
    yield (
        "Pictures of the twenty prompts of `stickers-complex`, means over the twelve subjects with 95 % bootstrap intervals. "
        f"*Identified*: the judge picks the subject out of {stickers.CANDIDATES} things, some of which have the same noun or "
        "the same look; chance is 4 %. *Look*: hue within 25 degrees, pattern and build. *Rest*: everything else that the "
        "prompt asks for. The class word is the lower bound. *Look in words* describes the look in the prompt. *Trained "
        "name*, a name that the model was trained on, is the upper bound for a single word. *Captions* that say where the "
        "subject is, and *masks* of it, are what a user can add to the photos. *Drawn*: pictures drawn to the prompt as the "
        "training pictures are, the upper bound of the judge; *drawn, rebuilt*: the same after the autoencoder, which no "
        "denoiser can surpass. The photos show only the subject. A bar applies to the lower end of judge B's interval."
    )
    yield ""
    columns = [(name, judge) for name in ceilings.FIGURES for judge in reversed(learned.judged)]
    yield from table(
        ["", *(f"{name}, {judge.upper()}" for name, judge in columns)],
        (
            [kind, *(_held(learned.judged[judge][kind], kind, name, judge) for name, judge in columns)]
            for kind in learned.judged["b"]
        ),
    )
    yield ""
    yield from _out_of_reach(learned.judged["b"])
    row = "A row for each of the twelve subjects: a photo, its learned word in three scenes, its class word."
    yield f"![{row}](pictures/{SHEETS['ceilings'].name})"


def _out_of_reach(judged: Mapping[str, Mapping[str, Mean]]) -> Iterator[str]:
    """Lines about bars of the learned word that pictures without a denoiser miss too."""
    for kind in ("drawn", "drawn, rebuilt"):
        missed = [
            f"{name} ({judged[kind][name].low or 0:.1%}, bar {bar:.0%})"
            for name, bar in ceilings.BARS["learned word"].items()
            if kind in judged and (judged[kind][name].low or 0) < bar
        ]
        if missed:
            yield f"Bars of the learned word that the row *{kind}* misses too: {', '.join(missed)}."
            yield ""


def _held(means: Mapping[str, Mean], kind: str, name: str, judge: str) -> str:
    if name not in means:
        return ""
    bar = ceilings.BARS.get(kind, {}).get(name)
    found = means[name]
    low = found.low or 0.0
    held = "" if bar is None or judge != "b" else f", bar {bar:.0%}: {low:.1%} {check.verdict(low >= bar)}"
    return f"{_share(found)}{held}"


def _share(found: Mean) -> str:
    return f"{found.value:.0%} ({found.low or 0:.0%} to {found.high or 0:.0%})"


def _section(part: str, found: object) -> Iterator[str]:
    title, write = _SECTIONS[part]
    yield from ("", f"## {title}", "")
    yield from [UNMEASURED] if found is None else write(found)


def _parts(found: diagnosis.DiagnosisReport) -> Iterator[str]:
    yield (
        f"The four tuning subjects, {diagnosis.PICTURES} pictures of *{diagnosis.PROMPT.format('...')}* each, judge B, and the "
        f"loss on {diagnosis.DRAWS} fixed draws of their photos, over the whole picture and on the subject only. *Free states* "
        "are text states optimized without the text encoder: what they cannot draw, the denoiser cannot draw. *Masked*: "
        "learned from the subject only, without the background."
    )
    yield ""
    losses, names = ("loss", "loss on the thing"), ("identified", "look", "noun")
    yield from table(
        ["", *losses, *names],
        (
            [said, *(f"{row[name].value:.4f}" for name in losses), *(_share(row[name]) for name in names)]
            for said, row in found.rows.items()
        ),
    )
    yield ""
    yield f"![A row for each of the four subjects: a photo, then a picture by each method.](pictures/{SHEETS['diagnosis'].name})"


def _in_company(found: pairs.PairsReport) -> Iterator[str]:
    yield (
        "Pairs of the twelve subjects with different nouns, in both orders and four relations: *a ... left of a ... on the "
        "beach*. *Both*: share of pictures in which both nouns are seen. In these pictures: *own hue* and *other's hue*, the "
        f"share of things whose main hue is within {looks.NEAR_HUE:g} degrees of their own and of the other's; *look*, how "
        "much of hue, pattern and build is kept."
    )
    yield from _by_judge(
        found.together, {"both": "both", "own": "own hue", "other's": "other's hue", "look": "look"}
    )
    yield ""
    yield (
        f"Interpolation between two words, for these pairs and the pairs with the same noun: {pairs.FRAMES} steps of "
        f"{len(pairs.PLAIN)} pictures. *Thing*: the noun of either word is seen, at the ends and in the middle third. In the "
        f"middle third: *hue*, the main hue lies on the shorter arc between the two looks, or within {looks.NEAR_HUE:g} "
        "degrees of it, and how often that happens by chance; *build*, the build lies between the two; and the norm of the "
        "row in the middle, as a multiple of the first word's."
    )
    columns = (
        "thing at the ends",
        "thing in between",
        "hue",
        "hue by chance",
        "build",
        "length in the middle",
    )
    yield from _by_judge(found.between, dict(zip(columns, columns, strict=True)))


def _by_judge(
    judged: Mapping[str, Mapping[str, Mapping[str, Mean]]], columns: Mapping[str, str]
) -> Iterator[str]:
    yield ""
    yield from table(
        [
            "",
            *(f"{shown}, {judge.upper()}" for judge in reversed(list(judged)) for shown in columns.values()),
        ],
        (
            [
                kind,
                *(
                    _share(judged[judge][kind][name]) if name in judged[judge][kind] else ""
                    for judge in reversed(list(judged))
                    for name in columns
                ),
            ]
            for kind in judged["b"]
        ),
    )


def _plans(claims: Mapping[str, str]) -> Iterator[str]:
    for plan, report in claims.items():
        yield from ("", f"## Plan `{plan}`", "", report.rstrip())


def _bars(checked: check.CheckReport) -> Iterator[str]:
    yield (
        f"{checked.samples} prompts, each with a combination of noun, style, setting and relation that is in no training "
        "picture. Share of pictures that show what was asked for; in brackets the lower end of its 95 % Wilson interval, "
        "which is compared with the bar, and the number of pictures. A direction counts only if the judge sees both of its "
        f"things. The autoencoder reaches {checked.psnr:.2f} dB on {min(checked.samples, check.PSNR_PICTURES)} such pictures "
        f"(bar {check.PSNR_BAR:g}: {check.verdict(checked.psnr >= check.PSNR_BAR)})."
    )
    yield ""
    yield from table(
        ["", "bar", *(f"judge {name.upper()}" for name in checked.judged)],
        (
            [bar, f"{least:.0%}", *(_verdict(table[bar], bar) for table in checked.judged.values())]
            for bar, (least, _) in check.BARS.items()
        ),
    )


def _verdict(recall: check.Recall, bar: str) -> str:
    return f"{recall.share:.1%} ({recall.lower:.1%} of {recall.asked}) {check.verdict(recall.passes(bar))}"


def _curve(gated: gate.GateReport) -> Iterator[str]:
    scales = " or ".join(f"{scale:g}x" for scale in gate.WATCHED)
    yield (
        f"{gated.samples} prompts on the example subjects, judge B. The model can show the harm of a large norm if at {scales} "
        f"the other elements lose at least {gate.LEAST_LOSS:.0%} while the noun is still seen at least half as often: "
        f"**{check.verdict(gated.passed)}**. *Position*: how often an MLP recovers it from LN(e + p) and from the last states; "
        "*degrees*: by how much a block rotates the subject's state. *Alone*: the word has the state that it has in *a photo "
        "of a WORD*; the loss of the other elements there is the most that can be lost through what its state says about the "
        "prompt."
    )
    yield ""
    elements = list(gated.alone)

    def told(tallies: Mapping[str, gate.Tally]) -> list[str]:
        shares = [f"{tallies[name].right / tallies[name].asked:.0%}" for name in elements]
        return [f"{gate.others(tallies):.0%}", *shares]

    yield from table(
        ["length", "others", *elements, "position", "in states", "degrees"],
        [
            *(
                [
                    f"{scale:g}x",
                    *told(tallies),
                    f"{gated.encoder[scale]['position']:.0%}",
                    f"{gated.encoder[scale]['position in states']:.0%}",
                    f"{gated.encoder[scale]['degrees a block']:.1f}",
                ]
                for scale, tallies in gated.pictures.items()
            ),
            ["1x, alone", *told(gated.alone), "", "", ""],
        ],
    )


_SECTIONS: Mapping[str, tuple[str, Callable[[Any], Iterator[str]]]] = {
    "diagnosis": ("Which part limits the words", _parts),
    "pairs": ("Two words in one prompt, and interpolation between two words", _in_company),
    "check": ("The bundled model", _bars),
    "gate": ("The gate: class words with larger norms, nothing learned", _curve),
}
