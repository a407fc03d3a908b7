"""
Title: A sparse GPT on Tiny Shakespeare
Author: the keras-lp authors
Date created: 2026/11/21
Last modified: 2026/11/21
Description: The language experiment of the p-norm paper: nanoGPT's baby model, most weights zero.
Accelerator: GPU
"""

"""
## Introduction

Besides images, Outmezguine and Levi ([arXiv:2404.10824](https://arxiv.org/abs/2404.10824)) train a
small GPT with a weight decay for the p-norm. It writes Shakespeare, character by character, and is
the baby model of [nanoGPT](https://github.com/karpathy/nanoGPT): 6 layers with 6 heads, 384 numbers
for each character, 10.7 million weights.

This guide builds it in Keras, trains it in the way of nanoGPT with `LpAdamW` in place of AdamW, and
lets the sparse model write some lines.

## Setup

In the folder of the repository:

```sh
pip install ".[examples]"
python examples/tiny_shakespeare_gpt.py             # the baby model; wants a GPU
python examples/tiny_shakespeare_gpt.py --size cpu  # nanoGPT's setting for a CPU, some minutes
```

With `".[examples,jax]"` installed, `KERAS_BACKEND=jax` before the command trains on JAX. A training
that was interrupted goes on from its last epoch when the same command is started again; the baby
model then drops out others, as Keras saves no state of dropout. The output at the end of this guide
is that of `--size cpu`; the baby model has not been run yet.
"""

import argparse
import csv
import gzip
import json
import math
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib as mpl
import numpy as np
from keras import layers, ops

import keras_lp

mpl.use("Agg")

"""
## Settings

Both sizes are nanoGPT's, with its dropout, batches, steps and learning rates. An epoch is here what
lies between two looks at the validation loss: 250 steps.

The published code of the paper is that of its images and does not say how strong the decay of the
GPT was: the strength is our choice. p = 0.8 is that of the images.
"""

SIZES = {
    "paper": {
        "depth": 6,
        "heads": 6,
        "width": 384,
        "context": 256,
        "dropout": 0.2,
        "batch_size": 64,
        "epochs": 20,
        "weight_decay": 0.01,
    },
    "cpu": {
        "depth": 4,
        "heads": 4,
        "width": 128,
        "context": 64,
        "dropout": 0.0,
        "batch_size": 12,
        "epochs": 8,
        "weight_decay": 0.01,
    },
}
FILE = "tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


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
    if not (Path(text) / FILE).is_file():
        raise argparse.ArgumentTypeError(
            f"pass a folder that holds {FILE}, or leave --data-dir out to download the text, "
            f"received {text}"
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


parser = argparse.ArgumentParser(description="Trains a sparse GPT on Tiny Shakespeare.")
parser.add_argument("--size", choices=SIZES, default="paper")
parser.add_argument("--epochs", type=number(int, 1))
parser.add_argument("--steps", type=number(int, 1), default=250, help="batches in an epoch")
parser.add_argument("--p", type=number(float, 0), default=0.8, help="exponent of the norm")
parser.add_argument("--weight-decay", type=number(float, 0), help="strength of the decay")
parser.add_argument(
    "--target-sparsity", type=number(float, 0, 1), help="to steer to, instead of a strength"
)
parser.add_argument("--data-dir", type=data_folder, help=f"folder that holds {FILE}")
parser.add_argument("--output", type=output_folder, default="tiny_shakespeare_gpt_output")
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
keras.utils.set_random_seed(0)

"""
## Data

One text of 1.1 million characters, 65 different ones. The last tenth of it is for the validation,
cut into windows of the length that the model sees at a time.
"""

given = arguments.data_dir
path = given / FILE if given else Path(keras.utils.get_file(FILE, URL))
characters, text = np.unique(np.frombuffer(path.read_bytes(), "uint8"), return_inverse=True)
text, held_out = np.split(text.astype("int32"), [len(text) * 9 // 10])
context = arguments.context
if len(held_out) <= context:
    parser.error(
        f"argument --data-dir: pass a folder with a text of at least {10 * (context + 1):,} "
        f"characters in {FILE}, received {len(text) + len(held_out):,} in {path}"
    )


def windows(text, starts):
    """Windows of a text and, for each character in them, the next one."""
    window = text[starts[:, np.newaxis] + np.arange(context + 1)]
    return window[:, :-1], window[:, 1:]


validation = windows(held_out, np.arange(0, len(held_out) - context, context))
print(
    f"{len(text):,} characters for the training, {len(held_out):,} for the validation, "
    f"{len(characters)} different ones",
    flush=True,
)

"""
What is random in a batch follows from the number of its epoch and its own, so that a training that
was interrupted goes on with the very batches that it would have had.
"""


class Batches(keras.utils.PyDataset):
    """Windows from anywhere in the text."""

    epoch = 0

    def __len__(self):
        return arguments.steps

    def __getitem__(self, index):
        random = np.random.default_rng((self.epoch, index))
        return windows(text, random.integers(len(text) - context, size=arguments.batch_size))


batches = Batches()

"""
## Model

Each layer adds to the numbers of a character what attention finds in the characters before it, and
then what two dense layers make of them. As in nanoGPT there are no biases, and one matrix serves
twice: it gives the numbers of a character, and at the end the logits of the next one. All matrices
start alike; nanoGPT starts those that end a branch smaller.
"""


def normal():
    """The initializer of all matrices; each needs one of its own."""
    return keras.initializers.RandomNormal(stddev=0.02)


def normalization():
    """PyTorch's layer normalization, without a bias."""
    return layers.LayerNormalization(epsilon=1e-5, center=False)


def attention(x):
    """What each position takes from those before it and from itself."""
    y = normalization()(x)
    return layers.MultiHeadAttention(
        num_heads=arguments.heads,
        key_dim=arguments.width // arguments.heads,
        dropout=arguments.dropout,
        use_bias=False,
        kernel_initializer=normal(),
    )(y, y, use_causal_mask=True)


def feed_forward(x):
    """What two dense layers make of each position."""
    y = normalization()(x)
    y = layers.Dense(4 * arguments.width, "gelu", use_bias=False, kernel_initializer=normal())(y)
    return layers.Dense(arguments.width, use_bias=False, kernel_initializer=normal())(y)


def gpt():
    """A causal transformer: logits of the next character at each position."""
    window = keras.Input((context,), dtype="int32", name="text")
    position = ops.cumsum(ops.ones_like(window), axis=1) - 1
    embedding = layers.ReversibleEmbedding(
        len(characters), arguments.width, embeddings_initializer=normal(), name="character"
    )
    x = embedding(window) + layers.Embedding(
        context, arguments.width, embeddings_initializer=normal(), name="position"
    )(position)
    x = layers.Dropout(arguments.dropout)(x)
    for _ in range(arguments.depth):
        x += layers.Dropout(arguments.dropout)(attention(x))
        x += layers.Dropout(arguments.dropout)(feed_forward(x))
    logits = embedding(normalization()(x), reverse=True)
    return keras.Model(window, logits, name="gpt")


"""
`LpAdamW` takes the place of AdamW, with what nanoGPT gives that: a learning rate that warms up to
1e-3 within 100 steps and follows a cosine down to 1e-4, a second moment that forgets
within 100 steps, and gradients that are clipped.

With `--target-sparsity`, `SparsityTarget` steers the strength of the decay during the training.
Without it, `SparsityLogger` counts the zeros.
"""

all_batches = arguments.epochs * arguments.steps
warmup = min(100, all_batches // 10)
learning_rate = keras.optimizers.schedules.CosineDecay(
    0.0, all_batches - warmup, alpha=0.1, warmup_target=1e-3, warmup_steps=warmup
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model = gpt()
model.compile(
    optimizer=keras_lp.LpAdamW(
        learning_rate,
        arguments.weight_decay,
        p=arguments.p,
        beta_2=0.99,
        epsilon=1e-8,
        global_clipnorm=1.0,
    ),
    loss=loss,
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
            f"epoch {epoch + 1:2d}/{arguments.epochs}  loss {logs['loss']:.3f}"
            f"  validation loss {logs['val_loss']:.3f}  sparsity {logs['sparsity']:.2%}",
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
    validation_data=validation,
    validation_batch_size=4 * arguments.batch_size,
    epochs=arguments.epochs,
    shuffle=False,  # `Batches` are random by themselves.
    verbose=0,
    callbacks=[
        sparsity,
        keras.callbacks.CSVLogger(history_path, append=True),
        Progress(),
        keras.callbacks.BackupAndRestore(backup, double_checkpoint=True, delete_checkpoint=False),
    ],
)

history = read_history(history_path)
axes = keras_lp.plotting.plot_sparsity(history, metric="val_loss", target=arguments.target_sparsity)
axes.figure.savefig(arguments.output / "sparsity.png", dpi=120)

"""
## Strip

`strip_pruning` makes exact zeros of all weights up to 1e-13, the paper's threshold, and leaves the
state of the training behind.
"""

model.save(arguments.output / "model.keras")
stripped = keras_lp.strip_pruning(model)
stripped.save(arguments.output / "stripped.keras")
print(f"\n{keras_lp.sparsity_report(stripped)}\n")

"""
## What came out

The loss is in nats for each character. A `.keras` file stores the zeros too; gzip shows how little
is in them.
"""

stripped.compile(loss=loss)
print(f"{'file':16s}{'validation loss':>17s}{'sparsity':>10s}{'bytes':>14s}{'gzip bytes':>14s}")
for name, one in {"model.keras": model, "stripped.keras": stripped}.items():
    found = one.evaluate(*validation, batch_size=4 * arguments.batch_size, verbose=0)
    sparsity = keras_lp.sparsity_report(one).sparsity
    data = (arguments.output / name).read_bytes()
    print(f"{name:16s}{found:17.3f}{sparsity:10.2%}{len(data):14,}{len(gzip.compress(data)):14,}")
print(f"Also in {arguments.output}: {history_path.name}, sparsity.png")

"""
What the sparse model writes after the beginning of the validation text. A temperature under 1 makes
it a little more careful than it is.
"""


def write(model, beginning, count, temperature=0.8):
    """Characters that a model adds to a window, each drawn from what it expects."""
    random = np.random.default_rng(0)
    window = list(beginning)
    for _ in range(count):
        logits = model.predict_on_batch(np.array([window[-context:]]))[0, -1] / temperature
        odds = np.exp(logits - logits.max())
        window.append(random.choice(len(odds), p=odds / odds.sum()))
    return bytes(characters[window[-count:]]).decode("ascii", "replace")


print(f"\n{write(stripped, held_out[:context], 300)}")
shutil.rmtree(backup)

"""
## What to take

- The decay makes the zeros during an ordinary training, also in embeddings and attention; `exclude`
  spares what should stay dense.
- `--weight-decay` trades loss for zeros, and `--target-sparsity 0.8` asks for exactly as many as
  you want.
- How strong the decay has to be depends on the steps and the batches of a training. Double it until
  the loss suffers.
"""
