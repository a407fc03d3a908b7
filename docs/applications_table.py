"""Writes the table of keras.applications in docs/tfmot.md: what `to_tf_keras` makes of each.

Each model is made with random weights, for the smallest image that it takes, and run in both
libraries on random images; the error is the largest difference of two outputs.

    python docs/applications_table.py          # writes the table; takes about an hour
    python docs/applications_table.py --only MobileNet VGG16
"""

import argparse
import gc
import inspect
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

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
    for size in SIZES:
        try:
            function = getattr(keras.applications, name)
            return function(weights=None, input_shape=(size, size, 3), classes=10), size
        except ValueError:
            if size == SIZES[-1]:
                raise
    return None


def scatter(model):
    """Gives the moving averages values, so that they count.

    With variances under 1 the deepest models grow rounding differences to different outputs: those
    of EfficientNetV2L then differ between Keras's own eager and compiled calls.
    """
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(1.0, 2.0, layer.moving_variance.shape))


def row(name):
    """A row of the table: what came of one model."""
    model, size = make(name)
    scatter(model)
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")
    start = f"| {name} | {size} x {size} | {model.count_params():,} |"
    try:
        legacy = to_tf_keras(model)
    except (TypeError, ValueError) as error:
        return f"{start} {error} |"
    difference = np.abs(np.asarray(legacy(images)) - model.predict(images, verbose=0))
    return f"{start} {difference.max():.1e} |"


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
