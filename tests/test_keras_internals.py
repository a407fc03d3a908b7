import keras
import numpy as np
import pytest

from keras_lp.keras_internals import layers_of_applications, renew_training_state


class Doubles(keras.callbacks.Callback):
    """Doubles a weight after each batch, as no optimizer would."""

    def __init__(self, variable):
        super().__init__()
        self.variable = variable

    def on_train_batch_end(self, batch, logs=None):
        model = self.model  # Under JAX this puts the values into the variables.
        self.variable.assign(2 * keras.ops.convert_to_numpy(self.variable))
        renew_training_state(model)


def test_what_a_callback_assigns_stays_where_no_further_batch_comes():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    (kernel,) = model.trainable_variables
    kernel.assign([[1.0]])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = np.ones((2, 1), "float32")
    model.fit(((x, x) for _ in range(3)), verbose=0, callbacks=[Doubles(kernel)])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), [[8.0]])


@pytest.mark.backend("jax")
def test_names_of_keras_that_are_not_public_are_there_and_hold_what_we_rely_on():
    # Fails clearly should Keras rename what `keras_lp.keras_internals` builds on.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(), "mse")
    found = []

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            model = self.model
            found.append({name: len(values) for name, values in model._jax_state.items()})

    model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0, callbacks=[Looks()])
    assert found == [
        {
            "trainable_variables": len(model.trainable_variables),
            "non_trainable_variables": len(model.non_trainable_variables),
            "optimizer_variables": len(model.optimizer.variables),
            "metrics_variables": len(model.metrics_variables),
        }
    ]


def test_layers_of_applications_are_there():
    kinds = layers_of_applications()
    x = np.ones((2, 3), "float32")
    found = [kinds["LayerScale"](0.5, 3)(x), kinds["CustomScaleLayer"](0.5)([x, x])]
    found = [keras.ops.convert_to_numpy(one) for one in found]
    np.testing.assert_array_equal(found, [0.5 * x, 1.5 * x])
