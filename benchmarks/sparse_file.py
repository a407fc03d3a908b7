"""Size, load time and latency of sparse `.tflite` files against dense ones.

For an MLP and a CNN with random zeros, in float32 and float16: both files in LiteRT's default
interpreter with one thread, interleaved in one process, median of many runs. Prints a table in
Markdown, which stands in RESULTS.md.

    python benchmarks/sparse_file.py
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from runs import whole

import keras_lp


def mlp():
    """Two square matrices of 1,024 x 1,024."""
    return [
        keras.Input((1024,)),
        layers.Dense(1024, "relu"),
        layers.Dense(1024, "relu"),
        layers.Dense(10),
    ]


def cnn():
    """Three convolutions on images of 32 x 32."""
    return [
        keras.Input((32, 32, 3)),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.Conv2D(128, 3, strides=2, activation="relu"),
        layers.Conv2D(128, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10),
    ]


def make(make_layers, sparsity):
    """A model with random weights of which a share is zero."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(make_layers())
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(np.where(random.random(variable.shape) < sparsity, 0, variable))
    return model


def export(model, sparse, quantization):
    """The bytes of a verified file."""
    with tempfile.TemporaryDirectory() as folder:
        result = keras_lp.export_tflite(
            model, Path(folder) / "model.tflite", sparse=sparse, quantization=quantization
        )
        return result.path.read_bytes()


def measure(files, repeats):
    """Seconds to load each file, and its seconds per run, interleaved."""
    loads, interpreters = [], []
    for data in files:
        start = time.perf_counter()
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        loads.append(time.perf_counter() - start)
        interpreters.append(interpreter)
    runs = np.empty((repeats, len(files)))
    for repeat in range(repeats):
        for index, interpreter in enumerate(interpreters):
            start = time.perf_counter()
            interpreter.invoke()
            runs[repeat, index] = time.perf_counter() - start
    return loads, runs


def main():
    """Prints one row for each model and kind of weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--repeats", type=whole, default=300)
    arguments = parser.parse_args()
    print(
        "| model | weights | dense bytes | sparse bytes | load dense, ms | load sparse, ms "
        "| run dense, ms | run sparse, ms | ratio |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for make_layers in (mlp, cnn):
        model = make(make_layers, arguments.sparsity)
        for quantization in (None, "float16"):
            files = [export(model, sparse, quantization) for sparse in (False, True)]
            loads, runs = measure(files, arguments.repeats)
            dense, sparse = 1e3 * np.median(runs, axis=0)
            print(
                f"| {make_layers.__name__} | {quantization or 'float32'} "
                f"| {len(files[0]):,} | {len(files[1]):,} "
                f"| {1e3 * loads[0]:.1f} | {1e3 * loads[1]:.1f} "
                f"| {dense:.3f} | {sparse:.3f} | {np.median(runs[:, 1] / runs[:, 0]):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
