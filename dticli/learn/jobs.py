"""The words to learn, from `train` or a plan: settings, photos and captions, read and checked before a model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dticli import atomic, spelling
from dticli.errors import DtiError, UsageError
from dticli.learn import hyperparameters
from dticli.learn.run_folder import RunFolder
from dticli.models import contents
from dticli.photos import albums, captions
from dticli.photos.albums import Album, Told
from dticli.photos.captions import Captions
from dticli.settings import ModelSettings, TrainSettings, first_of, model_layer, read_layers, resolve
from dticli.words import learned_word, token_writing
from dticli.words.base_model import Opened
from dticli.words.programs import Target


@dataclass(frozen=True)
class Job:
    """One word to learn.

    Attributes:
        target: the token file.
        program: the word is also written for this program, in a folder of its name.
    """

    opened: Opened
    settings: TrainSettings
    album: Album
    captions: Captions
    target: Path
    program: Target | None

    def texts(self) -> Iterator[str]:
        """All texts for the model: captions, prompts of previews, and their negative prompt."""
        for own in self.captions.texts.values():
            yield from own
        yield from self.settings.preview_prompts
        yield self.settings.preview_negative or ""

    @property
    def folder(self) -> RunFolder:
        """The folder of the run."""
        return RunFolder.beside(self.target)

    def require_writable(self) -> None:
        """Raise UsageError or EnvironmentProblem unless the token file can be written."""
        atomic.require_writable([self.target], force=True)
        token_writing.require_name(self.target)


def one(
    opened: Opened,
    layers: Sequence[Mapping[str, Any]],
    out: Path | None,
    program: Target | None,
    told: Told = lambda done, total: None,
) -> Job:
    """The job of one word.

    Args:
        layers: settings in order of precedence; those of the paper (if `as_paper` is set), the model and the family follow.
        out: the token file; default: the token's name.
        told: called with the number of checked photos after each one.

    Raises:
        UsageError: settings are missing or contradict each other.
        EnvironmentProblem: the tracker is not installed.
        InputError: no usable photos.
    """
    model, family = opened.model, opened.family
    below = [model_layer(model.folder, "train"), vars(family.defaults)]
    if first_of(layers, "as_paper"):
        below.insert(0, family.as_paper)
    settings = resolve(TrainSettings, model.settings, *layers, *below)
    if settings.photos is None:
        raise UsageError(
            "no photos: expected a folder; write dti train ./photos --token ... --init ..., or photos = in a settings file"
        )
    learned_word.check_name(settings.token)
    if settings.tracker:
        # Imports torch.
        from dticli.learn import tracking

        tracking.require(settings.tracker, offline=settings.offline)
    contents.require_multiple((settings.resolution, settings.resolution), family)
    target = out or Path(_file_name(settings.token))
    fit = albums.fit(hyperparameters.cropping(settings, family.multiple))
    album = albums.read(Path(settings.photos), settings.masks, fit, told)
    said = captions.read(album.photos, hyperparameters.captioning(settings))
    return Job(opened, settings, album, said, target, program)


def _file_name(token: str) -> str:
    return f"{token.strip('<>')}.safetensors"


# ------------------------------------------------------------------- many words in one file


@dataclass(frozen=True)
class Subjects:
    """A subjects file: settings for all words, and the settings of each word by the name of its table.

        steps = 500
        [rex]
        photos = "rex"        # beside this file
        init = "dog"          # token: "<rex>" by default

    Settings of the model apply to all words.
    """

    shared: Mapping[str, Any]
    words: Mapping[str, Mapping[str, Any]]


def read_subjects(path: Path) -> Subjects:
    """Read a subjects file.

    Raises:
        UsageError: not TOML, no word, unknown or wrong settings; names all of them.
    """
    shared, tables = read_layers(TrainSettings, path)
    if not tables:
        raise UsageError(
            f"{path} names no word: expected a table for each, such as [rex] with photos and init; add one"
        )
    words = {
        name: {"token": f"<{name}>"} | TrainSettings.beside(path.parent, table)
        for name, table in tables.items()
    }
    misplaced = [
        f"{key} in [{name}]"
        for name, table in tables.items()
        for key in table
        if key in ModelSettings.model_fields
    ]
    if misplaced:
        raise UsageError(
            f"{path}: {', '.join(misplaced)}: expected the model's settings above the tables, for all words; move it"
        )
    tokens = [spelling.word(str(layer["token"])) for layer in words.values()]
    twice = next((token for token in tokens if tokens.count(token) > 1), None)
    if twice:
        raise UsageError(f"{path}: two words are called {twice}: expected different names; change one token")
    return Subjects(TrainSettings.beside(path.parent, shared), words)


def many(
    opened: Opened,
    given: Mapping[str, Any],
    subjects: Subjects,
    config: Mapping[str, Any],
    out: Path | None,
    program: Target | None,
    told: Told = lambda done, total: None,
) -> tuple[Job, ...]:
    """The jobs of a subjects file, in its order.

    Args:
        given: settings of the command line, which take precedence.
        config: settings of a config file, which the subjects file overrides.
        out: folder of the token files; default: the current one.
        told: called with the number of checked photos of a word after each one.

    Raises:
        DtiError: one or several of them have errors; names all, before any training starts.
    """
    found, problems = [], []
    for name, word in subjects.words.items():
        target = (out or Path()) / _file_name(str(word["token"]))
        try:
            found.append(one(opened, [given, word, subjects.shared, config], target, program, told))
        except DtiError as error:
            problems.append((name, error))
    if problems:
        first = problems[0][1]
        raise type(first)("; ".join(f"[{name}] {error}" for name, error in problems))
    return tuple(found)
