"""Files that are written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def check_path(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path to write to; raises an error unless a file can be written there.

    Args:
        path: What the caller gave.
        suffix: What it has to end in.
    """
    received = f"Received: path={path!r}"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Argument `path` must be a string or a path. {received}")
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"Argument `path` must end in `{suffix}`. {received}")
    target = _target(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            "The folder of argument `path` does not exist; create it first "
            f"(`mkdir -p {target.parent}`). {received}"
        )
    if target.is_dir():
        raise ValueError(f"Argument `path` must name a file, but is a folder. {received}")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(
            f"The folder of argument `path` cannot be written to; choose another. {received}"
        )
    return path


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
