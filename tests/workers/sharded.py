"""Counts, prunes, freezes and trains weights that lie in parts on two devices.

    python sharded.py OUTPUT [COORDINATOR PROCESS]

A process that `test_distribution` starts; two of them share the devices of both, and then also
train to a target. The output is JSON.
"""

import json
import sys
import warnings
from pathlib import Path

import keras
import numpy as np

import keras_lp
from keras_lp.callbacks.measuring import measure
from keras_lp.sparsity.weights import whole_array


def shard():
    """Divides a kernel by its rows, one by its columns, and an embedding by its words."""
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*embedding/embeddings"] = ("model", None)
    layouts[".*hidden/kernel"] = (None, "model")
    layouts[".*logits/kernel"] = ("model", None)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
        )
    )


def make_model():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Embedding(32, 6, name="embedding"),
        keras.layers.Flatten(),
        keras.layers.Dense(16, activation="tanh", name="hidden"),
        keras.layers.Dense(4, name="logits"),
    ]
    return keras.Sequential([keras.Input((1,), dtype="int32"), *layers])


def look(kernels, report):
    zeros = [whole_array(kernel) == 0 for kernel in kernels.values()]
    return {
        "report": report.to_dict(),
        "zeros": [int(each.sum()) for each in zeros],
        "pattern": [np.flatnonzero(each).tolist() for each in zeros],
    }


def main(output, coordinator=None, process=None):
    if coordinator:
        keras.utils.set_random_seed(0)
        keras.distribution.initialize(coordinator, 2, int(process))
    shard()
    model = make_model()
    kernels = {v.path.split("/")[-2]: v for v in model.weights if len(v.shape) > 1}
    before = np.concatenate([whole_array(kernel).ravel() for kernel in kernels.values()])
    found = {"pruned": look(kernels, keras_lp.prune(model, 144 / 352))}
    (measured,) = measure([list(kernels.values())], model)()
    keras_lp.freeze_zeros(model)
    after = np.concatenate([whole_array(kernel).ravel() for kernel in kernels.values()])
    random = np.random.default_rng(0)
    x, y = random.integers(0, 32, (32, 1)), random.integers(0, 4, 32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(x, y, batch_size=8, verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        found["trained"] = look(kernels, keras_lp.sparsity_report(model))
    trained = np.concatenate([whole_array(kernel).ravel() for kernel in kernels.values()])
    found |= {
        "measured": measured.zeros,
        "is_least": bool(np.abs(before[after == 0]).max() < np.abs(before[after != 0]).min()),
        "has_trained": bool(np.mean(trained != after) > 0.3),
        "warned": len([one for one in caught if "freeze_zeros" in str(one.message)]),
        "parts": {name: v.value.addressable_shards[0].data.shape for name, v in kernels.items()},
    }
    if coordinator:
        model = make_model()
        model.compile(keras_lp.LpAdamW(1e-2), loss)
        target = keras_lp.SparsityTarget(0.5, begin_step=2, end_step=16)
        model.fit(x, y, batch_size=8, epochs=5, verbose=0, callbacks=[target])
        found["target"] = keras_lp.sparsity_report(model).zeros
    Path(output).write_text(json.dumps(found))


main(*sys.argv[1:])
