"""The model hub's client: what names a repository, how long and how large an answer may be, and its errors as ours."""

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
"""How long the hub may take to say what it has."""
ANSWER_BYTES = 16 * 2**20
"""How much it may say; lists of files take kilobytes."""

MISREAD = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
"""What the client raises where an answer has another form than it expects; OSError, where a file has another size."""

_file_bytes: ContextVar[float] = ContextVar("file_bytes", default=float("inf"))
_bounds: ContextVar[tuple[float, float]] = ContextVar("bounds", default=(float("inf"), float("inf")))


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Let files fetched in this context be no larger than `size` bytes, whatever the hub says about them."""
    token = _file_bytes.set(size)
    try:
        yield
    finally:
        _file_bytes.reset(token)


@functools.cache
def _bound() -> None:
    """Let the client library, which waits forever and reads whatever comes, use a client with bounds."""
    from huggingface_hub import errors, get_session, set_client_factory

    session: Any = get_session()
    # Its name has changed more than once; what it is made of has not.
    library: Any = importlib.import_module(type(session).__module__.partition(".")[0])

    class Client(library.Client):
        silent_since = float("-inf")

        def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            now = time.monotonic()
            if now - self.silent_since < ANSWER_SECONDS:
                raise errors.OfflineModeIsEnabled("the hub did not answer a moment ago")
            # Files are streamed, and take their time once they have begun.
            bounds = (_file_bytes.get(), float("inf")) if stream else (ANSWER_BYTES, now + ANSWER_SECONDS)
            token = _bounds.set(bounds)
            waits = dict.fromkeys(("connect", "read", "write", "pool"), ANSWER_SECONDS)
            given = request.extensions.get("timeout") if stream else None
            request.extensions = {**request.extensions, "timeout": given or waits}
            try:
                return super().send(request, stream=stream, **options)
            except library.TimeoutException as problem:
                # The library would ask five times more; what it has in its cache it still uses.
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
    """Let the hub's client have bounds, and turn its errors into ours.

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
