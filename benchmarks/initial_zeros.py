"""Weights that start at zero: kept, or let go in the first steps, beside AdamW.

Four small models on made-up tasks whose kernels start with zeros; the final loss of the training
and the zeros, for each seed. Prints a table in Markdown, which stands in docs/optimizers.md.

    KERAS_BACKEND=jax python benchmarks/initial_zeros.py
"""

import argparse
import os
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers, ops
from runs import whole

import keras_lp

LEARNING_RATE, STRENGTHS = 1e-3, (0.02, 0.1)


def adding(random):
    """The adding problem over 30 steps, with a recurrent kernel that starts as the identity."""
    count, steps = 4000, 30
    x = np.stack([random.random((count, steps)), np.zeros((count, steps))], -1)
    for row in range(count):
        x[row, random.choice(steps, 2, replace=False), 1] = 1
    recurrent = layers.SimpleRNN(64, activation="relu", recurrent_initializer="identity")
    model = keras.Sequential([keras.Input((steps, 2)), recurrent, layers.Dense(1)])
    return model, x, (x[..., 0] * x[..., 1]).sum(1, keepdims=True), "mse", 10, 32


def words(random):
    """Sentences of frequent and rare words, with an embedding of which 40 % of rows are empty."""
    count, vocabulary, length = 6000, 2000, 20
    shares = 1 / np.arange(1, vocabulary + 1)
    x = random.choice(vocabulary, size=(count, length), p=shares / shares.sum())
    y = np.argmax(random.normal(size=(vocabulary, 4))[x].sum(1), 1)
    rows = 0.05 * random.normal(size=(vocabulary, 32))
    rows[random.random(vocabulary) < 0.4] = 0
    model = keras.Sequential(
        [
            keras.Input((length,), dtype="int32"),
            layers.Embedding(vocabulary, 32),
            layers.GlobalAveragePooling1D(),
            layers.Dense(4),
        ]
    )
    model.layers[0].set_weights([rows])
    return model, x, y, keras.losses.SparseCategoricalCrossentropy(from_logits=True), 20, 64


def _regression(random):
    x = random.normal(size=(2000, 32))
    return x, np.tanh(x @ random.normal(size=(32, 8)))


def masked(random):
    """Dense layers with 70 % zeros in each kernel."""
    x, y = _regression(random)
    dense = [layers.Dense(64, "relu"), layers.Dense(64, "relu"), layers.Dense(8)]
    model = keras.Sequential([keras.Input((32,)), *dense])
    for layer in dense:
        kernel = np.array(ops.convert_to_numpy(layer.kernel))
        kernel[random.random(kernel.shape) < 0.7] = 0
        layer.kernel.assign(kernel)
    return model, x, y, "mse", 30, 32


def branches(random):
    """Residual branches whose last kernels start at zero."""
    x, y = _regression(random)
    start = keras.Input((32,))
    h = layers.Dense(64)(start)
    for _ in range(2):
        branch = layers.Dense(64, "relu")(h)
        h = h + layers.Dense(64, kernel_initializer="zeros")(branch)
    return keras.Model(start, layers.Dense(8)(h)), x, y, "mse", 30, 32


TASKS = {
    "recurrent kernel that starts as the identity": adding,
    "embedding with 40 % empty rows": words,
    "kernels with 70 % zeros at the start": masked,
    "zero-initialised residual branches": branches,
}


def train(task, seed, optimizer):
    """The final loss, and the share of zeros."""
    keras.utils.set_random_seed(seed)
    model, x, y, loss, epochs, batch_size = task(np.random.default_rng(seed))
    model.compile(optimizer, loss, jit_compile=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keras-lp says that zeros stay.
        history = model.fit(x, y, epochs=epochs, batch_size=batch_size, verbose=0)
    return history.history["loss"][-1], keras_lp.sparsity_report(model).sparsity


def cell(results, with_zeros=True):
    """Losses of the seeds, and their mean share of zeros."""
    losses = ", ".join(f"{loss:.3f}" for loss, _ in results)
    return f"{losses} ({np.mean([zeros for _, zeros in results]):.0%})" if with_zeros else losses


def main():
    """Trains all and prints a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=whole, default=3)
    seeds = range(parser.parse_args().seeds)
    print("| | AdamW | zeros kept | let go |\n| --- | --- | --- | --- |")
    for name, task in TASKS.items():
        adamw = [train(task, seed, keras.optimizers.AdamW(LEARNING_RATE)) for seed in seeds]
        for strength in STRENGTHS:
            kept, free = (
                [
                    train(
                        task,
                        seed,
                        keras_lp.LpAdamW(LEARNING_RATE, strength, p=0.8, initial_zeros=zeros),
                    )
                    for seed in seeds
                ]
                for zeros in ("keep", "train")
            )
            row = name, cell(adamw, with_zeros=False), cell(kept), cell(free)
            print(f"| {row[0]}, `weight_decay` {strength} | {' | '.join(row[1:])} |", flush=True)


if __name__ == "__main__":
    main()
