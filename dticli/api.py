"""The public functions: what the commands do, for programs. `import dticli` offers them, loading torch on first use."""

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
        offline: take what lies in the hub's cache, and ask nobody.

    Raises:
        InputError: it is not there, damaged, or no token file.
        EnvironmentProblem: the hub cannot be reached.
    """
    return base_model.read_token(str(source), offline=offline)


@contextmanager
def place(pipe: Any, *words: Token) -> Iterator[Placement]:
    """Let words take effect in a diffusers pipeline while the context is open; its weights and tokenizers stay as they are.

    Prompts call a word by its name. A word of several vectors is written out by `expand` of what the context gives, which
    changes nothing where the pipeline does that itself.

    Args:
        pipe: a pipeline of a class that `dti models` lists, its text encoders on any device.

    Raises:
        ModelError: no family has pipelines of this class.
        InputError: a word has no vectors of the widths that the pipeline's encoders take.
        UsageError: two words share a name, or a vocabulary already holds one.
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
    """The word at `t` on the way from one word to another: directions turn at constant speed, lengths change geometrically.

    Args:
        t: 0 is the first word, 1 the second.

    Returns:
        a word under the first one's name, with the first one's metadata.

    Raises:
        InputError: they have different numbers of vectors or different encoders.
        NumericalError: directions are opposite, so that no shortest way is singled out.
    """
    words = [first.vectors, second.vectors]
    mixing.require_alike(words)
    return first.with_vectors(mixing.mixed(words, (1 - t, t), "slerp"))


def train(
    photos: str | Path, token: str, init: str, *, out: str | Path | None = None, **settings: Any
) -> Iterator[Progress]:
    """Learn a word from photos, a step at each turn; the token file is written when the last one is done.

    Args:
        photos: folder of photos, or one.
        token: the new word, such as `<dog>`.
        init: class word or phrase to start from.
        out: the token file; default: the token's name with .safetensors. The run's folder lies beside it.
        settings: any other option of `dti train`, by its name with underscores: model, steps, lr, ...

    Yields:
        a `Progress`: its `report` has the step's loss, gradient lengths, norms, and the angle from the start in radians; its
            `loss` is smoothed over steps.

    Raises:
        UsageError: settings do not fit together, or a file or an unfinished run is in the way.
        InputError, ModelError, EnvironmentProblem, NumericalError: as the command would end; states saved so far stay.
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
    """The lengths of a model's embedding rows, by encoder, read without loading the model.

    Args:
        model: a hub id, folder, single file or the bundled model's name; default: as the commands choose it.

    Raises:
        ModelError: it is not there, damaged, or of no known family.
        EnvironmentProblem: the hub cannot be reached.
    """
    given = dict.fromkeys(ModelSettings.model_fields) | {"model": model, "offline": offline}
    opened = base_model.open_model(given, ())
    tables = by_key(contents.tables(opened.model), opened.family.encoders)
    return {key: norms.summary(table) for key, table in tables.items()}
