"""The model hub's client: what names a repository, and its errors as ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dticli.errors import DtiError, EnvironmentProblem

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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


@contextmanager
def without_bars() -> Iterator[None]:
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
