"""The three training tasks that the quality benchmarks share.

`target.py` has them in this size, `frontier.py` in that of `settings.py`:

| task | model | training data | steps |
| --- | --- | --- | --- |
| digits | the CNN of `examples/quickstart.py` | 1,257 images of 8 x 8 | 2,400 |
| cifar10 | a CNN of six layers | 10,000 images of 32 x 32 | 1,570 |
| shakespeare | a character-level GPT | 24,000 windows of 64 characters | 1,000 |

The data is always the same. `keras.utils.set_random_seed` fixes the rest: the start of a model,
its dropout and the order of the batches.

    task = tasks.load("cifar10", data_dir)
    keras.utils.set_random_seed(0)
    model = task.make_model()
    task.compile(model, keras.optimizers.AdamW(task.schedule()))
    logs = task.fit(model).history
    print(task.show(logs[task.metric][-1]))
"""

import io
import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import keras
import numpy as np
from keras import layers, ops
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CONTEXT = 64
CIFAR10, SHAKESPEARE = "cifar10_jpeg.npz.xz", "tinyshakespeare.txt"
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


@dataclass(frozen=True)
class Task:
    """A model, its data and how it is trained.

    `dataclasses.replace(task, epochs=2)` is the same task with a shorter training.

    Attributes:
        name: Name that `load` knows it by.
        metric: Name of the logged value that tells the quality.
        better: Whether a good value of the metric is large or small.
        unit: What the metric is printed in.
        make_model: Function that returns a new model, built and not compiled.
        data: Arrays `x_train`, `y_train`, `x_val`, `y_val`; the labels are integers.
        source: Where the data comes from; JPEG images are not quite those that Keras loads.
        epochs: Number of validations and of entries in the logs.
        batch_size: Examples in a step.
        learning_rate: Float, at the first step.
        last_share: Float, the share of it that a cosine comes down to; 1 if it is constant.
        epochs_per_pass: Number of epochs that share one pass over the training data.
        jit_compile: Whether XLA compiles the steps; what is faster on a CPU.
    """

    name: str
    metric: str
    better: Literal["max", "min"]
    unit: Literal["percent", "nats"]
    make_model: Callable[[], keras.Model]
    data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    source: str
    epochs: int
    batch_size: int
    learning_rate: float
    jit_compile: bool
    epochs_per_pass: int = 1
    last_share: float = 1.0

    @property
    def steps_per_epoch(self):
        """Updates of the weights in one epoch."""
        batches = math.ceil(len(self.data[0]) / self.batch_size)
        return max(1, batches // self.epochs_per_pass)

    @property
    def steps(self):
        """Updates of the weights in the whole training."""
        return self.epochs * self.steps_per_epoch

    def schedule(self, schedules=keras.optimizers.schedules):
        """The learning rate for an optimizer of the library that the schedules are of."""
        if self.last_share == 1:
            return self.learning_rate
        return schedules.CosineDecay(self.learning_rate, self.steps, self.last_share)

    def show(self, value):
        """A value of the metric as text with its unit."""
        return f"{value:.2%}" if self.unit == "percent" else f"{value:.3f} nats"

    def compile(self, model, optimizer):
        """Compiles a model with the loss of the task, in nats, and the accuracy."""
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=self.jit_compile,
        )

    def fit(self, model, callbacks=(), **others):
        """Trains a compiled model; returns the history that Keras's `fit` returns.

        `others` are arguments of `fit` that are to differ, such as `epochs`.
        """
        x_train, y_train, x_val, y_val = self.data
        arguments = {
            "validation_data": (x_val, y_val),
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "verbose": 0,
        }
        return model.fit(x_train, y_train, callbacks=list(callbacks), **{**arguments, **others})


def load(name, data_dir=None, share=1.0, **sizes):
    """Loads one of the tasks.

    Args:
        name: `"digits"`, `"cifar10"` or `"shakespeare"`.
        data_dir: Folder that holds `cifar10_jpeg.npz.xz` and `tinyshakespeare.txt`. Without
            one, Keras downloads the data. The digits come with scikit-learn.
        share: Share of the training and of the validation data to keep, over 0 and at most 1.
            The epochs become shorter, not fewer.
        **sizes: Further arguments of the function that makes the task.

    Returns:
        A `Task`.

    Raises:
        ValueError: If there is no task of that name, or the share is out of range.
        FileNotFoundError: If `data_dir` lacks the file of the task.
    """
    if name not in TASKS:
        raise ValueError(
            f"Argument `name` must be one of {', '.join(map(repr, TASKS))}. Received: name={name!r}"
        )
    if not 0 < share <= 1:
        raise ValueError(
            "Argument `share` must be over 0 and at most 1, which keeps all the data. "
            f"Received: share={share!r}"
        )
    task = TASKS[name](data_dir, **sizes)
    return replace(task, data=tuple(a[: math.ceil(share * len(a))] for a in task.data))


def digits(data_dir):
    """Images of digits, the CNN and the split of `examples/quickstart.py`."""
    del data_dir  # scikit-learn brings the images.
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    x_train, x_val, y_train, y_val = train_test_split(
        images, labels, test_size=0.3, random_state=0, stratify=labels
    )
    return Task(
        name="digits",
        metric="val_accuracy",
        better="max",
        unit="percent",
        make_model=digits_cnn,
        data=(x_train, y_train, x_val, y_val),
        source="scikit-learn",
        epochs=60,
        batch_size=32,
        learning_rate=1e-3,
        jit_compile=False,
    )


def digits_cnn():
    """A CNN with 151,072 weights."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ],
        name="digits",
    )


def cifar10(data_dir, train=10_000, val=2_000):
    """The first `train` training and `val` test images of CIFAR-10, and a CNN of six layers."""
    read = read_cifar10 if data_dir is None else partial(read_cifar10_jpeg, data_dir)
    x_train, y_train, x_val, y_val = read(train, val)
    mean, deviation = (f(x_train, axis=(0, 1, 2), dtype="float64") for f in (np.mean, np.std))
    x_train, x_val = (((x - mean) / deviation).astype("float32") for x in (x_train, x_val))
    return Task(
        name="cifar10",
        metric="val_accuracy",
        better="max",
        unit="percent",
        make_model=cifar10_cnn,
        data=(x_train, y_train, x_val, y_val),
        source="keras.datasets" if data_dir is None else CIFAR10,
        epochs=10,
        batch_size=64,
        learning_rate=1e-3,
        jit_compile=False,
    )


def read_cifar10(train, val):
    """The first images of Keras's CIFAR-10, with integers from 0 to 255, and their labels."""
    (x_train, y_train), (x_val, y_val) = keras.datasets.cifar10.load_data()
    return x_train[:train], y_train[:train, 0], x_val[:val], y_val[:val, 0]


def read_cifar10_jpeg(data_dir, train, val):
    """The same from a file of JPEG images."""
    with lzma.open(find(data_dir, CIFAR10)) as file:
        archive = np.load(io.BytesIO(file.read()))
    data = []
    for part, count in (("train", train), ("test", val)):
        jpeg, offsets = archive[f"{part}_jpeg"], archive[f"{part}_offsets"][: count + 1]
        files = (io.BytesIO(jpeg[a:b]) for a, b in pairwise(offsets))
        data += [
            np.stack([np.asarray(keras.utils.load_img(file)) for file in files]),
            archive[f"{part}_labels"][:count],
        ]
    return data


def cifar10_cnn():
    """A CNN with 693,600 weights in four convolutions and two dense layers.

    Without dropout it overfits 10,000 images; batch normalization made that worse.
    """
    return keras.Sequential(
        [
            keras.Input((32, 32, 3), name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(48, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(96, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10),
        ],
        name="cifar10",
    )


def shakespeare(data_dir, depth=4, width=96):
    """Tiny Shakespeare and a character-level GPT; the last tenth of the text is held out."""
    if data_dir is None:
        path = Path(keras.utils.get_file(SHAKESPEARE, SHAKESPEARE_URL))
    else:
        path = find(data_dir, SHAKESPEARE)
    characters, text = np.unique(np.frombuffer(path.read_bytes(), "uint8"), return_inverse=True)
    text, held_out = np.split(text.astype("int32"), [len(text) * 9 // 10])
    starts = np.random.default_rng(0).integers(len(text) - CONTEXT, size=24_000)
    val_starts = np.linspace(0, len(held_out) - CONTEXT - 1, 360, dtype=int)
    return Task(
        name="shakespeare",
        metric="val_loss",
        better="min",
        unit="nats",
        make_model=partial(gpt, len(characters), depth, width),
        data=(*windows(text, starts), *windows(held_out, val_starts)),
        source=SHAKESPEARE,
        epochs=10,
        batch_size=24,
        learning_rate=1e-3,
        jit_compile=True,
        epochs_per_pass=10,
    )


def windows(text, starts):
    """Windows of a text and, for each character in them, the next one."""
    window = text[starts[:, None] + np.arange(CONTEXT + 1)]
    return window[:, :-1], window[:, 1:]


def gpt(characters, depth, width):
    """A causal transformer that gives the logits of the next character at each position.

    There is no dropout: a pass over the data sees each window once.
    """
    text = keras.Input((CONTEXT,), dtype="int32", name="text")
    position = ops.zeros_like(text) + np.arange(CONTEXT, dtype="int32")
    x = layers.Embedding(characters, width, name="character_embedding")(text)
    x += layers.Embedding(CONTEXT, width, name="position_embedding")(position)
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        x += layers.MultiHeadAttention(num_heads=4, key_dim=width // 4)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization()(x)
        y = layers.Dense(4 * width, activation="gelu")(y)
        x += layers.Dense(width)(y)
    logits = layers.Dense(characters)(layers.LayerNormalization()(x))
    return keras.Model(text, logits, name="shakespeare")


def find(data_dir, name):
    """Path of a file of the data folder, which must be there."""
    path = Path(data_dir) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"Argument `data_dir` must be a folder that holds {name}; put the file there, or "
            f"leave `data_dir` out to download the data. Received: data_dir={str(data_dir)!r}"
        )
    return path


TASKS = {"digits": digits, "cifar10": cifar10, "shakespeare": shakespeare}
