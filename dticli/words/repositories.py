"""Token files on the model hub: named as models are (`user/name`, with `@revision`), fetched and pushed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dticli import hub
from dticli.errors import EnvironmentProblem, InputError, UsageError
from dticli.hub import ID
from dticli.models import single_file
from dticli.paths import names_token_file
from dticli.words import conversion, token_reading
from dticli.words.conversion import Source

MODEL_INDEX = "model_index.json"


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
        if not ID.fullmatch(name) or names_token_file(name) or names_token_file(source):
            return None
        return cls(name, revision or None, file or None)


def read(source: str, *, pick: str | None = None, offline: bool = False) -> Source:
    """Read the word of a file, a folder, or a hub repository.

    What is on this machine goes first. Repositories may hold one token file, or diffusers' `learned_embeds` with or
    without a `token_identifier.txt`, as those of the sd-concepts-library do.

    Raises:
        InputError: there is none, or it is unusable.
        EnvironmentProblem: the hub cannot be reached.
    """
    path = Path(os.path.expanduser(source))
    repository = Repository.named(source)
    if os.path.exists(path) or path.is_absolute() or not repository:
        return conversion.read(path, pick=pick)
    folder = _download(repository, offline)
    if repository.file:
        return conversion.read(folder / repository.file, pick=pick)
    return conversion.read(folder, repository.name.partition("/")[2], pick)


def holds_token(source: str, *, offline: bool = False) -> bool:
    """Whether a name is that of a token rather than that of a model."""
    path = Path(os.path.expanduser(source))
    if names_token_file(path.name):
        return not single_file.is_checkpoint(path)
    repository = Repository.named(source)
    try:
        if os.path.isdir(path):
            names = [each.name for each in path.iterdir()]
        elif repository:
            names = list(_listing(repository, offline))
        else:
            return False
    except (OSError, EnvironmentProblem, InputError):
        # Opening it as a model reports the same problem, in words that fit both.
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
        if sizes[name] > token_reading.MAX_PICKLE:
            raise InputError(
                f"{name} in {repository.name} has {sizes[name]} bytes: expected at most {token_reading.MAX_PICKLE}; "
                "is this a whole model?"
            )
    extra = [conversion.IDENTIFIER] if conversion.IDENTIFIER in sizes else []
    with _errors(repository, offline), hub.without_bars(), hub.at_most(token_reading.MAX_PICKLE):
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
            return {
                each.rfilename: int(each.size or 0)
                for each in info.siblings or ()
                if each.rfilename.isprintable()
            }
    except EnvironmentProblem:
        return _cached(repository, offline)


def _cached(repository: Repository, offline: bool) -> dict[str, int]:
    from huggingface_hub import snapshot_download

    with _errors(repository, offline):
        folder = Path(
            snapshot_download(
                repository.name, revision=repository.revision, local_files_only=True, allow_patterns=[]
            )
        )
    return {each.name: each.stat().st_size for each in folder.iterdir() if os.path.isfile(each)}


def _errors(repository: Repository, offline: bool) -> Any:
    return hub.errors(
        repository.name,
        repository.revision,
        kind="token file",
        error=InputError,
        option="the name",
        lacks="such file: expected a token file; check its page",
        instead="check the network, or pass a file",
        offline=offline,
    )


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
    reached = hub.errors(
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
        with hub.without_bars():
            return api.create_commit(name, operations, commit_message=message).commit_url
    except ValueError as problem:
        # The client checks the card before it uploads.
        raise UsageError(
            f"the hub refuses the card of {name} ({' '.join(str(problem).split())}); check the token's metadata"
        ) from None
    except RuntimeError as problem:
        # What went wrong in one of the threads that upload.
        raise EnvironmentProblem(f"the upload to {name} broke off ({problem}); push again") from problem
