"""Trains with all callbacks and backups, and kills itself once in the middle of an epoch.

    python resume_callbacks.py FOLDER EPOCH [EPOCH ...]

makes one run for each epoch to be killed in, in a folder of its own; -1 is a run that is not
killed. Started again by the same command it goes on. A run that comes to its end writes its
weights and the sparsity after each of its epochs to `final.npz`.
"""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

import keras_lp

EPOCHS = 10


class Kill(keras.callbacks.Callback):
    """Kills the process in the middle of an epoch, unless that was done before."""

    def __init__(self, epoch, marker):
        super().__init__()
        self.when, self.marker = epoch, marker

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (self.when, 7) and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, kill_in):
    """Trains one run to its end, or goes on with it."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(320, 8)).astype("float32")
    y = np.argmax(x @ random.normal(size=(8, 3)), axis=1)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(24, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(folder / "backup"),
            keras_lp.LpDecayCallback(p=0.5),
            keras_lp.SparsityTarget(0.7, scope="layer", overrides={"logits": 0.4}),
            keras_lp.SparsityLogger(),
            Kill(kill_in, folder / "killed"),
        ],
    )
    weights = [keras.ops.convert_to_numpy(v) for v in model.weights]
    logged = {name: history.history[name] for name in ("sparsity", "weight_decay")}
    return {
        **{f"weight_{i}": w for i, w in enumerate(weights)},
        **logged,
        "first": history.epoch[0],
    }


def main(folder, *epochs):
    for epoch in map(int, epochs):
        where = Path(folder) / str(epoch)
        where.mkdir(parents=True, exist_ok=True)
        if not (where / "final.npz").exists():
            np.savez(where / "final.npz", **train(where, epoch))


if __name__ == "__main__":
    main(*sys.argv[1:])
