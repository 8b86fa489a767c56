"""Results of a plan: the figures of each trial, and those of its arms."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np

from dticli import charts
from dticli.charts import Panel, Series
from dticli.evaluation import markdown, measure, passages, records
from dticli.evaluation.measure import Mean
from dticli.evaluation.passages import Passage, PassageResult
from dticli.evaluation.plan import UNTRAINED, Plan, Trial


@dataclass(frozen=True)
class Outcome:
    """The figures of a trial.

    Attributes:
        norm: mean row norm of the word, as a multiple of the vocabulary's mean.
        likeness, alignment: means over prompts.
        chance: alignment of the same pictures with other prompts of the set; None if there is only one prompt.
        elements, leakage: as in `prompt.Reading`, over all prompts.
    """

    arm: str
    subject: str
    seed: int
    norm: float
    likeness: float
    alignment: float
    chance: float | None
    elements: Mapping[str, float]
    leakage: float | None


def read_outcome(path: Path, trial: Trial) -> Outcome | None:
    """The kept outcome of a trial; None if it is absent or damaged."""
    return records.read(path, Outcome, trial.names)


@dataclass(frozen=True)
class ArmResult:
    """The figures of an arm, over its trials.

    Attributes:
        gain: alignment as a multiple of the first arm's, paired over subjects.
        noun, identified, look: share of pictures that show the noun, share in which the subject is identified, and share of the
            look that is kept; None if the judge does not look for them.
        lifted: (alignment - chance) / (alignment of the untrained word - its chance), paired over subjects; None if the plan has
            no arm of the untrained word, or its alignment may be no better than chance.
        differences: for each available one of FIGURES, the arm's minus the first arm's, paired over subjects.
    """

    arm: str
    trials: int
    norm: float
    likeness: Mean
    alignment: Mean
    gain: Mean | None
    lifted: Mean | None
    noun: Mean | None
    identified: Mean | None
    look: Mean | None
    differences: Mapping[str, Mean]
    elements: Mapping[str, float]
    leakage: float | None


@dataclass(frozen=True)
class PlanResult:
    """The results of a plan.

    Attributes:
        pictures: number per trial.
        done, trials: number of finished trials, and of all.
        reference: name of the first arm, with which others are compared.
        failed: trials and ways that failed, with the error.
    """

    plan: str
    model: str
    image_judge: str
    text_judge: str
    prompt_set: str
    subjects: tuple[str, ...]
    seeds: tuple[int, ...]
    pictures: int
    done: int
    trials: int
    reference: str
    failed: tuple[str, ...]
    arms: tuple[ArmResult, ...]
    outcomes: tuple[Outcome, ...]
    passages: tuple[PassageResult, ...]

    def lines(self) -> Iterator[str]:
        """The summary as Markdown, with the tables of arms and passages."""
        seen = [name for name in SUBJECT if any(getattr(arm, name) for arm in self.arms)]
        names = [
            name for name in dict.fromkeys(n for arm in self.arms for n in arm.elements) if name not in seen
        ]
        figures = ["trials", "norm", "likeness", *seen, "alignment", f"x {self.reference}", "lifted"]
        heads = ["arm", *figures, *names, "leakage"]
        yield (
            f"{self.plan}: {self.model}, {len(self.subjects)} subjects x {len(self.seeds)} seeds, {self.pictures} pictures per "
            f"trial, prompts {self.prompt_set}; likeness by {self.image_judge}, alignment by {self.text_judge}; "
            f"{self.done} of {self.trials} trials done"
        )
        yield from (f"failed: {each}" for each in self.failed)
        yield ""
        yield from markdown.table(heads, (_row(arm, seen, names) for arm in self.arms))
        if self.passages:
            yield ""
            yield from passages.lines(self.passages)

    def chart(self) -> str:
        """An SVG chart of alignment against likeness: one point per arm, with its intervals over subjects."""
        series = [
            Series(arm.arm, [(arm.likeness.value, arm.alignment.value)], "points", _spans(arm))
            for arm in self.arms
        ]
        return charts.svg(
            [Panel(self.plan, f"likeness, by {self.image_judge}", f"alignment, by {self.text_judge}", series)]
        )

    def markdown(self) -> str:
        """The whole report."""
        figures = [
            [f"{each.norm:.2f}", f"{each.likeness:.3f}", f"{each.alignment:.3f}"] for each in self.outcomes
        ]
        rows = [
            [each.subject, str(each.seed), each.arm, *own]
            for each, own in zip(self.outcomes, figures, strict=True)
        ]
        each_trial = markdown.table(["subject", "seed", "arm", "norm", "likeness", "alignment"], rows)
        notes = [NOTE, *([PASSAGES_NOTE] if self.passages else [])]
        return "\n".join([*self.lines(), "", *notes, *self._compared(), "", *each_trial, ""])

    def _compared(self) -> Iterator[str]:
        """A table of the differences of each arm to the first; nothing if no other arm shares a subject with it."""
        others = [arm for arm in self.arms if arm.arm != self.reference and arm.differences]
        if not others:
            return
        figures = [name for name in FIGURES if any(name in arm.differences for arm in others)]
        yield from ("", DIFFERENCES_NOTE.format(self.reference), "")
        yield from markdown.table(
            ["arm", *figures],
            ([arm.arm, *(str(arm.differences.get(name, "")) for name in figures)] for arm in others),
        )


SUBJECT = ("noun", "identified", "look")
"""Elements of the subject itself, which do not count for alignment."""

FIGURES = ("likeness", *SUBJECT, "alignment")
"""Figures in which arms are compared."""

DIFFERENCES_NOTE = (
    "Each arm minus {}, paired over the subjects of both, with 95 % bootstrap intervals. Where one holds 0, the two may not "
    "differ."
)

NOTE = (
    "Norm: mean row norm as a multiple of the vocabulary's mean. Likeness (to the training photos) and alignment: means "
    "over subjects of means over seeds, with 95 % bootstrap intervals over subjects; with few subjects, these intervals are "
    "too narrow. x: alignment as a multiple of the first arm's, paired over subjects. Lifted: (alignment - chance) / "
    "(alignment of the untrained class word - its chance), where chance is the alignment of the same pictures with other "
    "prompts of the set. Identified: the share of pictures in which the judge picks the subject out of 24 things, some of "
    "them similar; look: how much of hue (within 25 degrees), pattern and build is kept; both only for prompts that do not "
    "ask for another colour. Further columns: the share of pictures that show each requested element, and leakage, how "
    "often one of two things shows the other's colour."
)

PASSAGES_NOTE = (
    "Between words: based on the likeness of each frame to the photos of both subjects, by the same judge. Degrees: the "
    "angle between the words. Backward: the share of the change between the subjects that goes back towards the first; 0 is "
    "a monotone path, 0.5 makes no progress. Kept: likeness of the frames in between to the more similar subject, as a "
    "multiple of the likeness of the ends to their own subjects; it can exceed 1 if an end hardly resembles its subject."
)


def _row(arm: ArmResult, seen: Sequence[str], names: Sequence[str]) -> list[str]:
    shares = [_share(arm.elements.get(name)) for name in names]
    subject = [str(getattr(arm, name) or "") for name in seen]
    return [
        arm.arm, str(arm.trials), f"{arm.norm:.2f}", str(arm.likeness), *subject, str(arm.alignment), str(arm.gain or ""),
        str(arm.lifted or ""), *shares, _share(arm.leakage),
    ]  # fmt: skip


def _spans(arm: ArmResult) -> list[tuple[float, float, float, float]]:
    """The (low x, high x, low y, high y) of an arm's intervals; empty if a mean has none."""
    ends = [end for mean in (arm.likeness, arm.alignment) for end in (mean.low, mean.high)]
    low_x, high_x, low_y, high_y = ends
    if low_x is None or high_x is None or low_y is None or high_y is None:
        return []
    return [(low_x, high_x, low_y, high_y)]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def summarise(
    plan: Plan,
    model: str,
    outcomes: Sequence[Outcome],
    failed: Sequence[str] = (),
    judged: Sequence[Passage] = (),
) -> PlanResult:
    """Summarise outcomes; arms are compared over the subjects that each shares with the first one."""
    untrained = next((arm.name for arm in plan.arms if arm.of == UNTRAINED and not arm.magnitude), None)
    by_arm = {arm.name: [each for each in outcomes if each.arm == arm.name] for arm in plan.arms}
    first, plain = by_arm[plan.arms[0].name], by_arm.get(untrained or "", [])
    return PlanResult(
        plan=plan.name,
        model=model,
        image_judge=plan.file.image_judge,
        text_judge=plan.file.text_judge,
        prompt_set=plan.file.prompt_set,
        subjects=tuple(subject.name for subject in plan.subjects),
        seeds=plan.file.seeds,
        pictures=plan.file.count * len(plan.prompts),
        done=len(outcomes),
        trials=len(plan.trials),
        reference=plan.arms[0].name,
        failed=tuple(failed),
        arms=tuple(_arm_result(name, own, first, plain) for name, own in by_arm.items() if own),
        outcomes=tuple(outcomes),
        passages=passages.summarise(judged),
    )


def _arm_result(
    name: str, own: Sequence[Outcome], first: Sequence[Outcome], plain: Sequence[Outcome]
) -> ArmResult:
    figures = {each: _by_subject(own, _figure(each)) for each in FIGURES}
    references = {each: _by_subject(first, _figure(each)) for each in FIGURES}
    means = {each: measure.mean(list(values.values())) for each, values in figures.items() if values}
    differences = {each: _difference(figures[each], references[each]) for each in FIGURES}
    return ArmResult(
        arm=name,
        trials=len(own),
        norm=float(np.mean([each.norm for each in own])),
        likeness=means["likeness"],
        alignment=means["alignment"],
        gain=_ratio(figures["alignment"], references["alignment"]),
        lifted=_ratio(_by_subject(own, _above_chance), _by_subject(plain, _above_chance)),
        noun=means.get("noun"),
        identified=means.get("identified"),
        look=means.get("look"),
        differences={each: mean for each, mean in differences.items() if mean},
        elements=measure.elements(own),
        leakage=measure.leakage(own),
    )


def _figure(name: str) -> Callable[[Outcome], float | None]:
    """A function that reads one of FIGURES from an outcome."""
    return (lambda outcome: outcome.elements.get(name)) if name in SUBJECT else attrgetter(name)


def _above_chance(outcome: Outcome) -> float | None:
    return None if outcome.chance is None else outcome.alignment - outcome.chance


def _by_subject(outcomes: Sequence[Outcome], figure: Callable[[Outcome], float | None]) -> dict[str, float]:
    """Mean over seeds, by subject."""
    found: dict[str, list[float]] = {}
    for each in outcomes:
        if (value := figure(each)) is not None:
            found.setdefault(each.subject, []).append(value)
    return {subject: float(np.mean(values)) for subject, values in found.items()}


def _ratio(values: Mapping[str, float], references: Mapping[str, float]) -> Mean | None:
    own, others = _paired(values, references)
    return measure.ratio(own, others) if own else None


def _difference(values: Mapping[str, float], references: Mapping[str, float]) -> Mean | None:
    own, others = _paired(values, references)
    return measure.mean([value - other for value, other in zip(own, others, strict=True)]) if own else None


def _paired(values: Mapping[str, float], references: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """The values of both for the subjects that both have."""
    both = [subject for subject in values if subject in references]
    return [values[each] for each in both], [references[each] for each in both]
