"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def check_path(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path to write to; raises an error unless a file can be written there.

    Args:
        path: What the caller gave, in which `~` is the home folder.
        suffix: What it has to end in.
    """
    received = f"Received: path={path!r}"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Argument `path` must be a string or a path. {received}")
    path = expand(path)
    if path.suffix != suffix:
        raise ValueError(f"Argument `path` must end in `{suffix}`. {received}")
    target = _target(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            "The folder of argument `path` does not exist; create it first "
            f"(`mkdir -p {shlex.quote(str(target.parent))}`). {received}"
        )
    if target.is_dir():
        raise ValueError(f"Argument `path` must name a file, but is a folder. {received}")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(
            f"The folder of argument `path` cannot be written to; choose another. {received}"
        )
    return path


def check_source(argument: str, value: Any) -> Path:
    """The path of a file to read; raises an error unless there is one.

    Args:
        argument: Name of the argument.
        value: What the caller gave, in which `~` is the home folder.
    """
    received = f"Received: {argument}={value!r}"
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"Argument `{argument}` must be the path of a .tflite file. {received}")
    if not expand(value).is_file():
        raise FileNotFoundError(f"Argument `{argument}` must be a file that exists. {received}")
    return expand(value)


def expand(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder in place of `~`, as a shell would give it."""
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes with all that is in it when the context ends.

    A lack of room while it lasts is an error that says where and what to do, in whatever words
    other libraries tell of it.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if full not in str(error):
            raise
        raise OSError(
            errno.ENOSPC,
            "There is no room for temporary files. Free some space, or name another folder in the "
            f"environment variable TMPDIR. Received: {tempfile.gettempdir()}. The system said: "
            f"{full}",
        ) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Puts a file at `path` in one step, or leaves what stands there as it is.

    Args:
        path: Where the file is to be; a link stays a link.
        write: Writes it at the path it is given, in the same folder and with the same suffix.
    """
    target = _target(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp{target.suffix}")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:
        raise OSError(
            error.errno,
            "The file could not be written, and what stood there is as it was. Free some space "
            f"or choose another folder. Received: path={str(path)!r}. The system said: "
            f"{error.strerror}",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """Where the file is to be: a link stays a link."""
    return Path(os.path.realpath(path))
