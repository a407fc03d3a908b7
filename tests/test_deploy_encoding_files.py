"""Sparse encoding of files that others have made, in LiteRT."""

import keras
import numpy as np
import pytest
from deployable import pruned
from keras import layers

import keras_lp
from keras_lp import encode_tflite
from keras_lp.deploy import encoding_files
from keras_lp.deploy.converting import convert

pytestmark = pytest.mark.backend("tensorflow")


def network():
    return keras.Sequential(
        [keras.Input((64,), name="features"), layers.Dense(128, "relu"), layers.Dense(10)]
    )


@pytest.fixture(scope="module")
def dense():
    """A dense file of a model with 90 % zeros."""
    keras.utils.set_random_seed(0)
    (data,) = convert(pruned(network))
    return data


@pytest.fixture
def source(dense, tmp_path):
    path = tmp_path / "dense.tflite"
    path.write_bytes(dense)
    return path


def schema():
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def without_signatures(data):
    """The file as the converters of other frameworks write it."""
    import flatbuffers

    model = schema().ModelT.InitFromObj(schema().Model.GetRootAs(data, 0))
    model.signatureDefs = []
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def run(path, x, signature=None):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner(signature)
    (name,) = runner.get_input_details()
    (output,) = runner(**{name: x}).values()
    return output


X = np.random.default_rng(0).normal(size=(3, 64)).astype("float32")


def test_file_gets_small_and_computes_the_same(source, dense):
    result = encode_tflite(source, source.with_name("sparse.tflite"))
    assert source.read_bytes() == dense
    assert result.bytes == result.path.stat().st_size < 0.4 * len(dense)
    assert result.bytes_before == len(dense)
    assert result.gzip_bytes < result.bytes
    assert result.max_abs_difference < 1e-5
    np.testing.assert_allclose(run(result.path, X), run(source, X), rtol=1e-5, atol=1e-5)
    assert str(result.path) in str(result)
    assert f"{result.bytes / len(dense):.1%}" in str(result)


def test_file_may_be_replaced_and_a_sparse_one_stays_as_it_is(source):
    first = encode_tflite(source, source)
    again = encode_tflite(source, source)
    assert again.bytes == again.bytes_before == first.bytes


def test_file_without_signatures_is_encoded_and_compared(source, dense):
    source.write_bytes(without_signatures(dense))
    result = encode_tflite(source, source.with_name("sparse.tflite"))
    assert result.bytes < 0.4 * len(dense)
    found = keras_lp.compare_tflite(source, result.path, X)
    assert found.max_abs_difference < 1e-5


def test_all_signatures_of_a_file_are_compared(tmp_path, monkeypatch):
    import tensorflow as tf

    model = pruned(network)
    module, spec = tf.Module(), [tf.TensorSpec((None, 64), name="features")]
    module.variables_of_model = [variable.value for variable in model.variables]
    signatures = {
        "plain": tf.function(lambda features: model(features), spec).get_concrete_function(),
        "double": tf.function(lambda features: 2 * model(features), spec).get_concrete_function(),
    }
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
    source = tmp_path / "dense.tflite"
    source.write_bytes(converter.convert())
    loaded, load = [], encoding_files.load
    monkeypatch.setattr(
        encoding_files, "load", lambda data, *which: loaded.append(which[1]) or load(data, *which)
    )
    path = encode_tflite(source, tmp_path / "sparse.tflite").path
    assert set(loaded) == set(signatures)
    for name in signatures:
        np.testing.assert_allclose(run(path, X, name), run(source, X, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", [X, {"features": X}, [X]])
def test_files_are_compared_on_given_inputs(inputs, source, monkeypatch):
    monkeypatch.setattr(encoding_files, "random_feed", None)
    assert encode_tflite(source, source, inputs=inputs).max_abs_difference < 1e-5


@pytest.mark.slow
def test_sizes_that_a_file_leaves_open_are_tried(tmp_path):
    def convolution():
        x = keras.Input((None, None, 3))
        y = layers.Conv2D(64, 7, strides=2)(layers.Conv2D(32, 7, strides=2)(x))
        return keras.Model(x, layers.GlobalAveragePooling2D()(y))

    (data,) = convert(pruned(convolution))
    (tmp_path / "dense.tflite").write_bytes(data)
    result = encode_tflite(tmp_path / "dense.tflite", tmp_path / "sparse.tflite")
    assert result.bytes < 0.4 * len(data)


@pytest.mark.slow
def test_sparse_int8_weights_are_for_applications_that_turn_the_delegate_off(tmp_path):
    _, data = convert(pruned(network), [None, "dynamic"])
    source, path = tmp_path / "dense.tflite", tmp_path / "sparse.tflite"
    source.write_bytes(data)
    with pytest.raises(RuntimeError, match=r'no sparse int8 weights.*`runtime="no_delegate"`'):
        encode_tflite(source, path)
    assert not path.exists()
    assert encode_tflite(source, path, runtime="no_delegate").bytes < 0.65 * len(data)
    with pytest.raises(RuntimeError, match="no sparse int8 weights"):
        keras_lp.compare_tflite(source, path, X)


def test_encoding_that_changes_the_outputs_is_an_error_and_harms_nothing(
    source, dense, monkeypatch
):
    (other,) = convert(network())
    monkeypatch.setattr(encoding_files, "encode_for", lambda runtime, data: (other, ()))
    with pytest.raises(RuntimeError, match=r"Nothing was written.*differs.*'output_0', by "):
        encode_tflite(source, source)
    assert source.read_bytes() == dense


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": None}, TypeError, r"`source` must be the path.*Received: source=None"),
        ({"source": "none.tflite"}, FileNotFoundError, r"`source` must be a file that exists"),
        ({"path": "model.bin"}, ValueError, r"`path` must end in `\.tflite`"),
        ({"runtime": "xnnpack"}, ValueError, r"`runtime` must be"),
        ({"inputs": np.ones((2, 3))}, ValueError, r"shape \(-1, 64\).*Received: shape \(2, 3\)"),
    ],
)
def test_bad_argument_is_an_error_that_names_it(arguments, error, message, source):
    before = set(source.parent.iterdir())
    given = {"source": source, "path": source.with_name("m.tflite"), **arguments}
    with pytest.raises(error, match=message):
        encode_tflite(given.pop("source"), given.pop("path"), **given)
    assert set(source.parent.iterdir()) == before


@pytest.mark.parametrize("data", [b"", b"no flatbuffer", None])
def test_file_that_is_none_or_damaged_is_an_error(data, source, dense):
    source.write_bytes(dense[:2000] if data is None else data)
    with pytest.raises(RuntimeError, match=r"does not run in LiteRT\. It is no \.tflite file, or"):
        encode_tflite(source, source.with_name("m.tflite"))
    assert not source.with_name("m.tflite").exists()


def test_file_with_operations_of_tensorflow_is_an_error_that_names_them(source):
    inputs = keras.Input((8,))
    (data,) = convert(keras.Model(inputs, keras.ops.erf(inputs)))
    source.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"operations that only TensorFlow knows: Erf"):
        encode_tflite(source, source)
