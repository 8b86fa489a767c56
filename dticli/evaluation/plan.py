"""Plans: comparisons of methods x subjects x seeds, read from a file and checked."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict

from dticli import bundled, evaluation, settings
from dticli.bundled.world.looks import Look
from dticli.errors import DtiError, InputError, UsageError
from dticli.evaluation import COUNT, IMAGE_JUDGE, PROMPT_SET, TEXT_JUDGE, prompts
from dticli.evaluation.prompt import Prompt
from dticli.photos import albums
from dticli.photos.albums import Album
from dticli.settings import (
    GenerateSettings,
    ModelSettings,
    PathKind,
    Positive,
    Settings,
    TrainSettings,
    Trait,
)
from dticli.words import learned_word

HERE = evaluation.PLANS
UNTRAINED = "init"
DERIVED = frozenset({"of", "magnitude"})
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class PassageSettings(Settings):
    """How the ways between words are drawn: from the first subject to the second, from the third to the fourth, and so on.

    A subject left over has no way, and words are those of the first seed.
    """

    paths: Annotated[tuple[PathKind, ...], Strict(False)] = Field(
        ("slerp", "lerp"), min_length=1, description="As --path of interpolate."
    )
    frames: Annotated[int, Field(ge=3)] = Field(7, description="Words on the way, ends included.")
    prompt: str = Field(
        "a photo of {}",
        pattern=r"\{\}",
        examples=["'a photo of {}'"],
        description="Sentence with {} where the word goes.",
    )
    count: Positive = Field(2, description="Pictures a frame; the same noises for every frame.")


class PlanFile(Settings):
    """The content of a plan's TOML file."""

    model: Annotated[str | None, Trait.NAME_OR_FILE] = Field(
        None, description="The model; `--model` goes before it."
    )
    subjects: Annotated[tuple[str, ...], Strict(False)] | dict[str, dict[str, Any]] = Field(
        description="Names of example subjects, or a table for each: photos, init, masks."
    )
    seeds: Annotated[tuple[Seed, ...], Strict(False)] = Field(
        (0,), description="Of training; pictures follow."
    )
    prompt_set: Annotated[str, Trait.NAME_OR_FILE] = Field(PROMPT_SET, description="As --prompt-set.")
    count: Positive = Field(COUNT, description="Pictures per prompt.")
    image_judge: Annotated[str, Trait.NAME_OR_FILE] = Field(IMAGE_JUDGE, description="As --image-judge.")
    text_judge: Annotated[str, Trait.NAME_OR_FILE] = Field(TEXT_JUDGE, description="As --text-judge.")
    train: dict[str, Any] = Field({}, description="Training settings of every arm.")
    generate: dict[str, Any] = Field({}, description="How pictures are drawn.")
    passages: dict[str, Any] | None = Field(
        None, description="Ways between learned words to draw and judge as well; see PassageSettings."
    )
    arms: dict[str, dict[str, Any]] = Field(
        description="A table for each method; the first is what others are held against."
    )


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        train: its training settings; `{}` in init and prior stands for the class word of the subject.
        of: the arm whose words it uses, or `init` for the untrained class word; None if it learns its own.
        magnitude: norm to which the rows of these words are scaled; None for no scaling.
    """

    name: str
    train: Mapping[str, Any]
    of: str | None = None
    magnitude: str | None = None

    def settings(self, noun: str) -> dict[str, Any]:
        """Its training settings for a subject with this class word."""
        return {
            name: value.replace("{}", noun) if name in TrainSettings.named(Trait.WORD_OR_FILE) else value
            for name, value in self.train.items()
        }


@dataclass(frozen=True)
class PlanSubject:
    """A subject of a plan.

    Attributes:
        noun: class word that a word is initialised from, and that replaces it for judges.
        source: training settings that name its photos and masks.
        look: of example subjects; None for others.
    """

    name: str
    noun: str
    album: Album
    source: Mapping[str, Any]
    look: Look | None = None

    @property
    def token(self) -> str:
        """The name of its word."""
        return f"<{self.name}>"


@dataclass(frozen=True, eq=False)
class Trial:
    """One arm on one subject with one seed."""

    arm: Arm
    subject: PlanSubject
    seed: int

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.arm.name}, {self.subject.name}, seed {self.seed}"

    @property
    def names(self) -> dict[str, Any]:
        """Fields that name it in its record, which other arms and plans may share."""
        return {"arm": self.arm.name, "subject": self.subject.name, "seed": self.seed}


@dataclass(frozen=True, eq=False)
class Way:
    """A path from the word of one trial to that of another, of one arm and one seed."""

    first: Trial
    second: Trial
    path: PathKind
    how: PassageSettings

    @property
    def ends(self) -> tuple[Trial, Trial]:
        """The trials of the words at its ends."""
        return self.first, self.second

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.first.arm.name}, {self.first.subject.name} to {self.second.subject.name}, {self.path}"

    @property
    def names(self) -> dict[str, str]:
        """Fields that name it in its record, which other arms and plans may share."""
        return {
            "arm": self.first.arm.name,
            "path": self.path,
            "first": self.first.subject.name,
            "second": self.second.subject.name,
        }


@dataclass(frozen=True)
class Plan:
    """A plan that was checked, with the albums of its subjects."""

    name: str
    file: PlanFile
    arms: tuple[Arm, ...]
    subjects: tuple[PlanSubject, ...]
    prompts: tuple[Prompt, ...]
    passages: PassageSettings | None = None

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial, in the order of subjects, seeds and arms."""
        return tuple(
            Trial(arm, subject, seed)
            for subject in self.subjects
            for seed in self.file.seeds
            for arm in self.arms
        )

    @property
    def ways(self) -> tuple[Way, ...]:
        """Every way to judge, in the order of pairs of subjects, arms and paths."""
        if (how := self.passages) is None:
            return ()
        pairs = zip(self.subjects[::2], self.subjects[1::2], strict=False)  # an odd one out has no partner
        return tuple(
            Way(Trial(arm, first, seed), Trial(arm, second, seed), path, how)
            for first, second in pairs
            for seed in self.file.seeds[:1]
            for arm in self.arms
            for path in how.paths
        )

    def source(self, trial: Trial) -> Arm | None:
        """The arm that learns a trial's word; None for the untrained class word."""
        if trial.arm.of is None:
            return trial.arm
        return next((arm for arm in self.arms if arm.name == trial.arm.of), None)


# ------------------------------------------------------------------------- reading


def read(name: str) -> Plan:
    """Read a plan of this package by name, or a file.

    Raises:
        UsageError: it does not exist, is not TOML, or has faults, which the message names.
        InputError: a subject's table is invalid, or it has no usable photos.
    """
    path = HERE / f"{name}.toml" if os.path.isfile(HERE / f"{name}.toml") else Path(name)
    if not os.path.exists(path):
        raise UsageError(
            f"no plan {name}: expected {', '.join(evaluation.plans())} or a TOML file; check --plan"
        )
    file = _file(path)
    arms = tuple(_arm(path, each, table) for each, table in file.arms.items())
    if not arms or not file.subjects or not file.seeds:
        raise UsageError(f"{path}: expected at least one arm, subject and seed; add them")
    _require_sources(path, arms)
    _require_training(file.train, f"{path} [train]")
    settings.require_valid(GenerateSettings, file.generate, f"{path} [generate]")
    if "seed" in file.generate:
        raise UsageError(f"{path} [generate]: seed: pictures follow the plan's seeds; leave it out")
    subjects = _subjects(path, file)
    return Plan(path.stem, file, arms, subjects, prompts.read(file.prompt_set), _passages(path, file))


def _file(path: Path) -> PlanFile:
    """The content of a plan's file, with paths relative to its folder resolved."""
    content = settings.read_toml(path)
    if missing := [name for name in ("arms", "subjects") if name not in content]:
        raise UsageError(f"{path}: expected {' and '.join(missing)}, as in docs/comparing.md; add them")
    try:
        file = settings.resolve(PlanFile, content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    for name in ("seeds", "subjects"):
        values = getattr(file, name)
        if len(set(values)) != len(values):
            raise UsageError(f"{path}: {name} contains a duplicate: expected different values; remove it")
    folder = _folder(path)
    tables = {
        "train": TrainSettings.beside(folder, file.train),
        "generate": GenerateSettings.beside(folder, file.generate),
        "arms": {name: TrainSettings.beside(folder, table) for name, table in file.arms.items()},
    }
    return file.model_copy(update=file.beside(folder, dict(file)) | tables)


def _folder(path: Path) -> Path:
    """The base of a plan's relative paths: its folder, or the current one for a plan of this package."""
    return Path() if path.parent == HERE else path.parent


def _arm(path: Path, name: str, table: Mapping[str, Any]) -> Arm:
    if not name.replace("-", "").replace("_", "").isalnum() or name == UNTRAINED:
        raise UsageError(
            f"{path}: arm {name!r}: expected letters, digits, - and _, and not {UNTRAINED}; choose another name"
        )
    if "of" not in table:
        _require_training(table, f"{path} [arms.{name}]")
        return Arm(name, table)
    wrong = [key for key in table if key not in DERIVED]
    texts = all(isinstance(value, str) for value in table.values())
    if wrong or not texts or table.get("magnitude") == "init":
        raise UsageError(
            f'{path} [arms.{name}]: an arm with of may set nothing but magnitude, such as "mean" or "2x", both as strings; '
            f"correct {', '.join(wrong) or 'them'}"
        )
    return Arm(name, {}, of=table["of"], magnitude=table.get("magnitude"))


def _require_training(table: Mapping[str, Any], source: str) -> None:
    settings.require_valid(TrainSettings, table, source)
    elsewhere = TrainSettings.named(Trait.FOR_ALL_ARMS) | ModelSettings.model_fields.keys()
    if misplaced := sorted(elsewhere & set(table)):
        raise UsageError(
            f"{source}: {', '.join(misplaced)}: expected in the plan's subjects and seeds, or on the command line; move it"
        )


def _require_sources(path: Path, arms: Sequence[Arm]) -> None:
    """Raise UsageError unless every `of` names an arm that learns, or the untrained word; chains and cycles are refused."""
    learning = [arm.name for arm in arms if arm.of is None]
    for arm in arms:
        if arm.of and arm.of not in (UNTRAINED, *learning):
            raise UsageError(
                f"{path} [arms.{arm.name}]: of = {arm.of!r}: expected {', '.join([UNTRAINED, *learning])}; correct it"
            )


def _passages(path: Path, file: PlanFile) -> PassageSettings | None:
    if file.passages is None:
        return None
    settings.require_valid(PassageSettings, file.passages, f"{path} [passages]")
    found = settings.resolve(PassageSettings, file.passages)
    if len(set(found.paths)) != len(found.paths):
        raise UsageError(
            f"{path} [passages]: paths contains a duplicate: expected different values; remove it"
        )
    if len(file.subjects) < 2:
        raise UsageError(
            f"{path} [passages]: one subject: expected two or more to interpolate between; add another"
        )
    return found


def _subjects(path: Path, file: PlanFile) -> tuple[PlanSubject, ...]:
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


def _example(name: str) -> PlanSubject:
    folder = bundled.photos(name)[0].parent
    known = bundled.subject(name)
    return PlanSubject(name, known.class_word, albums.read(folder), {"photos": str(folder)}, known.look)


def _own(path: Path, name: str, table: Mapping[str, Any]) -> PlanSubject:
    learned_word.check_name(f"<{name}>")
    known = TrainSettings.named(Trait.SUBJECT)
    wrong = [
        key for key, value in table.items() if key not in known or not isinstance(value, str) or not value
    ]
    if wrong or not {"photos", "init"} <= set(table):
        raise UsageError(
            f"expected photos and init, and at most masks, as texts, got {', '.join(table) or 'nothing'}; correct it"
        )
    source = TrainSettings.beside(
        _folder(path), {key: value for key, value in table.items() if key != "init"}
    )
    return PlanSubject(name, table["init"], albums.read(Path(source["photos"]), source.get("masks")), source)
