"""Keras 3 models made again in tf_keras, and back."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_lp.keras_internals import layers_of_applications
from keras_lp.optional import import_tfmot
from keras_lp.tfmot import from_tf_keras, to_tf_keras

tf_keras = pytest.importorskip("tf_keras")


@pytest.fixture
def random():
    return np.random.default_rng(0)


def sequential(*parts, shape, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype, name="start"), *parts], name="net")


def outputs(model, inputs):
    """Outputs at inference, flat, as NumPy arrays of float64."""
    found = keras.tree.flatten(model(inputs, training=False))
    return [np.asarray(keras.ops.convert_to_numpy(one), "float64") for one in found]


def scatter(model, random):
    """Gives every weight a value of its own, so that none can take the place of another."""
    for variable in model.weights:
        if variable.dtype.startswith("float"):
            values = random.uniform(0.2, 0.8, variable.shape)
            variable.assign(values * random.choice([-1, 1], variable.shape))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(np.abs(layer.moving_variance))
    return model


def recurrent():
    return sequential(
        layers.Embedding(20, 8, mask_zero=True),
        layers.Bidirectional(layers.LSTM(5, return_sequences=True)),
        layers.GRU(4, return_sequences=True, kernel_regularizer="l2"),
        layers.RNN([layers.GRUCell(3), layers.LSTMCell(4)], return_sequences=True),
        layers.TimeDistributed(layers.Dense(3)),
        layers.SimpleRNN(3),
        shape=(7,),
        dtype="int32",
    )


def convolutional():
    return sequential(
        layers.Conv2D(4, 3, padding="same", activation="relu6"),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3),
        layers.SeparableConv2D(5, 3),
        layers.LeakyReLU(0.2),
        layers.PReLU(),
        layers.Conv2DTranspose(3, 2, strides=2),
        layers.UpSampling2D(interpolation="bilinear"),
        layers.ZeroPadding2D(1),
        layers.Cropping2D(1),
        layers.AveragePooling2D(2),
        layers.ReLU(6.0, negative_slope=0.1),
        layers.GlobalMaxPooling2D(),
        layers.Dense(3, "softmax"),
        shape=(12, 12, 3),
    )


def normalizing():
    return sequential(
        layers.Normalization(mean=0.5, variance=2.0),
        layers.LayerNormalization(),
        layers.GroupNormalization(2),
        layers.UnitNormalization(),
        layers.RMSNormalization(),
        layers.SpectralNormalization(layers.Dense(6)),
        layers.EinsumDense("ab,bc->ac", (5,), bias_axes="c"),
        layers.ELU(0.5),
        layers.Softmax(),
        layers.RepeatVector(2),
        layers.Permute((2, 1)),
        layers.Reshape((-1,)),
        layers.Rescaling(0.5, 1.0),
        shape=(6,),
    )


def nested_in_time():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(3, "relu"), layers.Dense(3)])
    return sequential(layers.TimeDistributed(inner), layers.Flatten(), shape=(5, 3))


def shared():
    """Inputs and outputs as dicts, a layer called thrice, a nested model twice."""
    start, dense = keras.Input((4,)), layers.Dense(4, "relu", name="dense")
    inner = keras.Model(start, dense(dense(start)), name="inner")
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    last = inner(b)
    joined = layers.Concatenate()([inner(a), last, dense(a)])
    return keras.Model({"a": a, "b": b}, {"x": last, "y": layers.Dense(2)(joined), "z": a - b})


def attention():
    start = keras.Input((5, 8))
    x = start + layers.MultiHeadAttention(2, 4, dropout=0.1)(start, start, use_causal_mask=True)
    x = layers.LayerNormalization()(x)
    return keras.Model(start, layers.Dense(3)(layers.Attention()([x, x])))


def masked():
    """Masks that Keras 3 makes by operations, and a state that goes from layer to layer."""
    start = keras.Input((7,), dtype="int32")
    x, y = (layers.Embedding(20, 8, mask_zero=True)(start) for _ in range(2))
    x = layers.Concatenate()([x, layers.MultiHeadAttention(2, 4)(x, y)])
    x, *state = layers.LSTM(4, return_state=True, return_sequences=True)(x)
    x = layers.GRU(4)(layers.TimeDistributed(layers.Dense(3))(x), initial_state=state[0])
    return keras.Model(start, layers.Dropout(0.5)(x, training=True))


def operations():
    """Operations that are no layers, with and without tensors as arguments."""
    ops = keras.ops
    a, b = keras.Input((4, 6), name="a"), keras.Input((4, 6), name="b")
    x = ops.relu6(ops.mean(a + 2.0 * b, axis=1, keepdims=True) + 3.0) * (1 / 6)
    x = ops.reshape(ops.concatenate([x, ops.sqrt(ops.square(x))], axis=-1), (-1, 12))
    z = ops.matmul(a, ops.transpose(b, (0, 2, 1)))[:, 1:, 0]
    w = ops.softmax(ops.einsum("ij,ik->ijk", x, z), axis=-1)
    v = ops.max(ops.silu(ops.swapaxes(a, 1, 2)), axis=(1, 2)) - ops.expand_dims(z[:, 0], -1)
    return keras.Model([a, b], [w, v, ops.maximum(a, b), -a / ops.exp(b), ops.clip(a, 0.0, 1.0)])


def frequent_operations():
    """Operations that are computed in tf_keras wherever Keras 3 computes."""
    ops = keras.ops
    x, image = keras.Input((6,), name="x"), keras.Input((5, 6, 3), name="image")
    first, _, third = ops.split(x, [2, 3], axis=-1)
    values, positions = ops.top_k(x, 3)
    found = [
        ops.split(x, 2, axis=1)[1] + ops.where(third > 0, third, 0.1 * third),
        # Keras 3.15 itself fails at a norm in a functional model on JAX.
        first if keras.backend.backend() == "jax" else ops.norm(first, axis=-1, keepdims=True),
        ops.pad(image, [[0, 0], [1, 1], [2, 0], [0, 0]], mode="reflect"),
        ops.pad(x, [[0, 0], [1, 2]], constant_values=2.0),
        ops.image.resize(image, (7, 4)),
        ops.image.resize(image, (10, 12), interpolation="nearest"),
        values * ops.cast(positions, "float32"),
        ops.argmax(image, axis=-1) - ops.argmin(image, axis=-1),
        ops.argmax(x) + ops.argmax(x, axis=1, keepdims=True),
        ops.rms_normalization(x) * ops.rsqrt(ops.abs(x) + 1.0) - ops.erf(x),
        ops.cumsum(ops.floor(x), axis=1) + ops.flip(ops.ceil(x), axis=-1) * ops.sign(x),
        ops.flip(ops.cumsum(x)),
        ops.one_hot(ops.argmax(x, axis=-1), 6) + ops.log1p(ops.abs(x)) + ops.expm1(x),
        ops.take(x, [4, 1], axis=1) + ops.stop_gradient(first),
        ops.take(x, [4, 1]) + ops.logsumexp(x, axis=-1, keepdims=True),
        ops.amax(image, axis=(1, 2)) - ops.amin(image, axis=(1, 2)) + ops.prod(image, axis=(1, 2)),
        ops.unstack(image, axis=1)[2] % 0.5 + image[:, 1] // 0.5,
    ]
    return keras.Model([x, image], found)


def other_operations():
    """Operations that compute themselves, where Keras 3 computes with TensorFlow."""
    ops = keras.ops
    x, image = keras.Input((6,), name="x"), keras.Input((5, 6, 3), name="image")
    found = [
        ops.sort(x, axis=-1) + ops.roll(x, 1, axis=1) + ops.diff(x, axis=-1, n=1)[:, :1],
        ops.image.resize(image, (7, 4), pad_to_aspect_ratio=True),
        ops.average_pool(ops.moveaxis(image, 1, 2), 2, 2),
        ops.tensordot(x, np.arange(12, dtype="float32").reshape(6, 2), axes=1),
        ops.layer_normalization(x) + ops.celu(ops.nan_to_num(x)),
    ]
    return keras.Model([x, image], found)


def numbers(shape):
    return lambda random: random.normal(size=(3, *shape)).astype("float32")


def pair(shape):
    return lambda random: [numbers(shape)(random), numbers(shape)(random)]


CASES = {
    recurrent: lambda random: random.integers(0, 20, (3, 7)),
    convolutional: numbers((12, 12, 3)),
    normalizing: numbers((6,)),
    nested_in_time: numbers((5, 3)),
    shared: lambda random: dict(zip("ab", pair((4,))(random), strict=True)),
    attention: numbers((5, 8)),
    masked: lambda random: random.integers(0, 3, (3, 7)),
    operations: pair((4, 6)),
    frequent_operations: lambda random: [numbers(s)(random) for s in ((6,), (5, 6, 3))],
    other_operations: lambda random: [numbers(s)(random) for s in ((6,), (5, 6, 3))],
}
MARKS = {
    **dict.fromkeys((recurrent, masked, frequent_operations), pytest.mark.slow),
    other_operations: pytest.mark.backend("tensorflow"),
}


@pytest.mark.parametrize("make", [pytest.param(make, marks=MARKS.get(make, ())) for make in CASES])
def test_models_of_both_libraries_compute_the_same_there_and_back(make, random):
    model = scatter(make(), random)
    inputs = CASES[make](random)
    legacy = to_tf_keras(model)
    assert isinstance(legacy, tf_keras.Model)
    back = from_tf_keras(legacy)
    expected = outputs(model, inputs)
    for other in (legacy, back):
        found = outputs(other, inputs)
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * np.abs(two).max())
        assert len(other.trainable_weights) == len(model.trainable_weights)


@pytest.mark.slow
# tf_keras itself makes two of a layer that a nested model shares.
@pytest.mark.parametrize("make", [make for make in CASES if make is not shared])
def test_model_of_tf_keras_can_be_copied_and_saved(make, random, tmp_path):
    legacy = to_tf_keras(scatter(make(), random))
    copy = tf_keras.models.clone_model(legacy)
    copy.set_weights(legacy.get_weights())
    legacy.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    inputs = CASES[make](random)
    for other in (copy, loaded):
        for one, two in zip(outputs(other, inputs), outputs(legacy, inputs), strict=True):
            np.testing.assert_array_equal(one, two)


ACTIVATIONS = [
    *("celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh"),
    *("leaky_relu", "linear", "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu"),
    *("sigmoid", "silu", "softmax", "softplus", "softsign", "squareplus", "tanh", "tanh_shrink"),
]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_the_same_function_there_and_back(name, random):
    model = sequential(layers.Activation(name), shape=(50,))
    inputs = 4 * random.normal(size=(3, 50)).astype("float32")
    legacy = to_tf_keras(model)
    np.testing.assert_allclose(outputs(legacy, inputs)[0], outputs(model, inputs)[0], atol=1e-5)
    assert from_tf_keras(legacy).layers[0].get_config()["activation"] == name


def test_hard_sigmoid_of_tf_keras_which_is_another_one_keeps_its_meaning(random, tmp_path):
    legacy = tf_keras.Sequential(
        [tf_keras.Input((50,)), tf_keras.layers.Activation("hard_sigmoid")]
    )
    inputs = 4 * random.normal(size=(3, 50)).astype("float32")
    model = from_tf_keras(legacy)
    np.testing.assert_allclose(outputs(model, inputs)[0], np.clip(0.2 * inputs + 0.5, 0, 1), 1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, inputs)[0], outputs(model, inputs)[0])


def test_names_regularizers_constraints_and_what_is_frozen_come_along():
    model = sequential(
        layers.Dense(3, kernel_regularizer=keras.regularizers.L1L2(0.1, 0.2), name="first"),
        layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(2.0), name="second"),
        shape=(4,),
    )
    model.layers[0].trainable = False
    for other in (to_tf_keras(model), from_tf_keras(to_tf_keras(model))):
        first, second = other.layers
        assert [other.name, first.name, second.name] == ["net", "first", "second"]
        config = first.kernel_regularizer.get_config()
        assert [float(config["l1"]), float(config["l2"])] == pytest.approx([0.1, 0.2])
        assert second.kernel_constraint.get_config()["max_value"] == 2.0
        assert [first.trainable, second.trainable] == [False, True]


def test_layer_inside_a_wrapper_stays_shared_and_frozen():
    dense, frozen = layers.Dense(4), layers.Dense(4)
    start, steps = keras.Input((4,)), keras.Input((5, 4))
    x = layers.TimeDistributed(frozen)(layers.TimeDistributed(dense)(steps))
    model = keras.Model([start, steps], [dense(start), x])
    frozen.trainable = False
    legacy = to_tf_keras(model)
    for other in (legacy, from_tf_keras(legacy)):
        assert [len(other.trainable_weights), len(other.weights)] == [2, 4]


def test_fixed_batch_size_and_mixed_precision_come_along():
    model = keras.Sequential(
        [keras.Input((4,), batch_size=2), layers.Dense(3, dtype="mixed_float16")]
    )
    legacy = to_tf_keras(model)
    assert tuple(legacy.inputs[0].shape) == (2, 4)
    assert legacy.layers[0].dtype_policy.name == "mixed_float16"
    assert from_tf_keras(legacy).layers[0].dtype_policy.name == "mixed_float16"


def test_layers_that_compute_in_training_only_go_there_and_back(random):
    model = sequential(
        layers.RandomFlip(),
        layers.SpatialDropout2D(0.3),
        layers.GaussianNoise(0.1),
        shape=(4, 4, 3),
    )
    model.trainable = False
    back = from_tf_keras(to_tf_keras(model))
    assert not any(layer.trainable for layer in back.layers)
    assert [layer.name for layer in back.layers] == [layer.name for layer in model.layers]
    assert back.layers[1].rate == 0.3


@pytest.mark.parametrize("is_training", [False, True])
def test_training_argument_of_a_call_has_no_effect_as_in_keras_3(is_training, random):
    start = keras.Input((4,))
    norm = layers.BatchNormalization()
    legacy = to_tf_keras(keras.Model(start, norm(start, training=is_training)))
    inputs = numbers((4,))(random)
    legacy(inputs, training=False)
    assert np.all(np.asarray(legacy.layers[1].moving_mean) == 0)
    legacy(inputs, training=True)
    assert np.all(np.asarray(legacy.layers[1].moving_mean) != 0)


# What cannot be taken over


class Twice(layers.Layer):
    """A layer of the user's own."""

    def __init__(self, factor=2.0, **arguments):
        super().__init__(**arguments)
        self.factor = factor

    def call(self, x):
        return self.factor * x

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def twice_in_tf_keras(by):
    class Twice(tf_keras.layers.Layer):
        def __init__(self, factor, **arguments):
            super().__init__(**arguments)
            self.factor = factor

        def call(self, x):
            return by * self.factor * x

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    return Twice


def test_layer_of_ones_own_is_an_error_that_names_it_and_the_remedy_helps(random):
    model = sequential(Twice(3.0, name="mine"), layers.Dense(2), shape=(4,))
    with pytest.raises(
        ValueError, match=r"'mine' of class .*Twice.*`custom_layers={Twice: \.\.\.}"
    ):
        to_tf_keras(model)
    legacy = to_tf_keras(model, {Twice: twice_in_tf_keras(1.0)})
    inputs = numbers((4,))(random)
    np.testing.assert_allclose(outputs(legacy, inputs)[0], outputs(model, inputs)[0], 1e-5)
    back = from_tf_keras(legacy, {type(legacy.layers[0]): Twice})
    np.testing.assert_allclose(outputs(back, inputs)[0], outputs(model, inputs)[0], 1e-5)


class Doubled(layers.Layer):
    """In place of a Lambda, with no argument of its own."""

    def call(self, x):
        return 2 * x


class Applied(layers.Layer):
    """The same, of the function that it is given."""

    def __init__(self, function, arguments, **others):
        super().__init__(**others)
        self.function = function
        self.arguments = arguments

    def call(self, x):
        return self.function(x, **self.arguments)


class Variadic(Doubled):
    def __init__(self, **arguments):
        super().__init__(**arguments)


@pytest.mark.parametrize("custom", [layers.Lambda, Doubled, Applied, Variadic])
def test_lambda_is_an_error_whose_remedies_help(custom, random):
    start = tf_keras.Input((4,))
    function = tf_keras.layers.Lambda(lambda x, by: x * by, arguments={"by": 2.0}, name="mine")
    legacy = tf_keras.Model(start, function(start))
    remedy = r"`custom_layers=\{tf_keras\.layers\.Lambda: keras\.layers\.Lambda\}`.*layer class of"
    with pytest.raises(ValueError, match=rf"'mine' of class .*Lambda computes.*{remedy}"):
        from_tf_keras(legacy)
    model = from_tf_keras(legacy, {tf_keras.layers.Lambda: custom})
    assert [type(model.layers[1]), model.layers[1].name] == [custom, "mine"]
    inputs = numbers((4,))(random)
    np.testing.assert_allclose(outputs(model, inputs)[0], 2 * inputs, rtol=1e-6)


def test_lambda_of_keras_3_goes_over_by_its_remedy(random):
    model = sequential(layers.Lambda(lambda x: 3 * x), shape=(4,))
    with pytest.raises(ValueError, match=r"{keras\.layers\.Lambda: tf_keras\.layers\.Lambda}"):
        to_tf_keras(model)
    legacy = to_tf_keras(model, {layers.Lambda: tf_keras.layers.Lambda})
    inputs = numbers((4,))(random)
    np.testing.assert_allclose(outputs(legacy, inputs)[0], 3 * inputs, rtol=1e-6)


def test_custom_layer_that_fails_is_itself_named_as_what_to_mend():
    def fail(x):
        raise RuntimeError("no way")

    model = sequential(layers.Lambda(fail, output_shape=(4,), name="odd"), shape=(4,))
    with pytest.raises(
        ValueError, match=r"(?s)'odd'.*no way.*Mend or replace tf_keras.*Lambda, wh"
    ):
        to_tf_keras(model, {layers.Lambda: tf_keras.layers.Lambda})


def test_layer_that_computes_something_else_is_found():
    model = sequential(Twice(), layers.Dense(2), shape=(4,))
    with pytest.raises(ValueError, match=r"computes something else.*`custom_layers`.*'net'"):
        to_tf_keras(model, {Twice: twice_in_tf_keras(1.01)})


def in_tf_keras(function):
    class Own(tf_keras.layers.Layer):
        def call(self, x):
            return function(x)

    return Own


class Chaos(layers.Layer):
    """Multiplies the last digits of its inputs, as deep models with odd weights do."""

    def call(self, x):
        return keras.ops.sin(1e7 * x)


def test_model_whose_last_digits_decide_is_not_refused_for_them():
    twin = in_tf_keras(lambda x: tf_keras.backend.sin(1e7 * x * (1 + 1e-6)))
    legacy = to_tf_keras(sequential(Chaos(), shape=(4,)), {Chaos: twin})
    assert isinstance(legacy.layers[-1], twin)


def test_layer_that_gives_no_number_is_found():
    model = sequential(layers.Identity(), shape=(4,))
    with pytest.raises(ValueError, match="computes something else"):
        to_tf_keras(model, {layers.Identity: in_tf_keras(lambda x: x * np.nan)})


def test_error_of_a_call_names_the_layer():
    def fail(x):
        raise RuntimeError("no way")

    start = keras.Input((4,))
    functional = keras.Model(start, layers.Identity(name="same")(start))
    for model in (functional, sequential(layers.Identity(name="same"), shape=(4,))):
        with pytest.raises(ValueError, match=r"(?s)Layer 'same' of class .*no way"):
            to_tf_keras(model, {layers.Identity: in_tf_keras(fail)})


@pytest.mark.parametrize(
    "custom", [5, {"Dense": tf_keras.layers.Dense}, {layers.Dense: layers.Dense}]
)
def test_custom_layers_of_another_kind_are_an_error(custom):
    model = sequential(layers.Dense(2), shape=(4,))
    with pytest.raises(TypeError, match=r"`custom_layers` must be .* Received: custom_layers="):
        to_tf_keras(model, custom)


@pytest.mark.parametrize(
    "frozen", ["forward_layer", pytest.param("backward_layer", marks=pytest.mark.slow)]
)
def test_bidirectional_layer_with_one_frozen_direction_goes_there_and_back(frozen, random):
    model = sequential(layers.Bidirectional(layers.GRU(3), name="both"), shape=(5, 2))
    getattr(model.get_layer("both"), frozen).trainable = False
    inputs = numbers((5, 2))(random)
    legacy = to_tf_keras(scatter(model, random))
    for made in (legacy, from_tf_keras(legacy)):
        np.testing.assert_allclose(outputs(made, inputs)[0], outputs(model, inputs)[0], 1e-5)
        assert not getattr(made.get_layer("both"), frozen).trainable
        assert len(made.trainable_weights) == len(model.trainable_weights) == 3


@pytest.mark.backend("tensorflow")
def test_arguments_that_tf_keras_leaves_out_of_its_configs_come_back():
    model = sequential(
        layers.AlphaDropout(0.2, noise_shape=(None, 1)),
        layers.BatchNormalization(synchronized=True),
        shape=(4,),
    )
    dropout, normalization = from_tf_keras(to_tf_keras(model)).layers
    assert tuple(dropout.noise_shape) == (None, 1)
    assert normalization.synchronized


def looked_up(make, *data, dtype="string"):
    """A model that looks words up, with a vocabulary given or adapted to."""
    layer = make()
    if data:
        layer.adapt(list(data))
    start = keras.Input((3,) if isinstance(layer, layers.IntegerLookup) else (), dtype=dtype)
    end = layers.Embedding(9, 2) if layer.get_config()["output_mode"] == "int" else layers.Dense(2)
    return keras.Model(start, end(layer(start)))


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: looked_up(lambda: layers.StringLookup(vocabulary=["a", "b"])), ["b", "z"]),
        (lambda: looked_up(layers.StringLookup, "a", "b"), ["b", "z"]),
        (
            lambda: looked_up(lambda: layers.IntegerLookup(vocabulary=[4, 6]), dtype="int64"),
            [[4, 6, 9]],
        ),
        (lambda: looked_up(layers.TextVectorization, "a b c", "b b"), ["c z b"]),
        (
            lambda: looked_up(lambda: layers.TextVectorization(output_mode="count"), "a b", "b b"),
            ["b z b"],
        ),
    ],
    ids=["strings", "adapted", "integers", "text", "counts"],
)
def test_lookups_keep_their_vocabularies_there_and_back(make, inputs):
    import tensorflow as tf

    model, inputs = make(), tf.constant(inputs)
    inputs = tf.cast(inputs, "int64") if inputs.dtype == tf.int32 else inputs
    legacy = to_tf_keras(model)
    for made in (legacy, from_tf_keras(legacy)):
        np.testing.assert_array_equal(outputs(made, inputs)[0], outputs(model, inputs)[0])


CATEGORIES = [
    ("Discretization", {"bin_boundaries": [0.0, 1.0]}, "float32"),
    ("Discretization", {"bin_boundaries": [0.0, 1.0], "output_mode": "one_hot"}, "float32"),
    (
        "Discretization",
        {"bin_boundaries": [0.0, 1.0], "output_mode": "one_hot", "dtype": "int64"},
        "float32",
    ),
    ("IntegerLookup", {"vocabulary": [1, 3], "output_mode": "multi_hot"}, "int64"),
    ("IntegerLookup", {"vocabulary": [1, 3], "num_oov_indices": 2}, "int64"),
    ("CategoryEncoding", {"num_tokens": 4, "output_mode": "count"}, "int32"),
    ("Hashing", {"num_bins": 5, "salt": 3}, "int64"),
    ("Normalization", {"axis": None, "mean": 1.0, "variance": 4.0}, "float32"),
    ("Rescaling", {"scale": 0.3, "offset": 0.1}, "uint8"),
]


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("convert", [to_tf_keras, from_tf_keras])
@pytest.mark.parametrize(("name", "arguments", "dtype"), CATEGORIES)
def test_preprocessing_gives_the_same_numbers_eagerly_and_in_a_graph(
    name, arguments, dtype, convert
):
    import tensorflow as tf

    library = keras if convert is to_tf_keras else tf_keras
    if library is keras and "int64" in arguments.values():
        pytest.skip("Keras 3 itself cuts the inputs in a graph, and not outside")
    start = library.Input((1,), dtype=dtype)
    model = library.Model(start, getattr(library.layers, name)(**arguments)(start))
    made = convert(model)
    inputs = tf.constant([[-0.5], [0.5], [1.5]] if dtype == "float32" else [[0], [1], [3]], dtype)
    for call in (made, tf.function(made, autograph=False)):
        np.testing.assert_allclose(outputs(call, inputs)[0], outputs(model, inputs)[0], rtol=1e-6)


@pytest.mark.backend("tensorflow")
def test_layer_that_computes_something_else_in_a_graph_is_found():
    class CutsInGraph(layers.Layer):
        def call(self, x):
            import tensorflow as tf

            return x if tf.executing_eagerly() else keras.ops.floor(x)

    start = tf_keras.Input((3,))
    identity = in_tf_keras(lambda x: x)
    with pytest.raises(ValueError, match="computes something else"):
        from_tf_keras(tf_keras.Model(start, identity()(start)), {identity: CutsInGraph})


def test_integers_that_differ_are_found_beside_an_output_that_last_digits_decide():
    class Two(layers.Layer):
        def call(self, x):
            return keras.ops.sin(1e7 * x), keras.ops.cast(keras.ops.floor(x), "int32")

    def other(x):
        back = tf_keras.backend
        return back.sin(1e7 * x * (1 + 1e-6)), back.cast(back.round(x), "int32")

    start = keras.Input((4,))
    with pytest.raises(ValueError, match="computes something else"):
        to_tf_keras(keras.Model(start, Two()(start)), {Two: in_tf_keras(other)})


def only_layer(make, mask_zero):
    """A functional model in which a layer is called, with a mask or without one."""
    start = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=mask_zero)(start)
    return keras.Model(start, make(x))


@pytest.mark.parametrize("mask_zero", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: layers.GroupNormalization(2)(x),
        lambda x: layers.RMSNormalization(axis=[1, 2])(x),
        lambda x: layers.SpectralNormalization(layers.Dense(3))(x),
        lambda x: layers_of_applications()["LayerScale"](0.1, 4)(x),
        lambda x: layers_of_applications()["CustomScaleLayer"](0.3)([x, layers.Dense(4)(x)]),
    ],
    ids=["group", "rms", "spectral", "scale", "residual"],
)
def test_layers_that_tf_keras_has_otherwise_come_back_with_and_without_a_mask(
    make, mask_zero, random
):
    model = scatter(only_layer(make, mask_zero), random)
    inputs = random.integers(0, 3, (3, 5))
    legacy = to_tf_keras(model)
    back = from_tf_keras(legacy)
    assert [type(layer) for layer in back.layers] == [type(layer) for layer in model.layers]
    for made in (legacy, back):
        np.testing.assert_allclose(
            outputs(made, inputs)[0], outputs(model, inputs)[0], rtol=1e-4, atol=1e-5
        )


def test_stateful_layer_begins_without_a_state(random):
    start = keras.Input(batch_shape=(3, 5, 2))
    model = keras.Model(start, layers.LSTM(4, stateful=True)(start))
    legacy = to_tf_keras(model)
    inputs = random.normal(size=(3, 5, 2)).astype("float32")
    np.testing.assert_allclose(outputs(legacy, inputs)[0], outputs(model, inputs)[0], atol=1e-6)


def test_layer_with_other_weights_is_found():
    class Wide(tf_keras.layers.Dense):
        def __init__(self, units, **arguments):
            super().__init__(units + 1, **arguments)

    model = sequential(layers.Dense(2, name="narrow"), shape=(4,))
    with pytest.raises(ValueError, match=r"'narrow'.*\(4, 2\).*\(4, 3\)"):
        to_tf_keras(model, {layers.Dense: Wide})


def quantized():
    model = sequential(layers.Dense(3), shape=(4,))
    model.quantize("int8")
    return model


def with_lora():
    model = sequential(layers.Dense(3, name="adapted"), shape=(4,))
    model.layers[0].enable_lora(2)
    return model


def with_input(**arguments):
    start = keras.Input((4,), name="odd", **arguments)
    return keras.Model(start, layers.Dense(2)(start))


def of_operations(function):
    start = keras.Input((4,))
    return keras.Model(start, function(start))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sequential(layers.AugMix(), shape=(4, 4, 3)), "AugMix has no counterpart"),
        (lambda: sequential(layers.Lambda(lambda x: x), shape=(4,)), "Lambda"),
        (lambda: sequential(layers.Dense(2, activation="glu"), shape=(4,)), r"`activation`.*'glu'"),
        (lambda: sequential(layers.Dense(2, activation=lambda x: x), shape=(4,)), "`activation`"),
        (lambda: with_input(sparse=True), r"`sparse` of input 'odd'.*Received: sparse=True"),
        (lambda: with_input(optional=True), r"`optional` of input 'odd'.*Received: optional=True"),
        (with_lora, "`lora_rank` of layer 'adapted'.*Received: lora_rank=2"),
        (quantized, "is quantized.*before `model.quantize`"),
    ],
)
def test_what_tf_keras_does_not_have_is_an_error_that_names_it(make, message):
    with pytest.raises(ValueError, match=message):
        to_tf_keras(make())


@pytest.mark.parametrize(("library", "convert"), [(keras, to_tf_keras), (tf_keras, from_tf_keras)])
def test_subclassed_model_is_refused(library, convert):
    class Own(library.Model):
        def __init__(self):
            super().__init__()
            self.dense = library.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 3)))
    with pytest.raises(TypeError, match=r"Sequential or functional.*class Own"):
        convert(model)


@pytest.mark.parametrize("function", [to_tf_keras, from_tf_keras])
@pytest.mark.parametrize("model", [None, "model.keras", layers.Dense(2)])
def test_what_is_no_model_is_an_error(function, model):
    with pytest.raises(TypeError, match=r"Argument `model` must be a.*Received: model="):
        function(model)


def test_model_of_the_wrong_library_is_an_error():
    legacy = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2)])
    with pytest.raises(TypeError, match=r"Keras 3 model.*tf_keras"):
        to_tf_keras(legacy)
    with pytest.raises(TypeError, match=r"tf_keras model.*keras\.src"):
        from_tf_keras(sequential(layers.Dense(2), shape=(3,)))


def test_models_that_are_not_built_are_refused(gan):
    with pytest.raises(ValueError, match=r"must be built.*pass one of the models in it"):
        to_tf_keras(gan)
    with pytest.raises(ValueError, match="must be built"):
        to_tf_keras(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="must be built"):
        from_tf_keras(tf_keras.Sequential([tf_keras.layers.Dense(2)]))


# The process


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, "0", "1"])
def test_import_of_tfmot_leaves_the_environment_and_tf_keras_as_they_are(before):
    code = """
import os, tensorflow as tf
from keras_lp.optional import import_tfmot
import_tfmot()
print(os.environ.get("TF_USE_LEGACY_KERAS"), tf.keras.layers.Dense.__module__.split(".")[0])
"""
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    environment |= {} if before is None else {"TF_USE_LEGACY_KERAS": before}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == [str(before), "tf_keras" if before == "1" else "keras"]


def test_tfmot_is_imported_once():
    assert import_tfmot() is import_tfmot()


def test_operation_that_only_tensorflow_computes_names_the_backend_elsewhere(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"class Sort.*KERAS_BACKEND=tensorflow.*backend='jax'"):
        to_tf_keras(of_operations(keras.ops.sort))


def of_functions():
    """Functions of TensorFlow between the layers, as models of Keras 2 often hold them."""
    import tensorflow as tf

    x = tf_keras.Input((6,), name="x")
    image = tf_keras.Input((4, 6, 4), name="image", dtype="uint8")
    scaled = tf.cast(image, tf.float32) / 255.0 - 0.5
    batch = tf.shape(x)[0]
    found = [
        tf.nn.relu(x) * 2,
        1 - x[:, 1:3] ** 2 / (tf.abs(x[:, ::3]) + 1.0),
        tf.reshape(scaled, [batch, 4, -1])
        + tf.reshape(tf.reduce_mean(scaled, axis=2), (-1, 4, 4))[..., :1],
        tf.concat([x, tf.nn.gelu(x), tf.nn.swish(x, 0.5)], axis=-1),
        tf.stack(tf.split(x, [2, 4], axis=1)[1:], axis=1),
        tf.transpose(tf.expand_dims(x, 1), [0, 2, 1]) * tf.constant([[1.0, 2.0]]),
        tf.reduce_max(scaled, axis=[1, 2]) - tf.reduce_min(scaled, (1, 2)) + tf.reduce_sum(x),
        tf.where(tf.logical_and(x > 0, x <= 1), x, tf.zeros_like(x)) + tf.cast(x < 0, "float32"),
        tf.matmul(tf.expand_dims(x, -1), tf.expand_dims(x, -1), transpose_b=True),
        tf.pad(scaled, [[0, 0], [1, 1], [0, 2], [0, 0]], "REFLECT"),
        tf.image.resize(scaled, (8, 3)),
        tf.image.resize(image, [8, 12], method="nearest"),
        tf.argmax(scaled, axis=-1),
        tf.clip_by_value(tf.maximum(x, 0.1), 0.0, 1.0) + tf.math.l2_normalize(x, axis=-1),
        tf.nn.depth_to_space(scaled, 2)
        + tf.nn.avg_pool2d(scaled[:, :, :, :1], 1, 1, "VALID")[:, :1, :1],
        tf.math.top_k(x, 2).values + tf.norm(x, axis=1, keepdims=True),
        tf.gather(tf.nn.softmax(x), [0, 5], axis=1) + tf.tile(x, [1, 2])[:, tf.newaxis, 3],
        tf.add_n([x, tf.reverse(x, [1]), tf.math.squared_difference(x, 1.0)]),
    ]
    return tf_keras.Model([x, image], found)


def test_functions_of_tensorflow_between_the_layers_become_operations(random, tmp_path):
    legacy = of_functions()
    legacy.save(tmp_path / "legacy.h5")
    inputs = [numbers((6,))(random), random.integers(0, 256, (3, 4, 6, 4)).astype("uint8")]
    model = from_tf_keras(tf_keras.models.load_model(tmp_path / "legacy.h5"))
    for one, two in zip(outputs(model, inputs), outputs(legacy, inputs), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_einsum_which_tf_keras_cannot_load_is_known_too(random):
    import tensorflow as tf

    x = tf_keras.Input((3, 4))
    legacy = tf_keras.Model(x, tf.einsum("bij,bkj->bik", x, x))
    inputs = numbers((3, 4))(random)
    model = from_tf_keras(legacy)
    np.testing.assert_allclose(
        outputs(model, inputs), outputs(legacy, inputs), rtol=1e-5, atol=1e-5
    )


def test_function_that_is_not_known_is_named_and_the_remedy_helps(random):
    import tensorflow as tf

    x = tf_keras.Input((4,))
    legacy = tf_keras.Model(x, tf.math.xlogy(tf.abs(x), 2.0))
    with pytest.raises(ValueError, match=r"tf\.math\.xlogy, for .*custom_layers=\{tf\.math\.xlogy"):
        from_tf_keras(legacy)
    model = from_tf_keras(legacy, {tf.math.xlogy: lambda x, y: x * np.log(y)})
    inputs = numbers((4,))(random)
    np.testing.assert_allclose(outputs(model, inputs), outputs(legacy, inputs), rtol=1e-5)


def test_argument_of_a_function_without_a_counterpart_is_named():
    import tensorflow as tf

    x = tf_keras.Input((4, 4, 3))
    legacy = tf_keras.Model(x, tf.image.resize(x, (8, 6), preserve_aspect_ratio=True))
    with pytest.raises(
        ValueError, match=r"tf\.image\.resize.*preserve_aspect_ratio.*Pass `custom_"
    ):
        from_tf_keras(legacy)
