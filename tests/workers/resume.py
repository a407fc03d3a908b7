"""Trains several runs, one after the other, each in a folder of its own.

    python resume.py FOLDER CASE/WAY [CASE/WAY ...]

A run that keeps what it needs to go on (`WAYS`) kills its process in the middle of an epoch,
once. Started again by the same command, it goes on. A run that comes to its end writes all
variables of its model and optimizer to `final.npz`, and is not trained again.
"""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
from keras.optimizers.schedules import CosineDecay, PolynomialDecay

from keras_lp import LpAdamW

EPOCHS, STEPS, BATCH_SIZE = 4, 6, 16
KILLED_AFTER = (2, 4)  # Epoch and batch, both counted from 0.


class SetWeightDecay(keras.callbacks.Callback):
    """Changes the strength once, before the kill."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == KILLED_AFTER[0] - 1:
            self.model.optimizer.weight_decay = 0.4


class Kill(keras.callbacks.Callback):
    """Kills the process in the middle of an epoch, unless that was done before."""

    def __init__(self, marker):
        super().__init__()
        self.marker = marker

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == KILLED_AFTER and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class CountBatches(keras.callbacks.Callback):
    """Counts what this process trains."""

    count = 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1


def schedules(model):
    """An optimizer with everything by schedule, and another one for a layer."""
    steps = EPOCHS * STEPS
    return LpAdamW(
        CosineDecay(2e-2, steps, alpha=0.1),
        PolynomialDecay(0.1, steps, 3.0),
        p=PolynomialDecay(2.0, steps, 0.3),
        overrides={"middle": {"weight_decay": PolynomialDecay(3.0, steps, 0.5), "p": 0.5}},
    )


def floats(model):
    """An optimizer with numbers, an override and both kinds of exclusions."""
    optimizer = LpAdamW(
        2e-2,
        0.05,
        p=0.5,
        exclude="middle/kernel",
        overrides={"hidden": {"p": 0.4}},
    )
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("logits").kernel])
    return optimizer


# Optimizer of each case, and the callbacks that it needs besides.
CASES = {"schedules": (schedules, ()), "floats": (floats, (SetWeightDecay,))}

# What a run keeps for the case that it is killed.
WAYS = {
    "nothing": lambda folder: [],
    "backup": lambda folder: [keras.callbacks.BackupAndRestore(folder / "backup")],
    "epochs": lambda folder: [keras.callbacks.ModelCheckpoint(folder / "model.keras")],
    "batches": lambda folder: [
        keras.callbacks.ModelCheckpoint(folder / "model.keras", save_freq=4)
    ],
}


def make_model(make_optimizer):
    """A compiled model with state besides its trained weights.

    No dropout: Keras keeps the state of its random numbers in neither kind of file.
    """
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="relu", name="hidden"),
            keras.layers.BatchNormalization(name="normalization"),
            keras.layers.Dense(12, activation="relu", name="middle"),
            keras.layers.Dense(3, name="logits"),
        ],
        name="net",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=make_optimizer(model), loss=loss)
    return model


def make_data():
    """Inputs and labels for one epoch."""
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * BATCH_SIZE, 8)).astype("float32")
    return x, np.argmax(x @ random.normal(size=(8, 3)), axis=1)


def train(case, way, folder):
    """Trains one run to its end, or goes on with it; returns its variables."""
    keras.utils.set_random_seed(0)
    make_optimizer, further_callbacks = CASES[case]
    saved = folder / "model.keras"
    model = keras.models.load_model(saved) if saved.exists() else make_model(make_optimizer)
    counter = CountBatches()
    callbacks = [*WAYS[way](folder), counter, *(callback() for callback in further_callbacks)]
    if way != "nothing":
        callbacks.append(Kill(folder / "killed"))

    def fit(x, y, initial_epoch, epochs):
        model.fit(
            x,
            y,
            batch_size=BATCH_SIZE,
            epochs=epochs,
            initial_epoch=initial_epoch,
            shuffle=False,
            callbacks=callbacks,
            verbose=0,
        )

    x, y = make_data()
    epoch, batch = divmod(int(model.optimizer.iterations), STEPS)
    if batch:  # The checkpoint is of mid-epoch: the rest of this epoch comes first.
        start = batch * BATCH_SIZE
        fit(x[start:], y[start:], epoch, epoch + 1)
        epoch += 1
    fit(x, y, epoch, EPOCHS)

    variables = {f"optimizer/{i}": v for i, v in enumerate(model.optimizer.variables)}
    for layer in model.layers:
        variables |= {f"{layer.name}/{v.name}": v for v in layer.variables}
    arrays = {name: keras.ops.convert_to_numpy(v) for name, v in variables.items()}
    return {**arrays, "batches": counter.count}


def main(folder, *runs):
    for run in runs:
        where = Path(folder) / run
        where.mkdir(parents=True, exist_ok=True)
        if not (where / "final.npz").exists():
            np.savez(where / "final.npz", **train(*run.split("/"), where))
            keras.backend.clear_session()


if __name__ == "__main__":
    main(*sys.argv[1:])
