import os
import subprocess
import sys

import pytest

from keras_lp.quiet import is_command_line, quiet


def write_everywhere():
    print("python to stdout")
    print("python to stderr", file=sys.stderr)
    os.write(1, b"descriptor 1\n")
    os.write(2, b"descriptor 2\n")


def test_what_others_write_is_dropped_and_the_real_stderr_is_there(capfd, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    with quiet() as stderr:
        write_everywhere()
        print("progress", file=stderr)
    assert capfd.readouterr() == ("", "progress\n")


def test_on_request_it_goes_to_stderr_and_none_to_stdout(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with quiet():
        write_everywhere()
    out, err = capfd.readouterr()
    assert out == ""
    assert {"python to stdout", "python to stderr", "descriptor 1", "descriptor 2"} == set(
        err.splitlines()
    )


def test_streams_are_as_before_after_an_error(capfd):
    streams = sys.stdout, sys.stderr
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert (sys.stdout, sys.stderr) == streams
    write_everywhere()
    out, err = capfd.readouterr()
    assert "descriptor 1" in out
    assert "descriptor 2" in err


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/usr/bin/keras-lp", "report"], ["python", "/usr/bin/keras-lp", "report"], True),
        (["keras-lp.exe"], ["python", "keras-lp.exe"], True),
        (["-m", "report"], ["python", "-m", "keras_lp", "report"], True),
        (["-m", "x"], ["python", "-m", "keras_lp.deploy.converting", "x"], False),
        (["train.py", "keras_lp"], ["python", "train.py", "keras_lp"], False),
        ([""], ["python"], False),
    ],
)
def test_only_the_command_line_is_taken_for_it(monkeypatch, argv, orig_argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert is_command_line() is expected


@pytest.mark.slow
def test_import_of_the_package_leaves_the_environment_and_the_streams_of_a_script_alone():
    script = (
        "import os, sys; before = dict(os.environ), sys.stdout, sys.stderr; import keras_lp\n"
        "print(before[0].get('TF_CPP_MIN_LOG_LEVEL') == os.environ.get('TF_CPP_MIN_LOG_LEVEL'),"
        "before[1:] == (sys.stdout, sys.stderr))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout == "True True\n"
