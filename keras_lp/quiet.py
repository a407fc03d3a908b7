"""Silence of other libraries, so that a command prints its own lines alone.

TensorFlow writes from C++ to the descriptors 1 and 2, past Python's streams, and begins with that
while it is imported.
"""

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def is_command_line() -> bool:
    """Whether this process was started as `keras-lp` or `python -m keras_lp`."""
    program = Path(sys.argv[0]).stem if getattr(sys, "argv", None) else ""
    # While a package is imported to look for what `-m` names, the program is still that word.
    is_module = program == "-m" and ("-m", "keras_lp") in itertools.pairwise(sys.orig_argv)
    return program == "keras-lp" or is_module


@contextlib.contextmanager
def quiet() -> Iterator[TextIO]:
    """Drops what is written to stdout and stderr, by Python or past it, and yields the real stderr.

    With `TF_CPP_MIN_LOG_LEVEL=0` in the environment it goes to stderr instead.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        stdout, stderr = (stack.enter_context(_copy(descriptor)) for descriptor in (1, 2))
        wants_all = os.environ.get(_LEVEL) == "0"
        sink = stack.enter_context(_copy(2) if wants_all else open(os.devnull, "w"))  # noqa: SIM115
        stack.enter_context(contextlib.redirect_stdout(sink))
        stack.enter_context(contextlib.redirect_stderr(sink))
        stack.callback(os.dup2, stderr.fileno(), 2)
        stack.callback(os.dup2, stdout.fileno(), 1)
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        yield stderr


@contextlib.contextmanager
def quiet_on_the_command_line() -> Iterator[None]:
    """For the import of Keras: silence in a command, which also needs no traceback."""
    if not is_command_line():
        yield
        return
    os.environ.setdefault(_LEVEL, "3")
    _open_standard_streams()
    try:
        with quiet():
            yield
    except (ImportError, ValueError) as error:  # The second for a backend that there is not.
        sys.exit(
            f"Error: Keras could not be imported: {error}. Install a backend, such as "
            "pip install 'keras-lp[tensorflow]', or name one that is installed in KERAS_BACKEND"
        )


def _open_standard_streams() -> None:
    """Opens those that the process was started without, as daemons and `>&-` do, to nothing."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest number that is free, so this one.
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r"))  # noqa: SIM115


def _copy(descriptor: int) -> TextIO:
    return open(os.dup(descriptor), "w", encoding="utf-8", errors="backslashreplace")
