"""Models whose inputs and outputs have shapes and structures of many kinds."""

import keras
import numpy as np
import pytest
from deployable import interpreter
from keras import layers, ops

from keras_lp import export_tflite

pytestmark = pytest.mark.backend("tensorflow")


def shapes_of(path):
    details = interpreter(path).get_input_details()
    return {name: details[name]["shape_signature"].tolist() for name in details}


class Convolution(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(4, 3)

    def call(self, x):
        return self.convolution(x)


class Built(Convolution):
    """A model that takes `build` on itself, as the guides of Keras do."""

    def build(self, input_shape=None):
        self.convolution.build((None, None, None, 3))
        self.built = True


def called():
    model = Convolution()
    model(np.zeros((1, 8, 8, 3), "float32"))
    return model


def test_subclassed_model_is_exported_at_the_sizes_that_it_was_called_with(tmp_path):
    result = export_tflite(called(), tmp_path / "m.tflite")
    assert shapes_of(result.path) == {"args_0": [-1, 8, 8, 3]}
    assert result.max_abs_error < 1e-5
    (note,) = result.notes
    assert "`keras.Model(inputs, model(inputs))`" in note


def test_advice_for_other_sizes_of_a_subclassed_model_helps(tmp_path):
    inputs = keras.Input((None, None, 3), name="image")
    result = export_tflite(keras.Model(inputs, called()(inputs)), tmp_path / "m.tflite")
    assert shapes_of(result.path) == {"image": [-1, -1, -1, 3]}
    assert result.notes == ()


def test_model_whose_input_shape_is_not_known_is_an_error_whose_advice_helps(tmp_path):
    model, path = Built(), tmp_path / "m.tflite"
    model.build()
    model.set_weights([np.ones((3, 3, 3, 4)), np.zeros(4)])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"known shapes.*`keras\.Model\(inputs, model\(inpu"):
            export_tflite(model, path)
        model(np.zeros((1, 8, 8, 3), "float32"))
    inputs = keras.Input((8, 8, 3))
    assert export_tflite(keras.Model(inputs, model(inputs)), path).max_abs_error < 1e-4


def test_batch_of_a_subclassed_model_can_be_fixed(tmp_path):
    result = export_tflite(called(), tmp_path / "m.tflite", batch_size=3)
    assert shapes_of(result.path) == {"args_0": [3, 8, 8, 3]}
    assert result.max_abs_error < 1e-5


class OfParts(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x["b"]) - 2 * self.dense(x["a"][0])


def test_subclassed_model_may_take_a_structure(tmp_path):
    model, random = OfParts(), np.random.default_rng(0)
    inputs = {"b": random.random((2, 4), "float32"), "a": [random.random((2, 4), "float32")]}
    model(inputs)
    result = export_tflite(model, tmp_path / "m.tflite", inputs=inputs)
    assert result.max_abs_error < 1e-5
    assert shapes_of(result.path) == {"args_0": [-1, 4], "args_0_1": [-1, 4]}


class OfArrays(layers.Layer):
    """A layer that cannot be called with a symbol, only with arrays."""

    def call(self, x):
        return x * 2

    def compute_output_spec(self, x):
        raise NotImplementedError


def test_sequential_model_without_symbolic_inputs_is_exported(tmp_path):
    model = keras.Sequential([OfArrays(), layers.Dense(2)])
    model(np.zeros((1, 4), "float32"))
    assert not hasattr(model, "inputs")
    result = export_tflite(model, tmp_path / "m.tflite")
    assert result.max_abs_error < 1e-5
    assert shapes_of(result.path) == {"args_0": [-1, 4]}


@pytest.mark.parametrize(
    "nest",
    [
        lambda a, b, c: [a, {"b": b, "c": (c,)}],
        lambda a, b, c: {"x": [a, b], "y": c},
        lambda a, b, c: ((a, b), c),
    ],
)
def test_outputs_may_be_nested(nest, tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, nest(*(layers.Dense(units)(inputs) for units in (1, 2, 3))))
    result = export_tflite(model, tmp_path / "m.tflite")
    assert result.max_abs_error < 1e-5
    x = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    runner = interpreter(result.path)
    (name,) = runner.get_input_details()
    outputs = runner(**{name: x})
    for index, expected in enumerate(keras.tree.flatten(model(x))):
        np.testing.assert_allclose(outputs[f"output_{index}"], expected, rtol=1e-5, atol=1e-6)


def test_table_in_an_own_layer_or_model_is_found(tmp_path):
    import tensorflow as tf

    from keras_lp.deploy.converting import convert

    def table():
        keys, values = tf.constant([1, 2], tf.int64), tf.constant([5.0, 6.0])
        return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), 0.0)

    class Looking(keras.Model):
        def __init__(self):
            super().__init__()
            self.tables = [table()]

        def call(self, x):
            return self.tables[0].lookup(ops.cast(x, "int64"))

    model = Looking()
    model(np.ones((1, 3), "float32"))
    (data,) = convert(model)
    assert b"Lookup" in data
