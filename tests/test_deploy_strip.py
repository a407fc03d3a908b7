import functools
import itertools
import resource

import keras
import numpy as np
import pytest

import keras_lp
from keras_lp import LpAdamW, strip_pruning


def arrays(model):
    return [keras.ops.convert_to_numpy(v).copy() for v in model.weights]


def sequential(mlp):
    return mlp()


def functional(mlp):
    inputs = keras.Input((8,))
    shared = keras.layers.Dense(8, activation="relu")
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)], name="inner")
    outputs = [inner(shared(shared(inputs))), keras.layers.BatchNormalization()(inputs)]
    return keras.Model(inputs, outputs)


class Plain(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x))


class Configured(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, activation="tanh")

    def call(self, x):
        return self.hidden(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Unconfigured(keras.Model):
    def __init__(self, activation="relu"):
        super().__init__()
        self.hidden = keras.layers.Dense(16, activation=activation)

    def call(self, x):
        return self.hidden(x)


def called(model):
    model(np.zeros((2, 8), "float32"))
    return model


def subclassed(mlp):
    return called(Plain())


def subclassed_with_config(mlp):
    return called(Configured(16))


def subclassed_with_defaults(mlp):
    return called(Unconfigured())


def subclassed_in_a_function(mlp):
    class Local(Plain):
        pass

    return called(Local())


def functional_around_a_subclassed(mlp):
    inputs = keras.Input((8,))
    return keras.Model(inputs, Plain()(keras.layers.Dense(8)(inputs)))


KINDS = [
    sequential,
    functional,
    subclassed,
    subclassed_with_config,
    subclassed_with_defaults,
    subclassed_in_a_function,
    functional_around_a_subclassed,
]


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_weights_become_exact_zeros_in_a_copy_and_the_model_is_unchanged(mlp, sparsify, kind):
    model = sparsify(kind(mlp), 0.7, 1e-14)
    before = arrays(model)
    stripped = strip_pruning(model)

    assert type(stripped) is type(model)
    assert keras_lp.sparsity_report(stripped).sparsity == pytest.approx(0.7, abs=0.1)
    for old, new, now in zip(before, arrays(stripped), arrays(model), strict=True):
        np.testing.assert_array_equal(now, old)
        expected = np.where(np.abs(old) <= 1e-13, 0, old) if old.ndim > 1 else old
        np.testing.assert_array_equal(new, expected)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    outputs = [keras.tree.flatten(each(x, training=False)) for each in (model, stripped)]
    for pair in zip(*outputs, strict=True):
        left, right = map(keras.ops.convert_to_numpy, pair)
        np.testing.assert_allclose(left, right, atol=1e-6)

    for variable in stripped.weights:
        variable.assign(np.ones(variable.shape))
    for old, now in zip(before, arrays(model), strict=True):
        np.testing.assert_array_equal(now, old)


def test_stripping_a_compiled_model_leaves_optimizer_and_training_behind(mlp, batches):
    model = mlp()
    model.compile(LpAdamW(1e-2, 0.3, p=0.5), keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(*batches, epochs=20, verbose=0)
    state = [v.numpy().copy() for v in model.optimizer.variables]
    stripped = strip_pruning(model)
    assert not stripped.compiled
    for before, now in zip(state, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(now.numpy(), before)
    model.fit(*batches, verbose=0)  # goes on


def test_variables_that_the_optimizer_leaves_out_are_copied_as_they_are(mlp, batches, sparsify):
    model = mlp()
    model.compile(LpAdamW(1e-9, exclude="logits"), "mse")
    model.fit(batches[0], np.zeros((64, 3)), verbose=0)
    sparsify(model, 0.5, 1e-14)
    stripped = strip_pruning(model)
    assert np.count_nonzero(stripped.get_layer("hidden").kernel) < 8 * 16
    assert np.count_nonzero(stripped.get_layer("logits").kernel) == 16 * 3
    assert np.count_nonzero(strip_pruning(model, exclude="hidden").get_layer("hidden").kernel) == (
        8 * 16
    )


def test_threshold_is_inclusive_and_negative_zeros_become_positive():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.layers[0].kernel.assign([[1e-3, -0.0], [-1e-3, 2e-3]])
    kernel = strip_pruning(model, threshold=1e-3).layers[0].kernel.numpy()
    np.testing.assert_array_equal(kernel, np.array([[0, 0], [0, 2e-3]], "float32"))
    assert not np.signbit(kernel).any()


def test_half_precision_models_keep_their_dtype(sparsify):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, dtype="bfloat16")])
    stripped = strip_pruning(sparsify(model, 0.5, 1e-14))
    assert stripped.layers[0].kernel.dtype == "bfloat16"
    assert keras_lp.sparsity_report(stripped).zeros > 0


@pytest.mark.backend("tensorflow")  # Keras looks up strings by TensorFlow alone.
def test_vocabulary_of_a_text_model_survives():
    lookup = keras.layers.StringLookup()
    lookup.adapt(["a", "b", "a", "c"])
    model = keras.Sequential(
        [keras.Input((2,), dtype="string"), lookup, keras.layers.Embedding(5, 3)]
    )
    stripped = strip_pruning(model)
    assert stripped.layers[0].get_vocabulary() == lookup.get_vocabulary()


class Counting(keras.Model):
    """Counts its calls and draws random numbers, also at inference."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)
        self.seeds = keras.random.SeedGenerator(1)

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.dense.build(shape)

    def call(self, x):
        self.calls.assign_add(1.0)
        return self.dense(x) + keras.random.normal((4,), seed=self.seeds)


def test_state_of_the_model_does_not_change_either():
    model = called(Counting())
    before = [v.numpy().copy() for v in (model.calls, model.seeds.state)]
    stripped = strip_pruning(model)
    for old, now in zip(before, (model.calls, model.seeds.state), strict=True):
        np.testing.assert_array_equal(now.numpy(), old)
    assert float(stripped.calls) == before[0]


def test_frozen_layers_stay_frozen():
    model = called(Plain())
    model.hidden.trainable = False
    stripped = strip_pruning(model)
    assert [v.trainable for v in stripped.weights] == [v.trainable for v in model.weights]
    assert keras_lp.sparsity_report(stripped).size == 16 * 3


class WithAttribute(Plain):
    """What it computes depends on an attribute that no constructor sets."""

    factor = 1.0

    def call(self, x):
        return super().call(x) * self.factor


class WithKeywords(keras.Model):
    def __init__(self, **options):
        super().__init__()
        self.hidden = keras.layers.Dense(16, activation=options.get("activation"))

    def call(self, x):
        return self.hidden(x)


class TwoInputs(Plain):
    def call(self, x, y):
        return self.head(self.hidden(x) + y)


def with_attribute():
    model = WithAttribute()
    model.factor = 5.0
    return called(model)


def of_another_dtype():
    keras.config.set_dtype_policy("bfloat16")
    try:
        return called(Plain())
    finally:
        keras.config.set_dtype_policy("float32")


def with_two_inputs():
    model = TwoInputs()
    model(np.zeros((2, 8), "float32"), np.zeros((2, 16), "float32"))
    return model


class Rectified(keras.Model):
    def __init__(self, activation="relu"):
        super().__init__()
        self.activation = keras.layers.Activation(activation)
        self.hidden = keras.layers.Dense(3)

    def call(self, x):
        return self.hidden(self.activation(x))


class Incomplete(keras.layers.Layer):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super().get_config()


def with_incomplete_layer():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(3), Incomplete(3.0)])


@pytest.mark.parametrize(
    "make",
    [
        with_attribute,
        with_incomplete_layer,
        lambda: called(Rectified("linear")),
        of_another_dtype,
        with_two_inputs,
        lambda: called(Unconfigured("tanh")),
        lambda: called(WithKeywords(activation="tanh")),
    ],
)
def test_model_whose_copy_would_be_another_one_is_an_error_with_the_remedy(make):
    with pytest.raises(ValueError, match=r"cannot be copied.*`get_config` .*The copy "):
        strip_pruning(make())


def test_two_custom_classes_of_one_name_are_an_error():
    def make(value):
        class Shift(keras.layers.Layer):
            def call(self, x):
                return x + value

        return Shift()

    model = keras.Sequential([keras.Input((8,)), make(1.0), keras.layers.Dense(2), make(2.0)])
    with pytest.raises(ValueError, match=r"Two classes have the name.*Shift"):
        strip_pruning(model)


def test_images_of_any_size_are_copied():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.Conv2D(4, 3)])

        def call(self, x):
            return self.layer(x)

    x = keras.Input((None, None, 3))
    model = keras.Model(x, Net()(x))
    assert keras_lp.sparsity_report(strip_pruning(model)).size == 108 + 144


def test_model_that_cannot_be_saved_is_an_error_with_the_remedy():
    class Needy(Plain):
        def __init__(self, something):
            super().__init__()

    with pytest.raises(ValueError, match=r"cannot be copied.*`get_config`.*Needy"):
        strip_pruning(called(Needy(3)))


FACTOR = 3.0


def test_lack_of_room_for_the_copy_is_an_error_of_the_system(mlp, monkeypatch):
    def full(self, path, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", full)
    with pytest.raises(OSError, match=r"no room for temporary files.*TMPDIR") as info:
        strip_pruning(mlp())
    assert info.value.errno == 28


def times(x, factor):
    return x * factor


class Doubling:
    def __call__(self, x):
        return x * 2


def inner(value=2.0):
    def function(x):
        return keras.ops.multiply(x, value)

    return function


FUNCTIONS = {
    "lambda that reads a name of its module": lambda: lambda x: x * FACTOR,
    "function in a function": inner,
    "function that holds an array": lambda: inner(np.arange(3, dtype="float32")),
    "partial function": lambda: functools.partial(times, factor=2.0),
    "callable object": Doubling,
}
PLACES = {
    "a Lambda": keras.layers.Lambda,
    "a Lambda within a layer": lambda f: keras.layers.TimeDistributed(keras.layers.Lambda(f)),
    "an activation": lambda f: keras.layers.Dense(3, activation=f),
    "an activation of a cell": lambda f: keras.layers.SimpleRNN(
        3, activation=f, return_sequences=True
    ),
    "an initializer": lambda f: keras.layers.Dense(
        3, kernel_initializer=lambda shape, dtype=None: f(keras.ops.ones(shape, dtype))
    ),
}


def functional_with(layer):
    inputs = keras.Input((4, 8))
    return keras.Model(inputs, layer(keras.layers.Dense(3)(inputs)))


def sequential_with(layer):
    return keras.Sequential([keras.Input((4, 8)), keras.layers.Dense(3), layer])


def outputs(model):
    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
    return keras.ops.convert_to_numpy(model(x))


FAST = list(zip(FUNCTIONS, PLACES, strict=True))


@pytest.mark.parametrize("make", [sequential_with, functional_with])
@pytest.mark.parametrize(
    ("function", "place"),
    [
        pytest.param(*pair, marks=() if pair in FAST else pytest.mark.slow)
        for pair in itertools.product(FUNCTIONS, PLACES)
    ],
)
def test_functions_that_no_file_can_hold_are_in_the_copy_themselves(function, place, make):
    model = make(PLACES[place](FUNCTIONS[function]()))
    expected = outputs(model)
    stripped = strip_pruning(model)
    np.testing.assert_array_equal(outputs(stripped), expected)
    for variable in model.trainable_variables:
        variable.assign(variable + 1)
    np.testing.assert_array_equal(outputs(stripped), expected)


def test_functions_of_one_name_are_told_apart():
    model = keras.Sequential([keras.Input((4, 8)), keras.layers.Dense(3)])
    for value in (1.0, 2.0, 3.0):
        model.add(keras.layers.Lambda(inner(value)))
    function = model.layers[-1].function
    np.testing.assert_array_equal(outputs(strip_pruning(model)), outputs(model))
    assert model.layers[-1].function is function


def test_custom_classes_within_layers_of_keras_are_copied_without_registration():
    class Shift(keras.layers.Layer):
        def call(self, x):
            return x + 1

        def compute_output_shape(self, shape):
            return shape

    class Small(keras.constraints.Constraint):
        def __call__(self, weights):
            return weights

    model = functional_with(keras.layers.TimeDistributed(Shift()))
    model.layers[1].kernel_constraint = Small()
    np.testing.assert_array_equal(outputs(strip_pruning(model)), outputs(model))


class Around(keras.layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "inner": inner}

    @classmethod
    def from_config(cls, config):
        inner = keras.saving.deserialize_keras_object(config.pop("inner"))
        return cls(inner, **config)


def test_class_within_a_custom_layer_is_an_error_whose_remedy_helps():
    class Shift(keras.layers.Layer):
        def call(self, x):
            return x + 1

    model = keras.Sequential([keras.Input((4, 8)), keras.layers.Dense(3), Around(Shift())])
    with pytest.raises(ValueError, match=r"within custom layers need .*register.*Shift"):
        strip_pruning(model)
    keras.saving.register_keras_serializable("tests", "Shift")(Shift)
    np.testing.assert_array_equal(outputs(strip_pruning(model)), outputs(model))


def test_model_that_draws_anew_at_each_call_is_copied():
    noise = keras.layers.Lambda(lambda x: x + keras.random.normal((3,)), lambda shape: shape)
    model = sequential_with(noise)
    assert strip_pruning(model).count_params() == model.count_params()


@pytest.fixture
def small_files():
    """No file may grow beyond some bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_error_of_the_system_passes_as_what_it_is_and_harms_nothing(small_files):
    function = inner()
    model = sequential_with(keras.layers.Lambda(function))
    with pytest.raises(OSError, match="File too large") as caught:
        strip_pruning(model)
    assert "register_keras_serializable" not in str(caught.value)
    assert model.layers[-1].function is function


class OfImages(keras.Model):
    """Built by itself, and never called."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Conv2D(4, 3)
        self.last = keras.layers.Dense(2)

    def build(self, input_shape=(None, 6, 6, 3)):
        self.first.build(input_shape)
        self.last.build((None, 4 * 4 * 4))

    def call(self, x):
        return self.last(keras.ops.reshape(self.first(x), (-1, 64)))


class OfVectors(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def build(self):
        self.dense.build((None, 8))

    def call(self, x):
        return self.dense(x)


class OfMaps(OfVectors):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Conv2D(2, 3)

    def build(self):
        self.dense.build((None, None, None, 5))


@pytest.mark.parametrize("kind", [OfImages, OfVectors, OfMaps])
def test_subclassed_model_that_was_built_and_never_called_is_copied(kind):
    model = kind()
    model.build()
    model.set_weights([np.full(weights.shape, 2.0) for weights in model.get_weights()])
    stripped = strip_pruning(model)
    for weights, copied in zip(model.get_weights(), stripped.get_weights(), strict=True):
        np.testing.assert_array_equal(copied, weights)


@pytest.mark.parametrize("threshold", [-1e-3, float("nan"), float("inf"), "tiny", None])
def test_bad_threshold_is_an_error_that_names_it(mlp, threshold):
    with pytest.raises(ValueError, match=r"`threshold` must be .*Received: threshold="):
        strip_pruning(mlp(), threshold)


def test_unbuilt_model_is_an_error_that_says_how_to_build_it():
    with pytest.raises(ValueError, match=r"must be built.*Call it on a batch"):
        strip_pruning(keras.Sequential([keras.layers.Dense(2)]))


@pytest.mark.parametrize("mode", ["float8", "int8", "int4"])
def test_quantized_model_is_copied_with_its_zeros(mlp, mode):
    model = mlp()
    keras_lp.prune(model, 0.8, scope="layer")
    model.quantize(mode, filters="hidden")
    kernel = np.ones((16, 3), "float32")
    kernel[:4] = 1e-14
    model.get_layer("logits").kernel.assign(kernel)
    stripped = strip_pruning(model)
    report, copied = map(keras_lp.sparsity_report, (model, stripped))
    assert copied.layers[0] == report.layers[0]
    assert (report.layers[1].zeros, copied.layers[1].zeros) == (0, 12)
    x = np.random.default_rng(0).random((4, 8), "float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(stripped(x)), keras.ops.convert_to_numpy(model(x)), atol=1e-6
    )


def with_adapters(*layers, shape, dtype="float32"):
    """A model of pruned layers with adapters that have trained."""
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers])
    keras_lp.prune(model, 0.5, scope="layer")
    for layer in layers:
        layer.enable_lora(2)
    for variable in model.trainable_variables:
        if "lora" in variable.name:
            variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    return model


ADAPTED = {
    "dense": (lambda: [keras.layers.Dense(6), keras.layers.Dense(3)], (8,), "float32"),
    "convolution": (lambda: [keras.layers.Conv1D(4, 3)], (8, 3), "float32"),
    "einsum": (lambda: [keras.layers.EinsumDense("ab,bcd->acd", (2, 3))], (8,), "float32"),
    "embedding": (lambda: [keras.layers.Embedding(9, 4)], (5,), "int32"),
}


@pytest.mark.parametrize("layers", ADAPTED)
def test_adapters_are_merged_into_plain_layers(layers):
    make, shape, dtype = ADAPTED[layers]
    model = with_adapters(*make(), shape=shape, dtype=dtype)
    stripped = strip_pruning(model)
    assert not any("lora" in variable.name for variable in stripped.variables)
    assert all(variable.trainable for variable in stripped.variables)
    assert keras_lp.sparsity_report(stripped).zeros == 0
    x = np.random.default_rng(0).integers(0, 9, (4, *shape)).astype(dtype)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(stripped(x)),
        keras.ops.convert_to_numpy(model(x)),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize("layers", ADAPTED)
def test_zeros_under_adapters_are_kept_on_request(layers):
    make, shape, dtype = ADAPTED[layers]
    model = with_adapters(*make(), shape=shape, dtype=dtype)
    kept = strip_pruning(model, keep_zeros=True)
    merged = strip_pruning(model)
    assert keras_lp.sparsity_report(kept).sparsity == pytest.approx(0.5, abs=0.02)
    for a, b in zip(kept.weights, merged.weights, strict=True):
        a, b = map(keras.ops.convert_to_numpy, (a, b))
        np.testing.assert_array_equal(a, np.where(a == 0, 0, b))
    assert keras_lp.prune(kept, 0.8, scope="layer").sparsity == pytest.approx(0.8, abs=0.05)


class Adapted(keras.Model):
    """Makes its adapters itself, so that a copy has them too."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(4, lora_rank=2)

    def call(self, x):
        return self.hidden(x)


def test_subclassed_model_with_adapters_of_its_own_is_copied_merged():
    model = Adapted()
    x = np.random.default_rng(0).random((4, 8), "float32")
    model(x)
    for variable in model.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape))
    stripped = strip_pruning(model)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(stripped(x)), keras.ops.convert_to_numpy(model(x)), rtol=1e-6
    )
