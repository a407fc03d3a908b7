"""What the callbacks cost: steps of a training with them against steps without.

On the model of the quickstart and on ResNet-18, in one process and interleaved: `fit` with
LpAdamW, with Adam and `LpDecayCallback`, and with LpAdamW and `SparsityTarget`, some epochs of
each in turn; beside them LpAdamW with a callback whose `on_train_batch_end` does nothing, since
Keras itself does more where there is such a hook. A ratio is the median over the turns. Prints a
table in Markdown, which stands in RESULTS.md.

    python benchmarks/callbacks.py
    KERAS_BACKEND=jax python benchmarks/callbacks.py --models quickstart
"""

import argparse
import os
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import models
import numpy as np
import tasks
from runs import whole

import keras_lp

# Model, shape of an image, batch size, steps in an epoch, epochs in a turn, turns.
SETTINGS = {
    "quickstart": (tasks.digits_cnn, (8, 8, 1), 32, 40, 3, 40),
    "resnet18": (models.resnet18, (32, 32, 3), 32, 6, 1, 12),
}
# Longer than it runs, so that it steers all the time; every 37 steps as in the quickstart.
TARGET = {"final_sparsity": 0.9, "begin_step": 0, "end_step": 100_000, "frequency": 37}


def adam():
    """Keras's own Adam, without any decay."""
    return keras.optimizers.Adam(), []


def lp_adamw():
    """The peer that the ratios are taken to."""
    return keras_lp.LpAdamW(), []


def callback():
    """The decay outside the optimizer."""
    return keras.optimizers.Adam(), [keras_lp.LpDecayCallback()]


class Idle(keras.callbacks.Callback):
    """A callback that is called after each batch, and does nothing."""

    def on_train_batch_end(self, batch, logs=None):
        """Does nothing."""


def idle():
    """The peer with such a callback: what any callback of this kind costs."""
    return keras_lp.LpAdamW(), [Idle()]


def target():
    """The peer, steered."""
    return keras_lp.LpAdamW(), [keras_lp.SparsityTarget(**TARGET)]


def compiled(make_model, make_training):
    """A model that is ready to train, and its callbacks."""
    keras.utils.set_random_seed(0)
    model = make_model()
    optimizer, callbacks = make_training()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model, callbacks


def measure(make_model, shape, batch_size, steps, epochs, turns):
    """Seconds for a step of each training, one row for each turn."""
    random = np.random.default_rng(0)
    x = random.normal(size=(batch_size * steps, *shape)).astype("float32")
    y = random.integers(10, size=len(x))
    trainings = [compiled(make_model, make) for make in (lp_adamw, adam, callback, idle, target)]
    seconds = np.empty((turns + 1, len(trainings)))
    for turn in range(turns + 1):  # The first compiles.
        for number, (model, callbacks) in list(enumerate(trainings))[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            model.fit(x, y, batch_size, epochs, callbacks=callbacks, verbose=0)
            seconds[turn, number] = (time.perf_counter() - start) / (steps * epochs)
    return seconds[1:]


def main():
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--turns", type=whole, help="of each training")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "The training ended")  # `fit` is called once for each turn.
    backend = keras.backend.backend()
    print(
        "| backend | model | LpAdamW, ms a step | Adam | Adam and `LpDecayCallback` "
        "| LpAdamW and an idle callback | LpAdamW and `SparsityTarget` |\n" + "| --- " * 7 + "|"
    )
    for name in arguments.models:
        *setting, turns = SETTINGS[name]
        seconds = measure(*setting, arguments.turns or turns)
        ratios = np.percentile(seconds[:, 1:] / seconds[:, :1], (25, 50, 75), axis=0)
        cells = [f"{median:.3f} ({low:.3f} to {high:.3f})" for low, median, high in ratios.T]
        base = 1000 * np.median(seconds[:, 0])
        print(f"| {backend} | {name} | {base:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
