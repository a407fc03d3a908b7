"""Writes the table of keras.applications in docs/tfmot.md: what `to_tf_keras` makes of each.

Each model is made with random weights, for the smallest image that it takes, and run in both
libraries on random images. The error is the largest difference of two outputs before the
softmax, as a share of the largest output.

    python docs/applications_table.py          # writes the table; takes about an hour
    python docs/applications_table.py --only MobileNet VGG16
"""

import argparse
import contextlib
import gc
import inspect
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras.layers import BatchNormalization

from keras_lp.tfmot import to_tf_keras

PAGE = Path(__file__).parent / "tfmot.md"
BEGIN, END = "<!-- applications: begin -->\n", "<!-- applications: end -->\n"
SIZES = (32, 71, 75, 224)  # The smallest images that one of them takes.


def names():
    """The models of keras.applications."""
    members = vars(keras.applications)
    return sorted(name for name, member in members.items() if inspect.isfunction(member))


def make(name):
    """A model for the smallest images that it takes, and their size."""
    function = getattr(keras.applications, name)
    settings = {"weights": None, "classes": 10, "classifier_activation": None}
    for size in SIZES[:-1]:
        with contextlib.suppress(ValueError):
            return function(input_shape=(size, size, 3), **settings), size
    return function(input_shape=(SIZES[-1], SIZES[-1], 3), **settings), SIZES[-1]


def settle(model, images):
    """Gives the model's scales values as after a training, so that outputs depend on the images.

    With those that it starts with, the deepest models have the same outputs for all images. With
    the variances of the images themselves they grow rounding differences to other outputs:
    Keras's own eager and compiled calls of a ResNet101 then differ by a sixth. Half of their
    mean more is between the two.
    """
    random = np.random.default_rng(0)
    scales = [layer for layer in model.layers if type(layer).__name__ == "LayerScale"]
    for scale in scales:  # ConvNeXt's, which start at 1e-6.
        scale.gamma.assign(random.uniform(0.5, 1.5, scale.gamma.shape))
    norms = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm in norms:
        norm.momentum = 0.99
        variance = keras.ops.convert_to_numpy(norm.moving_variance)
        norm.moving_variance.assign(variance + variance.mean() / 2)


def row(name):
    """A row of the table: what came of one model."""
    keras.utils.set_random_seed(0)
    model, size = make(name)
    images = np.random.default_rng(0).uniform(0, 255, (16, size, size, 3)).astype("float32")
    settle(model, images)
    start = f"| {name} | {size} x {size} | {model.count_params():,} |"
    try:
        legacy = to_tf_keras(model)
    except (TypeError, ValueError) as error:
        return f"{start} {error} |"
    expected = model.predict(images[:2], verbose=0)
    difference = np.abs(legacy.predict(images[:2], verbose=0) - expected)
    return f"{start} {difference.max() / np.abs(expected).max():.1e} |"


def main():
    """Makes the table, and puts it into the page or prints a part of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names(), help="print rows of these")
    arguments = parser.parse_args()
    rows = ["| model | image | weights | largest difference |", "| --- | --- | --- | --- |"]
    for name in arguments.only or names():
        rows.append(row(name))
        print(rows[-1], flush=True)
        keras.backend.clear_session()
        gc.collect()
    if not arguments.only:
        text = PAGE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        PAGE.write_text(
            before + BEGIN + "\n".join(rows) + "\n" + END + rest.split(END)[1], encoding="utf-8"
        )


if __name__ == "__main__":
    main()
