"""The command line: in this process by `main`, and slow tests of real processes."""

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lp

pytestmark = pytest.mark.backend("tensorflow")

ROOT = Path(__file__).parent.parent
Ended = namedtuple("Ended", "code out err")


@pytest.fixture
def command(capfd):
    """A function that runs a command in this process, down to the descriptors of its output."""
    from keras_lp.cli.main import main

    def run(*arguments):
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capfd.readouterr())

    return run


def process(*arguments, **environment):
    """Runs a command as a user does, and without the settings of the tests."""
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    run = subprocess.run(
        [sys.executable, "-m", "keras_lp", *map(str, arguments)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Ended(run.returncode, run.stdout, run.stderr)


def error_of(ended, code=1):
    """The one line of an error."""
    assert ended.code == code, ended
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in line
    return line


@pytest.fixture
def model(mlp, sparsify):
    model = sparsify(mlp(), 0.5)
    model.compile(keras_lp.LpAdamW(exclude="logits"), "mse")
    model.optimizer.build(model.trainable_variables)  # as in `fit`
    return model


@pytest.fixture
def saved(model, tmp_path):
    """A model in a file that stands alone in its folder."""
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.fixture
def data(tmp_path_factory, batches):
    """A function that writes arrays to an .npz file."""

    def write(**arrays):
        path = tmp_path_factory.mktemp("data") / "data.npz"
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture
def unchanged(tmp_path):
    """A function that makes an old file; all files of the folder have to stay as they are."""
    before = {}

    def old(name):
        (tmp_path / name).write_bytes(b"old")
        before.update((path.name, path.read_bytes()) for path in tmp_path.iterdir())
        return tmp_path / name

    yield old
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def mounted(tmp_path_factory):
    """A function that mounts a file system in memory."""
    with contextlib.ExitStack() as stack:

        def mount(options):
            folder = tmp_path_factory.mktemp("mount")
            line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
            try:
                subprocess.run(line, capture_output=True, check=True)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("needs the right to mount a file system")
            stack.callback(subprocess.run, ["umount", str(folder)], check=True)
            return folder

        yield mount


def test_report_prints_what_the_library_reports(command, saved, model):
    expected = keras_lp.sparsity_report(model)
    assert expected.size == 8 * 16  # The optimizer excludes the other kernel.
    assert command("report", saved) == (0, f"{expected}\n", "")
    ended = command("report", saved, "--json")
    assert json.loads(ended.out) == expected.to_dict()
    assert (ended.code, ended.err) == (0, "")


def test_report_takes_a_threshold_and_patterns(command, saved, model):
    ended = command("report", saved, "--threshold", "0.1", "--exclude", "hidden", "--json")
    expected = keras_lp.sparsity_report(model, 0.1, exclude=["hidden"])
    assert json.loads(ended.out) == expected.to_dict()


def test_model_with_a_loss_of_its_own_is_reported_with_a_remark(command, mlp, tmp_path):
    def own_loss(y, prediction):
        return keras.ops.mean(y - prediction)

    model = mlp()
    model.compile(keras_lp.LpAdamW(exclude="logits"), own_loss)
    model.save(tmp_path / "model.keras")
    ended = command("report", tmp_path / "model.keras", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["size"] == 8 * 16 + 16 * 3
    (line,) = ended.err.splitlines()
    assert re.match(r"Note: .*without its optimizer .*'own_loss'.*--exclude", line)


def test_strip_writes_a_model_with_the_zeros_it_reports(command, saved, model, tmp_path):
    out = tmp_path / "stripped.keras"
    ended = command("strip", saved, out, "--threshold", "0.2", "--json")
    assert (ended.code, ended.err) == (0, "")
    numbers = json.loads(ended.out)
    stripped = keras.models.load_model(out)
    hidden, logits = (layer.kernel.numpy() for layer in stripped.layers)
    kernel = model.layers[0].kernel.numpy()
    np.testing.assert_array_equal(hidden, np.where(np.abs(kernel) <= 0.2, 0, kernel))
    np.testing.assert_array_equal(logits, model.layers[1].kernel.numpy())
    assert numbers == {
        "path": str(out),
        "bytes": out.stat().st_size,
        "bytes_before": saved.stat().st_size,
        "size": kernel.size,
        "zeros": int(np.sum(hidden == 0)),
        "zeros_before": int(np.sum(kernel == 0)),
    }
    assert f"{numbers['zeros']:,}  (before: {numbers['zeros_before']:,})" in (
        command("strip", saved, saved, "--threshold", "0.2").out
    )
    assert sorted(os.listdir(tmp_path)) == ["model.keras", "stripped.keras"]


def test_export_writes_a_file_that_runs_and_says_its_size(command, saved, model, tmp_path, batches):
    out = tmp_path / "model.tflite"
    ended = command("export", saved, out, "--quantize", "float16", "--latency", "--json")
    assert (ended.code, ended.err) == (0, "")
    numbers = json.loads(ended.out)
    assert numbers["path"] == str(out)
    assert numbers["bytes"] == out.stat().st_size
    assert 0 < numbers["max_abs_error"] < 1e-2
    assert numbers["latency"] > 0
    assert sorted(os.listdir(tmp_path)) == ["model.keras", "model.tflite"]


def test_export_passes_its_options_on(command, saved, tmp_path, data, batches, monkeypatch):
    calls = []
    monkeypatch.setattr(
        sys.modules["keras_lp.cli.export"],
        "export_tflite",
        lambda model, *args, **kwargs: (
            calls.append((args, kwargs)) or keras_lp.ExportResult(Path("m.tflite"), 1, 1, 1, None)
        ),
    )
    x, y = batches
    file = data(features=x, labels=y)
    out = tmp_path / "m.tflite"
    line = ["export", saved, out]
    for options in (
        [],
        ["--quantize", "dynamic"],
        ["--quantize", "dynamic", "--runtime", "no_delegate"],
        ["--quantize", "dynamic", "--sparse"],
        ["--quantize", "int8", "--representative", file, "--no-verify", "--batch-size", "4"],
        ["--dense", "--inputs", file, "--tolerance", "0.5"],
    ):
        assert command(*line, *options).code == 0
    assert [args[1:3] for args, _ in calls] == [
        (True, None),
        (False, "dynamic"),
        (True, "dynamic"),
        (True, "dynamic"),
        (False, "int8"),
        (False, None),
    ]
    np.testing.assert_array_equal(calls[4][0][3], x)
    np.testing.assert_array_equal(calls[5][1]["inputs"], x)
    assert calls[4][1]["verify"] is False
    assert calls[4][1]["batch_size"] == 4
    assert calls[5][1]["tolerance"] == 0.5
    assert calls[2][1]["runtime"] == "no_delegate"


def test_compare_prints_what_the_library_finds(command, model, tmp_path, data, batches):
    x, _ = batches
    labels = np.argmax(model(x), axis=1)
    paths = [tmp_path / "a.tflite", tmp_path / "b.tflite"]
    for path, quantization in zip(paths, (None, "float16"), strict=True):
        keras_lp.export_tflite(model, path, quantization=quantization)
    ended = command("compare", *paths, "--data", data(features=x, labels=labels), "--json")
    assert (ended.code, ended.err) == (0, "")
    numbers = json.loads(ended.out)
    assert numbers["first"]["accuracy"] == 1.0
    assert numbers["agreement"] == numbers["second"]["accuracy"]
    assert numbers["second"]["bytes"] == paths[1].stat().st_size
    named = data(features=x, y=labels)
    ended = command("compare", *paths, "--data", named, "--labels", "y")
    assert ended.code == 0
    assert re.search(r"accuracy +100\.00%", ended.out)
    assert "accuracy" not in command("compare", *paths, "--data", data(x=x)).out
    line = error_of(command("compare", *paths, "--data", named, "--labels", "z"))
    assert "--labels must be a name in" in line
    assert "which has features, y. Received: z" in line


@pytest.mark.parametrize("kind", ["layers", "weights"])
def test_plot_draws_a_model(command, saved, tmp_path, kind):
    ended = command("plot", saved, tmp_path / "plot.png", "--kind", kind)
    assert ended == (0, f"{tmp_path / 'plot.png'}\n", "")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["model.keras", "plot.png"]


def test_plot_draws_a_history(command, model, batches, tmp_path):
    callbacks = [keras_lp.SparsityLogger(), keras.callbacks.CSVLogger(tmp_path / "history.csv")]
    model.fit(batches[0], np.eye(3)[batches[1]], epochs=2, verbose=0, callbacks=callbacks)
    line = ["plot", tmp_path / "history.csv", tmp_path / "plot.png"]
    ended = command(*line, "--metric", "loss", "--target", "0.9", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out) == {"path": str(tmp_path / "plot.png")}
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_history_without_sparsity_is_an_error(command, tmp_path, unchanged):
    history = tmp_path / "history.csv"
    history.write_text("epoch,loss\n0,0.5\n")
    line = error_of(command("plot", history, unchanged("plot.png")))
    assert "SparsityLogger" in line
    assert "no 'sparsity' among the keys epoch, loss" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command. See `keras-lp --help`"),
        (["frobnicate"], "No such command 'frobnicate'. See `keras-lp --help`"),
        (["report"], "Missing argument 'MODEL'. See `keras-lp report --help`"),
        (["report", "none.keras"], "File 'none.keras' does not exist."),
        (["report", "."], "File '.' is a directory."),
        (["report", "MODEL", "--bogus"], "No such option"),
        (["report", "MODEL", "--threshold", "x"], "'x' is not a valid float"),
        (["export", "MODEL", "m.tflite", "--quantize", "int4"], "'int4' is not one of"),
        (["export", "MODEL", "m.tflite", "--batch-size", "0"], "0 is not in the range x>=1"),
        (["export", "MODEL", "m.tflite", "--quantize", "int8"], "--quantize int8 and --repr"),
        (["export", "MODEL", "m.tflite", "--representative", "MODEL"], "--quantize int8 and"),
        (["compare", "MODEL", "MODEL"], "Missing option '--data'"),
        (["plot", "MODEL", "m.png", "--target", "1"], "are for a .csv file"),
    ],
)
def test_command_that_is_not_understood_ends_with_2(command, saved, arguments, message):
    arguments = [saved if argument == "MODEL" else argument for argument in arguments]
    assert message in error_of(command(*arguments), code=2)


def test_version_and_help_go_to_stdout(command):
    assert command("--version") == (0, f"keras-lp, version {keras_lp.__version__}\n", "")
    for name in ("report", "strip", "export", "compare", "plot"):
        ended = command(name, "--help")
        assert (ended.code, ended.err) == (0, "")
        assert f"Examples:\n    keras-lp {name} " in ended.out


def with_lambda(path):
    layers = [keras.Input((4,)), keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(2)]
    keras.Sequential(layers).save(path)


def with_own_class(path):
    class Own(keras.layers.Dense):
        pass

    keras.Sequential([keras.Input((4,)), Own(2)]).save(path)


def truncated(path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def damaged(path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def another_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_lambda, r"holds code in a Lambda layer .*safe_mode stays on\. Load it in Python"),
        (with_own_class, r"needs code that is not in Keras: .*class 'Own'\. Load it in Python"),
        (truncated, r"is truncated\. Save or copy it once more"),
        (damaged, r"is damaged \(Bad CRC.*\)\. Save or copy it once more"),
        (lambda path: path.write_text("text"), r"holds no model of Keras 3\. Save .*`model.save`"),
        (lambda path: path.write_bytes(b""), r"is truncated\. Save or copy"),
        (another_archive, r"holds no model of Keras 3: no config\.json\. Save the model"),
    ],
)
def test_file_that_cannot_be_loaded_is_an_error_and_harms_nothing(
    command, tmp_path, unchanged, make, message
):
    path = tmp_path / "model.keras"
    make(path)
    line = error_of(command("strip", path, unchanged("stripped.keras")))
    assert re.search(f"{path.name} {message}", line)


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_file_of_keras_2_is_taken(command, model, tmp_path, suffix):
    model.save(tmp_path / f"model{suffix}")
    ended = command("report", tmp_path / f"model{suffix}", "--exclude", "hidden", "--json")
    expected = keras_lp.sparsity_report(model, exclude="hidden")
    assert json.loads(ended.out)["zeros"] == expected.zeros


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "model.weights.h5",
            lambda path: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(
                path
            ),
            r"holds weights alone, without their model\. Save the model with",
        ),
        ("model.h5", lambda path: path.write_text("text"), r"is no HDF5 file, or damaged\. Save"),
        ("model.h5", lambda path: path.write_bytes(b""), r"is truncated\. Save or copy"),
        ("model.pb", lambda path: path.write_text("text"), r"\.keras and \.h5\. Save the model"),
    ],
)
def test_file_without_a_model_is_an_error_that_says_what_to_save(
    command, tmp_path, name, make, message
):
    make(tmp_path / name)
    assert re.search(message, error_of(command("report", tmp_path / name)))


def test_code_in_a_file_of_keras_2_does_not_run(command, tmp_path):
    ran = tmp_path / "ran"
    script = f"__import__('pathlib').Path({str(ran)!r}).touch()"
    layer = keras.layers.Lambda(eval(f"lambda x: (x, {script})[0]"), output_shape=(4,))
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)])
    model.save(tmp_path / "model.h5")
    assert not ran.exists()
    assert "safe_mode stays on" in error_of(command("report", tmp_path / "model.h5"))
    assert not ran.exists()


def test_letters_that_the_terminal_lacks_are_written_by_their_numbers(saved, tmp_path, monkeypatch):
    from keras_lp.cli.main import main

    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["strip", str(saved), str(tmp_path / "модель.keras")]) == 0
    assert r"\u043c\u043e" in terminal.buffer.getvalue().decode("cp1252")
    assert (tmp_path / "модель.keras").exists()


def test_code_in_a_model_does_not_run(command, tmp_path, unchanged):
    ran = tmp_path / "ran"
    script = f"__import__('pathlib').Path({str(ran)!r}).touch()"
    layer = keras.layers.Lambda(eval(f"lambda x: (x, {script})[0]"), output_shape=(4,))
    keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(2)]).save(
        tmp_path / "model.keras"
    )
    ran.unlink(missing_ok=True)
    error_of(command("export", tmp_path / "model.keras", unchanged("model.tflite")))
    assert not ran.exists()


def test_paths_may_begin_with_the_home_folder(command, saved, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("report", "~/model.keras") == command("report", saved)
    assert command("strip", "~/model.keras", "~/stripped.keras").code == 0
    assert (tmp_path / "stripped.keras").exists()
    line = error_of(command("report", "~/none.keras"), 2)
    assert re.search(r"File '/.*/none\.keras' does not exist", line)
    data(x=np.ones((3, 8))).rename(tmp_path / "x.npz")
    line = error_of(command("export", saved, "~/m.tflite", "--inputs", "~/none.npz"), 2)
    assert re.search(r"File '/.*/none\.npz' does not exist", line)
    assert command("export", saved, "~/m.tflite", "--inputs", "~/x.npz").code == 0


def test_file_of_another_kind_is_an_error(command, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    line = error_of(command("report", path))
    assert re.search(
        r"model\.onnx is none of the files that Keras 3 loads.*Save the model with `model\.save`",
        line,
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.ones((9, 7))}, r"--representative must .*\(-1, 8\).*shape \(9, 7\)"),
        ({"a": np.ones((9, 8)), "b": np.ones(9)}, r"each input of the model, features.*a, b"),
        ({"features": np.full((9, 8), np.inf)}, r"--representative must hold finite.*72 of 72"),
        ({"features": np.array([{}])}, r"cannot be read: Object arrays .*`numpy\.savez"),
        ({}, r"holds no arrays\. Write it with `numpy\.savez"),
    ],
)
def test_representative_dataset_that_does_not_fit_is_an_error_and_harms_nothing(
    command, saved, unchanged, data, arrays, message
):
    out = unchanged("model.tflite")
    options = ["--quantize", "int8", "--representative", data(**arrays)]
    assert re.search(message, error_of(command("export", saved, out, *options)))


def test_labels_beside_the_inputs_are_left_aside(command, saved, tmp_path, data, batches):
    arrays = data(x=batches[0], labels=batches[1])
    assert command("export", saved, tmp_path / "m.tflite", "--inputs", arrays).code == 0


def test_arrays_may_have_the_names_of_the_keys_that_a_model_takes(command, tmp_path, data):
    a, b = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    with pytest.warns(UserWarning, match="all keys in the dict must match"):
        model = keras.Model({"q": a, "p": b}, keras.layers.Dense(2)(a - b))
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).random((2, 20, 4), "float32")
    for names in (("q", "p"), ("first", "second")):
        inputs = ["--inputs", data(**dict(zip(names, x, strict=True)))]
        ended = command("export", tmp_path / "model.keras", tmp_path / "m.tflite", *inputs)
        assert ended.code == 0, ended


def test_representative_dataset_that_is_no_npz_file_is_an_error(command, saved, unchanged):
    out = unchanged("model.tflite")
    line = error_of(command("export", saved, out, "--quantize", "int8", "--representative", out))
    assert "is no .npz file, or truncated. Write it with `numpy.savez" in line


def test_remedies_are_told_in_options_of_the_command(command, saved, unchanged, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError(
            'Pass `sparse=False`,\n or `quantization="float16"`, or `verify`, or call `prune`.'
        )

    monkeypatch.setattr(sys.modules["keras_lp.cli.export"], "export_tflite", fail)
    line = error_of(command("export", saved, unchanged("model.tflite")))
    assert line == "Error: Pass --dense, or --quantize float16, or --verify, or call `prune`."


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("name"), "Error: KeyError: 'name'"),
        (MemoryError("no more"), "Error: MemoryError: no more"),
        (KeyboardInterrupt(), "Error: Interrupted"),
    ],
)
def test_any_other_end_of_the_work_is_one_line_too(command, saved, monkeypatch, error, message):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(sys.modules["keras_lp.cli.report"], "sparsity_report", fail)
    assert error_of(command("report", saved)) == message


@pytest.mark.parametrize("suffix", ["keras", "tflite", "png"])
def test_folder_that_cannot_be_written_to_is_an_error(command, saved, mounted, suffix):
    name = {"keras": "strip", "tflite": "export", "png": "plot"}[suffix]
    folder = mounted("ro")
    line = error_of(command(name, saved, folder / f"out.{suffix}"))
    assert "cannot be written to; choose another" in line
    assert os.listdir(folder) == []


@pytest.mark.parametrize("suffix", ["keras", "tflite", "png"])
def test_full_disk_is_an_error_and_harms_nothing(command, mounted, suffix, mlp, tmp_path):
    name = {"keras": "strip", "tflite": "export", "png": "plot"}[suffix]
    mlp(512).save(tmp_path / "model.keras")
    folder = mounted("size=8k")
    old = folder / f"old.{suffix}"
    old.write_bytes(b"old")
    line = error_of(command(name, tmp_path / "model.keras", old))
    assert "Free some space or choose another folder" in line
    assert "No space left on device" in line
    assert old.read_bytes() == b"old"
    assert os.listdir(folder) == [old.name]


@pytest.mark.slow
def test_conversion_that_is_killed_harms_nothing(saved, unchanged):
    out = unchanged("model.tflite")
    script = (
        "import os, signal, tensorflow\n"
        "save = tensorflow.saved_model.save\n"
        "def killed(*args, **kwargs):\n"
        "    save(*args, **kwargs)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "tensorflow.saved_model.save = killed\n"
        "from keras_lp.__main__ import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "export", saved, out], capture_output=True, check=False
    )
    assert run.returncode == -9


def test_missing_package_is_an_error_that_names_the_extra(capfd, monkeypatch):
    from keras_lp.__main__ import main

    monkeypatch.setitem(sys.modules, "click", None)
    assert main() == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert re.match(r"Error: .*`click`.*pip install 'keras-lp\[cli\]'[^\n]*\n$", err)


def test_numbers_that_json_does_not_have_are_null(capfd):
    from keras_lp.cli.options import show

    show("text", {"error": float("nan"), "path": Path("a")}, as_json=True)
    assert json.loads(capfd.readouterr().out) == {"error": None, "path": "a"}


@pytest.mark.slow
def test_process_prints_one_document_and_nothing_else(saved, tmp_path, data, batches):
    options = ["--quantize", "int8", "--representative", data(x=batches[0]), "--json"]
    ended = process("export", saved, tmp_path / "model.tflite", *options)
    assert (ended.code, ended.err) == (0, "")
    assert json.loads(ended.out)["bytes"] == (tmp_path / "model.tflite").stat().st_size


@pytest.mark.slow
def test_process_ends_with_its_exit_code_and_one_line(tmp_path):
    truncated(tmp_path / "model.keras")
    assert "is truncated" in error_of(process("report", tmp_path / "model.keras"))
    assert "Missing command" in error_of(process(), code=2)


def test_process_without_a_backend_says_how_to_get_one(saved):
    line = error_of(process("report", saved, KERAS_BACKEND="torch", PYTHONPATH=no_torch(saved)))
    assert re.search(r"Keras could not be imported: .*pip install 'keras-lp\[tensorflow\]'", line)


@pytest.mark.slow
def test_backend_that_there_is_not_is_one_line(saved):
    line = error_of(process("report", saved, KERAS_BACKEND="nope"))
    assert re.search(r"Keras could not be imported: .*nope.*KERAS_BACKEND", line)


def no_torch(saved):
    """The path for modules, where torch is one that cannot be imported."""
    folder = saved.parent / "modules"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('no torch')")
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_result_that_cannot_be_printed_is_one_line(saved):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "keras_lp", "report", saved],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    (line,) = run.stderr.splitlines()
    assert run.returncode == 1
    assert line == "Error: The result could not be printed to stdout: No space left on device"


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_process_without_a_standard_stream_does_its_work(saved, tmp_path, closed):
    out = tmp_path / "stripped.keras"
    command = [sys.executable, "-m", "keras_lp", "strip", saved, out]
    shell = f'"$@" {closed}'
    run = subprocess.run(["sh", "-c", shell, "sh", *command], capture_output=True, check=False)
    assert (run.returncode, run.stderr) == (0, b"")
    assert keras.models.load_model(out).count_params() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signal_interrupts_the_work_and_leaves_nothing(saved, unchanged, tmp_path_factory, name):
    out, temporary = unchanged("model.tflite"), tmp_path_factory.mktemp("temporary")
    script = (
        "import os, signal, tensorflow\n"
        "save = tensorflow.saved_model.save\n"
        "def signalled(*args, **kwargs):\n"
        "    save(*args, **kwargs)\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "tensorflow.saved_model.save = signalled\n"
        "from keras_lp.__main__ import main\n"
        "raise SystemExit(main())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, "export", saved, out],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "Error: Interrupted"
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sends", "error"),
    [
        ("TERM $PPID", "Error: Interrupted"),
        ("SEGV $$", "Error: .*Take --quantize dynamic, int8 .*ended by SIGSEGV"),
    ],
)
def test_process_that_converts_goes_with_its_files(
    saved, unchanged, data, tmp_path_factory, sends, error
):
    out, temporary = unchanged("model.tflite"), tmp_path_factory.mktemp("temporary")
    converter, number = temporary.parent / "converter", temporary.parent / "number"
    # Not before the command waits for it: Python itself loses a process where a signal comes while
    # it starts it.
    converter.write_text(f"#!/bin/sh\necho $$ > {number}\nsleep 1\nkill -{sends}\nexec sleep 100\n")
    converter.chmod(0o755)
    script = (
        "import sys\n"
        "from keras_lp.__main__ import main\n"
        f"sys.executable = '{converter}'\n"
        "raise SystemExit(main())\n"
    )
    samples = ["--quantize", "int8", "--representative", data(x=np.ones((4, 8)))]
    run = subprocess.run(
        [sys.executable, "-c", script, "export", saved, out, *samples],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert re.match(error, run.stderr.splitlines()[-1])
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


@pytest.mark.slow
def test_reader_that_goes_away_is_no_traceback(saved):
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [sys.executable, "-m", "keras_lp", "report", saved],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"")


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_and_not_on_stdout(saved):
    main, terminal = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-m", "keras_lp", "report", saved, "--json"],
        env={**os.environ, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        check=True,
    )
    os.close(terminal)
    shown = os.read(main, 4096).decode()
    os.close(main)
    assert "Counting zeros in" in shown
    assert json.loads(run.stdout)["size"] == 8 * 16


@pytest.mark.slow
def test_commands_of_the_documentation_run_as_they_stand(command, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    _, commands = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True)
    monkeypatch.chdir(tmp_path)
    for line in commands.splitlines():
        program, *arguments = line.split()
        assert program == "keras-lp"
        ended = command(*arguments)
        assert (ended.code, ended.err) == (0, ""), line
    assert {"stripped.keras", "int8.tflite", "layers.png", "weights.png", "sparsity.png"} <= set(
        os.listdir(tmp_path)
    )
