"""What becomes of a sparse network's zeros when it is fine-tuned: by LoRA, or by all that is left.

A small dense network learns whether a digit is even, is cut to 90 % zeros and trained on with these
frozen; then it gets a new last layer and learns the ten digits. Prints a table in Markdown, which
stands in docs/counting.md.

    python benchmarks/lora.py
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from runs import whole
from sklearn.datasets import load_digits

import keras_lp

RANK, SPARSITY, EPOCHS = 4, 0.9, 30
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def base(x, y):
    """The hidden layers of the network that knows another task."""
    hidden = [layers.Dense(128, "relu"), layers.Dense(128, "relu")]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(2, name="parity")])
    train(model, x, y % 2)
    keras_lp.prune(model, SPARSITY, scope="layer", exclude="parity/")
    keras_lp.freeze_zeros(model)
    train(model, x, y % 2)
    keras_lp.unfreeze_zeros(model)
    return hidden


def train(model, x, y):
    """Trains with Adam, from its start."""
    model.compile(keras.optimizers.Adam(1e-3), LOSS)
    model.fit(x, y, epochs=EPOCHS, batch_size=32, verbose=0)


def fine_tune(hidden, x, y, method):
    """A network of those hidden layers that has learned the digits."""
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10, name="last")])
    if method == "LoRA":
        for layer in hidden:
            layer.enable_lora(RANK)
    else:
        keras_lp.freeze_zeros(model, exclude="last")
    train(model, x, y)
    return model


def main():
    """Trains all and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=whole, default=3)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    found = {}
    for seed in range(parser.parse_args().seeds):
        order = np.random.default_rng(seed).permutation(len(x))
        train, test = order[:1200], order[1200:]
        for method in ("LoRA", "all that is left"):
            keras.utils.set_random_seed(seed)
            model = fine_tune(base(x[train], y[train]), x[train], y[train], method)
            results = {method: keras_lp.strip_pruning(model)}
            if method == "LoRA":
                results["LoRA, keep_zeros"] = keras_lp.strip_pruning(model, keep_zeros=True)
            for name, result in results.items():
                zeros = keras_lp.sparsity_report(result, exclude="last").sparsity
                accuracy = np.mean(np.argmax(result.predict(x[test], verbose=0), 1) == y[test])
                found.setdefault(name, []).append((zeros, accuracy))
    print("| fine-tuned by | zeros | accuracy |\n| --- | --- | --- |")
    for name, rows in found.items():
        zeros, accuracy = np.mean(rows, axis=0)
        print(f"| {name} | {zeros:.1%} | {accuracy:.1%} |")


if __name__ == "__main__":
    main()
