"""The command `keras-lp`, its exit codes and its errors of one line."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

import keras_lp
from keras_lp.cli.compare import compare
from keras_lp.cli.export import export
from keras_lp.cli.plot import plot
from keras_lp.cli.report import report
from keras_lp.cli.strip import strip

_NAME = "keras-lp"


@click.group(
    # Without a command it is an error of one line, in every version of click.
    no_args_is_help=False,
    commands=[report, strip, export, compare, plot],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(keras_lp.__version__, prog_name=_NAME)
def keras_lp_command() -> None:
    """Sparse Keras 3 models: from a .keras file to a small .tflite file.

    \b
    Examples:
      keras-lp report model.keras
      keras-lp strip model.keras stripped.keras
      keras-lp export stripped.keras model.tflite --quantize float16
      keras-lp compare dense.tflite model.tflite --data test.npz
      keras-lp plot model.keras layers.png

    `keras-lp COMMAND --help` tells more of each. Models are loaded in Keras's safe mode, always.
    With TF_CPP_MIN_LOG_LEVEL=0 in the environment, stderr shows what TensorFlow says.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: What stands after `keras-lp`; those of this process by default.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # A path may have letters that the terminal lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        with _interrupted_by("SIGTERM", "SIGHUP"):
            code = keras_lp_command.main(arguments, prog_name=_NAME, standalone_mode=False)
            sys.stdout.flush()
    except OSError as error:  # Of stdout; those of the work are click's by now.
        # Python may not complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # Nobody reads any more.
            return 1
        return _fail(f"The result could not be printed to stdout: {error.strerror}", 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("Interrupted", 1)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else _NAME
        return _fail(f"{error.format_message()} See `{command} --help`", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    return code or 0


@contextlib.contextmanager
def _interrupted_by(*names: str) -> Iterator[None]:
    """Makes signals interrupt the work, as Ctrl-C does, so that it cleans up after itself."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _fail(message: str, code: int) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return code
