"""Writes files atomically: completely or not at all."""

import errno
import itertools
import logging
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dticli import files
from dticli.errors import EnvironmentProblem, UsageError

LOG = logging.getLogger(__name__)
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or write to another disk",
    errno.EDQUOT: "the disk quota is used up; delete something or write to another disk",
    errno.EFBIG: "the file is larger than is allowed here; raise `ulimit -f` or write to another disk",
    errno.EACCES: "the folder is not writable; change its permissions or write to another folder",
    errno.EPERM: "the folder is not writable; change its permissions or write to another folder",
    errno.EROFS: "the disk is read-only; write to another disk",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EIO: "the disk failed; check it and write to another one",
}


def require_writable(paths: Iterable[str | Path], *, force: bool = False) -> None:
    """Check before the work starts that its results can be written.

    Missing folders are created. A temporary file is opened in each, because permissions alone are not sufficient.

    Raises:
        UsageError: a file exists, and `force` is not set.
        EnvironmentProblem: a path is a folder, a device, a pipe or a broken link, or cannot be written.
    """
    targets = [Path(path) for path in paths]
    for path in targets:
        require_replaceable(path)
        if os.path.lexists(path) and not force:
            raise UsageError(
                f"{path} exists: expected a new name; choose another, or add --force to replace it"
            )
    for folder in {path.parent for path in targets}:
        make_folder(folder)
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise EnvironmentProblem(f"cannot write in {folder}: {reason(error)}") from None
    for path in targets:
        try:
            os.lstat(path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(f"cannot write {path}: {reason(error)}") from None


def make_folder(folder: Path) -> None:
    """Create a folder and its parents if they do not exist.

    Raises:
        EnvironmentProblem: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"cannot make the folder {folder}: {reason(error)}") from None


def reason(error: OSError | ValueError) -> str:
    """The reason of a failed write, with advice; Python raises ValueError for names with a NUL character."""
    if isinstance(error, ValueError):
        return "nothing can be called that; choose another name"
    return _REASONS.get(error.errno or 0, f"{error.strerror}; write to another folder")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, replacing an existing file.

    Raises:
        EnvironmentProblem: as `staged`.
    """
    with staged(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, as `write_bytes`; surrogates, from file names in other encodings, become question marks."""
    write_bytes(path, text.encode("utf-8", "replace"))


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, that replaces it if the context ends without an exception.

    The body creates the file. If it raises, `path` is unchanged and the temporary file is removed. The target of a symbolic
    link is replaced, not the link. Only errors with an `errno` are explained, so callers serialise to memory first if a
    library hides it: `torch.save` raises RuntimeError on a full disk.

    Raises:
        EnvironmentProblem: the folder does not exist, or `path` exists and is not a regular file (both before the body
            runs), or the file cannot be written.
    """
    require_replaceable(path)
    target = Path(os.path.realpath(path))
    if not os.path.isdir(target.parent):
        raise EnvironmentProblem(
            f"cannot write {path}: there is no folder {Path(path).parent}; create it first"
        )
    temporary = target.with_name(f".dti-{secrets.token_hex(8)}{target.suffix}")
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, target)
        # Directories cannot be opened on Windows.
        if os.name == "posix":
            _sync(target.parent, os.O_RDONLY)
    except OSError as error:
        ours = error.filename is None or str(error.filename) in (str(temporary), str(target.parent))
        if ours and error.errno in _REASONS:
            raise EnvironmentProblem(f"cannot write {path}: {_REASONS[error.errno]}") from error
        raise
    finally:
        # A failure to remove the temporary file must not hide the error of writing it.
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def claimed(path: Path) -> Iterator[Path]:
    """A path for a new file: `path`, or if that exists, the next free name such as `a-2.png` for `a.png`, with a warning.

    Another process may have created `path` since it was checked. The name is reserved by an empty file, which the body
    replaces, and which is removed if the body raises.

    Raises:
        EnvironmentProblem: the file cannot be created.
    """
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    found = next(each for each in itertools.chain([path], others) if _taken(each))
    if found != path:
        LOG.warning(f"{path} was written by another process meanwhile: this one is {found}")
    try:
        yield found
    except BaseException:
        found.unlink(missing_ok=True)
        raise


def _taken(path: Path) -> bool:
    """Reserve a name by an empty file; False if it exists already."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {reason(error)}") from None
    return True


def require_replaceable(path: str | Path) -> None:
    """Raise EnvironmentProblem if a path exists and is not a regular file, which must not be removed."""
    if found := files.kind(path):
        advice = "add a file name" if found == "a folder" else "write to another file"
        raise EnvironmentProblem(f"cannot write {path}: it is {found}; {advice}")


def _sync(path: Path, mode: int) -> None:
    """Flush to disk, because a rename without its data would leave an empty file after a power failure."""
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
