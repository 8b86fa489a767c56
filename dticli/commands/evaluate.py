"""`dti evaluate`: token files and photos in, figures out; or a whole plan of methods, subjects and seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import console
from dticli.errors import DtiError, InputError, Stopped, UsageError
from dticli.options import Debug, Force, Json, Quiet, with_settings
from dticli.settings import GenerateSettings, ModelSettings, first_said, model_layer, resolve

if TYPE_CHECKING:
    from PIL.Image import Image

    from dticli.evaluation.measure import Eyes, Mean, PromptScore, Reader
    from dticli.evaluation.passages import Passage
    from dticli.evaluation.plan import Outcome, Plan, PlanResult, Trial, Way
    from dticli.evaluation.prompts import Prompt
    from dticli.jobs import Job
    from dticli.norms import Summary
    from dticli.sampler import Picture, Shot
    from dticli.session import Opened
    from dticli.token_file import Token

# What stands for these two where nothing is said: the paper's.
IMAGE_JUDGE, TEXT_JUDGE, PROMPTS = "dinov2", "siglip", "simple"


@dataclass(frozen=True)
class Evaluated:
    """A word, judged.

    Attributes:
        noun: what stood in the word's place in the sentences the judge read.
        likeness, alignment: means over prompts.
        elements: share of pictures that show each element, where the judge looks for elements.
        leakage: how often one of two things shows the other's tint.
    """

    source: str
    token: str
    noun: str
    pictures: int
    likeness: "Mean"
    alignment: "Mean"
    elements: Mapping[str, float]
    leakage: float | None
    prompts: "tuple[PromptScore, ...]"


@dataclass(frozen=True)
class Evaluation:
    """All words, beside each other.

    Attributes:
        photos: how many the pictures were compared with.
    """

    model: str
    image_judge: str
    text_judge: str
    photos: int
    words: tuple[Evaluated, ...]

    def lines(self) -> Iterator[str]:
        yield (
            f"{self.model}; likeness to {self.photos} photos by {self.image_judge}, fit to the prompt by {self.text_judge}; "
            "means over prompts with their 95 % bootstrap intervals"
        )
        for word in self.words:
            yield (
                f"{word.source}: {word.token} as {word.noun!r}, {word.pictures} pictures: "
                f"likeness {word.likeness}, alignment {word.alignment}"
            )
            if word.elements:
                # The word's own noun is in the list, and not in the figure: a class word drawn well is no obedience.
                shares = ", ".join(f"{name} {share:.0%}" for name, share in word.elements.items())
                leaked = (
                    "" if word.leakage is None else f"; a thing shows the other's tint in {word.leakage:.0%}"
                )
                yield f"  seen in its pictures: {shares}{leaked}; alignment is the mean share of all but noun"
            for each in word.prompts:
                yield f"  likeness {each.likeness:.3f}, alignment {each.alignment:.3f}: {each.prompt}"


@with_settings(GenerateSettings)
def command(
    given: dict[str, Any],
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Token files, folders or hub ids; all are compared with the same photos."),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(help="Folder with photos of the thing; best some that were not learned from."),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(help="Folder with a mask for each photo, or alpha: only the subject is compared."),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(
            help="Instead of files: a TOML file with arms, subjects and seeds to learn and judge, or one that comes with dti: "
            "stickers, stickers-tuning, stickers-ablations, paper. What is done is not done again."
        ),
    ] = None,
    prompt_set: Annotated[
        str | None,
        typer.Option(
            help="simple, complex (context first), stickers, stickers-complex (the bundled model's world), or a file with "
            f"a prompt a line, {{}} for the word.  [default: {PROMPTS}]"
        ),
    ] = None,
    noun: Annotated[
        str | None,
        typer.Option(help="What the thing is, for the judge; default: the word it was learned from."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="Pictures a prompt.  [default: 4]")
    ] = None,
    image_judge: Annotated[
        str | None,
        typer.Option(
            help=f"Vision model: dinov2, stickers-a, stickers-b, a hub id or a folder.  [default: {IMAGE_JUDGE}]"
        ),
    ] = None,
    text_judge: Annotated[
        str | None,
        typer.Option(
            help=f"siglip, clip, stickers-a, stickers-b, a hub id or a folder.  [default: {TEXT_JUDGE}]"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Keep the pictures in this folder; with --plan, everything."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Judge learned words: how like the photos their pictures are, and how well they follow the prompt.

    Example: dti evaluate dog.safetensors --photos ./more-photos --prompt-set complex
    """
    if plan is None:
        if not files or not photos:
            raise UsageError("nothing to judge: expected token files and --photos, or --plan; add them")
        how = _How(
            prompt_set or PROMPTS, count or 4, image_judge or IMAGE_JUDGE, text_judge or TEXT_JUDGE, quiet
        )
        console.show(_words(given, files, photos, masks, noun, how, out, force), as_json=json)
        return
    beside = {
        "FILES": files, "--photos": photos, "--masks": masks, "--noun": noun, "--prompt-set": prompt_set, "--count": count,
        "--image-judge": image_judge, "--text-judge": text_judge, "--seed": given["seed"],
    }  # fmt: skip
    if misplaced := [name for name, value in beside.items() if value is not None]:
        raise UsageError(
            f"--plan beside {', '.join(misplaced)}: expected these in the plan's file; leave it out"
        )
    console.show(_carry_out(given, plan, out, force, quiet), as_json=json)


@dataclass(frozen=True)
class _How:
    """How words are judged."""

    prompt_set: str
    count: int
    image_judge: str
    text_judge: str
    quiet: bool


# ------------------------------------------------------------------------ given words


def _words(
    given: Mapping[str, Any],
    files: Sequence[str],
    folder: Path,
    masks: str | None,
    noun: str | None,
    how: _How,
    out: Path | None,
    force: bool,
) -> Evaluation:
    from dticli import atomic, models, session
    from dticli import photos as albums
    from dticli.evaluation import judges, measure, prompts

    asked = prompts.read(how.prompt_set)
    tokens = [session.read_token(each, offline=bool(given["offline"])) for each in files]
    nouns = [noun or _noun(source, token) for source, token in zip(files, tokens, strict=True)]
    album = albums.read(folder, masks)
    opened = session.open_model(given, tokens)
    settings = resolve(GenerateSettings, given, model_layer(opened.model.folder, "generate"))
    device = models.pick_device(settings.device)
    shots = [_shots(token.name, asked, settings.seed, how.count) for token in tokens]
    kept = [_files(out, str(index), each) for index, each in enumerate(shots)]
    # Before the first picture: a file in the way, or a judge that is not there, must not cost the drawing.
    atomic.require_writable([file for each in kept for file in each], force=force)
    eyes = judges.likeness(how.image_judge, device, offline=settings.offline)
    reader = judges.alignment(how.text_judge, device, offline=settings.offline)
    for each in nouns:
        reader.require(asked, each)
    wanted = eyes.features([albums.whole(photo) for photo in album.photos])
    pipe = session.pipeline(opened, settings, safety_checker=False)
    results = []
    for index, token in enumerate(tokens):
        drawn = _drawn(pipe, opened, settings, token, shots[index], kept[index], how.quiet)
        images = _by_prompt([picture.image for picture in drawn], len(asked))
        scores = measure.scores(asked, images, nouns[index], wanted, eyes, reader)
        results.append(_evaluated(files[index], token.name, nouns[index], len(drawn), scores))
    return Evaluation(opened.model.label, how.image_judge, how.text_judge, len(album.photos), tuple(results))


def _noun(source: str, token: "Token") -> str:
    """The word a token was learned from, if it was one."""
    init = token.metadata.get("dti.init", "")
    if not init or init in ("random", "mean") or ":" in init or Path(init).suffix:
        raise UsageError(
            f"{source} does not say what {token.name} is: expected a noun for the judge; name it with --noun"
        )
    return init


def _shots(name: str, asked: "Sequence[Prompt]", seed: int, count: int) -> "tuple[Shot, ...]":
    from dticli import sampler

    return sampler.shots([prompt.of(name) for prompt in asked], seed, count)


def _files(out: Path | None, name: str, shots: "Sequence[Shot]") -> list[Path]:
    """Where the pictures of a word are kept; empty if they are not."""
    from dticli import pictures

    return [out / name / pictures.file_name(place, shot) for place, shot in enumerate(shots)] if out else []


def _drawn(
    pipe: Any,
    opened: "Opened",
    settings: GenerateSettings,
    token: "Token",
    shots: "Sequence[Shot]",
    files: Sequence[Path],
    quiet: bool,
) -> "list[Picture]":
    """Pictures of one word by itself: words of different pooling can be compared, and company changes no figure."""
    from dticli import sampler, session

    loaded = session.with_words(pipe, opened, settings, [token])
    sampler.require_words_seen(pipe, opened.family, loaded.words, [shot.prompt for shot in shots])
    every = max(1, len(shots) // 10)
    return session.draw(loaded, opened, shots, settings, files=files, every=every, quiet=quiet)


def _by_prompt(images: "Sequence[Image]", prompts: int) -> "list[Sequence[Image]]":
    """Pictures in the order of prompts, as many for each, prompt by prompt."""
    each = len(images) // prompts
    return [images[at : at + each] for at in range(0, len(images), each)]


def _evaluated(
    source: str, name: str, noun: str, pictures: int, scores: "tuple[PromptScore, ...]"
) -> Evaluated:
    from dticli.evaluation import measure

    return Evaluated(
        source=source,
        token=name,
        noun=noun,
        pictures=pictures,
        likeness=measure.mean([score.likeness for score in scores]),
        alignment=measure.mean([score.alignment for score in scores]),
        elements=measure.elements(scores),
        leakage=measure.leakage(scores),
        prompts=scores,
    )


# ----------------------------------------------------------------------------- a plan


def _carry_out(
    given: Mapping[str, Any], name: str, out: Path | None, force: bool, quiet: bool
) -> "PlanResult":
    """Learn, draw and judge what is not there yet; results.json and results.md are written after every trial.

    Raises:
        DtiError: of the class of the first failure, after everything else was done.
    """
    from dticli import atomic, session
    from dticli.evaluation import plan as plans

    plan = plans.read(name)
    folder = out or Path(f"{plan.name}-results")
    layers = [given, plan.file.generate, {"model": plan.file.model}]
    opened = session.open_model(first_said(layers), ())
    settings = resolve(GenerateSettings, *layers, model_layer(opened.model.folder, "generate"))
    # Before anything is learned: what the judging needs must not be found missing after it.
    stage = _stage(plan, opened, settings, folder, quiet)
    for place in ("words", "pictures", "trials"):
        atomic.make_folder(folder / place)
    atomic.require_writable([folder / "results.md"], force=True)
    jobs = {trial: _job(stage, trial, given) for trial in plan.trials}
    failed = _learn_all(_missing(jobs, force), force, quiet)
    problems = {trial.name: failed[job.target] for trial, job in jobs.items() if job and job.target in failed}
    result = plans.summarise(plan, opened.model.label, ())
    for result in _judged(stage, jobs, problems, force):
        atomic.write_bytes(folder / "results.json", console.to_json(result).encode())
        atomic.write_bytes(folder / "results.md", result.markdown().encode())
    if problems:
        first = next(iter(problems.values()))
        others = f"; the others are in {folder / 'results.md'}" if result.outcomes else ""
        raise type(first)(
            f"{len(problems)} trials or ways failed{others}: correct the plan and give the same command"
        )
    return result


def _judged(
    stage: "_Stage", jobs: "Mapping[Trial, Job | None]", problems: "dict[str, DtiError]", force: bool
) -> "Iterator[PlanResult]":
    """What is known after each trial, and after each way between words, that no failed word is part of.

    Args:
        problems: why words failed, by trial; ways that fail are added.
    """
    from dticli.evaluation import plan as plans

    outcomes: list[Outcome] = []
    passages: list[Passage] = []

    def known() -> "PlanResult":
        reasons = [f"{name}: {error}" for name, error in problems.items()]
        return plans.summarise(stage.plan, stage.opened.model.label, outcomes, reasons, passages)

    for trial, job in jobs.items():
        if trial.name not in problems:
            outcomes.append(_outcome(stage, trial, job, force))
            yield known()
    by_name = {trial.name: job for trial, job in jobs.items()}
    for way in stage.plan.ways:
        ends = (way.first.name, way.second.name)
        if problems.keys().isdisjoint(ends):
            try:
                passages.append(_passage(stage, way, [by_name[end] for end in ends], force))
            except InputError as error:  # words of different size
                console.error(f"{way.name}: {error}")
                problems[way.name] = error
            yield known()


@dataclass(frozen=True)
class _Stage:
    """What all trials of a plan share.

    Attributes:
        pipe: loads the pipeline to draw with when it is first called.
        weights: mark of the model's.
    """

    plan: "Plan"
    opened: "Opened"
    settings: GenerateSettings
    folder: Path
    eyes: "Eyes"
    reader: "Reader"
    vocabulary: "Mapping[str, Summary]"
    pipe: "Callable[[], Any]"
    weights: str
    quiet: bool


def _stage(plan: "Plan", opened: "Opened", settings: GenerateSettings, folder: Path, quiet: bool) -> _Stage:
    from dticli import models, norms, session
    from dticli.evaluation import judges, trials

    session.require_drawable(opened, settings)
    device = models.pick_device(settings.device)
    eyes = judges.likeness(plan.file.image_judge, device, offline=settings.offline)
    reader = judges.alignment(plan.file.text_judge, device, offline=settings.offline)
    for subject in plan.subjects:
        try:
            reader.require(plan.prompts, subject.noun)
        except UsageError as error:
            raise UsageError(f"[subjects.{subject.name}] {error}") from None
    keys = {encoder.component: encoder.key for encoder in opened.family.encoders}
    tables = models.tables(opened.model)
    vocabulary = {keys[table.encoder]: norms.summary(table) for table in tables if table.encoder in keys}
    trials.require_magnitudes(plan.arms, vocabulary)
    return _Stage(
        plan, opened, settings, folder, eyes, reader, vocabulary,
        cache(lambda: session.pipeline(opened, settings, safety_checker=False)), trials.model_mark(opened.model), quiet,
    )  # fmt: skip


def _job(stage: _Stage, trial: "Trial", given: Mapping[str, Any]) -> "Job | None":
    """What learns a trial's word; None for the untrained class word."""
    from dticli import jobs
    from dticli.evaluation import trials

    arm = stage.plan.source(trial)
    if arm is None:
        return None
    subject = trial.subject
    own = {"token": subject.token, "init": subject.noun, "seed": trial.seed} | dict(subject.source)
    machine = {name: given[name] for name in ModelSettings.model_fields if name != "model"}
    words = stage.folder / "words"
    job = jobs.one(
        stage.opened,
        [machine, arm.settings(subject.noun), stage.plan.file.train, own],
        words / "word.safetensors",
        None,
    )
    job.captions.require_usable()
    mark = trials.word_mark(job, stage.weights)
    return replace(job, target=words / f"{subject.name}-{trial.seed}-{mark}.safetensors")


def _missing(jobs: "Mapping[Trial, Job | None]", force: bool) -> "dict[Trial, Job]":
    """Jobs whose words are not there, each once: arms may share a word."""
    first: dict[Path, tuple[Trial, Job]] = {}
    for trial, job in jobs.items():
        if job:
            first.setdefault(job.target, (trial, job))
    return {trial: job for trial, job in first.values() if force or not job.target.is_file()}


def _learn_all(jobs: "Mapping[Trial, Job]", force: bool, quiet: bool) -> "dict[Path, DtiError]":
    """Learn words on one loaded model; returns why some could not be."""
    from dticli.commands import train
    from dticli.ranks import ALONE

    failed: dict[Path, DtiError] = {}
    load = None
    for place, (trial, job) in enumerate(jobs.items()):
        console.notice(f"word {place + 1} of {len(jobs)}: {trial.name}")
        load = load or train.loader(job, ALONE)
        try:
            train.learn(job, load, train.How(resume=not force, force=True, quiet=quiet))
        except Stopped as stopped:
            raise Stopped("stopped; give the same command to continue", stopped.exit_code - 128) from None
        except DtiError as error:
            console.error(f"{trial.name}: {error}")
            failed[job.target] = error
            load = None  # what was tried to make it fit would stay with the next word
    return failed


def _outcome(stage: _Stage, trial: "Trial", job: "Job | None", force: bool) -> "Outcome":
    """What came of a trial: kept, or else judged now, from pictures that are kept, or else drawn now."""
    from dticli import pictures
    from dticli.evaluation import plan as plans
    from dticli.evaluation import records, trials

    plan = stage.plan
    drawn = trials.pictures_mark(plan, trial, job, stage.settings, stage.weights)
    kept = stage.folder / "trials" / f"{trials.outcome_mark(plan, trial, drawn)}.json"
    outcome = None if force else plans.read_outcome(kept, trial)
    if outcome:
        return outcome
    console.notice(f"judging {trial.name}")
    token = _token(stage, trial, job)
    shots = _shots(token.name, plan.prompts, trial.seed * plan.file.count, plan.file.count)
    files = _files(stage.folder / "pictures", drawn, shots)
    if force or not all(file.is_file() for file in files):
        _drawn(stage.pipe(), stage.opened, stage.settings, token, shots, files, stage.quiet)
    images = _by_prompt([pictures.read(file) for file in files], len(plan.prompts))
    outcome = trials.outcome(plan, trial, token, stage.vocabulary, images, stage.eyes, stage.reader)
    records.write(kept, outcome)
    return outcome


def _passage(stage: _Stage, way: "Way", jobs: "Sequence[Job | None]", force: bool) -> "Passage":
    """What the frames of a way are like: kept, or else judged now, from pictures that are kept, or else drawn now."""
    from dticli import pictures, sampler
    from dticli.evaluation import passages, records, trials

    drawn = trials.frames_mark(stage.plan, way, jobs, stage.settings, stage.weights)
    kept = stage.folder / "trials" / f"{trials.passage_mark(stage.plan, way, drawn)}.json"
    passage = None if force else passages.read(kept, way.names, way.how.frames)
    if passage:
        return passage
    console.notice(f"judging {way.name}")
    ends = [_token(stage, trial, job) for trial, job in zip((way.first, way.second), jobs, strict=True)]
    places = [(frame, seed) for frame in range(way.how.frames) for seed in range(way.how.count)]
    files = [stage.folder / "pictures" / drawn / f"{frame:03d}-{seed}.png" for frame, seed in places]
    if force or not all(file.is_file() for file in files):
        _draw_frames(stage, way, ends, files)
    (turn,) = sampler.turns([token.vectors for token in ends])
    images = [pictures.read(file) for file in files]
    passage = trials.passage(way, sum(turn.values()) / len(turn), images, stage.eyes)
    records.write(kept, passage)
    return passage


def _draw_frames(stage: _Stage, way: "Way", ends: "Sequence[Token]", files: Sequence[Path]) -> None:
    from dticli import session

    how = way.how
    loaded = session.with_words(stage.pipe(), stage.opened, stage.settings, ends)
    seeds = [way.first.seed * how.count + index for index in range(how.count)]
    session.draw_way(
        loaded, stage.opened, way.path, how.frames, how.prompt, seeds, stage.settings,
        files=files, every=len(files), quiet=stage.quiet,
    )  # fmt: skip


def _token(stage: _Stage, trial: "Trial", job: "Job | None") -> "Token":
    """The word of a trial at the length its arm wants."""
    from dticli.evaluation import trials

    if job:
        return trials.learned(job, trial.arm, stage.vocabulary)
    word = trials.untrained(stage.plan, trial, stage.pipe(), stage.opened.family)
    return trials.at_length(word, trial.arm, stage.vocabulary)
