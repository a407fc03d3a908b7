"""Models that were trained in another precision than LiteRT computes in."""

import importlib.util

import keras
import numpy as np
import pytest
from deployable import outputs_in_litert
from keras import layers, ops

from keras_lp import export_tflite
from keras_lp.deploy.precision import in_float32, policies_of_other_precisions
from keras_lp.deploy.sublayers import within

# On the other backends the converter runs in a process of its own, if it is there at all.
needs_tensorflow = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow"
)


@pytest.fixture
def policy(request):
    """The dtype policy that layers get that are made without one."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def sequential(shape, *members):
    return keras.Sequential([keras.Input(shape), *members])


def perceptron():
    return sequential((8,), layers.Dense(16, "gelu"), layers.Dense(3))


def attention():
    x = keras.Input((6, 8))
    y = layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(x, layers.Dense(3, dtype="float32")(layers.LayerNormalization()(x + y)))


def transformer():
    tokens = keras.Input((6,), dtype="int32")
    positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    x = layers.Embedding(9, 8)(tokens) + layers.Embedding(6, 8)(positions)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def convolutions():
    return sequential(
        (8, 8, 3),
        layers.Conv2D(8, 3),
        layers.BatchNormalization(),
        layers.SeparableConv2D(8, 3, activation="relu"),
        layers.GroupNormalization(2),
        layers.Conv2DTranspose(4, 3),
        layers.GlobalAveragePooling2D(),
    )


def both_directions():
    return sequential((5, 4), layers.Bidirectional(layers.LSTM(3)), layers.Dense(2))


def cells():
    return sequential((5, 4), layers.RNN([layers.GRUCell(3), layers.LSTMCell(3)]))


def over_time():
    return sequential(
        (4, 6, 6, 1),
        layers.TimeDistributed(layers.Conv2D(2, 3)),
        layers.TimeDistributed(layers.Flatten()),
        layers.GRU(3),
    )


def nested():
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(4, "gelu")])
    x = keras.Input((8,))
    return keras.Model(x, layers.Dense(2)(inner(x) * 2.0 - inner(-x)))


class Blocks(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(8, "gelu"), layers.Dense(8, "relu")]
        self.heads = {"size": layers.Dense(2)}

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["size"](x)


def subclassed():
    model = Blocks()
    model(np.zeros((1, 8), "float32"))
    return model


KINDS = [
    perceptron,
    attention,
    transformer,
    convolutions,
    both_directions,
    cells,
    over_time,
    nested,
    subclassed,
]
MIXED = ["mixed_float16", "mixed_bfloat16"]
# Bits that the precision keeps of a number; a few of them are lost on the way through a model.
STEPS = {"mixed_float16": 2**-10, "mixed_bfloat16": 2**-7, "float16": 2**-10}
STEPS |= {"bfloat16": 2**-7, "float64": 2**-20}


def state_of(model):
    policies = {layer.path: (layer.dtype_policy, layer.autocast) for layer in within(model)}
    return policies, [ops.convert_to_numpy(variable).tobytes() for variable in model.variables]


def check_export(model, policy, path):
    takes = model.inputs[0] if model.built and hasattr(model, "inputs") else keras.Input((8,))
    random = np.random.default_rng(1)
    x = random.normal(size=(1, *takes.shape[1:])).astype("float32")
    if takes.dtype == "int32":
        x = random.integers(0, 9, x.shape, "int32")
    expected = ops.convert_to_numpy(ops.cast(model(x), "float32"))
    before = state_of(model)
    result = export_tflite(model, path, sparse=False)
    assert state_of(model) == before
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(model(x), "float32")), expected)
    assert result.max_abs_error < 1e-5
    assert f"computes in float32, where the model does in {policy}" in result.notes
    output = outputs_in_litert(path, x)
    assert output.dtype == "float32"
    assert np.abs(output - expected).max() < 8 * STEPS[policy] * np.abs(expected).max()


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(
    ("make", "policy"),
    [(attention, "mixed_float16"), (perceptron, "mixed_bfloat16"), (transformer, "float64")],
    indirect=["policy"],
)
def test_file_computes_in_float32_what_the_model_does_in_its_precision(make, policy, tmp_path):
    check_export(make(), policy, tmp_path / "m.tflite")


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("policy", MIXED, indirect=True)
@pytest.mark.parametrize("make", KINDS)
def test_every_kind_of_model_in_half_precision_is_exported(make, policy, tmp_path):
    check_export(make(), policy, tmp_path / "m.tflite")


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64"], indirect=True)
@pytest.mark.parametrize("make", [perceptron, attention, transformer, convolutions, nested])
def test_weights_in_another_precision_are_exported_too(make, policy, tmp_path):
    check_export(make(), policy, tmp_path / "m.tflite")


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
@pytest.mark.parametrize("policy", MIXED, indirect=True)
@pytest.mark.parametrize("quantization", ["float16", "dynamic", "int8"])
def test_trained_model_is_quantized_too(quantization, policy, batches, tmp_path):
    x, y = batches
    model = perceptron()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=3, verbose=0)
    samples = x if quantization == "int8" else None
    result = export_tflite(model, tmp_path / "m.tflite", False, quantization, samples, inputs=x)
    expected = ops.convert_to_numpy(ops.cast(model(x), "float32"))
    assert np.abs(outputs_in_litert(result.path, x) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("policy", MIXED, indirect=True)
def test_layers_within_layers_compute_in_float32_for_a_while(policy):
    model = attention()
    assert policies_of_other_precisions(model) == [policy]
    before = state_of(model)
    x = np.ones((1, 6, 8), "float32")
    half = ops.convert_to_numpy(ops.cast(model(x), "float32"))
    with in_float32(model):
        assert {layer.compute_dtype for layer in within(model)} == {"float32"}
        full = ops.convert_to_numpy(model(x))
    assert 0 < np.abs(half - full).max() < 0.1
    with pytest.raises(ValueError, match="None"), in_float32(model):
        model(None)
    assert state_of(model) == before
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(model(x), "float32")), half)


def test_map_of_policies_is_as_it_was_after_it():
    policies = keras.dtype_policies.DTypePolicyMap("mixed_bfloat16")
    policies["another/.*"] = keras.DTypePolicy("mixed_float16")
    dense = layers.Dense(2, dtype=policies)
    model = sequential((4,), dense)
    entries = dict(policies.items())
    assert dense.compute_dtype == "bfloat16"
    with in_float32(model):
        assert dense.compute_dtype == "float32"
    assert dict(policies.items()) == entries
    assert dense.dtype_policy is policies
    assert dense.compute_dtype == "bfloat16"


def test_layers_that_keras_has_quantized_and_those_in_float32_are_left_alone():
    model = sequential((4,), layers.Dense(3), layers.Dense(2))
    model.quantize("int8")
    before = state_of(model)
    with in_float32(model):
        assert state_of(model) == before
    assert policies_of_other_precisions(model) == []


def test_all_layers_that_keras_tracks_are_found():
    for make in KINDS:
        model = make()
        # The private list of Keras's own, to see when it keeps layers where they are not found.
        assert {id(layer) for layer in model._flatten_layers()} <= set(map(id, within(model)))
