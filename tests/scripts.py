"""Scripts of the project that tests run in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import keras

ROOT = Path(__file__).parent.parent


def run(*arguments, cwd):
    """Runs Python with these arguments on the backend of the tests; what it prints."""
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
