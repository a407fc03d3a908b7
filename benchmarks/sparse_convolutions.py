"""XNNPACK's sparse convolutions: where they are right, and how fast they are.

On x86 with AVX XNNPACK never takes them. Here it is made to: the bits of AVX are cleared in the
loaded library of LiteRT 2.3.0 (Linux, x86-64) before XNNPACK looks at them, so that it computes as
on x86 without AVX, from the same source as on ARM. Prints two tables in Markdown, which stand
in RESULTS.md. Needs `nm` (binutils).

    python benchmarks/sparse_convolutions.py
"""

import argparse
import ctypes
import os
import subprocess
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ai_edge_litert
import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from keras import layers
from runs import whole
from sparse_networks import NETWORKS, model_of

from keras_lp.deploy.converting import convert
from keras_lp.deploy.feeding import natural_order
from keras_lp.deploy.interpreting import latencies
from keras_lp.deploy.sparse_convolutions import find_sparse_convolutions
from keras_lp.deploy.sparse_encoding import encode_zeros

LIBRARY = "libpywrap_litert_common.so"
SYMBOLS = ("hardware_config", "xnn_init_hardware_config")
BELOW_AVX = 0xF  # SSE, SSE2, SSSE3, SSE4.1 among the flags of `xnn_hardware_config`
FLAGS_AT = 8  # bytes into it
SPARSITIES = (0.6, 0.7, 0.8, 0.9, 0.95)


def clear_avx():
    """Has XNNPACK take the processor for one without AVX, in this process."""
    path = Path(ai_edge_litert.__file__).parent / LIBRARY
    table = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines()]
    offsets = {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[2] in SYMBOLS}
    maps = Path("/proc/self/maps").read_text().splitlines()
    base = min(int(line.partition("-")[0], 16) for line in maps if line.endswith(LIBRARY))
    config, start = (base + offsets[symbol] for symbol in SYMBOLS)
    if ctypes.CFUNCTYPE(ctypes.c_void_p)(start)() != config:
        raise SystemExit(f"{LIBRARY} is another one than that of LiteRT 2.3.0")
    flags = ctypes.cast(config + FLAGS_AT, ctypes.POINTER(ctypes.c_uint64))
    flags[0] &= BELOW_AVX


def load(data):
    """The runner of a file with one thread."""
    return Interpreter(model_content=data, num_threads=1).get_signature_runner()


def outputs_of(data, x):
    """The outputs of a file; `None` if LiteRT refuses it."""
    try:
        runner = load(data)
        (name,) = runner.get_input_details()
        outputs = runner(**{name: x})
    except RuntimeError:
        return None
    return [outputs[key] for key in sorted(outputs, key=natural_order)]


def error_of(data, model, x):
    """Largest error of a file, as a share of the largest magnitude in the same output."""
    found = outputs_of(data, x)
    if found is None:
        return "refused"
    wanted = map(keras.ops.convert_to_numpy, keras.tree.flatten(model(x)))
    errors = (np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, wanted, strict=True))
    return f"{max(errors):.2g}"


def print_correctness():
    """One row for each network."""
    print("| between start and end | error, dense | error, sparse | said of the file |")
    print("| --- | --- | --- | --- |")
    x = np.random.default_rng(1).normal(size=(1, 16, 16, 3)).astype("float32")
    for name, (network, _) in NETWORKS.items():
        model = model_of(network)
        (dense,) = convert(model)
        found = find_sparse_convolutions(dense)
        said = f"{found.kind}: {found.misfit.partition(' (')[0]}" if found.misfit else found.kind
        sparse = encode_zeros(dense)
        errors = " | ".join(error_of(data, model, x) for data in (dense, sparse))
        print(f"| {name} | {errors} | {said} |", flush=True)


def mobile_network(size=96):
    """Inverted residuals like MobileNetV2's, with the padding that XNNPACK takes."""

    def block(x, units, stride):
        hidden = layers.Conv2D(6 * x.shape[-1], 1, activation="relu6")(x)
        if stride == 2:
            hidden = layers.ZeroPadding2D(1)(hidden)
        padding = "same" if stride == 1 else "valid"
        hidden = layers.DepthwiseConv2D(3, stride, padding, activation="relu6")(hidden)
        hidden = layers.Conv2D(units, 1)(hidden)
        return hidden + x if units == x.shape[-1] and stride == 1 else hidden

    inputs = keras.Input((size, size, 3), batch_size=1)
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(32, 3, strides=2, activation="relu6")(x)
    for units, stride in ((24, 2), (24, 1), (32, 2), (32, 1), (64, 2), (64, 1), (96, 1), (96, 1)):
        x = block(x, units, stride)
    x = layers.Conv2D(640, 1, activation="relu6")(x)
    return keras.Model(inputs, layers.Dense(100)(layers.GlobalAveragePooling2D()(x)))


def print_speed(repeats):
    """One row for each sparsity: the least of the medians of several rounds."""
    print("| zeros | dense, ms | sparse, ms | times as fast |")
    print("| --- | --- | --- | --- |")
    for sparsity in SPARSITIES:
        model = mobile_network()
        random = np.random.default_rng(0)
        for variable in model.trainable_variables:
            if variable.shape[:2] == (1, 1):
                variable.assign(np.where(random.random(variable.shape) < sparsity, 0, variable))
        (dense,) = convert(model)
        runners = [load(dense), load(encode_zeros(dense))]
        (name,) = runners[0].get_input_details()
        x = random.normal(size=(1, 96, 96, 3)).astype("float32")
        # What else runs on the machine only adds time.
        seconds = np.min([latencies(runners, {name: x}) for _ in range(repeats)], axis=0)
        print(
            f"| {sparsity:.0%} | {1e3 * seconds[0]:.2f} | {1e3 * seconds[1]:.2f} "
            f"| {seconds[0] / seconds[1]:.2f} |",
            flush=True,
        )


def main():
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=whole, default=3)
    arguments = parser.parse_args()
    clear_avx()
    print_correctness()
    print()
    print_speed(arguments.repeats)


if __name__ == "__main__":
    main()
