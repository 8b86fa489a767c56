"""A comparison written down: methods x subjects x seeds, what came of each trial, and what follows for the methods."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, Strict

from dticli import atomic, bundled, photos, settings
from dticli.errors import DtiError, InputError, UsageError
from dticli.evaluation import measure, prompts
from dticli.evaluation.measure import Mean
from dticli.photos import Album
from dticli.settings import GenerateSettings, Positive, Seed, Settings, TrainSettings

HERE = Path(__file__).parent / "plans"
UNTRAINED = "init"
DERIVED = frozenset({"of", "magnitude"})


class PlanFile(Settings):
    """What a plan says, as its TOML file holds it."""

    model: str | None = Field(None, description="The model; `--model` goes before it.")
    subjects: Annotated[tuple[str, ...], Strict(False)] | dict[str, dict[str, Any]] = Field(
        description="Names of example subjects, or a table for each: photos, init, masks."
    )
    seeds: Annotated[tuple[Seed, ...], Strict(False)] = Field(
        (0,), description="Of training; pictures follow."
    )
    prompt_set: str = Field("simple", description="As --prompt-set.")
    count: Positive = Field(4, description="Pictures a prompt.")
    image_judge: str = Field("dinov2", description="As --image-judge.")
    text_judge: str = Field("siglip", description="As --text-judge.")
    train: dict[str, Any] = Field({}, description="Training settings of every arm.")
    generate: dict[str, Any] = Field({}, description="How pictures are drawn.")
    arms: dict[str, dict[str, Any]] = Field(
        description="A table for each method; the first is what others are held against."
    )


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        train: its training settings.
        of: the arm whose words it takes, `init` for the untrained class word; None if it learns its own.
        magnitude: length the taken rows are brought to; None leaves them.
    """

    name: str
    train: Mapping[str, Any]
    of: str | None = None
    magnitude: str | None = None


@dataclass(frozen=True)
class Subject:
    """What is learned: `noun` is the class word that a word starts from, and that stands in its place for a judge."""

    name: str
    noun: str
    album: Album
    source: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One arm on one subject with one seed."""

    arm: Arm
    subject: Subject
    seed: int

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.arm.name}-{self.subject.name}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """A plan with its photos found and its names checked."""

    name: str
    file: PlanFile
    arms: tuple[Arm, ...]
    subjects: tuple[Subject, ...]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial, all arms of a subject beside each other."""
        return tuple(
            Trial(arm, subject, seed)
            for subject in self.subjects
            for seed in self.file.seeds
            for arm in self.arms
        )

    def words_of(self, trial: Trial) -> Trial | None:
        """The trial that learns a trial's word; None for the untrained class word."""
        arms = {arm.name: arm for arm in self.arms}
        arm = trial.arm
        while arm.of and arm.of != UNTRAINED:
            arm = arms[arm.of]
        return None if arm.of else Trial(arm, trial.subject, trial.seed)


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        norm: mean length of the word's rows, in vocabulary means.
        likeness, alignment: means over prompts.
        chance: alignment of the same pictures with other prompts of the set.
        elements, leakage: as in `prompts.Reading`, over all prompts.
    """

    arm: str
    subject: str
    seed: int
    norm: float
    likeness: float
    alignment: float
    chance: float
    elements: Mapping[str, float]
    leakage: float | None


# ------------------------------------------------------------------------- reading


def read(name: str) -> Plan:
    """A plan of this package by its name, or a file.

    Raises:
        UsageError: not there, not TOML, or with faults; names them.
        InputError: a subject has no usable photos.
    """
    path = HERE / f"{name}.toml" if (HERE / f"{name}.toml").is_file() else Path(name)
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in HERE.glob("*.toml")))
        raise UsageError(f"no plan {name}: expected {known} or a TOML file; check --plan")
    try:
        file = settings.resolve(PlanFile, settings.read_toml(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    arms = tuple(_arm(path, each, table) for each, table in file.arms.items())
    if not arms or not file.subjects or not file.seeds:
        raise UsageError(f"{path}: expected at least one arm, subject and seed; add them")
    settings.require_valid(TrainSettings, file.train, f"{path} [train]")
    settings.require_valid(GenerateSettings, file.generate, f"{path} [generate]")
    prompts.read(file.prompt_set)
    _require_sources(path, arms)
    return Plan(path.stem, file, arms, _subjects(path, file))


def _arm(path: Path, name: str, table: Mapping[str, Any]) -> Arm:
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(f"{path}: arm {name!r}: expected letters, digits, - and _; choose another name")
    if "of" not in table:
        settings.require_valid(TrainSettings, table, f"{path} [arms.{name}]")
        return Arm(name, table)
    wrong = [key for key in table if key not in DERIVED or not isinstance(table[key], str)]
    if wrong:
        raise UsageError(
            f"{path} [arms.{name}]: {', '.join(wrong)} beside of: expected magnitude at most, as texts; leave it out"
        )
    return Arm(name, {}, of=table["of"], magnitude=table.get("magnitude"))


def _require_sources(path: Path, arms: Sequence[Arm]) -> None:
    """Every `of` names an arm that learns, or the untrained word: no chains, so no circles."""
    learning = [arm.name for arm in arms if arm.of is None]
    for arm in arms:
        if arm.of and arm.of not in (UNTRAINED, *learning):
            raise UsageError(
                f"{path} [arms.{arm.name}]: of = {arm.of!r}: expected {', '.join([UNTRAINED, *learning])}; correct it"
            )


def _subjects(path: Path, file: PlanFile) -> tuple[Subject, ...]:
    if not isinstance(file.subjects, Mapping):
        return tuple(_example(name) for name in file.subjects)
    found, problems = [], []
    for name, table in file.subjects.items():
        try:
            found.append(_own(path, name, table))
        except DtiError as error:
            problems.append(f"[subjects.{name}] {error}")
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}")
    return tuple(found)


def _example(name: str) -> Subject:
    folder = bundled.photos(name)[0].parent
    noun = next(each.class_word for each in bundled.subjects() if each.name == name)
    return Subject(name, noun, photos.read(folder), {"photos": str(folder)})


def _own(path: Path, name: str, table: Mapping[str, Any]) -> Subject:
    wrong = [
        key
        for key, value in table.items()
        if key not in ("photos", "init", "masks") or not isinstance(value, str)
    ]
    if wrong or "photos" not in table or "init" not in table:
        raise UsageError(
            f"expected photos and init, and at most masks, as texts, got {', '.join(table) or 'nothing'}"
        )
    folders = {
        key: str(path.parent / value)
        for key, value in table.items()
        if key != "init" and value != photos.ALPHA
    }
    source = {key: value for key, value in table.items() if key != "init"} | folders
    return Subject(name, table["init"], photos.read(Path(source["photos"]), source.get("masks")), source)


# ------------------------------------------------------------------------- records


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Keep an outcome, whole or not at all."""
    atomic.write_bytes(path, json.dumps(asdict(outcome), indent=1).encode())


def read_outcome(path: Path) -> Outcome | None:
    """A kept outcome; None if there is none or it is damaged, and the trial is to be done again."""
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


# ------------------------------------------------------------------------- summary


@dataclass(frozen=True)
class ArmResult:
    """What all trials of an arm say.

    Attributes:
        gain: alignment as a multiple of the first arm's, paired over subjects.
        lifted: (alignment - chance) / (untrained word's alignment - chance); None where the plan has no such arm.
    """

    arm: str
    trials: int
    norm: float
    likeness: Mean
    alignment: Mean
    gain: Mean | None
    lifted: float | None
    elements: Mapping[str, float]
    leakage: float | None


@dataclass(frozen=True)
class PlanResult:
    """What came of a plan."""

    plan: str
    model: str
    image_judge: str
    text_judge: str
    prompt_set: str
    subjects: tuple[str, ...]
    seeds: tuple[int, ...]
    pictures: int
    arms: tuple[ArmResult, ...]
    outcomes: tuple[Outcome, ...]

    def lines(self) -> Iterator[str]:
        """The table, as Markdown."""
        names = list(dict.fromkeys(name for arm in self.arms for name in arm.elements))
        heads = [
            "arm",
            "trials",
            "norm",
            "likeness",
            "alignment",
            f"x {self.arms[0].arm}",
            "lifted",
            *names,
            "leakage",
        ]
        table = [heads, ["---"] * len(heads)] + [_row(arm, names) for arm in self.arms]
        yield (
            f"{self.plan}: {self.model}, {len(self.subjects)} subjects x {len(self.seeds)} seeds, {self.pictures} pictures a "
            f"trial, prompts {self.prompt_set}; likeness by {self.image_judge}, alignment by {self.text_judge}"
        )
        yield ""
        yield from (f"| {' | '.join(row)} |" for row in table)

    def markdown(self) -> str:
        """The whole report."""
        rows = [
            f"| {each.subject} | {each.seed} | {each.arm} | {each.norm:.2f} | {each.likeness:.3f} | {each.alignment:.3f} |"
            for each in self.outcomes
        ]
        head = [
            "| subject | seed | arm | norm | likeness | alignment |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        return "\n".join([*self.lines(), "", NOTE, "", *head, *rows, ""])


NOTE = (
    "Norm: mean row length in vocabulary means. Likeness and alignment: means over subjects of means over seeds, with 95 % "
    "bootstrap intervals over subjects. x: alignment as a multiple of the first arm's, paired over subjects. Lifted: "
    "(alignment - chance) / (untrained class word's - chance), chance being the same pictures judged by other prompts of the "
    "set. Then the share of pictures that show each element asked for, and how often one of two things shows the other's tint."
)


def _row(arm: ArmResult, names: Sequence[str]) -> list[str]:
    shares = [_share(arm.elements.get(name)) for name in names]
    return [
        arm.arm, str(arm.trials), f"{arm.norm:.2f}", str(arm.likeness), str(arm.alignment), str(arm.gain or ""),
        _share(arm.lifted), *shares, _share(arm.leakage),
    ]  # fmt: skip


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def summarise(plan: Plan, model: str, outcomes: Sequence[Outcome]) -> PlanResult:
    """Arms compared over the subjects that all of them have."""
    untrained = next((arm.name for arm in plan.arms if arm.of == UNTRAINED and not arm.magnitude), None)
    arms = [arm.name for arm in plan.arms if any(each.arm == arm.name for each in outcomes)]
    return PlanResult(
        plan=plan.name,
        model=model,
        image_judge=plan.file.image_judge,
        text_judge=plan.file.text_judge,
        prompt_set=plan.file.prompt_set,
        subjects=tuple(subject.name for subject in plan.subjects),
        seeds=plan.file.seeds,
        pictures=plan.file.count * len(prompts.read(plan.file.prompt_set)),
        arms=tuple(_arm_result(name, arms[0], untrained, outcomes) for name in arms),
        outcomes=tuple(outcomes),
    )


def _arm_result(name: str, first: str, untrained: str | None, outcomes: Sequence[Outcome]) -> ArmResult:
    own = [each for each in outcomes if each.arm == name]
    alignment, reference = (
        _by_subject(own, "alignment"),
        _by_subject([e for e in outcomes if e.arm == first], "alignment"),
    )
    both = [subject for subject in alignment if subject in reference]
    plain = [each for each in outcomes if each.arm == untrained]
    known = sorted({element for each in own for element in each.elements})
    leaks = [each.leakage for each in own if each.leakage is not None]
    return ArmResult(
        arm=name,
        trials=len(own),
        norm=float(np.mean([each.norm for each in own])),
        likeness=measure.mean(list(_by_subject(own, "likeness").values())),
        alignment=measure.mean(list(alignment.values())),
        gain=measure.ratio([alignment[s] for s in both], [reference[s] for s in both]),
        lifted=_lifted(own, plain) if plain else None,
        elements={e: float(np.mean([each.elements[e] for each in own if e in each.elements])) for e in known},
        leakage=float(np.mean(leaks)) if leaks else None,
    )


def _by_subject(outcomes: Sequence[Outcome], figure: str) -> dict[str, float]:
    """Mean over seeds, by subject."""
    subjects = dict.fromkeys(each.subject for each in outcomes)
    return {
        subject: float(np.mean([getattr(each, figure) for each in outcomes if each.subject == subject]))
        for subject in subjects
    }


def _lifted(own: Sequence[Outcome], plain: Sequence[Outcome]) -> float | None:
    def over(outcomes: Sequence[Outcome], figure: str) -> float:
        return float(np.mean(list(_by_subject(outcomes, figure).values())))

    room = over(plain, "alignment") - over(plain, "chance")
    return (over(own, "alignment") - over(own, "chance")) / room if room > 0 else None
