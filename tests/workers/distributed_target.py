"""Trains to a sparsity on several devices; a process that `test_callbacks_sparsity_target` starts.

python distributed_target.py SETTING OUTPUT
"""

import contextlib
import json
import sys
from pathlib import Path

import keras
import numpy as np

from keras_lp import LpAdamW, LpDecayCallback, SparsityTarget, sparsity_report
from keras_lp.callbacks import sparsity_target

WAYS = {
    "LpAdamW": lambda: (LpAdamW(1e-2), []),
    "LpDecayCallback": lambda: (keras.optimizers.Adam(1e-2), [LpDecayCallback()]),
}


def mirrored():
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return strategy.scope(), strategy.num_replicas_in_sync


def data_parallel():
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    return contextlib.nullcontext(), len(keras.distribution.list_devices())


def model_parallel():
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"))
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*/dense/kernel"] = (None, "model")
    layouts[".*/dense_1/kernel"] = ("model", None)
    distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    keras.distribution.set_distribution(distribution)
    return contextlib.nullcontext(), len(keras.distribution.list_devices())


SETTINGS = {each.__name__: each for each in (mirrored, data_parallel, model_parallel)}


def train(make):
    """The zeros of each layer after a training, and the least share before the closing."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(160, 8)).astype("float32")
    y = np.argmax(x @ random.normal(size=(8, 4)), axis=1)
    layers = [
        keras.layers.Dense(16, activation="tanh", name="dense"),
        keras.layers.Dense(4, name="dense_1"),
    ]
    model = keras.Sequential([keras.Input((8,)), *layers])
    optimizer, callbacks = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    before = []

    def record(groups):
        before.extend(layer.sparsity for layer in sparsity_report(model).layers)
        prune_groups(groups)

    prune_groups = sparsity_target.prune_groups
    sparsity_target.prune_groups = record
    callbacks = [*callbacks, SparsityTarget(0.8, scope="layer")]
    logs = model.fit(x, y, batch_size=16, epochs=16, verbose=0, callbacks=callbacks).history
    sparsity_target.prune_groups = prune_groups
    return {
        "zeros": [layer.zeros for layer in sparsity_report(model).layers],
        "before": min(before),
        "sparsity": logs["sparsity"],
    }


def main(setting, output):
    scope, devices = SETTINGS[setting]()
    with scope:
        runs = {name: train(make) for name, make in WAYS.items()}
    Path(output).write_text(json.dumps({"devices": devices, "runs": runs}))


main(*sys.argv[1:])
