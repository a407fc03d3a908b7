"""Compares TF-MOT's schedules with ours; a process that `test_callbacks_schedules` starts.

python tfmot_schedules.py OUTPUT
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow_model_optimization as tfmot

import keras_lp
from keras_lp.callbacks.control import Course
from keras_lp.callbacks.schedules import as_schedule


def zeros_after_training(schedule):
    """The number of zeros, of 152, that a model is trained to."""
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 8)).astype("float32")
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(11)]
    )
    model.compile(keras_lp.LpAdamW(1e-2), "mse")
    callback = keras_lp.SparsityTarget(schedule=schedule)
    y = x @ random.normal(size=(8, 11))
    model.fit(x, y, batch_size=8, epochs=4, verbose=0, callbacks=[callback])
    return keras_lp.sparsity_report(model).zeros


def main(output):
    theirs = tfmot.sparsity.keras.PolynomialDecay(0.1, 0.5, 4, 25, power=2, frequency=3)
    constant = tfmot.sparsity.keras.ConstantSparsity(0.4, 4, 25, frequency=3)
    steps = range(30)
    ours, our_constant = as_schedule(theirs), as_schedule(constant)
    found = {
        "polynomial": [Course(ours, 4, 25, 0.1, 0.5).sparsity(step) for step in steps],
        "polynomial of TF-MOT": [float(theirs(step)[1]) for step in steps],
        "constant": [
            round(Course(our_constant, 4, 25, 0.0, 0.4).sparsity(step), 6) for step in steps
        ],
        "constant of TF-MOT": [round(float(constant(step)[1]), 6) for step in steps],
        "zeros": {
            "polynomial": zeros_after_training(theirs),
            "constant": zeros_after_training(constant),
        },
    }
    Path(output).write_text(json.dumps(found))


main(*sys.argv[1:])
