"""`LpDecayCallback` in the `fit` of tf_keras models."""

import keras
import numpy as np
import pytest

from keras_lp import LpAdamW, LpDecayCallback
from keras_lp.tfmot import to_tf_keras

tf_keras = pytest.importorskip("tf_keras")
pytestmark = pytest.mark.backend("tensorflow")
STEPS = 30


@pytest.fixture
def model():
    """A Keras 3 model that is linear in its weights."""
    dense = keras.layers.Dense(6, use_bias=False, name="dense")
    return keras.Sequential([keras.Input((8,)), dense], name="net")


@pytest.fixture
def data():
    """Inputs and factors of the outputs, of one sign each, so that gradients keep theirs."""
    random = np.random.default_rng(0)
    x = random.uniform(0.5, 1.5, (STEPS * 4, 8)).astype("float32")
    signs = np.where(random.random(6) < 0.5, -1, 1)
    return x, (signs * random.uniform(0.5, 1.5, (STEPS * 4, 6))).astype("float32")


def linear(y, outputs):
    return keras.ops.sum(y * outputs, axis=-1)


def fit(model, data, callbacks=(), epochs=2):
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    return model.fit(*data, epochs=epochs, callbacks=list(callbacks), **options).history


def kernel(model):
    return np.array(model.trainable_weights[0])


@pytest.mark.parametrize("is_scheduled", [False, True])
@pytest.mark.parametrize("reference", ["previous", "updated"])
def test_weights_are_those_of_the_lp_optimizer_on_the_keras_3_model(
    reference, is_scheduled, model, data
):
    arguments = {"weight_decay": 0.5, "p": 0.7, "reference": reference}
    rates = [1e-2, 1e-2]
    if is_scheduled:
        rates = [
            library.optimizers.schedules.CosineDecay(1e-2, 2 * STEPS)
            for library in (keras, tf_keras)
        ]
    legacy = to_tf_keras(model)
    legacy.compile(tf_keras.optimizers.Adam(rates[1]), linear)
    logs = fit(legacy, data, [LpDecayCallback(**arguments)])
    model.compile(LpAdamW(rates[0], **arguments), linear)
    fit(model, data)
    np.testing.assert_allclose(kernel(legacy), kernel(model), atol=1e-5)
    assert logs["sparsity"][-1] == np.mean(kernel(legacy) == 0)
    assert logs["nonzero"][-1] == np.count_nonzero(kernel(legacy))
    assert logs["weight_decay"] == pytest.approx([0.5, 0.5])
    assert logs["p"] == pytest.approx([0.7, 0.7])


def test_zeros_that_the_decay_makes_stay(model, data):
    legacy = to_tf_keras(model)
    legacy.compile(tf_keras.optimizers.SGD(1e-3), linear)
    fit(legacy, data, [LpDecayCallback(10.0)], epochs=1)
    before = kernel(legacy)
    assert 0 < np.mean(before == 0) < 1
    fit(legacy, data, [LpDecayCallback(1.0)], epochs=1)
    assert np.all(kernel(legacy)[before == 0] == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_ema": True}, "With `use_ema=True`"),
    ],
)
def test_optimizers_with_which_the_rule_cannot_hold_are_refused(options, message, model, data):
    legacy = to_tf_keras(model)
    legacy.compile(tf_keras.optimizers.Adam(**options), linear)
    with pytest.raises(ValueError, match=message):
        fit(legacy, data, [LpDecayCallback()])


def test_ftrl_of_tf_keras_is_refused_too(model, data):
    legacy = to_tf_keras(model)
    legacy.compile(tf_keras.optimizers.Ftrl(), linear)
    with pytest.raises(ValueError, match="cannot follow a `Ftrl`"):
        fit(legacy, data, [LpDecayCallback()])


def test_model_that_fit_builds_is_decayed_from_the_second_batch_on(data):
    legacy = tf_keras.Sequential([tf_keras.layers.Dense(6)])
    legacy.compile(tf_keras.optimizers.SGD(1e-3), linear)
    fit(legacy, data, [LpDecayCallback(10.0)], epochs=1)
    assert np.mean(kernel(legacy) == 0) > 0


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_are_refused(backend, model, data, monkeypatch):
    legacy = to_tf_keras(model)
    legacy.compile("adam", linear)
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(RuntimeError, match=f"KERAS_BACKEND=tensorflow. Received: .*'{backend}'"):
        LpDecayCallback().set_model(legacy)


def test_several_steps_per_execution_are_refused(model, data):
    legacy = to_tf_keras(model)
    legacy.compile(tf_keras.optimizers.Adam(1e-2), linear, steps_per_execution=5)
    with pytest.raises(ValueError, match=r"Received: steps_per_execution=5"):
        fit(legacy, data, [LpDecayCallback()], epochs=1)
