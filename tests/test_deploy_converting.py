"""Where the converter runs, and what becomes of the caller's process, model and files."""

import importlib.util
import re
import stat
from pathlib import Path

import keras
import numpy as np
import pytest
from deployable import mlp
from keras import layers, ops

from keras_lp import export_tflite
from keras_lp.deploy import converting
from keras_lp.deploy.converting import convert

needs_tensorflow = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow"
)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A folder with an old file, and one for temporary files; both have to stay as they are."""
    path, temporary = tmp_path / "out" / "m.tflite", tmp_path / "temporary"
    path.parent.mkdir()
    path.write_bytes(b"old")
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    yield path
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"
    # TensorFlow's own, which it removes when the process ends.
    rest = [each.name for each in temporary.iterdir() if "__autograph" not in each.name]
    assert rest == []


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """A function that has the process of the converter end by a signal."""

    def die(name):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\nkill -{name.removeprefix('SIG')} $$\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(converting.sys, "executable", str(program))

    return die


def inputs_of(model, count=8):
    shape = [size or 6 for size in model.inputs[0].shape[1:]]
    return np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param(
            "SIGSEGV",
            r"calibrates some loops.*quantization=\"dynamic\".*ended by SIGSEGV",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "SIGABRT", r"quantization=\"float16\".*ended by SIGABRT", marks=pytest.mark.slow
        ),
        ("SIGKILL", r"ended by SIGKILL, as the system does where memory runs out"),
    ],
)
def test_end_of_the_process_that_calibrates_is_an_error_and_harms_nothing(
    name, message, folders, dying
):
    dying(name)
    model = mlp()
    with pytest.raises(RuntimeError, match=rf"nothing was written.*quantization='int8'.*{message}"):
        export_tflite(model, folders, False, "int8", inputs_of(model))


class Summing(layers.Layer):
    """A layer with a loop that TensorFlow's calibrator does not survive."""

    def call(self, x):
        return ops.map(lambda row: row + ops.sum(row), x)


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
def test_loop_that_cannot_be_calibrated_is_an_error_whose_remedies_help(folders, tmp_path):
    model = keras.Sequential([keras.Input((4,)), Summing(), layers.Dense(3)])
    with pytest.raises(RuntimeError, match=r'"dynamic".*"float16".*ended by SIGSEGV'):
        export_tflite(model, folders, False, "int8", inputs_of(model))
    for quantization in ("dynamic", "float16"):
        result = export_tflite(model, tmp_path / "m.tflite", False, quantization)
        assert result.max_abs_error < 0.1


RECURRENT = {
    "LSTM": lambda: [keras.Input((6, 4)), layers.LSTM(8)],
    "GRU": lambda: [keras.Input((6, 4)), layers.GRU(8)],
    "SimpleRNN": lambda: [keras.Input((6, 4)), layers.SimpleRNN(8)],
    "Bidirectional": lambda: [keras.Input((6, 4)), layers.Bidirectional(layers.LSTM(8))],
    "ConvLSTM1D": lambda: [
        keras.Input((6, 5, 4)),
        layers.ConvLSTM1D(8, 3),
        layers.GlobalAveragePooling1D(),
    ],
    "cells": lambda: [keras.Input((6, 4)), layers.RNN([layers.GRUCell(8), layers.LSTMCell(8)])],
    "of any length": lambda: [keras.Input((None, 4)), layers.LSTM(8)],
    "stateful": lambda: [keras.Input((6, 4), batch_size=2), layers.LSTM(8, stateful=True)],
}


def recurrent(kind):
    return keras.Sequential([*RECURRENT[kind](), layers.Dense(3)])


@pytest.mark.backend("tensorflow")
def test_recurrent_model_takes_one_example_at_once(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    model = recurrent("LSTM")
    result = export_tflite(model, tmp_path / "m.tflite")
    assert result.max_abs_error < 1e-5
    (note,) = result.notes
    assert note.startswith("takes 1 at once: recurrent layers")
    assert str(result).splitlines()[-1].split() == ["note", *note.split()]
    assert export_tflite(model, result.path, inputs=inputs_of(model, 5)).max_abs_error < 1e-5
    assert export_tflite(model, result.path, batch_size=3).notes == ()
    (detail,) = Interpreter(model_path=str(result.path)).get_input_details()
    assert detail["shape_signature"].tolist() == [3, 6, 4]


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "quantization"),
    [
        *((kind, quantization) for kind in RECURRENT for quantization in (None, "int8")),
        *(
            (kind, quantization)
            for kind in ("LSTM", "GRU")
            for quantization in ("float16", "dynamic")
        ),
    ],
)
def test_every_kind_of_recurrent_layer_is_exported(kind, quantization, tmp_path):
    model, path = recurrent(kind), tmp_path / "m.tflite"
    data = inputs_of(model) if quantization == "int8" else None
    if kind == "of any length" and quantization == "int8":
        with pytest.raises(RuntimeError, match=r"length that is fixed.*`keras\.Model\(inputs, "):
            export_tflite(model, path, False, quantization, data)
        inputs = keras.Input((6, 4))
        model = keras.Model(inputs, model(inputs))
    result = export_tflite(model, path, False, quantization, data)
    assert result.max_abs_error < {None: 1e-5, "float16": 1e-2}.get(quantization, 0.1)
    assert any("at once" in note for note in result.notes)
    assert any("unrolled" in note for note in result.notes) == (quantization == "int8")
    assert not any(layer.unroll for layer in model.layers if isinstance(layer, layers.RNN))


class Running(layers.Layer):
    """A recurrent layer that is not Keras's own."""

    def call(self, x):
        steps = ops.transpose(x, (1, 0, 2))
        return ops.scan(lambda state, step: (state + step, step), ops.zeros_like(x[:, 0]), steps)[0]


@pytest.mark.backend("tensorflow")
def test_loop_of_an_own_layer_takes_one_example_at_once(tmp_path):
    model = keras.Sequential([keras.Input((6, 4)), Running(), layers.Dense(3)])
    result = export_tflite(model, tmp_path / "m.tflite")
    assert result.max_abs_error < 1e-5
    assert result.notes[0].startswith("takes 1 at once")


@pytest.mark.backend("tensorflow")
def test_model_is_traced_once_for_all_files(monkeypatch):
    calls = []

    class Counting(layers.Layer):
        def call(self, x):
            calls.append(1)
            return x

    inner = keras.Sequential([keras.Input((4,)), Counting(), layers.Dense(3)])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner(inputs))
    calls.clear()
    files = convert(model, [None, "float16", "dynamic"])
    assert len(files) == 3
    assert len(calls) == 1


@pytest.mark.backend("tensorflow")
def test_lack_of_room_for_temporary_files_is_an_error_of_the_system(folders, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tensorflow.saved_model.save", full)
    with pytest.raises(OSError, match=r"no room for temporary files.*TMPDIR.*Received: /") as info:
        export_tflite(mlp(), folders)
    assert info.value.errno == 28


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
def test_recipes_of_the_documentation_run_as_they_stand(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "recipes"}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    printed = re.search(r"```\n(\('takes 1.*?)```", text, re.DOTALL)[1]
    assert capsys.readouterr().out == printed
    files = {"lstm.tflite", "any_size.tflite", "small.tflite", "class.tflite"}
    assert {each.name for each in tmp_path.iterdir()} == files
