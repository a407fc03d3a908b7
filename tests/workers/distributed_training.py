"""Trains one small model with several optimizers; a process that `test_distribution` starts.

    python distributed_training.py SETTING OUTPUT

The output is an .npz file with weights, optimizer variables and, under JAX, the shape of the part
of each that lies on the first device.
"""

import contextlib
import sys

import keras
import numpy as np
from keras.optimizers.schedules import PolynomialDecay

from keras_lp import LpAdamW, LpDecayCallback

OPTIMIZERS = {
    "no decay": {"weight_decay": 0.0},
    "decay": {"weight_decay": 0.3},
    "moving average": {"weight_decay": 0.3, "use_ema": True, "ema_momentum": 0.9},
    "exclusion": {"weight_decay": 0.3, "exclude": "logits"},
    "schedules": {
        "weight_decay": PolynomialDecay(0.0, 10, 0.5),
        "p": PolynomialDecay(2.0, 10, 0.8),
    },
    "set later": {"weight_decay": 0.0},
}
# What `LpDecayCallback` is given, after the steps of Adam.
CALLBACKS = {
    "callback": {"weight_decay": 0.3},
    "callback, updated": {"weight_decay": 0.3, "reference": "updated"},
}


def one_device():
    return contextlib.nullcontext()


def mirrored():
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()


def data_parallel():
    mesh = keras.distribution.DeviceMesh((4,), ("batch",))
    return keras.distribution.DataParallel(mesh).scope()


def model_parallel():
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["mlp/hidden/kernel"] = (None, "model")
    layouts["mlp/logits/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch").scope()


SETTINGS = {each.__name__: each for each in (one_device, mirrored, data_parallel, model_parallel)}


def make_model():
    """A classifier whose kernels each have a row of zeros."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.Dense(4, name="logits"),
        ],
        name="mlp",
    )
    for layer in model.layers:
        kernel, bias = layer.get_weights()
        kernel[0] = 0
        layer.set_weights([kernel, bias])
    return model


def train(name):
    """Twenty steps in two epochs, on the same batches in every setting."""
    random = np.random.default_rng(0)
    x = random.normal(size=(160, 8)).astype("float32")
    y = np.argmax(x @ random.normal(size=(8, 4)), axis=1)
    model = make_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if name in CALLBACKS:
        optimizer = keras.optimizers.Adam(1e-2)
        callbacks = [LpDecayCallback(**CALLBACKS[name])]
    else:
        optimizer = LpAdamW(1e-2, **OPTIMIZERS[name])
        callbacks = []
    model.compile(optimizer=optimizer, loss=loss)

    def set_later(epoch, logs=None):
        if name == "set later" and epoch == 1:
            model.optimizer.weight_decay = 0.3

    callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=set_later))
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def main():
    setting, output = sys.argv[1:]
    arrays = {}
    with SETTINGS[setting]():
        for name in [*OPTIMIZERS, *CALLBACKS]:
            model = train(name)
            for variable in [*model.variables, *model.optimizer.variables]:
                key = f"{name}/{variable.path.partition('/')[2]}"
                arrays[key] = keras.ops.convert_to_numpy(variable)
                if keras.backend.backend() == "jax":
                    arrays[f"part of {key}"] = variable.value.addressable_shards[0].data.shape
    np.savez(output, **arrays)


main()
