"""The work of a command: its progress, and its errors in the words of the command line."""

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from keras_lp.quiet import quiet

# Errors that the library raises on purpose; the kind of any other one says something.
_EXPECTED = (ValueError, TypeError, OSError, RuntimeError, ImportError)
_ERRNO = re.compile(r"^\[Errno \d+\] ")  # The text after it says the same.
_IN_BACKTICKS = re.compile(r"`(\w+)(?:=([^`]*))?`")


@contextlib.contextmanager
def working(description: str) -> Iterator[Callable[[str], None]]:
    """Shows progress on a terminal, silences other libraries and turns errors into click's.

    Yields:
        A function that prints a remark to stderr.
    """
    try:
        with quiet() as stderr:
            console = Console(file=stderr, soft_wrap=True, highlight=False, markup=False)
            with _progress(description, console):
                yield lambda remark: console.print(f"Note: {remark}")
    except KeyboardInterrupt as error:
        raise click.Abort from error
    except Exception as error:
        message = _ERRNO.sub("", str(error))
        if not isinstance(error, _EXPECTED):
            message = f"{type(error).__name__}: {message}"
        raise click.ClickException(_in_words_of(click.get_current_context(), message)) from error


def _progress(description: str, console: Console) -> AbstractContextManager[Any]:
    """A spinner and the time so far; nothing where nobody watches."""
    if not console.is_interactive:
        return contextlib.nullcontext()
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    progress.add_task(description, total=None)
    return progress


def _in_words_of(context: click.Context, message: str) -> str:
    """A message of the library, which names arguments of functions, with a command's options."""
    parameters = {parameter.name: parameter for parameter in context.command.params}

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        parameter = parameters.get(name)
        if parameter is None:
            return match[0]
        if not isinstance(parameter, click.Option):
            return parameter.human_readable_name
        if value == "False":
            return parameter.secondary_opts[-1]
        return " ".join([parameter.opts[-1], value.strip("\"'")] if value else parameter.opts[-1:])

    return _IN_BACKTICKS.sub(option, message)
