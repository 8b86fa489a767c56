"""The client of the model hub: ids of repositories, limits on answers, and translation of errors."""

import functools
import importlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from dticli.errors import DtiError, EnvironmentProblem

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

ANSWER_SECONDS = 30.0
"""Timeout of the hub's answers other than files."""
ANSWER_BYTES = 16 * 2**20
"""Largest answer other than a file; lists of files take kilobytes."""

MISREAD = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
"""Classes that the client raises for an answer of unexpected form; OSError if a file has another size."""

_file_bytes: ContextVar[float] = ContextVar("file_bytes", default=float("inf"))
_bounds: ContextVar[tuple[float, float]] = ContextVar("bounds", default=(float("inf"), float("inf")))


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Limit files that are downloaded in this context to `size` bytes, whatever size the hub reports."""
    token = _file_bytes.set(size)
    try:
        yield
    finally:
        _file_bytes.reset(token)


@functools.cache
def _bound() -> None:
    """Replace the library's HTTP client, which has no limits, by one with limits of time and size."""
    from huggingface_hub import errors, get_session, set_client_factory

    session: Any = get_session()
    # The HTTP library's name has changed more than once, but not its interface.
    library: Any = importlib.import_module(type(session).__module__.partition(".")[0])

    class Client(library.Client):
        silent_since = float("-inf")

        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            now = time.monotonic()
            if now - self.silent_since < ANSWER_SECONDS:
                raise errors.OfflineModeIsEnabled("the hub did not answer a moment ago")
            # Files are streamed; their total time is not limited.
            bounds = (_file_bytes.get(), float("inf")) if stream else (ANSWER_BYTES, now + ANSWER_SECONDS)
            token = _bounds.set(bounds)
            waits = dict.fromkeys(("connect", "read", "write", "pool"), ANSWER_SECONDS)
            given = request.extensions.get("timeout") if stream else None
            request.extensions = {**request.extensions, "timeout": given or waits}
            try:
                return super().send(request, stream=stream, **options)
            except library.TimeoutException as problem:
                # Avoids the library's five retries; it still uses its cache.
                self.silent_since = time.monotonic()
                raise errors.OfflineModeIsEnabled(f"the hub did not answer ({problem})") from None
            finally:
                _bounds.reset(token)

    class Stream(library.SyncByteStream):
        def __init__(self, stream: Any, most: float, until: float) -> None:
            self.stream, self.most, self.until = stream, most, until

        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for part in self.stream:
                size += len(part)
                if size > self.most:
                    raise EnvironmentProblem(
                        f"the hub sends more than {self.most:.0f} bytes: expected less; try again later, or pass a local file"
                    )
                if time.monotonic() > self.until:
                    raise EnvironmentProblem(
                        f"the hub has not finished its answer in {ANSWER_SECONDS:.0f} seconds: try again later, or pass a "
                        "local file"
                    )
                yield part

        def close(self) -> None:
            self.stream.close()

    def bound(response: Any) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise EnvironmentProblem(
                "the hub sends a compressed answer, which was not asked for: try again later, or pass a local file"
            )
        response.stream = Stream(response.stream, *_bounds.get())

    hooks = {name: list(each) for name, each in session.event_hooks.items()}
    hooks["response"] = [*hooks.get("response", []), bound]
    kept = {"follow_redirects": session.follow_redirects, "timeout": session.timeout}
    set_client_factory(lambda: Client(event_hooks=hooks, headers={"Accept-Encoding": "identity"}, **kept))


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
    """Set the limits of the hub's client, and turn its errors into ours.

    Args:
        name: of the repository.
        revision: of the repository; None for the default.
        kind: of the repository, for messages.
        error: raised for a problem of the repository.
        option: what to check if the repository does not exist.
        lacks: description of a missing file, with advice.
        instead: advice if there is no connection.
        offline: whether --offline was given.

    Raises:
        error: the repository, revision or file does not exist, or access needs a licence.
        EnvironmentProblem: there is no connection or access, or the hub's answer cannot be used.
    """
    from huggingface_hub import errors as hub

    why = "--offline was given" if offline else "the hub cannot be reached"
    # The HTTP library's name has changed more than once, but its base error is always the first base of this class.
    network_error: Any = hub.HfHubHTTPError.__bases__[0]
    _bound()
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
    except MISREAD as problem:
        if isinstance(problem, OSError) and problem.errno:
            raise
        reason = next(iter(str(problem).splitlines()), "") or type(problem).__name__
        raise EnvironmentProblem(
            f"the hub's answer about {name} cannot be used ({reason[:200]}): {instead}"
        ) from problem


@contextmanager
def without_bars() -> Iterator[None]:
    """Turn off the client's progress bars, for small files."""
    from huggingface_hub import utils

    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
