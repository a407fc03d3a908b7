"""
Title: A sparse ResNet-18 on CIFAR-10
Author: the keras-lp authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: The image experiment of the p-norm paper, from training to a sparse .tflite file.
Accelerator: GPU
"""

"""
## Introduction

Outmezguine and Levi ([arXiv:2404.10824](https://arxiv.org/abs/2404.10824)) train a ResNet-18 on
CIFAR-10 with a weight decay for the p-norm in place of that for the 2-norm. With p = 0.8 most
weights become exactly zero during an ordinary training. This guide repeats the experiment with
their settings: batches of 400 images, 100 epochs, a learning rate that warms up to 1e-3 within two
epochs and follows a cosine down to 1e-5, and images that are cropped, rotated a little and flipped.

Then it makes a `.tflite` file of the model that stores no zeros, and checks it in LiteRT.

## Setup

In the folder of the repository:

```sh
pip install ".[examples]"
python examples/cifar10_resnet18.py             # as in the paper; wants a GPU
python examples/cifar10_resnet18.py --size cpu  # a narrow ResNet-18, ten minutes on two cores
```

With `".[examples,jax]"` installed, `KERAS_BACKEND=jax` before the command trains on JAX. A training
that was interrupted goes on from its last epoch when the same command is started again. The
output at the end of this guide is that of `--size cpu`; the paper's size has not been run yet.
"""

import argparse
import csv
import io
import itertools
import json
import lzma
import math
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib as mpl
import numpy as np
from keras import layers

import keras_lp

mpl.use("Agg")

"""
## Settings

The paper's code gives the strength of the decay as `lambda_p` = 1e-3; our `weight_decay`, on the
scale of AdamW, is `p * lambda_p`. The small setting has a sixth of the steps, so that the decay has
to work faster.
"""

SIZES = {
    "paper": {"width": 64, "batch_size": 400, "epochs": 100, "lambda_p": 1e-3},
    "cpu": {"width": 16, "batch_size": 64, "epochs": 10, "lambda_p": 0.02, "steps": 200},
}
ARCHIVE = "cifar10_jpeg.npz.xz"


def number(kind, least, most=math.inf):
    """A type of the command line: a finite number within a range."""
    limits = f"from {least} to {most}" if most < math.inf else f"of at least {least}"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            name = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"pass {name} {limits}, received {text}")
        return value

    return parse


def data_folder(text):
    """A folder of the command line that holds the data."""
    if not (Path(text) / ARCHIVE).is_file():
        raise argparse.ArgumentTypeError(
            f"pass a folder that holds {ARCHIVE}, or leave --data-dir out to download the "
            f"images, received {text}"
        )
    return Path(text)


def output_folder(text):
    """A folder of the command line, made if it does not exist."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"pass a folder that can be made, received {text} ({error.strerror})"
        ) from error
    return Path(text)


parser = argparse.ArgumentParser(description="Trains a sparse ResNet-18 on CIFAR-10.")
parser.add_argument("--size", choices=SIZES, default="paper")
parser.add_argument("--epochs", type=number(int, 1))
parser.add_argument("--steps", type=number(int, 1), help="batches in an epoch; default: all")
parser.add_argument("--p", type=number(float, 0), default=0.8, help="exponent of the norm")
parser.add_argument("--weight-decay", type=number(float, 0), help="default: p * lambda_p")
parser.add_argument(
    "--target-sparsity", type=number(float, 0, 1), help="to steer to, instead of a strength"
)
parser.add_argument("--data-dir", type=data_folder, help=f"folder that holds {ARCHIVE}")
parser.add_argument("--output", type=output_folder, default="cifar10_resnet18_output")
arguments = parser.parse_args()
if arguments.target_sparsity is not None:
    if arguments.weight_decay is not None:
        parser.error(
            "argument --target-sparsity: sets the strength by itself; leave out --weight-decay, "
            f"received {arguments.target_sparsity} and --weight-decay {arguments.weight_decay}"
        )
    if arguments.p > 1:
        parser.error(
            "argument --p: pass a number of at most 1 with --target-sparsity, since weights "
            f"become zero only then, received {arguments.p}"
        )
for name, value in SIZES[arguments.size].items():
    if getattr(arguments, name, None) is None:
        setattr(arguments, name, value)
if arguments.weight_decay is None:
    arguments.weight_decay = arguments.p * arguments.lambda_p
    if arguments.p == 0 and arguments.target_sparsity is None:
        parser.error(
            "argument --p: has no default strength at 0; pass --weight-decay too, received 0"
        )
keras.utils.set_random_seed(0)

"""
## Data

50,000 images for the training and 10,000 for the test, each 32 x 32 pixels in three colours from 0
to 255. Keras downloads them, unless a folder holds them as JPEG, which is lossy: the accuracies are
not quite the same.
"""


def read_archive(path):
    """Images (n, 32, 32, 3) in uint8 and labels (n,), for training and test."""
    with lzma.open(path) as file:
        archive = np.load(io.BytesIO(file.read()))
    for part in ("train", "test"):
        jpeg, ends = archive[f"{part}_jpeg"], archive[f"{part}_offsets"]
        files = (io.BytesIO(jpeg[start:end]) for start, end in itertools.pairwise(ends))
        images = np.stack([np.asarray(keras.utils.load_img(file)) for file in files])
        yield images, archive[f"{part}_labels"]


if arguments.data_dir:
    (x_train, y_train), (x_test, y_test) = read_archive(arguments.data_dir / ARCHIVE)
else:
    (x_train, y_train), (x_test, y_test) = keras.datasets.cifar10.load_data()
    y_train, y_test = y_train.ravel(), y_test.ravel()
all_steps = len(x_train) // arguments.batch_size
steps = arguments.steps or all_steps
if steps > all_steps:
    parser.error(
        f"argument --steps: pass at most {all_steps}, the batches of {arguments.batch_size} in "
        f"{len(x_train):,} images, received {steps}"
    )
print(f"{len(x_train):,} images for the training, {len(x_test):,} for the test", flush=True)

"""
## Crops, rotations and flips

The paper moves each image by up to four pixels (the border is reflected), rotates it by up to ten
degrees, mirrors half of them, and moves them once more (the border is black). All of this takes
pixels from one place to another. So we ask, for each pixel of the result, which one of the
original it is, going through the changes backwards, and move every pixel once. It is NumPy on the
CPU, while the model trains: the same on every backend, and no part of the model.
"""


def augment(images, random):
    """Changes images (n, 32, 32, 3) at random."""
    count, size = images.shape[:2]
    centre = size / 2
    first, second = random.integers(-4, 5, (2, 2, count, 1, 1))
    mirror = random.choice([-1, 1], (count, 1, 1))
    angle = np.radians(random.uniform(-10, 10, (count, 1, 1))).astype("float32")

    # Where the centres of the pixels were before the second move and the flip, from the middle.
    pixels = np.arange(size, dtype="float32") + 0.5 - centre
    y = pixels[:, np.newaxis] + second[0].astype("float32")
    x = (pixels + second[1].astype("float32")) * mirror
    black = np.maximum(abs(y), abs(x)) > centre

    y, x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    black |= np.maximum(abs(y), abs(x)) > centre

    rows = np.floor(y + centre).astype(int) + first[0]
    columns = np.floor(x + centre).astype(int) + first[1]
    last = size - 1
    rows, columns = (last - abs(last - abs(index)) for index in (rows, columns))  # Reflected.
    pixel = (np.arange(count).reshape(-1, 1, 1) * size + rows) * size + columns
    moved = np.take(images.reshape(-1, 3), pixel, axis=0)
    moved[black] = 0
    return moved


"""
What is random in a batch follows from the number of its epoch and its own, so that a training that
was interrupted goes on with the very batches that it would have had.
"""


class Batches(keras.utils.PyDataset):
    """Training batches; in each epoch the images come in another order."""

    epoch = 0

    def __len__(self):
        return steps

    def __getitem__(self, index):
        order = np.random.default_rng((0, self.epoch)).permutation(len(x_train))
        chosen = order[index * arguments.batch_size :][: arguments.batch_size]
        random = np.random.default_rng((1, self.epoch, index))
        return augment(x_train[chosen], random), y_train[chosen]


batches = Batches()  # More workers would read ahead, past the end of an epoch.

"""
## Model

ResNet-18 for small images: the first convolution is 3 x 3 and nothing is pooled before the end. The
colours are normalized within the model, so that it takes images as they are. How long a weight
takes to fall depends on where it starts, so all start as in the paper, which is in PyTorch. (Where
an image is halved, PyTorch pads it on both sides and Keras on one.)
"""


def initializer():
    """PyTorch's for convolutions and dense layers: uniform up to 1 / sqrt(inputs)."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def convolution(x, filters, kernel=3, strides=1, activation="relu"):
    """A convolution with batch normalization."""
    x = layers.Conv2D(
        filters,
        kernel,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=initializer(),
    )(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return layers.Activation(activation)(x)


def residual(x, filters, strides):
    """Two convolutions, and what goes around them."""
    y = convolution(convolution(x, filters, strides=strides), filters, activation="linear")
    if strides > 1 or x.shape[-1] != filters:
        x = convolution(x, filters, 1, strides, activation="linear")
    return layers.Activation("relu")(x + y)


def resnet18(width):
    """ResNet-18 with `width` filters in its first stage and 8 times as many in its last."""
    image = keras.Input((32, 32, 3), name="image")
    colours = x_train[::10].reshape(-1, 3)  # enough to tell
    normalize = layers.Normalization(mean=colours.mean(0), variance=colours.var(0))
    x = convolution(normalize(image), width)
    for stage in range(4):
        for block in range(2):
            strides = 2 if stage > 0 and block == 0 else 1
            x = residual(x, width * 2**stage, strides)
    x = layers.GlobalAveragePooling2D()(x)
    logits = layers.Dense(10, kernel_initializer=initializer(), name="logits")(x)
    return keras.Model(image, logits, name="resnet18")


"""
`LpAdamW` takes the place of AdamW. That is all that a training needs to become sparse.

With `--target-sparsity`, `SparsityTarget` steers the strength of the decay during the training.
Without it, `SparsityLogger` counts the zeros.
"""

all_batches = arguments.epochs * steps
warmup = round(0.02 * all_batches)  # 2 epochs of 100
learning_rate = keras.optimizers.schedules.CosineDecay(
    1e-5, all_batches - warmup, alpha=0.01, warmup_target=1e-3, warmup_steps=warmup
)
model = resnet18(arguments.width)
model.compile(
    optimizer=keras_lp.LpAdamW(learning_rate, arguments.weight_decay, p=arguments.p, epsilon=1e-8),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
if arguments.target_sparsity is None:
    sparsity = keras_lp.SparsityLogger()
else:
    sparsity = keras_lp.SparsityTarget(arguments.target_sparsity)

"""
## Training

`BackupAndRestore` saves weights, optimizer and callbacks after each epoch, and the same command
goes on from there. `CSVLogger` keeps the history in a file. It comes before the backup, so that no
epoch is lost; one that had to be trained again counts once.
"""


class Progress(keras.callbacks.Callback):
    """Tells the batches which epoch it is, and us how it ended."""

    has_begun = False

    def on_epoch_begin(self, epoch, logs=None):
        """The first epoch of this process is not 0 where it goes on from a backup."""
        if epoch > 0 and not self.has_begun:
            print(f"going on after epoch {epoch} of an earlier run", flush=True)
        self.has_begun = True
        batches.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        """One line for each epoch."""
        print(
            f"epoch {epoch + 1:3d}/{arguments.epochs}  loss {logs['loss']:.3f}"
            f"  test accuracy {logs['val_accuracy']:.2%}  sparsity {logs['sparsity']:.2%}",
            flush=True,
        )


def read_history(path):
    """The curves of a training, from the file of `CSVLogger`, which is left in order."""
    with path.open() as file:
        epochs = {int(row["epoch"]): row for row in csv.DictReader(file)}
    rows = [epochs[epoch] for epoch in sorted(epochs)]
    ordered = path.with_suffix(".new")
    with ordered.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ordered.replace(path)
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


"""
A training goes on with the settings it began with; they lie beside the backup.
"""

backup = arguments.output / "backup"
history_path = arguments.output / "history.csv"
begun = backup / "settings.json"
settings = {n: v for n, v in vars(arguments).items() if n not in ("data_dir", "output")}
settings["data"] = "Keras" if arguments.data_dir is None else ARCHIVE
if not any(path != begun for path in backup.glob("*")):  # Not one epoch was saved.
    backup.mkdir(exist_ok=True)
    begun.write_text(json.dumps(settings))
    history_path.unlink(missing_ok=True)
elif json.loads(begun.read_text()) != settings:
    parser.error(
        "argument --output: pass another folder, or the settings of the unfinished training in "
        f"this one, {begun.read_text()}, or remove {backup}, received {arguments.output}"
    )
if arguments.target_sparsity is None:
    print(f"training with p = {arguments.p:g} and weight decay {arguments.weight_decay:g}")
else:
    print(f"training with p = {arguments.p:g} to {arguments.target_sparsity:.2%} zeros")
model.fit(
    batches,
    validation_data=(x_test, y_test),
    validation_batch_size=500,
    epochs=arguments.epochs,
    shuffle=False,  # `Batches` does it.
    verbose=0,
    callbacks=[
        sparsity,
        keras.callbacks.CSVLogger(history_path, append=True),
        Progress(),
        keras.callbacks.BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False),
    ],
)

history = read_history(history_path)
axes = keras_lp.plotting.plot_sparsity(
    history, metric="val_accuracy", target=arguments.target_sparsity
)
axes.figure.savefig(arguments.output / "sparsity.png", dpi=120)

"""
## Strip and export

`strip_pruning` makes exact zeros of all weights up to 1e-13, the paper's threshold, and leaves the
state of the training behind. `export_tflite` writes float16 weights without their zeros, and puts
the file in place only if it gives in LiteRT what the model gives in Keras.
"""

model.save(arguments.output / "model.keras")
stripped = keras_lp.strip_pruning(model)
stripped.save(arguments.output / "stripped.keras")
report = keras_lp.sparsity_report(stripped)
print(f"\n{report}\n")
try:
    exported = keras_lp.export_tflite(
        stripped,
        arguments.output / "model.tflite",
        quantization="float16",
        inputs=x_test[:100].astype("float32"),
    )
except ImportError as error:
    exported = None
    print(f"No .tflite file: {error}")
    paths = " ".join(str(arguments.output / name) for name in ("stripped.keras", "model.tflite"))
    print(f"With it and keras-lp[cli]: keras-lp export {paths} --quantize float16\n")

"""
## What came out

The accuracy of the `.tflite` file is that of LiteRT's default interpreter on all test images.
"""


def right(logits):
    """Share of right answers on the test images."""
    return np.mean(np.argmax(logits, axis=1) == y_test)


def logits_in_litert(path):
    """What a `.tflite` file gives for the test images."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=os.cpu_count()).get_signature_runner()
    (name,) = runner.get_input_details()
    for start in range(0, len(x_test), 100):
        yield from next(iter(runner(**{name: x_test[start:][:100].astype("float32")}).values()))


rows = {
    "model.keras": (model, model.predict(x_test, batch_size=500, verbose=0)),
    "stripped.keras": (stripped, stripped.predict(x_test, batch_size=500, verbose=0)),
}
if exported:
    rows["model.tflite"] = stripped, list(logits_in_litert(exported.path))
print(f"{'file':16s}{'test accuracy':>15s}{'sparsity':>10s}{'bytes':>14s}")
for name, (counted, logits) in rows.items():
    sparsity = keras_lp.sparsity_report(counted).sparsity
    size = (arguments.output / name).stat().st_size
    print(f"{name:16s}{right(logits):15.2%}{sparsity:10.2%}{size:14,}")
if exported:
    print(f"As a dense float32 .tflite file the model would take {exported.dense_bytes:,} bytes.")
print(f"Also in {arguments.output}: {history_path.name}, sparsity.png")
shutil.rmtree(backup)

"""
## What to take

- The decay makes the zeros during an ordinary training; `p` and `weight_decay` are all there is to
  choose. A larger `--weight-decay` gives more zeros, `--target-sparsity 0.95` exactly as many as
  you ask for.
- Zeros come late. Judge the sparsity at the end of the schedule, not at its beginning.
- A model without its zeros is small in storage and on its way to a device. How it gets fast there
  is another question: see the guide to deployment, `deploy_tflite.py`.
"""
