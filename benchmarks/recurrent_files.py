"""Files of recurrent models: a loop or unrolled, in each quantization.

Sizes of files with 90 % zeros, and how long one example takes as a share of the float32 loop,
interleaved with it. Prints a table in Markdown, which stands in docs/export.md.

    python benchmarks/recurrent_files.py
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from runs import whole

import keras_lp

MODELS = {
    "LSTM(64), 48 steps": (layers.LSTM, 64, 48),
    "GRU(128), 50 steps": (layers.GRU, 128, 50),
    "LSTM(256), 50 steps": (layers.LSTM, 256, 50),
}
FEATURES = 8
FILES = {  # whether the layer is unrolled, and the quantization
    "loop, float32": (False, None),
    "loop, float16": (False, "float16"),
    "loop, dynamic, dense": (False, "dynamic"),
    "unrolled, float32": (True, None),
    "unrolled, float16": (True, "float16"),
    "int8, dense": (False, "int8"),
}


def model_of(kind, units, steps, unroll):
    """A classifier of sequences with 90 % zeros, the same for both forms."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((steps, FEATURES))
    model = keras.Model(inputs, layers.Dense(4)(kind(units, unroll=unroll)(inputs)))
    keras_lp.prune(model, 0.9)
    return model


def export(path, setting, unroll, quantization):
    """Writes a file that takes one example at once."""
    x = np.random.default_rng(0).normal(size=(100, setting[2], FEATURES)).astype("float32")
    return keras_lp.export_tflite(
        model_of(*setting, unroll),
        path,
        sparse=quantization in (None, "float16"),
        quantization=quantization,
        representative_dataset=x if quantization == "int8" else None,
        batch_size=1,
    )


def main():
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=whole, default=len(MODELS), help="how many, from above")
    count = parser.parse_args().models
    print(f"| | {' | '.join(FILES)} |\n|{' --- |' * (len(FILES) + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in list(MODELS.items())[:count]:
            cells, first = [], None
            for number, form in enumerate(FILES.values()):
                result = export(Path(folder) / f"{number}.tflite", setting, *form)
                cell = f"{result.bytes:,}"
                if first is not None:
                    x = np.zeros((1, setting[2], FEATURES), "float32")
                    both = keras_lp.compare_tflite(first, result.path, x)
                    cell += f" ({both.second.latency / both.first.latency:.1f})"
                first = first or result.path
                cells.append(cell)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
