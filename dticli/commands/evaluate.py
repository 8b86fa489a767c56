"""`dti evaluate`: token files and photos in, figures out; or a whole plan of methods, subjects and seeds."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import console
from dticli.errors import UsageError
from dticli.options import Debug, Force, Json, Quiet, with_settings
from dticli.settings import GenerateSettings, ModelSettings, first_said, model_layer, resolve

if TYPE_CHECKING:
    from torch import Tensor

    from dticli.evaluation.measure import Eyes, Mean, PromptScore, Reader
    from dticli.evaluation.plan import Outcome, Plan, PlanResult, Trial
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
                shares = ", ".join(f"{name} {share:.0%}" for name, share in word.elements.items())
                leaked = (
                    "" if word.leakage is None else f"; a thing shows the other's tint in {word.leakage:.0%}"
                )
                yield f"  seen: {shares}{leaked}"
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
            "stickers, paper. What is done is not done again."
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
        "--image-judge": image_judge, "--text-judge": text_judge,
    }  # fmt: skip
    if misplaced := [name for name, value in beside.items() if value is not None]:
        raise UsageError(
            f"--plan beside {', '.join(misplaced)}: expected these in the plan's file; leave it out"
        )
    console.show(_carry_out(given, plan, out, quiet), as_json=json)


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
    from dticli.evaluation import judges, prompts

    asked = prompts.read(how.prompt_set)
    tokens = [session.read_token(each, offline=bool(given["offline"])) for each in files]
    nouns = [noun or _noun(source, token) for source, token in zip(files, tokens, strict=True)]
    album = albums.read(folder, masks)
    opened = session.open_model(given, tokens)
    settings = resolve(GenerateSettings, given, model_layer(opened.model.folder, "generate"))
    device = models.pick_device(settings.device)
    shots = [_shots(token.name, asked, settings.seed, how.count) for token in tokens]
    kept = [_files(out, index, each) for index, each in enumerate(shots)]
    # Before the first picture: a file in the way, or a judge that is not there, must not cost the drawing.
    atomic.require_writable([file for each in kept for file in each], force=force)
    eyes = judges.likeness(how.image_judge, device, offline=settings.offline)
    reader = judges.alignment(how.text_judge, device, offline=settings.offline)
    for each in nouns:
        reader.require(asked, each)
    wanted = eyes.features([albums.whole(photo) for photo in album.photos])
    pipe = session.pipeline(opened, settings)
    results = []
    for index, token in enumerate(tokens):
        drawn = _drawn(pipe, opened, settings, token, shots[index], kept[index], how.quiet)
        scores = _scores(asked, nouns[index], drawn, wanted, eyes, reader)
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


def _files(out: Path | None, index: int, shots: "Sequence[Shot]") -> list[Path]:
    """Where the pictures of a word are kept; empty if they are not."""
    from dticli import pictures

    return (
        [out / str(index) / pictures.file_name(place, shot) for place, shot in enumerate(shots)]
        if out
        else []
    )


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


def _scores(
    asked: "Sequence[Prompt]",
    noun: str,
    drawn: "Sequence[Picture]",
    photos: "Tensor",
    eyes: "Eyes",
    reader: "Reader",
) -> "tuple[PromptScore, ...]":
    """The figures of each prompt; `drawn` holds as many pictures of each, in order."""
    from dticli.evaluation import measure

    return tuple(
        measure.score(prompt, images, noun, photos, eyes, reader)
        for prompt, images in zip(asked, _by_prompt(drawn, len(asked)), strict=True)
    )


def _by_prompt(drawn: "Sequence[Picture]", prompts: int) -> list[list[Any]]:
    each = len(drawn) // prompts
    return [[picture.image for picture in drawn[at : at + each]] for at in range(0, len(drawn), each)]


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


def _carry_out(given: Mapping[str, Any], name: str, out: Path | None, quiet: bool) -> "PlanResult":
    """Learn and judge whatever of a plan is not done yet, and write results.json and results.md."""
    from dticli import atomic, session
    from dticli.evaluation import plan as plans

    plan = plans.read(name)
    folder = out or Path(plan.name)
    layers = [given, plan.file.generate, {"model": plan.file.model}]
    opened = session.open_model(first_said(layers), ())
    settings = resolve(GenerateSettings, *layers, model_layer(opened.model.folder, "generate"))
    jobs = {trial.name: _job(plan, trial, opened, given, folder) for trial in plan.trials}
    for place in (folder / "words", folder / "trials"):
        atomic.make_folder(place)
    atomic.require_writable([folder / "results.md"], force=True)
    _learn(list({job.target: job for job in jobs.values() if job}.values()), quiet)
    outcomes = list(_judge(plan, opened, settings, jobs, folder, quiet))
    result = plans.summarise(plan, opened.model.label, outcomes)
    atomic.write_bytes(folder / "results.json", console.to_json(result).encode())
    atomic.write_bytes(folder / "results.md", result.markdown().encode())
    return result


def _job(
    plan: "Plan", trial: "Trial", opened: "Opened", given: Mapping[str, Any], folder: Path
) -> "Job | None":
    """What learns a trial's word; None for the untrained class word. Other settings or photos make another file."""
    from dticli import jobs

    source = plan.words_of(trial)
    if source is None:
        return None
    own = {"token": f"<{trial.subject.name}>", "init": trial.subject.noun, "seed": trial.seed}
    machine = {name: given[name] for name in ModelSettings.model_fields if name != "model"}
    layers = [machine, source.arm.train, plan.file.train, own | dict(trial.subject.source)]
    job = jobs.one(opened, layers, folder / "words" / "new.safetensors", None)
    mark = _mark(
        job.settings.model_dump_json(exclude={"photos", "masks", "device"}),
        opened.model.label,
        *(photo.fingerprint for photo in job.album.photos),
    )
    return replace(job, target=folder / "words" / f"{source.name}-{mark}.safetensors")


def _mark(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _learn(jobs: "Sequence[Job]", quiet: bool) -> None:
    """Learn the words that are not there yet, on one loaded model."""
    from dticli.commands import train
    from dticli.ranks import ALONE

    missing = [job for job in jobs if not job.target.is_file()]
    if not missing:
        return
    load = train.loader(missing[0], ALONE)
    for place, job in enumerate(missing):
        console.notice(f"word {place + 1} of {len(missing)}: {job.target.stem}")
        train.learn(job, load, train.How(resume=True, force=True, quiet=quiet))


def _judge(
    plan: "Plan",
    opened: "Opened",
    settings: GenerateSettings,
    jobs: "Mapping[str, Job | None]",
    folder: Path,
    quiet: bool,
) -> "Iterator[Outcome]":
    """The outcome of every trial; those that are kept are not judged again."""
    from dticli import concept, models, norms, session, token_file
    from dticli.evaluation import judges, prompts
    from dticli.evaluation import plan as plans

    device = models.pick_device(settings.device)
    asked = prompts.read(plan.file.prompt_set)
    eyes = judges.likeness(plan.file.image_judge, device, offline=settings.offline)
    reader = judges.alignment(plan.file.text_judge, device, offline=settings.offline)
    for subject in plan.subjects:
        reader.require(asked, subject.noun)
    pipe = session.pipeline(opened, settings)
    vocabulary = {
        key: norms.summary(table) for key, table in concept.tables(pipe, opened.family.encoders).items()
    }
    for trial in plan.trials:
        token = _token(trial, jobs[trial.name], pipe, opened, vocabulary)
        mark = _mark(
            *(prompt.template for prompt in asked), str(plan.file.count), plan.file.image_judge, plan.file.text_judge,
            settings.model_dump_json(exclude={"device", "seed"}), token_file.content_hash(token), opened.model.label,
            *(photo.fingerprint for photo in trial.subject.album.photos),
        )  # fmt: skip
        kept = folder / "trials" / f"{trial.name}-{mark}.json"
        outcome = plans.read_outcome(kept)
        if outcome is None:
            console.notice(f"judging {trial.name}")
            shots = _shots(token.name, asked, trial.seed * plan.file.count, plan.file.count)
            drawn = _drawn(pipe, opened, settings, token, shots, [], quiet)
            outcome = _outcome(trial, token, vocabulary, asked, drawn, eyes, reader)
            plans.write_outcome(kept, outcome)
        yield outcome


def _token(
    trial: "Trial", job: "Job | None", pipe: Any, opened: "Opened", vocabulary: "Mapping[str, Summary]"
) -> "Token":
    """A trial's word: the one that was learned, or the class word's rows, at the length the arm wants."""
    from dticli import initial, token_file

    if job:
        token = token_file.read(job.target)
    else:
        rows = initial.rows(pipe, opened.family, trial.subject.noun, None, 0)
        token = token_file.Token(
            f"<{trial.subject.name}>", {key: each.float().cpu() for key, each in rows.items()}, {}
        )
    if trial.arm.magnitude is None:
        return token
    lengths = initial.magnitudes(token.vectors, vocabulary, trial.arm.magnitude)
    directions = initial.directions(token.vectors)
    return replace(token, vectors={key: lengths[key] * directions[key] for key in directions})


def _outcome(
    trial: "Trial",
    token: "Token",
    vocabulary: "Mapping[str, Summary]",
    asked: "Sequence[Prompt]",
    drawn: "Sequence[Picture]",
    eyes: "Eyes",
    reader: "Reader",
) -> "Outcome":
    from dticli import photos as albums
    from dticli.evaluation import measure
    from dticli.evaluation.plan import Outcome

    noun = trial.subject.noun
    photos = eyes.features([albums.whole(photo) for photo in trial.subject.album.photos])
    scores = _scores(asked, noun, drawn, photos, eyes, reader)
    lengths = [rows.norm(dim=1).mean().item() / vocabulary[key].mean for key, rows in token.vectors.items()]
    return Outcome(
        arm=trial.arm.name,
        subject=trial.subject.name,
        seed=trial.seed,
        norm=sum(lengths) / len(lengths),
        likeness=measure.mean([score.likeness for score in scores]).value,
        alignment=measure.mean([score.alignment for score in scores]).value,
        chance=measure.chance(asked, _by_prompt(drawn, len(asked)), noun, reader),
        elements=measure.elements(scores),
        leakage=measure.leakage(scores),
    )
