"""Trains runs with the callbacks, one after the other, each in a folder of its own.

    python resume_callbacks.py FOLDER CASE/ORDER/MOMENT [CASE/ORDER/MOMENT ...]

A run is killed in the middle of an epoch, once at each `MOMENT` of its name, such as "ramp" or
"ramp,end"; with "never" it is not. Started again by the same command, it goes on from what
`BackupAndRestore` keeps, which is called before or after the other callbacks (`ORDER`). A run
that comes to its end writes its variables to `final.npz` and its logs to `logs.json`.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from keras_lp import LpAdamW, LpDecayCallback, SparsityLogger, SparsityTarget

EPOCHS, STEPS, BATCH_SIZE = 6, 8, 16
END_STEP = 27  # in the middle of the fourth epoch
MOMENTS = {"ramp": (2, 4), "end": (3, 4), "after": (4, 5)}  # Epoch and batch, from 0.


def callback():
    """Adam, with all callbacks."""
    return keras.optimizers.Adam(1e-2), [
        LpDecayCallback(p=0.5),
        SparsityTarget(0.8, end_step=END_STEP, frequency=3),
        SparsityLogger(),
    ]


def layers():
    """An Lp optimizer that is steered layer by layer."""
    target = SparsityTarget(
        0.7, 4, END_STEP, scope="layer", schedule="linear", overrides={"logits": 0.3}
    )
    return LpAdamW(1e-2), [target]


# Optimizer of each case, and its callbacks.
CASES = {"callback": callback, "layers": layers}


class Kill(keras.callbacks.Callback):
    """Kills the process in the middle of an epoch, once for each moment."""

    def __init__(self, folder, moments):
        super().__init__()
        self.folder, self.moments = folder, moments

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        for moment in self.moments:
            marker = self.folder / f"killed {moment}"
            if (self.epoch, batch) == MOMENTS.get(moment) and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)


class KeepLogs(keras.callbacks.Callback):
    """Writes the logs of each epoch to a file; those of an epoch trained again replace them."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.path.write_text(json.dumps({**kept, str(epoch): logs}))


def make_model(optimizer):
    """A compiled model, in which no unit dies."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="tanh", name="hidden"),
            keras.layers.BatchNormalization(name="normalization"),
            keras.layers.Dense(3, name="logits"),
        ],
        name="net",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    return model


def train(case, order, moments, folder):
    """Trains one run to its end, or goes on with it; returns its variables."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * BATCH_SIZE, 8)).astype("float32")
    y = np.argmax(x @ random.normal(size=(8, 3)), axis=1)

    optimizer, callbacks = CASES[case]()
    model = make_model(optimizer)
    callbacks = [*callbacks, KeepLogs(folder / "logs.json")]
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    callbacks = [backup, *callbacks] if order == "first" else [*callbacks, backup]
    callbacks.append(Kill(folder, moments))
    arguments = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0}
    model.fit(x, y, epochs=EPOCHS, callbacks=callbacks, **arguments)

    variables = {f"optimizer/{i}": v for i, v in enumerate(model.optimizer.variables)}
    for layer in model.layers:
        variables |= {f"{layer.name}/{v.name}": v for v in layer.variables}
    return {name: keras.ops.convert_to_numpy(v) for name, v in variables.items()}


def main(folder, *runs):
    for run in runs:
        where = Path(folder) / run
        where.mkdir(parents=True, exist_ok=True)
        if not (where / "final.npz").exists():
            case, order, moments = run.split("/")
            np.savez(where / "final.npz", **train(case, order, moments.split(","), where))
            keras.backend.clear_session()


if __name__ == "__main__":
    main(*sys.argv[1:])
