"""
Title: From a sparse model to a file for devices
Author: the keras-lp authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Sparse and quantized .tflite files of a Keras 3 model, verified and measured in LiteRT.
Accelerator: None
"""

"""
## Introduction

A model on a device has to be small on the way to it, small in its storage, and fast. Zeros and
numbers of fewer bits serve these in different ways:

| weights | on the way (gzip) | in storage | run time |
| --- | --- | --- | --- |
| float32, zeros left out | small | small | as dense |
| float16, zeros left out | smaller | smaller | as dense |
| int8, with their zeros | smallest | a quarter | faster on many devices |

This guide trains one sparse model, exports it in all these ways, and measures the files: their
sizes, their accuracy in LiteRT (the runtime that was called TFLite), and their latency.

## Setup

In the folder of the repository:

```sh
pip install ".[examples,cli]"
python examples/deploy_tflite.py
```

Any backend of Keras does; the conversion is TensorFlow's, and keras-lp starts it in a process of
its own where Keras runs on JAX or torch.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_lp

parser = argparse.ArgumentParser(description="Exports a sparse model to .tflite files.")
parser.add_argument("--output", type=Path, default="deploy_tflite_output", help="folder")
parser.add_argument("--epochs", type=int, default=40)
arguments = parser.parse_args()
arguments.output.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

"""
## A sparse model

The digits of scikit-learn, 1,797 images of 8 x 8 pixels, and a small CNN. `LpAdamW` replaces
`AdamW`, and `SparsityTarget` steers its `weight_decay` until 95 % of the weights are zero.
"""

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    (digits.images[..., np.newaxis] / 16).astype("float32"),
    digits.target,
    test_size=0.3,
    random_state=0,
    stratify=digits.target,
)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1), name="image"),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(keras_lp.LpAdamW(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
print("Training", flush=True)
model.fit(
    x_train,
    y_train,
    batch_size=32,
    epochs=arguments.epochs,
    verbose=0,
    callbacks=[keras_lp.SparsityTarget(0.95)],
)
_, accuracy = model.evaluate(x_test, y_test, verbose=0)

"""
## Strip

`strip_pruning` copies the model without what served the training, and makes every tiny weight an
exact zero. The report counts them.
"""

stripped = keras_lp.strip_pruning(model)
print(keras_lp.sparsity_report(stripped))
print(f"accuracy in Keras: {accuracy:.2%}\n")

"""
## Export

`export_tflite` converts the model, runs the file beside it, and writes it only if both agree. With
`inputs` it compares them on real images; without, on random ones.
"""

files = {
    "dense": keras_lp.export_tflite(
        stripped, arguments.output / "dense.tflite", sparse=False, inputs=x_test
    ),
    "float32": keras_lp.export_tflite(stripped, arguments.output / "float32.tflite", inputs=x_test),
    "float16": keras_lp.export_tflite(
        stripped, arguments.output / "float16.tflite", quantization="float16", inputs=x_test
    ),
}

"""
LiteRT's default interpreter takes no sparse int8 weights, so files with those are dense: gzip makes
their zeros small on the way. The full int8 file also computes in int8. It needs some examples, from
which the converter takes the ranges of the activations.
"""

files["dynamic"] = keras_lp.export_tflite(
    stripped,
    arguments.output / "dynamic.tflite",
    sparse=False,
    quantization="dynamic",
    inputs=x_test,
)
files["int8"] = keras_lp.export_tflite(
    stripped,
    arguments.output / "int8.tflite",
    sparse=False,
    quantization="int8",
    representative_dataset=x_train[:200],
    inputs=x_test,
)

"""
What does not run is never written. Ask for the impossible, and the error names the ways out:
"""

try:
    keras_lp.export_tflite(stripped, arguments.output / "no.tflite", quantization="dynamic")
except RuntimeError as error:
    print(f"{error}\n")

"""
## What came out

`compare_tflite` runs two files on the same images, interleaved, and counts.
"""

print(f"{'weights':10s}{'bytes':>10s}{'gzip bytes':>12s}{'accuracy':>10s}{'latency':>10s}")
for name, result in files.items():
    found = keras_lp.compare_tflite(files["dense"].path, result.path, x_test, y_test)
    print(
        f"{name:10s}{result.bytes:10,}{result.gzip_bytes:12,}{found.second.accuracy:10.2%}"
        f"{found.second.latency / found.first.latency:10.2f}"
    )
print("latency: as a share of the dense file's, with one image on one thread\n")

"""
## The same on the command line

```sh
keras-lp strip model.keras stripped.keras
keras-lp export stripped.keras float16.tflite --quantize float16
keras-lp export stripped.keras int8.tflite --quantize int8 --representative train.npz
keras-lp compare float16.tflite int8.tflite --data test.npz
```

## What to take

- A sparse float16 file where storage counts.
- A dense int8 file where the time of a run counts, or where the file travels compressed.
- `runtime="no_delegate"` writes sparse int8 files, for applications that turn the default delegate
  off.
"""
