"""Loads a pipeline, adds words to it, and draws with it."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dticli.draw import pictures, sampler
from dticli.draw.sampler import Picture, Shot
from dticli.models import contents, devices, memory
from dticli.settings import GenerateSettings, PathKind
from dticli.words import learned_word, mixing, norms, placement, pooling, provenance, token_writing
from dticli.words.base_model import Opened
from dticli.words.learned_word import Token
from dticli.words.mixing import Weights
from dticli.words.placement import FreeWord
from dticli.words.pooling import Pooling

LOG = logging.getLogger(__name__)


class ProgressLine(Protocol):
    """A progress line that is updated in place."""

    def update(self, done: float, *parts: str) -> None: ...


class ShowProgress(Protocol):
    """Opens a progress line for `total` pieces of work; it gives None if nothing is shown."""

    def __call__(self, total: int, *, every: int) -> AbstractContextManager[ProgressLine | None]: ...


def unseen(total: int, *, every: int) -> AbstractContextManager[ProgressLine | None]:
    """A `ShowProgress` that shows nothing."""
    return nullcontext()


@dataclass(frozen=True)
class PipelineWithWords:
    """A pipeline, and words that fit its encoders.

    Attributes:
        description: metadata of every picture drawn with it.
    """

    pipe: Any
    words: tuple[FreeWord, ...]
    description: Mapping[str, str]


def load(opened: Opened, settings: GenerateSettings, tokens: Sequence[Token]) -> PipelineWithWords:
    """Load the pipeline and match every token to its encoders; see `without_words` and `with_words`."""
    return with_words(without_words(opened, settings), opened, settings, tokens)


def require_drawable(opened: Opened, settings: GenerateSettings) -> None:
    """Raise UsageError if the size does not suit the model, or the scheduler is unknown; loads nothing."""
    if settings.scheduler:
        sampler.require_scheduler(settings.scheduler)
    if settings.height_width:
        contents.require_multiple(settings.height_width, opened.family)


def without_words(opened: Opened, settings: GenerateSettings, *, safety_checker: bool = True) -> Any:
    """Load the pipeline to draw with.

    Args:
        safety_checker: False leaves out the model's safety checker, if it has one, because black pictures cannot be judged.

    Raises:
        UsageError: as `require_drawable`.
        ModelError, EnvironmentProblem: as `memory.load`.
    """
    require_drawable(opened, settings)
    if settings.deterministic:
        devices.make_deterministic()
    device = devices.pick_device(settings.device)
    pipe = memory.load(opened.model, opened.family, settings, device, safety_checker=safety_checker)
    if settings.low_memory:
        memory.offload(pipe, device)
    return pipe


def with_words(
    pipe: Any, opened: Opened, settings: GenerateSettings, tokens: Sequence[Token]
) -> PipelineWithWords:
    """Match tokens to a pipeline's encoders, and set its pooling.

    Warns if a token was learned with other embedding tables or another pooling.
    """
    device = devices.pick_device(settings.device)
    pooling.choose(pipe, opened.family.encoders, _pooling(settings, tokens))
    tables = placement.tables(pipe, opened.family.encoders)
    fingerprint = norms.fingerprint(tables.values())
    for token in tokens:
        if token.metadata.get("dti.tables", fingerprint) != fingerprint:
            LOG.warning(
                f"{token.name} was learned on {token.metadata.get('dti.model', 'another model')}, whose vocabulary differs "
                f"from that of {opened.model.label}: the likeness may suffer"
            )
    widths = {encoder.key: placement.table(pipe, encoder).shape[1] for encoder in opened.family.encoders}
    words = tuple(_word(token, widths, device) for token in tokens)
    return PipelineWithWords(pipe, words, description(opened, settings, tokens))


def draw(
    loaded: PipelineWithWords,
    opened: Opened,
    shots: Sequence[Shot],
    settings: GenerateSettings,
    *,
    files: Sequence[Path] = (),
    what: str = "picture",
    every: int = 1,
    progress: ShowProgress = unseen,
    force: bool = True,
) -> list[Picture]:
    """Draw every shot, with a progress line.

    Args:
        files: where each picture is written as soon as it is drawn, one per shot; empty to write none.
        what: name of a picture in the progress line.
        every: number of pictures after which `progress` may print a line without a terminal.
        force: replace existing files; otherwise other names are chosen.

    Raises:
        DtiError: as `sampler.sample`.
    """
    drawn: list[Picture] = []
    with progress(len(shots), every=every) as line:

        def stepped(done: int, total: int) -> None:
            if line:
                at_once = min(settings.batch_size, len(shots) - len(drawn))
                now = f"{what} {len(drawn) + 1}/{len(shots)}"
                line.update(len(drawn) + at_once * done / total, now, f"step {done}/{total}")

        for picture in sampler.sample(loaded.pipe, opened.family, loaded.words, shots, settings, stepped):
            if files:
                place = files[len(drawn)]
                file = pictures.save(place, picture, loaded.description, force=force)
                picture = dataclasses.replace(picture, file=file)
            drawn.append(picture)
            if line:
                line.update(len(drawn), f"{what} {len(drawn)}/{len(shots)}")
    if filtered := sum(picture.filtered for picture in drawn):
        LOG.warning(
            f"{filtered} of {len(drawn)} pictures are black, because the model's safety checker blocked them; try another "
            f"--seed"
        )
    return drawn


def draw_mixes(
    loaded: PipelineWithWords,
    opened: Opened,
    way: Sequence[Weights],
    path: PathKind,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: GenerateSettings,
    *,
    files: Sequence[Path] = (),
    every: int = 1,
    progress: ShowProgress = unseen,
) -> list[Picture]:
    """Draw prompts with mixes of the loaded words in place of {}, ordered by mix, prompt and seed.

    Args:
        way: for each mix, the weight of each word.
        path: as for `mixing.mixed`.

    Raises:
        InputError: words of different encoders or shapes, or a prompt in which the word is truncated.
        NumericalError: as `mixing.mixed`.
    """
    ends = [word.rows for word in loaded.words]
    mixing.require_alike(ends)
    # Each mix is a word of its own in one vocabulary: the model is set up once, and mixes can share a batch.
    words = tuple(
        FreeWord(f"<dti-frame-{index}>", mixing.mixed(ends, weights, path))
        for index, weights in enumerate(way)
    )
    shots = [
        Shot(prompt.replace("{}", word.name), seed) for word in words for prompt in prompts for seed in seeds
    ]
    along = dataclasses.replace(loaded, words=words)
    return draw(along, opened, shots, settings, files=files, what="frame", every=every, progress=progress)


def _pooling(settings: GenerateSettings, tokens: Sequence[Token]) -> Pooling:
    """The requested pooling, or that of the words; warns if a word was learned with another."""
    if settings.pooling is None:
        return pooling.recorded([(token.name, token.metadata) for token in tokens])
    for token in tokens:
        if pooling.said(token.metadata) not in (settings.pooling, "mixed"):
            LOG.warning(
                f"{token.name} was learned with --pooling {pooling.said(token.metadata)}: "
                f"with {settings.pooling} the likeness may suffer"
            )
    return settings.pooling


def _word(token: Token, widths: Mapping[str, int], device: Any) -> FreeWord:
    vectors = learned_word.fit(token, widths).vectors
    return FreeWord(token.name, {key: rows.to(device) for key, rows in vectors.items()})


def description(opened: Opened, settings: GenerateSettings, tokens: Sequence[Token]) -> dict[str, str]:
    """Metadata of pictures: the model, the words with hashes of their vectors, the settings that are set, and versions."""
    used = {
        name: value
        for name, value in settings.model_dump(exclude={"model", "base", "seed"}).items()
        if value is not None
    }
    return {
        "model": opened.model.label,
        "tokens": ", ".join(
            f"{token.name} sha256:{token_writing.content_hash(token)[:16]}" for token in tokens
        ),
        "settings": ", ".join(f"{name}={value}" for name, value in used.items()),
    } | provenance.versions()
