"""Step `results`: hold the shipped model against its bars, its gate and the paper's claim, and write docs/results.md.

What was measured on the same weights before is taken from the cache, so that the step can be stopped and given again.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from dticli import atomic
from dticli.bundled import judge, model_folder
from dticli.errors import ModelError
from dticli.evaluation.markdown import table
from dticli.evaluation.trials import SCORING, weights_mark

from . import cache, check, gate
from .training import Log

PLANS = ("stickers", "stickers-ablations")
GATE_PROMPTS = 100
TARGET = Path("docs/results.md")
# bfloat16 as in check and gate: processors that multiply it take two thirds of the time to learn and half of it to draw.
HOW = ("--precision", "bf16", "--quiet")
Report = TypeVar("Report")


def run(samples: int, seed: int, log: Log) -> None:
    """Measure whatever has not been measured on these weights, and write docs/results.md into the present folder."""
    mark = f"{weights_mark(model_folder())}-{weights_mark(judge.weights('a').parent)}-{SCORING}-{seed}"
    model = model_folder()
    checked = _once(f"check-{mark}-{samples}", check.Report, lambda: check.run(samples, seed, model, log))
    gated = _once(
        f"gate-{mark}-{GATE_PROMPTS}", gate.Report, lambda: gate.run(GATE_PROMPTS, seed, model, log)
    )
    claims = {plan: _carried_out(plan) for plan in PLANS}
    atomic.write_bytes(TARGET, "\n".join([*_lines(checked, gated, claims), ""]).encode())
    log(f"results: wrote {TARGET}")


def _once(name: str, kind: type[Report], measure: Callable[[], Report]) -> Report:
    """What was measured under this name before, or else now."""
    file, form = cache.folder("results") / f"{name}.json", TypeAdapter(kind)
    if not file.is_file():
        cache.write_bytes(file, form.dump_json(measure(), indent=1))
    return form.validate_json(file.read_bytes())


def _carried_out(plan: str) -> str:
    """The report of a plan, as `dti evaluate` writes it.

    Raises:
        ModelError: it was not carried out to its end.
    """
    out = cache.folder("results") / plan
    done = subprocess.run(
        [sys.executable, "-m", "dticli", "evaluate", "--plan", plan, "--out", str(out), *HOW],
        stdout=subprocess.DEVNULL,
    )
    if done.returncode:
        raise ModelError(f"plan {plan} ended with exit code {done.returncode}: expected 0; see above")
    return (out / "results.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------- page


def _lines(checked: check.Report, gated: gate.Report, claims: Mapping[str, str]) -> Iterator[str]:
    yield "# Results"
    yield ""
    yield "Measured on the bundled model in bfloat16 by `python -m dticli.bundled.recipe results`, which writes this page."
    yield from ("", "## The bundled model", "")
    yield from _bars(checked)
    yield from ("", "## The gate: longer rows of the class word, nothing learned", "")
    yield from _curve(gated)
    for plan, report in claims.items():
        yield from ("", f"## Plan `{plan}`", "", report.rstrip())


def _bars(checked: check.Report) -> Iterator[str]:
    yield (
        f"{checked.samples} prompts, each a combination of noun, style, setting and relation that no training picture shows. "
        "Share of pictures that show what was asked; in brackets the lower end of its 95 % Wilson interval, which passes or not, "
        "and of how many pictures. A direction is asked for where the judge sees both of its things. "
        f"The autoencoder reaches {checked.psnr:.2f} dB on {min(checked.samples, check.PSNR_PICTURES)} such pictures "
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


def _curve(gated: gate.Report) -> Iterator[str]:
    scales = " or ".join(f"{scale:g}x" for scale in gate.WATCHED)
    yield (
        f"{gated.samples} prompts on the example subjects, judge B. The model can show harm if at {scales} the other elements "
        f"lose at least {gate.LEAST_LOSS:.0%} while the noun is still seen half as often: **{check.verdict(gated.passed)}**. "
        "Position: how often an MLP reads it from LN(e + p) and from the last states; then the degrees a block turns the "
        "subject's state by. *Alone* is the word with the state it has in *a photo of a WORD*: what the others lose there is all "
        "that hangs on what its state says of its prompt."
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
