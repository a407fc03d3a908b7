"""Quickstart: from data to a sparse .tflite file, verified on the device's interpreter.

Trains the same small CNN on scikit-learn's digits with AdamW and with LpAdamW, strips and
exports both, measures the accuracy of the files in LiteRT, and prints one table. Writes the
models (.keras, .tflite) and a picture (.png) to an output folder.

    python examples/quickstart.py
    python examples/quickstart.py --seeds 3 --output results
"""

import argparse
import itertools
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

# The export needs TensorFlow; its start-up messages are of no use here.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib as mpl
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_lp

mpl.use("Agg")
import matplotlib.pyplot as plt


@dataclass
class Result:
    """What one row of the table shows, and the curves of the picture."""

    label: str
    accuracy: float
    sparsity: float
    file_bytes: int
    file_accuracy: float
    path: Path
    model: keras.Model
    history: dict[str, list[float]]


class Progress(keras.callbacks.Callback):
    """Prints a line every ten epochs."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def on_epoch_end(self, epoch, logs=None):
        """Prints what one epoch came to; `SparsityLogger` has put the sparsity there."""
        if (epoch + 1) % 10 == 0 or epoch + 1 == self.params["epochs"]:
            print(
                f"  {self.label}  epoch {epoch + 1:3d}/{self.params['epochs']}"
                f"  test accuracy {logs['val_accuracy']:.3f}  sparsity {logs['sparsity']:6.1%}",
                flush=True,
            )


def load_data():
    """Digits as images (n, 8, 8, 1) in [0, 1] with labels, split into training and test."""
    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype("float32")
    return train_test_split(
        images, digits.target, test_size=0.3, random_state=0, stratify=digits.target
    )


def make_model():
    """A small CNN with 151,072 weights."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ],
        name="digits",
    )


def train(label, optimizer, data, epochs, seed):
    """Trains one model; the same seed gives the same start and the same batches."""
    x_train, x_test, y_train, y_test = data
    keras.utils.set_random_seed(seed)
    model = make_model()
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        x_train,
        y_train,
        validation_data=(x_test, y_test),
        batch_size=32,
        epochs=epochs,
        verbose=0,
        callbacks=[keras_lp.SparsityLogger(), Progress(label)],
    )
    return model, history.history


def accuracy_in_litert(path, x, y):
    """Share of right answers of a .tflite file, as LiteRT's default interpreter gives them."""
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    (name,) = runner.get_input_details()
    (logits,) = runner(**{name: x}).values()
    return float(np.mean(np.argmax(logits, axis=1) == y))


def deploy(label, model, history, data, path, **options):
    """Strips, saves and exports a trained model, and measures the file."""
    _, x_test, _, y_test = data
    if keras_lp.sparsity_report(model).sparsity > 0:
        model = keras_lp.strip_pruning(model)
    model.save(path.with_suffix(".keras"))
    exported = keras_lp.export_tflite(model, path, inputs=x_test, **options)
    logits = model.predict(x_test, verbose=0)
    return Result(
        label=label,
        accuracy=float(np.mean(np.argmax(logits, axis=1) == y_test)),
        sparsity=keras_lp.sparsity_report(model).sparsity,
        file_bytes=exported.bytes,
        file_accuracy=accuracy_in_litert(path, x_test, y_test),
        path=path,
        model=model,
        history=history,
    )


def run(seed, data, arguments, output):
    """Trains and deploys both models with one seed; AdamW's result comes first."""
    optimizers = {
        "AdamW  ": keras.optimizers.AdamW(1e-3),
        "LpAdamW": keras_lp.LpAdamW(1e-3, arguments.weight_decay, p=arguments.p),
    }
    dense, sparse = (
        train(label, optimizer, data, arguments.epochs, seed)
        for label, optimizer in optimizers.items()
    )
    print("  converting and verifying the files", flush=True)
    return (
        deploy("AdamW, dense float32", *dense, data, output / "adamw.tflite", sparse=False),
        deploy(
            "LpAdamW, sparse float16",
            *sparse,
            data,
            output / "lp_adamw.tflite",
            quantization="float16",
        ),
    )


def print_table(runs):
    """One row for each kind of model: the mean over the seeds."""
    print(
        f"\n{'mean of ' + str(len(runs)) + ' seeds' if len(runs) > 1 else 'model':25s}"
        f"{'accuracy':>10s}{'sparsity':>10s}{'file bytes':>12s}{'file accuracy':>15s}"
    )
    rows = []
    for results in zip(*runs, strict=True):
        row = {
            name: np.mean([getattr(result, name) for result in results])
            for name in ("accuracy", "sparsity", "file_bytes", "file_accuracy")
        }
        rows.append(row)
        print(
            f"{results[0].label:25s}{row['accuracy']:10.4f}{row['sparsity']:10.2%}"
            f"{row['file_bytes']:12,.0f}{row['file_accuracy']:15.4f}"
        )
    dense, sparse = rows
    print(
        f"\nLpAdamW: {sparse['sparsity']:.1%} of the weights are zero, "
        f"{100 * (sparse['accuracy'] - dense['accuracy']):+.2f} points of accuracy, "
        f"a file {dense['file_bytes'] / sparse['file_bytes']:.1f} times smaller."
    )


def draw(dense, sparse, path):
    """Accuracy and sparsity over the epochs, and where the magnitudes of the weights lie."""
    figure, (accuracy, sparsity, weights) = plt.subplots(
        1, 3, figsize=(13, 3.8), layout="constrained"
    )
    for label, line, result in (("AdamW", "-", dense), ("LpAdamW", "--", sparse)):
        values = result.history["val_accuracy"]
        accuracy.plot(range(1, len(values) + 1), values, line, label=label)
        keras_lp.plotting.plot_weights(result.model, label=label, ax=weights)
    last = min(result.history["val_accuracy"][-1] for result in (dense, sparse))
    accuracy.set_ylim(min(0.85, last - 0.1), 1.0)
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="test accuracy")
    accuracy.legend(loc="lower right")
    keras_lp.plotting.plot_sparsity(sparse.history, ax=sparsity)
    sparsity.set(title="Sparsity of LpAdamW")
    weights.set(title="Weights that are not zero")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def at_least(least, kind):
    """A type of the command line: a number that is not below `least`."""

    def parse(text):
        number = kind(text)
        if not least <= number < math.inf:
            raise argparse.ArgumentTypeError(f"must be at least {least}, received {text}")
        return number

    parse.__name__ = kind.__name__
    return parse


def folder(text):
    """A folder from the command line, made if it does not exist."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"must be a folder that can be made ({error})") from error
    return path


def main():
    """Runs the whole path and prints what came out and where it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=folder, default="quickstart_output", help="folder")
    count, number = at_least(1, int), at_least(0, float)
    parser.add_argument("--epochs", type=count, default=60, help="of each training")
    parser.add_argument("--seeds", type=count, default=1, help="trainings to average over")
    parser.add_argument("--p", type=number, default=0.8, help="exponent of the norm")
    parser.add_argument("--weight-decay", type=number, default=0.07, help="strength of the decay")
    arguments = parser.parse_args()

    start = time.perf_counter()
    data = load_data()
    runs = []
    for seed in range(arguments.seeds):
        print(f"seed {seed}: training on {len(data[0])} images, testing on {len(data[1])}")
        output = arguments.output if seed == 0 else folder(arguments.output / f"seed_{seed}")
        runs.append(run(seed, data, arguments, output))
    print_table(runs)
    picture = arguments.output / "quickstart.png"
    draw(*runs[0], picture)
    print(f"\nDone in {time.perf_counter() - start:.0f} s. Written:")
    for result in itertools.chain(*runs):
        print(f"  {result.path.with_suffix('.keras')}\n  {result.path}")
    print(f"  {picture}")


if __name__ == "__main__":
    main()
