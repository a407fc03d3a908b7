"""
Title: Clustering and quantization of a sparse model with TF-MOT
Author: the keras-lp authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: Zeros by weight decay in Keras 3, then clusters or int8 weights that keep them.
Accelerator: None
"""

"""
## Introduction

Three things make a model small on a device, and zeros go with each of the other two:

- **Zeros.** The decay of `keras_lp.LpAdamW` drives weights that are not needed to exact zero.
- **Clusters.** Weights that share a few values compress well.
- **int8 weights.** They take a quarter of the room of float32.

TF-MOT, the TensorFlow Model Optimization Toolkit, does the second and the third during a short
training. It knows the models of `tf_keras` (Keras 2) only. This guide trains a sparse model in
Keras 3, takes it over to `tf_keras`, and lets TF-MOT cluster and quantize it such that every zero
stays zero. At the end there are three `.tflite` files, and a table of what they are worth.

## Setup

In the folder of the repository:

```sh
pip install ".[examples]"
python examples/tfmot_pipeline.py
```

Keras has to run on TensorFlow, which converts the models. keras-lp imports TF-MOT, so that
`tf.keras` means in this process what it did before.
"""

import argparse
import gzip
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_lp

tfmot = keras_lp.optional.import_tfmot()
import tf_keras

# Sparsity-preserving clustering is in none of TF-MOT's public modules.
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

parser = argparse.ArgumentParser(description="Clusters and quantizes a sparse model with TF-MOT.")
parser.add_argument("--output", type=Path, default="tfmot_pipeline_output", help="folder")
parser.add_argument("--epochs", type=int, default=40, help="of the sparse training")
parser.add_argument("--tuning-epochs", type=int, default=10, help="under TF-MOT, each time")
arguments = parser.parse_args()
arguments.output.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

"""
## Data

The digits of scikit-learn: 1,797 images of 8 x 8 pixels.
"""

digits = load_digits()
x_train, x_test, y_train, y_test = train_test_split(
    (digits.images[..., np.newaxis] / 16).astype("float32"),
    digits.target,
    test_size=0.3,
    random_state=0,
    stratify=digits.target,
)

"""
## A sparse model in Keras 3

`LpAdamW` is AdamW with another decay. `SparsityTarget` steers its strength, so that 95 % of the
weights are zero after four fifths of the training. `strip_pruning` leaves a plain model.
"""

model = keras.Sequential(
    [
        keras.Input((8, 8, 1), name="image"),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_1"),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu", name="conv_2"),
        keras.layers.MaxPooling2D(name="pool"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(128, activation="relu", name="hidden"),
        keras.layers.Dense(10, name="logits"),
    ],
    name="digits",
)
model.compile(
    optimizer=keras_lp.LpAdamW(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
print("Training a sparse model", flush=True)
model.fit(
    x_train,
    y_train,
    batch_size=32,
    epochs=arguments.epochs,
    verbose=0,
    callbacks=[keras_lp.SparsityTarget(0.95)],
)
model = keras_lp.strip_pruning(model)
print(keras_lp.sparsity_report(model))

"""
## Over to tf_keras

`to_tf_keras` makes the model again, layer by layer, and checks that both compute the same. What
TF-MOT wraps is trained in the usual way; a few epochs are enough.
"""


def tune(wrapped):
    """Trains a model of tf_keras under the wrappers of TF-MOT."""
    wrapped.compile(
        optimizer=tf_keras.optimizers.Adam(3e-4),
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    wrapped.fit(x_train, y_train, batch_size=32, epochs=arguments.tuning_epochs, verbose=0)


"""
## Clustering that preserves sparsity

Each layer gets 16 values, one of which is zero. TF-MOT's wrappers take the layers of the model that
they are given for their own, so each of them gets a model of its own. The result goes back to
Keras 3, for the export that stores no zeros.
"""

print("Clustering", flush=True)
clustered = cluster.cluster_weights(
    keras_lp.tfmot.to_tf_keras(model),
    number_of_clusters=16,
    cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
    preserve_sparsity=True,
)
tune(clustered)
clustered = tfmot.clustering.keras.strip_clustering(clustered)
clustered = keras_lp.tfmot.from_tf_keras(clustered)
for layer in clustered.layers:
    for kernel in layer.weights[:1]:
        values = np.unique(kernel)
        print(f"  {layer.name}: {len(values)} values, {np.mean(kernel == 0):.1%} zeros")

"""
## Quantization-aware training that preserves sparsity (PQAT)

The model trains as if its weights and activations were in int8, and its zeros are masked.
TensorFlow's converter then writes int8 weights. A zero weight is a zero byte.
"""

print("Quantization-aware training", flush=True)
quantized = tfmot.quantization.keras.quantize_apply(
    tfmot.quantization.keras.quantize_annotate_model(keras_lp.tfmot.to_tf_keras(model)),
    tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme(),
)
tune(quantized)

"""
## Export

`export_tflite` runs the file in LiteRT and compares it with the model before it writes anything.
The file of the quantized model is the converter's own: its weights are stored with their zeros,
which gzip then takes out.
"""

print("Exporting", flush=True)
paths = {
    "Lp zeros, float32": arguments.output / "sparse.tflite",
    "and 16 clusters": arguments.output / "clustered.tflite",
    "and int8 by PQAT": arguments.output / "quantized.tflite",
}
sparse_path, clustered_path, quantized_path = paths.values()
dense_bytes = keras_lp.export_tflite(model, sparse_path, inputs=x_test).dense_bytes
keras_lp.export_tflite(clustered, clustered_path, inputs=x_test)
converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
quantized_path.write_bytes(converter.convert())

"""
## What came out

Everything is measured on the files: the accuracy with LiteRT's default interpreter, the zeros by
counting what is stored of each weight matrix.
"""


def accuracy(path):
    """Share of right answers, as LiteRT's default interpreter gives them."""
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    (name,) = runner.get_input_details()
    (logits,) = runner(**{name: x_test}).values()
    return np.mean(np.argmax(logits, axis=1) == y_test)


def zeros(data):
    """Share of zeros in the weight matrices of a file; sparse ones store no zeros."""
    kinds = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.INT8: np.int8}
    file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    size = nonzero = 0
    for tensor in file.subgraphs[0].tensors:
        stored = file.buffers[tensor.buffer].data
        if stored is not None and len(tensor.shape) > 1:
            size += np.prod(tensor.shape)
            nonzero += np.count_nonzero(np.frombuffer(bytes(stored), kinds[tensor.type]))
    return 1 - nonzero / size


print(f"\n{'file':20s}{'accuracy':>10s}{'bytes':>10s}{'gzip bytes':>12s}{'zeros':>9s}")
for label, path in paths.items():
    data = path.read_bytes()
    print(
        f"{label:20s}{accuracy(path):10.4f}{len(data):10,}{len(gzip.compress(data, 9)):12,}"
        f"{zeros(data):9.2%}"
    )
print(f"\nThe same model, dense in float32, takes {dense_bytes:,} bytes. Written:")
print(*(f"  {path}" for path in paths.values()), sep="\n")
