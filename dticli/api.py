"""The public functions: what the commands do, for Python. `import dticli` provides them, and imports torch on first use."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dticli.learn import jobs, lifecycle
from dticli.learn.run import Advanced, Attempt, Ended, Progress, advance, agree
from dticli.models import contents, families
from dticli.models.embeddings import by_key
from dticli.ranks import ALONE
from dticli.settings import ModelSettings
from dticli.words import base_model, learned_word, mixing, norms, placement, pooling, token_writing
from dticli.words.learned_word import Token
from dticli.words.norms import Summary
from dticli.words.placement import FreeWord, Placement


def load_word(source: str | Path, *, offline: bool = False) -> Token:
    """Read a learned word.

    Args:
        source: a token file of any program, a folder of its parts, a hub repository, or `<name>=SOURCE` under another name.
        offline: use only the hub's cache, without network access.

    Raises:
        InputError: the file is missing, damaged, or not a token file.
        EnvironmentProblem: the hub cannot be reached.
    """
    return base_model.read_token(str(source), offline=offline)


@contextmanager
def place(pipe: Any, *words: Token) -> Iterator[Placement]:
    """Make words usable in a diffusers pipeline inside the context; afterwards the pipeline is as before.

    Prompts use a word by its name. The pipeline's tokenizers expand words with several vectors by themselves; `expand` of the
    yielded object returns an expanded prompt for inspection.

    Args:
        pipe: a pipeline of a class that `dti models` lists, its text encoders on any device.

    Raises:
        ModelError: this pipeline class is not supported.
        InputError: a word lacks vectors of the widths of the pipeline's encoders.
        UsageError: two words have the same name, or a tokenizer already knows one.
    """
    family = families.of_index(pipe.config | {"_class_name": type(pipe).__name__}, type(pipe).__name__)
    tables = {encoder.key: placement.table(pipe, encoder) for encoder in family.encoders}
    widths = {key: table.shape[1] for key, table in tables.items()}

    def placed(word: Token) -> FreeWord:
        rows = learned_word.fit(word, widths).vectors
        return FreeWord(word.name, {key: own.to(tables[key].device) for key, own in rows.items()})

    pooling.choose(pipe, family.encoders, pooling.recorded([(word.name, word.metadata) for word in words]))
    with placement.place(pipe, family.encoders, [placed(word) for word in words]) as there:
        yield there


def slerp(first: Token, second: Token, t: float) -> Token:
    """Interpolate between two words: directions along the great circle at constant speed, norms geometrically.

    Args:
        t: 0 is the first word, 1 the second.

    Returns:
        a word with the first one's name and metadata.

    Raises:
        InputError: the words have different numbers of vectors or different encoders.
        NumericalError: directions are opposite, so there is no unique shortest path.
    """
    words = [first.vectors, second.vectors]
    mixing.require_alike(words)
    return first.with_vectors(mixing.mixed(words, (1 - t, t), "slerp"))


def train(
    photos: str | Path, token: str, init: str, *, out: str | Path | None = None, **settings: Any
) -> Iterator[Progress]:
    """Learn a word from photos, one step per iteration; the token file is written after the last step.

    Args:
        photos: folder of photos, or one photo.
        token: the new word, such as `<dog>`.
        init: class word or phrase to start from.
        out: the token file; default: the token's name with .safetensors. The run's folder is beside it.
        settings: any other option of `dti train`, with underscores: model, steps, lr, ...

    Yields:
        a `Progress`: its `report` has the step's loss, gradient lengths, norms, and the angle from the start in radians; its
            `loss` is smoothed over steps.

    Raises:
        UsageError: settings contradict each other, or a file or an unfinished run is in the way.
        InputError, ModelError, EnvironmentProblem, NumericalError: as for the command; saved states are kept.
    """
    chosen = dict.fromkeys(ModelSettings.model_fields) | settings
    given = {name: value for name, value in chosen.items() if value is not None}
    opened = base_model.open_model(chosen, ())
    layer: Mapping[str, Any] = given | {"photos": str(photos), "token": token, "init": init}
    job = jobs.one(opened, [layer], Path(out) if out else None, None)
    job.require_writable()
    job.captions.require_usable()
    with job.folder.locked():
        lifecycle.require_free(job, lifecycle.How(resume=False, force=False, quiet=True))
        run = lifecycle.prepare(job, lifecycle.loader(job, ALONE), quiet=True)
        for event in advance([Attempt(run, job.folder, agree(run, 0))]):
            if isinstance(event, Ended) and event.error:
                raise event.error
            if isinstance(event, Advanced):
                yield from event.words.values()
        token_writing.write(job.target, run.token(job.settings.steps))
        job.folder.finish()


def vocabulary_norms(model: str | None = None, *, offline: bool = False) -> dict[str, Summary]:
    """Statistics of the norms of a model's embedding rows, by encoder, read without loading the model.

    Args:
        model: a hub id, folder, single file or the bundled model's name; default: the model that the commands would choose.

    Raises:
        ModelError: the model is missing, damaged, or of an unsupported family.
        EnvironmentProblem: the hub cannot be reached.
    """
    given = dict.fromkeys(ModelSettings.model_fields) | {"model": model, "offline": offline}
    opened = base_model.open_model(given, ())
    tables = by_key(contents.tables(opened.model), opened.family.encoders)
    return {key: norms.summary(table) for key, table in tables.items()}
