"""Every quantization of four kinds of models, sparse and dense, from every backend."""

import importlib.util
import subprocess

import keras
import numpy as np
import pytest
from deployable import (
    cnn,
    detector,
    examples,
    feed_of,
    interpreter,
    mlp,
    pruned,
    transformer,
    two_inputs,
)

import keras_lp
from keras_lp import export_tflite
from keras_lp.deploy import converting

# On the other backends the converter runs in a process of its own, if it is there at all.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow"),
]


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("quantization", [None, "float16", "dynamic", "int8"])
@pytest.mark.parametrize("make", [cnn, mlp, transformer, two_inputs])
def test_file_is_verified_or_refused_with_the_remedy(make, quantization, sparse, tmp_path):
    model, path = pruned(make), tmp_path / "model.tflite"
    x = examples(model)
    samples = x if quantization == "int8" else None
    if sparse and quantization in ("dynamic", "int8"):
        with pytest.raises(RuntimeError, match=r"no sparse int8.*`sparse=False`.*no_delegate"):
            export_tflite(model, path, sparse, quantization, samples)
        assert list(tmp_path.iterdir()) == []
        return
    result = export_tflite(model, path, sparse, quantization, samples)
    found = interpreter(path)(**feed_of(model, x))
    expected = model(x)
    if not isinstance(expected, dict):
        expected = dict.fromkeys(found, expected)
    tolerance = {None: 1e-5, "float16": 1e-2, "dynamic": 0.1, "int8": 0.2}[quantization]
    for name, output in found.items():
        wanted = keras.ops.convert_to_numpy(expected[name])
        assert np.abs(output - wanted).max() <= tolerance * np.abs(wanted).max()
    assert result.bytes == path.stat().st_size
    if sparse or quantization:
        assert result.bytes < 0.85 * result.dense_bytes


def test_scores_that_int8_loses_beside_boxes_are_an_error_and_kept_in_an_output_of_their_own(
    tmp_path,
):
    path = tmp_path / "m.tflite"
    x = np.random.default_rng(0).normal(size=(60, 6)).astype("float32")
    with pytest.raises(RuntimeError, match=r"in channel \d.* of output .*an output of their own"):
        export_tflite(detector(in_one=True), path, False, "int8", x)
    assert export_tflite(detector(in_one=False), path, False, "int8", x).max_abs_error < 10


def test_model_whose_outputs_do_not_depend_on_its_inputs_is_an_error(tmp_path):
    model = mlp()
    model.layers[0].kernel.assign(np.zeros((64, 128)))
    for inputs in (None, examples(model, 9)):
        with pytest.raises(
            RuntimeError, match=r"outputs are the same.*No weight is left in .*: dense"
        ):
            export_tflite(model, tmp_path / "m.tflite", inputs=inputs)


@pytest.mark.backend("jax", "torch")
def test_conversion_process_that_is_killed_is_an_error_and_harms_nothing(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def killed(command, *, check, capture_output, **arguments):
        process = subprocess.Popen(command, stdout=-1, stderr=-1, **arguments)
        process.kill()
        return subprocess.CompletedProcess(command, process.wait(), *process.communicate())

    monkeypatch.setattr(converting.subprocess, "run", killed)
    with pytest.raises(RuntimeError, match=r"nothing was written.*ended by SIGKILL.*memory"):
        export_tflite(mlp(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(("quantization", "share"), [(None, 0.16), ("float16", 0.105)])
def test_file_of_a_mobilenet_with_90_percent_zeros_is_small(quantization, share, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNet(weights=None)
    keras_lp.prune(model, sparsity=0.9)
    # Most of its channels are dead, as its weights are random: outputs are all the same.
    result = export_tflite(model, tmp_path / "m.tflite", True, quantization, verify=False)
    assert result.bytes <= share * result.dense_bytes


@pytest.mark.backend("tensorflow")
def test_network_that_was_pruned_to_death_is_refused_with_its_dead_layers(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((96, 96, 3), 0.35, weights=None, classes=5)
    keras_lp.prune(model, 0.8)
    path, x = tmp_path / "m.tflite", np.random.default_rng(0).normal(size=(4, 96, 96, 3))
    for inputs in (None, x):
        with pytest.raises(
            RuntimeError, match=r"outputs are the same.*No weight is left in .*: .*depthwise"
        ):
            export_tflite(model, path, inputs=inputs)
    assert not path.exists()
    assert export_tflite(model, path, verify=False).bytes == path.stat().st_size
