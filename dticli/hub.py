"""Token files on the model hub: named as models are (`user/name`, with `@revision`), fetched, and pushed with a card."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dticli.errors import DtiError, EnvironmentProblem, InputError, UsageError
from dticli.models import single_file
from dticli.paths import names_token_file
from dticli.words import conversion, programs, token_file
from dticli.words.conversion import Source
from dticli.words.token_file import Token

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MODEL_INDEX = "model_index.json"
README = "README.md"
LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        *("openrail", "creativeml-openrail-m", "openrail++", "unlicense"),
    }
)
"""Licences the hub knows by these ids and that pictures and weights are often under; others go by name."""


@dataclass(frozen=True)
class Repository:
    """A repository of a token file: `user/name`, `user/name@revision`, `user/name:file.safetensors`."""

    name: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def named(cls, source: str) -> "Repository | None":
        """The repository of that name, or None if it is no such name; a token file's path never is."""
        source, _, file = source.partition(":")
        name, _, revision = source.partition("@")
        if not ID.fullmatch(name) or names_token_file(name):
            return None
        return cls(name, revision or None, file or None)


# Reading


def read(source: str, *, offline: bool = False) -> Source:
    """Read the word of a file, a folder, or a hub repository.

    What is on this machine goes first. Repositories may hold one token file, or diffusers' `learned_embeds` with or
    without a `token_identifier.txt`, as those of the sd-concepts-library do.

    Raises:
        InputError: there is none, or it is unusable.
        EnvironmentProblem: the hub cannot be reached.
    """
    path = Path(source).expanduser()
    repository = Repository.named(source)
    if path.exists() or path.is_absolute() or not repository:
        return conversion.read(path)
    folder = _download(repository, offline)
    if repository.file:
        return conversion.read(folder / repository.file)
    return conversion.read(folder, repository.name.partition("/")[2])


def holds_token(source: str, *, offline: bool = False) -> bool:
    """Whether a name is that of a token rather than that of a model."""
    path = Path(source).expanduser()
    if names_token_file(path.name):
        return not single_file.is_checkpoint(path)
    if path.is_dir():
        names = [each.name for each in path.iterdir()]
    else:
        repository = Repository.named(source)
        if not repository:
            return False
        try:
            names = list(_listing(repository, offline))
        except (EnvironmentProblem, InputError):
            # Asking for it as a model says the same, in words that fit both.
            return False
    return MODEL_INDEX not in names and any(map(conversion.is_token_file, names))


def _download(repository: Repository, offline: bool) -> Path:
    """The folder with the repository's token files."""
    from huggingface_hub import hf_hub_download

    sizes = _listing(repository, offline)
    if MODEL_INDEX in sizes:
        raise InputError(f"{repository.name} is a model: expected a token file; pass it with --model")
    wanted = _wanted(repository, sizes)
    for name in wanted:
        if sizes[name] > token_file.MAX_PICKLE:
            raise InputError(
                f"{name} in {repository.name} has {sizes[name]} bytes: expected at most {token_file.MAX_PICKLE}; "
                "is this a whole model?"
            )
    extra = [conversion.IDENTIFIER] if conversion.IDENTIFIER in sizes else []
    with _errors(repository, offline), _without_bars():
        paths = [
            Path(
                hf_hub_download(repository.name, name, revision=repository.revision, local_files_only=offline)
            )
            for name in [*wanted, *extra]
        ]
    return paths[0].parent


def _wanted(repository: Repository, sizes: Mapping[str, int]) -> list[str]:
    """The files to fetch."""
    if repository.file is None:
        return conversion.files_of_a_word(sizes, repository.name)
    if repository.file not in sizes or not conversion.is_token_file(repository.file):
        raise InputError(
            f"{repository.name} holds no token file {repository.file!a}: expected one of its own; check its page"
        )
    return [repository.file]


def _listing(repository: Repository, offline: bool) -> dict[str, int]:
    """Name to size in bytes of every file; of the cached copy when offline or when the hub cannot be reached."""
    from huggingface_hub import HfApi

    if offline:
        return _cached(repository, offline)
    try:
        with _errors(repository, offline):
            info = HfApi().model_info(repository.name, revision=repository.revision, files_metadata=True)
    except EnvironmentProblem:
        return _cached(repository, offline)
    return {each.rfilename: each.size or 0 for each in info.siblings or ()}


def _cached(repository: Repository, offline: bool) -> dict[str, int]:
    from huggingface_hub import snapshot_download

    with _errors(repository, offline):
        folder = Path(
            snapshot_download(
                repository.name, revision=repository.revision, local_files_only=True, allow_patterns=[]
            )
        )
    return {each.name: each.stat().st_size for each in folder.iterdir() if each.is_file()}


# Errors


@contextmanager
def errors(
    name: str,
    revision: str | None,
    *,
    kind: str,
    error: type[DtiError],
    option: str,
    lacks: str,
    instead: str,
    offline: bool,
) -> Iterator[None]:
    """Turn the hub client's errors into ours.

    Args:
        name: of the repository.
        kind: what it should be.
        error: raised for what is wrong with the repository.
        option: what to check when there is none of that name.
        lacks: what is missing where a file is.
        instead: what else to do where there is no connection.
        offline: none was wanted.
    """
    from huggingface_hub import errors as hub

    why = "--offline was given" if offline else "the hub cannot be reached"
    # The client library behind the hub's has changed its name more than once; its base error has not moved.
    network_error: Any = hub.HfHubHTTPError.__bases__[0]
    try:
        yield
    except hub.GatedRepoError:
        raise error(
            f"{name} is gated: accept its licence on its page, then log in with `hf auth login`"
        ) from None
    except hub.RepositoryNotFoundError:
        raise error(
            f"the hub has no {kind} {name}, or it is private: check {option}, or `hf auth login`"
        ) from None
    except hub.RevisionNotFoundError:
        raise error(f"{name} has no revision {revision}: check what follows the @") from None
    except hub.EntryNotFoundError as problem:
        if isinstance(problem, hub.LocalEntryNotFoundError):
            raise EnvironmentProblem(f"{name} is not on this machine and {why}: {instead}") from None
        raise error(f"{name} holds no {lacks}") from None
    except hub.HfHubHTTPError as problem:
        status = problem.response.status_code if problem.response is not None else 0
        if status in (401, 403):
            raise EnvironmentProblem(
                f"the hub refuses access to {name} ({status}): expected your own name before the slash and a token "
                "that may write; log in with `hf auth login`"
            ) from None
        raise EnvironmentProblem(f"the hub answers {status} for {name}: try again later") from None
    except (network_error, ConnectionError, hub.OfflineModeIsEnabled):
        raise EnvironmentProblem(f"{name} is not on this machine and {why}: {instead}") from None


def _errors(repository: Repository, offline: bool) -> Any:
    return errors(
        repository.name,
        repository.revision,
        kind="token file",
        error=InputError,
        option="the name",
        lacks="such file: expected a token file; check its page",
        instead="check the network, or pass a file",
        offline=offline,
    )


# Pushing


@dataclass(frozen=True)
class Picture:
    """An example picture: its file name, content, and the prompt it was drawn from, if it says."""

    name: str
    content: bytes
    prompt: str | None


def push(name: str, files: Mapping[str, bytes], *, private: bool, message: str, force: bool) -> str:
    """Put files into a repository, made if need be, in one commit.

    Args:
        files: path in the repository to content.
        force: replace files that are there.

    Returns:
        the address of the commit.

    Raises:
        UsageError: a file is there already, or the card is refused.
        EnvironmentProblem: no connection, or no right to write.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    reached = errors(
        name,
        None,
        kind="repository",
        error=UsageError,
        option="the name",
        lacks="such file: push again",
        instead="check the network",
        offline=False,
    )
    with reached:
        api.create_repo(name, private=private or None, exist_ok=True)
        there = {each.rfilename for each in api.model_info(name).siblings or ()}
        taken = sorted(there & files.keys())
        if taken and not force:
            raise UsageError(
                f"{name} holds {', '.join(taken)} already: expected a new name; add --force to replace them"
            )
        operations = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        return _commit(api, name, operations, message)


def _commit(api: Any, name: str, operations: Sequence[Any], message: str) -> str:
    try:
        with _without_bars():
            return api.create_commit(name, operations, commit_message=message).commit_url
    except ValueError as problem:
        # The client checks the card before it uploads.
        raise UsageError(
            f"the hub refuses the card of {name} ({' '.join(str(problem).split())}); check the token's metadata"
        ) from None
    except RuntimeError as problem:
        # What went wrong in one of the threads that upload.
        raise EnvironmentProblem(f"the upload to {name} broke off ({problem}); push again") from problem


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of the client's: files of kilobytes need none."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def contents(name: str, token: Token, pictures: Sequence[Picture]) -> dict[str, bytes]:
    """What a repository of a word holds: our file, diffusers' for each encoder, a card and pictures."""
    families = programs.candidates(conversion.widths(token), token.metadata.get("dti.family"))
    split = conversion.export(token, "diffusers") if families else {}
    return (
        conversion.export(token, "dti")
        | {Path(path).name: content for path, content in split.items()}
        | {f"images/{picture.name}": picture.content for picture in pictures}
        | {README: card(name, token, pictures).encode()}
    )


def card(name: str, token: Token, pictures: Sequence[Picture]) -> str:
    """The model card, made from the word's metadata. Strangers wrote that: everything of it is escaped."""
    from huggingface_hub import ModelCardData

    said = token.metadata
    base = said.get("dti.model", "") if said.get("dti.model_kind") == "hub" else ""
    data = ModelCardData(
        base_model=base.partition("@")[0] or None,
        instance_prompt=token.name,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["textual_inversion", "text-to-image", "diffusers", "dti"],
        widget=[
            {"text": picture.prompt or token.name, "output": {"url": f"images/{picture.name}"}}
            for picture in pictures
        ]
        or None,
        **_licence(said.get("modelspec.license")),
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_body(name, token, pictures))


def _licence(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    plain = text.strip().lower()
    return {"license": plain} if plain in LICENCES else {"license": "other", "license_name": text.strip()}


def _body(name: str, token: Token, pictures: Sequence[Picture]) -> Iterator[str]:
    said = token.metadata
    stem = programs.stem_of(token.name)
    word = escaped(token.name)
    count = len(next(iter(token.vectors.values())))
    yield f"# {escaped(said.get('modelspec.title') or stem)}\n"
    if said.get("modelspec.description"):
        yield f"{escaped(said['modelspec.description'])}\n"
    vectors = f"{count} {'vector' if count == 1 else 'vectors'} for {_encoders(token)}"
    yield f"A word for a text-to-image model: **{word}**, {vectors}.\n"
    for picture in pictures:
        caption = escaped(picture.prompt or token.name)
        yield f"![{caption}](images/{picture.name})\n"
    yield "## Use\n"
    yield f'```sh\ndti generate "a photo of {token.name}" -t {name}\n```\n'
    families = programs.candidates(conversion.widths(token), said.get("dti.family"))
    if families:
        yield f"```python\n{_python(name, token, families[0])}\n```\n"
    yield f"{escaped(said.get('modelspec.usage_hint') or f'dti: {token.name}')}\n"
    facts = {key: said[key] for key in sorted(said) if key.startswith("dti.")} | {
        f"modelspec.{key}": said[f"modelspec.{key}"]
        for key in ("author", "license", "date", "architecture", "resolution")
        if f"modelspec.{key}" in said
    }
    if facts:
        yield "## How it was made\n"
        yield "| | |\n|---|---|"
        yield from (f"| {escaped(key)} | {escaped(value)} |" for key, value in facts.items())
        yield ""
    yield f"SHA-256 of the vectors: `{token_file.content_hash(token)}`"


def _encoders(token: Token) -> str:
    return " and ".join(
        f"an encoder of width {rows.shape[1]}" if key == programs.SOLE else f"{key} (width {rows.shape[1]})"
        for key, rows in token.vectors.items()
    )


def _python(name: str, token: Token, family: str) -> str:
    """Loading the word with diffusers alone; one call an encoder."""
    from dticli.models import families

    row = families.of_name(family)
    encoders = [each for each in row.encoders if each.key in token.vectors] if row else []
    if len(token.vectors) == 1 or not encoders:
        return f'pipe.load_textual_inversion("{name}")  # the prompt says {token.name}'
    lines = []
    for number, encoder in enumerate(encoders, start=1):
        file = f"learned_embeds{f'_{number}' if number > 1 else ''}.safetensors"
        parts = f"text_encoder=pipe.{encoder.component}, tokenizer=pipe.{encoder.tokenizer}"
        lines.append(f'pipe.load_textual_inversion("{name}", weight_name="{file}", {parts})')
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Foreign text as it looks, in Markdown that may hold HTML: one line, nothing of it is markup."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(line))
