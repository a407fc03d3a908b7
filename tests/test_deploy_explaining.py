"""Errors of the converter and of LiteRT: each names what to do, and doing it helps."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_lp import export_tflite
from keras_lp.deploy.explaining import of_conversion, of_ending, of_loading

pytestmark = pytest.mark.backend("tensorflow")


def sequential(shape, *members, dtype=None):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *members])


def functional(shape, call):
    x = keras.Input(shape)
    return keras.Model(x, call(x))


def of_sizes(model, *shape):
    """What the advice on open sizes says."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, model(inputs))


class Choosing(layers.Layer):
    def call(self, x):
        if ops.sum(x) > 0:
            return x
        return -x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Selecting(layers.Layer):
    def call(self, x):
        return ops.where(ops.sum(x) > 0, x, -x)


class Reading(Choosing):
    def call(self, x):
        return x * np.mean(ops.convert_to_numpy(x))


class Averaging(layers.Layer):
    def call(self, x):
        return x * ops.mean(x)


class Ranging(Choosing):
    def call(self, x):
        for index in range(ops.shape(x)[0]):
            x = x + index
        return x


class Wide(layers.Layer):
    def call(self, x):
        return ops.cast(ops.cast(x, "float64") * 2, "float32")


class Doubling(layers.Layer):
    def build(self, shape):
        self.factor = ops.full((4,), 2.0, self.compute_dtype)

    def call(self, x):
        return self.factor * x


class DoublingRight(Doubling):
    def call(self, x):
        return ops.cast(self.factor, x.dtype) * x


class Running(layers.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.ensure_shape(tf.numpy_function(np.sin, [x], tf.float32), (None, 4))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Difference(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, first, second):
        return self.dense(first) - self.dense(second)


def difference():
    model = Difference()
    model(np.ones((1, 4), "float32"), np.ones((1, 4), "float32"))
    return model


def difference_of_inputs():
    inputs = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(inputs, Difference()(*inputs))


def upsampling():
    return sequential((None, None, 2), layers.UpSampling2D(interpolation="bilinear"))


def adaptive():
    return sequential((None, None, 2), layers.AdaptiveAveragePooling2D(2))


def causal(length):
    def attend(x):
        return layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)

    return functional((length, 4), attend)


def dilated():
    return sequential((8, 8, 2), layers.Conv2DTranspose(4, 3, dilation_rate=2, padding="same"))


def flipped():
    """A convolution that does what `dilated` does."""
    model = sequential((8, 8, 2), layers.Conv2D(4, 3, dilation_rate=2, padding="same"))
    kernel, bias = dilated().get_weights()
    model.set_weights([kernel[::-1, ::-1].swapaxes(2, 3), bias])
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype("float32")
    # TensorFlow cannot run the transposed one: each input is spread over the outputs around it.
    spread = np.zeros((2, 12, 12, 4))
    for row in range(3):
        for column in range(3):
            part = spread[:, 2 * row : 2 * row + 8, 2 * column : 2 * column + 8]
            part += x @ kernel[row, column].T
    np.testing.assert_allclose(model(x), spread[:, 2:-2, 2:-2] + bias, atol=1e-5)
    return model


def normalized(dtype):
    normalization = layers.Normalization(mean=1.0, variance=2.0, dtype=dtype)
    return sequential((4,), normalization, layers.Dense(2))


def pooled(x):
    """What `MaxPooling3D` does."""
    x = ops.maximum(x[:, ::2], x[:, 1::2])
    x = ops.maximum(x[:, :, ::2], x[:, :, 1::2])
    return ops.maximum(x[:, :, :, ::2], x[:, :, :, 1::2])


def of_words():
    lookup = layers.IntegerLookup(vocabulary=[4, 6])
    return sequential((3,), lookup, layers.Embedding(3, 2), dtype="int64")


def quantized(mode):
    model = sequential((4,), layers.Dense(8, "relu"), layers.Dense(2))
    model.quantize(mode)
    return model


as_of_keras_3_15 = pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15), reason="as Keras 3.15 does it"
)


def slow(*values, marks=()):
    return pytest.param(*values, marks=[pytest.mark.slow, *marks])


@pytest.mark.parametrize(
    ("make", "message", "remedy"),
    [
        (
            adaptive,
            r"A layer needs sizes that are fixed: .*keras\.Model\(inputs, model\(inputs\)\)",
            lambda: of_sizes(adaptive(), 6, 6, 2),
        ),
        slow(
            upsampling,
            r"UpSampling2D needs sizes that are fixed",
            lambda: of_sizes(upsampling(), 6, 6, 2),
            marks=[as_of_keras_3_15],
        ),
        slow(
            lambda: causal(None),
            r"StridedSlice in layer 'multi_head_attention.*They need sizes that are fixed",
            lambda: of_sizes(causal(None), 5, 4),
            marks=[as_of_keras_3_15],
        ),
        (
            lambda: sequential((4,), Choosing()),
            r"Choosing looks at the values of a tensor, with a Python `if`.*`keras\.ops\.where`",
            lambda: sequential((4,), Selecting()),
        ),
        slow(
            lambda: sequential((4,), Reading()),
            r"Reading looks at the values of a tensor, .*NumPy.*Use `keras\.ops`",
            lambda: sequential((4,), Averaging()),
        ),
        slow(
            lambda: sequential((4,), Ranging()),
            r"Ranging looks at the values of a tensor, .*`range`",
            lambda: sequential((4,), Averaging()),
        ),
        (difference, r"export `keras\.Model\(\[a, b\], model\(a, b\)\)`", difference_of_inputs),
        (
            lambda: functional((6,), lambda x: ops.argmax(layers.Dense(5)(x), -1)),
            r"knows: BitwiseAnd in the model itself\. .*`keras\.ops\.top_k\(x, 1\)\[1\]`",
            lambda: functional((6,), lambda x: ops.top_k(layers.Dense(5)(x), 1)[1]),
        ),
        slow(
            lambda: sequential((4,), Doubling(dtype="mixed_float16")),
            r"such as its `compute_dtype`.*Cast it in `call`, `keras\.ops\.cast\(constant, ",
            lambda: sequential((4,), DoublingRight(dtype="mixed_float16")),
        ),
        slow(dilated, r"Conv2DBackpropInput .*convolution of the same `dilation_rate`", flipped),
        slow(
            lambda: sequential((4,), Wide(), layers.Dense(2)),
            r"Mul in layer 'wide.*They compute in float64\. Cast to float32 there",
            lambda: sequential((4,), Averaging(), layers.Dense(2)),
        ),
        slow(
            lambda: normalized("float64"),
            r"Sub in layer 'normalization.*They compute in float64\. .*anew in float32",
            lambda: normalized("float32"),
        ),
        slow(
            of_words,
            r"LookupTableFindV2 in layer 'integer_lookup.*Look words and numbers up before",
            lambda: sequential((3,), layers.Embedding(3, 2), dtype="int64"),
        ),
        slow(
            lambda: sequential((4,), Running(), layers.Dense(2)),
            r"LiteRT lacks PyFunc in layer 'running.*What runs in Python.*Use `keras\.ops`",
            lambda: sequential((4,), layers.Activation(ops.sin), layers.Dense(2)),
        ),
        slow(
            lambda: sequential((4,), layers.Dense(2), layers.Activation(ops.erfinv)),
            r"LiteRT lacks Erfinv in layer 'activation.*do that part before or after the model",
            lambda: sequential((4,), layers.Dense(2)),
        ),
        slow(
            lambda: sequential((4, 4, 4, 2), layers.MaxPooling3D(), layers.Flatten()),
            r"MaxPool3D in layer 'max_pooling3d.*before or after the model, or by other operations",
            lambda: functional((4, 4, 4, 2), pooled),
        ),
    ],
)
def test_what_cannot_be_exported_is_named_with_a_remedy_that_helps(make, message, remedy, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")
    model = make()
    inputs = [np.ones((2, 4), "float32")] * 2 if isinstance(model, Difference) else None
    with pytest.raises(RuntimeError, match=rf"nothing was written.*{message}") as info:
        export_tflite(model, path, inputs=inputs)
    assert "\n" not in str(info.value)
    assert "loc(" not in str(info.value)
    assert path.read_bytes() == b"old"
    assert export_tflite(remedy(), path).max_abs_error < 1e-5


@pytest.mark.slow
def test_file_that_the_delegate_does_not_take_is_for_applications_that_turn_it_off(tmp_path):
    axes = (2, 2, 2, 2, 2, 2, 2)
    model = functional((128,), lambda x: ops.max(ops.reshape(x, (-1, *axes)), axis=(2, 4, 6)))
    with pytest.raises(RuntimeError, match=r'delegate XNNPACK .*`runtime="no_delegate"`'):
        export_tflite(model, tmp_path / "m.tflite")
    assert export_tflite(model, tmp_path / "m.tflite", runtime="no_delegate").max_abs_error == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_model_that_keras_has_quantized_is_to_be_quantized_by_the_export(mode, tmp_path, capfd):
    path = tmp_path / "m.tflite"
    with pytest.raises(RuntimeError, match=rf"quantized layers .*\({mode}\).*\"dynamic\"") as info:
        export_tflite(quantized(mode), path)
    assert "loc(" not in str(info.value) + "".join(capfd.readouterr())
    model = sequential((4,), layers.Dense(8, "relu"), layers.Dense(2))
    assert export_tflite(model, path, False, "dynamic").max_abs_error < 0.1


@as_of_keras_3_15
@pytest.mark.slow
def test_model_that_keras_has_quantized_is_exported_where_litert_can(tmp_path):
    assert export_tflite(quantized("int4"), tmp_path / "m.tflite").max_abs_error < 1e-5


@pytest.mark.parametrize(
    ("said", "essence"),
    [
        ("in user code:\n\n    ValueError: what is wrong\n", "ValueError: what is wrong"),
        ("\n\nthe first line. More of it\nthe second", "the first line"),
        ("", "nothing"),
        (
            "Exception encountered when calling Own.call().\n\n\x1b[1mIt failed. See there\x1b[0m",
            "Own: It failed",
        ),
        ('<unknown>:0: error: loc(fused["X:", "a/X"])): bad X\n<unknown>:0: note', "bad X"),
    ],
)
def test_what_was_said_is_told_in_one_line(said, essence):
    model = sequential((2,), layers.Dense(1))
    assert of_conversion(said, model).endswith(f"The converter said: {essence}")


def test_operation_of_a_model_that_keras_has_quantized_is_told_with_the_remedy():
    said = (
        '<unknown>:0: error: loc(callsite(fused["BatchMatMulV3:", "sequential_1/dense_1/MatMul@__in'
        'ference_f"] at fused["PartitionedCall:", "PartitionedCall"])): \'tfl.fully_connected\' op '
        "operand #0 must be tensor of 32-bit float values\n<unknown>:0: note: loc(callsite("
    )
    explained = of_conversion(said, quantized("int8"))
    assert re.match(r"Keras has quantized layers .*\(int8\).*`quantization=\"dynamic\"`", explained)
    assert explained.endswith("op operand #0 must be tensor of 32-bit float values")
    plain = sequential((4,), layers.Dense(2, name="dense"))
    assert of_conversion(said, plain).startswith("LiteRT lacks BatchMatMulV3 in layer 'dense'. ")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Lambda: name 'K' is not defined", r"a function with a name, at the top level"),
        ("got {'class_name': '__numpy__', 'config': {}} of type", r"a function with a name"),
        ("A total of 2 objects could not be loaded. Example", r"needs a `get_config`"),
        ("Input 'b' of 'MatMul' Op has type float32 that does not match type bfloat16", r"Cast it"),
    ],
)
def test_what_the_process_that_converts_says_is_told_with_the_remedy(said, remedy):
    assert re.search(remedy, of_conversion(said, sequential((2,), layers.Dense(1))))


def test_process_that_ends_is_told_by_its_signal_or_its_last_line():
    assert "ended with ModuleNotFoundError: x" in of_ending(
        1, "Traceback\nModuleNotFoundError: x\n", None
    )
    assert of_ending(3, "", None).endswith("ended with exit code 3")
    assert of_ending(-11, "", "int8") == "the process that converts for int8 was ended by SIGSEGV"


def test_file_that_is_none_is_told_apart():
    for data in (b"", b"no flatbuffer", b"\x18\x00\x00\x00TFL3" + bytes(8)):
        assert re.match(r"It is no \.tflite file, or damaged\. ", of_loading(data, "x"))
