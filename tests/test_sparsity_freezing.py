import keras
import numpy as np
import pytest

import keras_lp
from keras_lp import LpAdamW, freeze_zeros, prune, unfreeze_zeros

ways_to_run = pytest.mark.parametrize(
    "compiling",
    [{"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True}],
    ids=["jit", "graph", "eager"],
)


@pytest.fixture
def mlp():
    """A function that makes a classifier without units that are dead, whose weights all train."""

    def make():
        return keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(16, activation="tanh", name="hidden"),
                keras.layers.Dense(3, name="logits"),
            ]
        )

    return make


def numpy(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def compile_and_fit(model, optimizer, batches, **compiling):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, **compiling)
    fit(model, batches)


def fit(model, batches):
    model.fit(*batches, batch_size=16, epochs=2, verbose=0)


def zeros(model):
    return [numpy(v) == 0 for v in model.trainable_variables if v.name == "kernel"]


def assert_kept(model, pattern):
    """The zeros are those of the pattern, and everything else has trained."""
    for now, then in zip(zeros(model), pattern, strict=True):
        np.testing.assert_array_equal(now, then)


@ways_to_run
def test_zeros_stay_zero_under_any_optimizer_and_the_rest_trains(mlp, batches, compiling):
    model = mlp()
    prune(model, 0.3)
    pattern, before = zeros(model), [numpy(v) for v in model.trainable_variables]
    freeze_zeros(model)
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches, **compiling)
    assert_kept(model, pattern)
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert np.mean((old != numpy(new)) | (old == 0)) > 0.8  # a unit may have lost its way out


@ways_to_run
def test_model_that_has_trained_takes_notice(mlp, batches, compiling):
    model = mlp()
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches, **compiling)
    prune(model, 0.3)
    pattern = zeros(model)
    freeze_zeros(model)
    fit(model, batches)
    assert_kept(model, pattern)
    unfreeze_zeros(model)
    fit(model, batches)
    assert not any(now.any() for now in zeros(model))


def test_zeros_stay_zero_under_a_decay_with_reference_updated(mlp, batches):
    model = mlp()
    prune(model, 0.3)
    freeze_zeros(model)
    pattern = zeros(model)
    compile_and_fit(model, LpAdamW(1e-2, 1e-6, p=0.5, reference="updated"), batches)
    assert all(now[then].all() for now, then in zip(zeros(model), pattern, strict=True))


def test_constraint_of_a_variable_holds_too_and_comes_back(mlp, batches):
    model = mlp()
    kernel = model.get_layer("hidden").kernel
    kernel.constraint = keras.constraints.NonNeg()
    own = kernel.constraint
    prune(model, 0.3)
    pattern = numpy(kernel) == 0
    freeze_zeros(model)
    freeze_zeros(model)  # Twice is as once.
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    assert (numpy(kernel) >= 0).all()
    assert (numpy(kernel)[pattern] == 0).all()
    unfreeze_zeros(model)
    assert kernel.constraint is own
    assert model.get_layer("logits").kernel.constraint is None


def test_pattern_is_frozen_anew_after_loading(mlp, batches, tmp_path):
    model = mlp()
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    prune(model, 0.3)
    freeze_zeros(model)
    fit(model, batches)
    pattern = zeros(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    freeze_zeros(loaded)
    fit(loaded, batches)
    assert_kept(loaded, pattern)


def test_frozen_model_is_stripped_to_a_plain_one(mlp, batches):
    model = mlp()
    prune(model, 0.3)
    freeze_zeros(model)
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    stripped = keras_lp.strip_pruning(model)
    assert all(v.constraint is None for v in stripped.variables)
    assert_kept(stripped, zeros(model))


def test_excluded_variables_train_on(mlp, batches):
    model = mlp()
    prune(model, 0.3)
    freeze_zeros(model, exclude="logits")
    compile_and_fit(model, keras.optimizers.Adam(1e-2), batches)
    hidden, logits = zeros(model)
    assert hidden.any()
    assert not logits.any()


def test_what_is_no_model_is_an_error():
    for function in (freeze_zeros, unfreeze_zeros):
        with pytest.raises(TypeError, match=r"`model` must be a Keras 3 model"):
            function("model.keras")
