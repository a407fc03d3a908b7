"""Weights and activations of int8, through the real converter and the real interpreter."""

import keras
import numpy as np
import pytest
from deployable import detector, examples, feed_of, mlp, pruned, two_inputs
from keras import layers

from keras_lp import compare_tflite, export_tflite

pytestmark = pytest.mark.backend("tensorflow")


def interpreter(path, delegate=True):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return Interpreter(model_path=str(path), experimental_op_resolver_type=resolver)


@pytest.mark.parametrize(
    ("quantization", "make"),
    [("dynamic", mlp), pytest.param("int8", two_inputs, marks=pytest.mark.slow)],
)
def test_sparse_int8_is_refused_unless_the_runtime_is_known_to_run_it(quantization, make, tmp_path):
    model, path = pruned(make), tmp_path / "m.tflite"
    samples = examples(model) if quantization == "int8" else None
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match=r"no sparse int8 weights.*sparse=False.*no_delegate"):
        export_tflite(model, path, True, quantization, samples)
    with pytest.raises(RuntimeError, match="no sparse int8 weights"):
        export_tflite(model, path, True, quantization, samples, verify=False)
    assert path.read_bytes() == b"old"
    sparse = export_tflite(model, path, True, quantization, samples, runtime="no_delegate")
    assert sparse.max_abs_error is not None
    dense = export_tflite(model, tmp_path / "d.tflite", False, quantization, samples)
    assert sparse.bytes < 0.85 * dense.bytes
    outputs = [
        interpreter(path, delegate=False).get_signature_runner()(
            **feed_of(model, examples(model, 4))
        )
        for path in (sparse.path, dense.path)
    ]
    for name in outputs[0]:
        np.testing.assert_array_equal(outputs[0][name], outputs[1][name])


def test_model_without_zeros_is_exported_with_int8_weights_by_default_settings(tmp_path):
    model = mlp()
    result = export_tflite(model, tmp_path / "m.tflite", quantization="dynamic")
    assert result.bytes < 0.4 * result.dense_bytes


@pytest.mark.slow
def test_file_is_the_same_in_whatever_form_the_representative_dataset_comes(tmp_path):
    import tensorflow as tf

    model = keras.Sequential([keras.Input((6,)), layers.Dense(32), layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    files = []
    for data in (x, tf.data.Dataset.from_tensor_slices(x).batch(7), [x[:20], x[20:]]):
        path = tmp_path / "m.tflite"
        export_tflite(model, path, False, "int8", data)
        files.append(path.read_bytes())
    assert files[0] == files[1] == files[2]


def of_two_units(in_one):
    """A regression of percents and of a length in meters."""
    x = keras.Input((6,))
    parts = [layers.Dense(1)(x) * factor for factor in (100.0, 0.5)]
    return keras.Model(x, layers.Concatenate()(parts) if in_one else parts)


def with_a_confidence(in_one):
    """Scaled logits and how sure they are."""
    x = keras.Input((6,))
    parts = [layers.Dense(5)(x) * 60.0, layers.Dense(1, "sigmoid")(x)]
    return keras.Model(x, layers.Concatenate()(parts) if in_one else parts)


EXAMPLES = np.random.default_rng(0).normal(size=(60, 6)).astype("float32")


@pytest.mark.slow
def test_channels_that_int8_loses_beside_larger_ones_are_an_error(tmp_path):
    samples = [EXAMPLES[k : k + 1] for k in range(60)]  # As TFLite's own datasets mostly are.
    with pytest.raises(RuntimeError, match=r"in channel \d.* of output .*an output of their own"):
        export_tflite(detector(in_one=True), tmp_path / "m.tflite", False, "int8", samples)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("make", [detector, of_two_units, with_a_confidence])
def test_channels_that_int8_loses_are_kept_in_outputs_of_their_own(make, tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.raises(RuntimeError, match=r"in channel \d.* of output .*an output of their own"):
        export_tflite(make(in_one=True), path, False, "int8", EXAMPLES)
    assert export_tflite(make(in_one=True), path, False, "float16").max_abs_error < 0.5
    assert export_tflite(make(in_one=False), path, False, "int8", EXAMPLES).max_abs_error < 10


@pytest.mark.slow
def test_output_that_is_lost_where_a_larger_one_is_small_is_kept_in_one_of_its_own(tmp_path):
    def make(in_one):
        x = keras.Input((6,))
        parts = [keras.ops.relu(x[:, :1] - 1.5) * 300.0, layers.Dense(2, "sigmoid")(x)]
        return keras.Model(x, layers.Concatenate()(parts) if in_one else parts)

    path, small = tmp_path / "m.tflite", EXAMPLES[EXAMPLES[:, 0] < 1]
    with pytest.raises(RuntimeError, match=r"In int8 all channels .*an output of their own"):
        export_tflite(make(True), path, False, "int8", EXAMPLES, inputs=small)
    assert export_tflite(make(False), path, False, "int8", EXAMPLES, inputs=small).max_abs_error < 2


@pytest.mark.slow
def test_ranges_come_from_the_representative_dataset(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(32), layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
    small = export_tflite(model, tmp_path / "m.tflite", False, "int8", 0.01 * x)
    outputs = interpreter(small.path).get_signature_runner()
    (name,) = outputs.get_input_details()
    (clipped,) = outputs(**{name: x}).values()
    assert np.abs(clipped).max() < 0.2 * np.abs(model(x)).max()
    assert small.max_abs_error < 0.01
    with pytest.raises(RuntimeError, match="disagrees"):
        export_tflite(model, tmp_path / "m.tflite", False, "int8", 0.01 * x, inputs=x)


def open_sizes():
    x = keras.Input((None, None, 3))
    y = layers.Conv2D(8, 7, strides=2)(layers.Conv2D(8, 7, strides=2)(x))
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling2D()(y)))


def test_model_of_texts_up_to_a_length_is_verified(tmp_path):
    text = keras.Input((None,), dtype="int32")
    position = keras.ops.cumsum(keras.ops.ones_like(text), axis=1) - 1
    x = layers.Embedding(9, 4)(text) + layers.Embedding(20, 4)(position)
    result = export_tflite(keras.Model(text, layers.Dense(2)(x)), tmp_path / "m.tflite")
    assert result.max_abs_error < 1e-5


@pytest.mark.parametrize("quantization", [None, pytest.param("int8", marks=pytest.mark.slow)])
def test_model_of_images_of_any_size_runs_on_several(quantization, tmp_path, capfd):
    model, path = pruned(open_sizes), tmp_path / "m.tflite"
    images = np.random.default_rng(0).random((8, 40, 50, 3), "float32")
    samples = images if quantization else None
    result = export_tflite(model, path, quantization is None, quantization, samples)
    assert "fully_quantize" not in capfd.readouterr().err
    assert result.max_abs_error < 0.02
    runner = interpreter(path).get_signature_runner()
    (name,) = runner.get_input_details()
    for x in (images[:2], images[:1, :30, :30]):
        (output,) = runner(**{name: x}).values()
        np.testing.assert_allclose(output, model(x), atol=0.02)
    assert compare_tflite(path, path, images).max_abs_difference == 0


@pytest.mark.slow
def test_dictionary_with_other_keys_than_the_inputs_names_is_taken_by_either(tmp_path):
    a, b = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    with pytest.warns(UserWarning, match="all keys in the dict must match"):
        model = keras.Model({"q": a, "p": b}, layers.Dense(2)(a - 2 * b))
    x, y = np.random.default_rng(0).random((2, 20, 4), "float32")
    for data in ({"q": x, "p": y}, {"first": x, "second": y}):
        result = export_tflite(model, tmp_path / "m.tflite", False, "int8", data, inputs=data)
        assert result.max_abs_error < 0.1


@pytest.mark.parametrize("quantization", [None, pytest.param("int8", marks=pytest.mark.slow)])
def test_batch_size_can_be_fixed(quantization, tmp_path):
    model = pruned(two_inputs)
    samples = examples(model, 10) if quantization else None
    result = export_tflite(
        model, tmp_path / "m.tflite", False, quantization, samples, batch_size=3, latency=True
    )
    details = interpreter(result.path).get_signature_runner().get_input_details()
    assert [int(detail["shape_signature"][0]) for detail in details.values()] == [3, 3]
    assert result.max_abs_error is not None
    with pytest.raises(ValueError, match=r"shape \(3, .*Received: shape \(2, "):
        export_tflite(model, tmp_path / "m.tflite", batch_size=3, inputs=examples(model, 2))


def test_latency_is_measured_on_request_and_printed(tmp_path):
    model = pruned(mlp)
    assert export_tflite(model, tmp_path / "m.tflite").latency is None
    result = export_tflite(model, tmp_path / "m.tflite", quantization="float16", latency=True)
    assert 0 < result.latency < 1
    assert 0 < result.dense_latency < 1
    line = str(result).splitlines()[-1]
    assert line.split()[:3] == ["latency", f"{1000 * result.latency:.3f}", "ms"]
    assert f"{result.latency / result.dense_latency:.2f} of dense float32" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "int8"}, r"`representative_dataset` is needed.*quantization='int8'"),
        (
            {"quantization": "dynamic", "representative_dataset": np.ones((2, 64))},
            r"has no effect otherwise.*quantization='dynamic', .*type ndarray",
        ),
        ({"runtime": "xnnpack"}, r'must be "default", "x86" or "no_delegate".*runtime=\'xnnpack\''),
        ({"runtime": ["default"]}, r"`runtime` must be"),
        ({"batch_size": 0}, r"`batch_size` must be an integer >= 1.*batch_size=0"),
        ({"batch_size": 1.5}, r"`batch_size` must be an integer >= 1.*batch_size=1.5"),
        ({"batch_size": True}, r"`batch_size` must be an integer >= 1.*batch_size=True"),
        ({"quantization": np.ones(2)}, r"`quantization` must be None.*quantization=array"),
        ({"tolerance": True}, r"`tolerance` must be a number >= 0.*tolerance=True"),
    ],
)
def test_bad_argument_is_an_error_that_names_value_and_remedy(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_tflite(mlp(), tmp_path / "m.tflite", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (np.ones((3, 63)), r"shape \(-1, 64\) for input .*Received: shape \(3, 63\)"),
        (np.ones((0, 64)), r"non-empty array.*Received: shape \(0, 64\)"),
        ([np.ones((3, 64)), np.ones(3)], r"one array.*no labels.*`dataset\.map.*list of 2 arrays"),
        (iter([(np.ones((3, 64)), np.ones(3))]), r"no labels.*Received: tuple of 2 arrays"),
        (
            [[0.0] * 63 + [np.inf]],
            r"must hold finite numbers.*Received: 1 of 64",
        ),
        (
            [[1, 2], [3]],
            r"must hold numbers.*in one array.*Received: \[\[1, 2\], \[3\]\],",
        ),
        (iter([]), r"at least 1 examples.*Received: no such batch"),
        ("data.npz", r"`representative_dataset` must hold numbers.*Received: 'data.npz'"),
    ],
)
def test_representative_dataset_that_does_not_fit_is_an_error(dataset, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_tflite(mlp(), tmp_path / "m.tflite", False, "int8", dataset)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sparse", "verify", "latency"])
def test_flag_that_is_no_bool_is_an_error(name, tmp_path):
    with pytest.raises(TypeError, match=rf"`{name}` must be True or False.*{name}='yes'"):
        export_tflite(mlp(), tmp_path / "m.tflite", **{name: "yes"})


@pytest.mark.parametrize("name", ["in put", "a:0", "_a", "self", "class"])
def test_name_that_tensorflow_does_not_keep_is_an_error_before_the_conversion(name, tmp_path):
    model = keras.Sequential([keras.Input((4,), name=name), layers.Dense(2)])
    with pytest.raises(ValueError, match=rf"Names of inputs.*`keras\.Input\(name=.*'{name}'"):
        export_tflite(model, tmp_path / "m.tflite")


def test_inputs_of_different_numbers_of_examples_are_an_error(tmp_path):
    model = two_inputs()
    data = {"image": np.ones((4, 8, 8, 2)), "features": np.ones((3, 32))}
    with pytest.raises(ValueError, match=r"same number of examples.*image of shape \(4, 8, 8, 2\)"):
        export_tflite(model, tmp_path / "m.tflite", False, "int8", data)


def test_batch_size_other_than_the_models_is_an_error(tmp_path):
    model = keras.Sequential([keras.Input((4,), batch_size=2), layers.Dense(2)])
    with pytest.raises(ValueError, match=r"that of the model, 2, or None.*batch_size=3"):
        export_tflite(model, tmp_path / "m.tflite", batch_size=3)
