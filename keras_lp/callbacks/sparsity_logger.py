"""Sparsity in the logs of a training, and in TensorBoard.

`SparsityLogger` looks at the weights once an epoch, or every so many steps, and in between
at nothing: the cost of a look is that of reading the weights.
"""

import functools
import os
from collections import Counter
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp.callbacks.event_files import EventFiles
from keras_lp.callbacks.training import (
    add_logs,
    batches_done,
    batches_seen,
    count_zeros,
    has_variables,
)
from keras_lp.selection import Named
from keras_lp.sparsity.report import by_variable, sort_weights

_FOLDER = "sparsity"  # beside Keras's "train" and "validation"


class SparsityLogger(keras.callbacks.Callback):
    """Logs the sparsity of any model, whatever it is trained with.

    Adds to the logs of each epoch: `sparsity` (share of zeros in the decayed variables, which
    are those that `keras_lp.sparsity_report` counts), `nonzero` (the number of other entries)
    and, if the model has an Lp optimizer or a `keras_lp.LpDecayCallback`, its `weight_decay`
    and `p` of now. Where a callback of keras_lp's before it has added them, they stay.

    Place it before the callbacks that are to see them, such as `CSVLogger`, `TensorBoard`,
    `EarlyStopping(monitor="sparsity", mode="max")` and `ModelCheckpoint`: Keras hands the
    logs from one callback to the next. `History` and the progress bar always see them.

    With `log_dir` it writes for TensorBoard, on every backend, the scalars `sparsity` and
    `sparsity/<layer>`, and the histograms `log10_magnitude/<layer>` of `log10(|w|)` over the
    decayed weights that are not zero. A layer with several decayed variables has these for each,
    `<layer>/<variable>`. The weights are copied to the host for it.

    Args:
        log_dir: Path of a folder, which `keras.callbacks.TensorBoard` may share: the files are
            in its subfolder `sparsity`. `None` for none, the default. Needs the extra
            `tensorboard`.
        frequency: When to write there: `"epoch"`, with the number of the epoch as the step,
            as Keras does; or an integer, every so many batches, with the number of batches
            as the step, which goes on over calls of `fit` and where a training is resumed.
            With `steps_per_execution` it is the first batch at which Keras calls. Defaults to
            `"epoch"`.
        include: Regular expression, or a list of them, of variables to count although the
            default rule leaves them out, as in `keras_lp.sparsity_report`. Defaults to `None`.
        exclude: Regular expression, or a list of them, of variables not to count, as in
            `keras_lp.sparsity_report`. Defaults to `None`: what the optimizer decays.

    Raises:
        ImportError: If there is a `log_dir` and tensorboard is not installed.
        TypeError: If `log_dir` is no path.
        ValueError: If `frequency` is neither `"epoch"` nor an integer >= 1, or is one without
            a `log_dir`, or a pattern is malformed; at the beginning of the training, or at the
            first look at a model that is not built then, if a pattern matches no variable
            or there is no decayed variable.

    Example:
    >>> logger = keras_lp.SparsityLogger("logs")
    >>> history = model.fit(x, y, callbacks=[logger, keras.callbacks.TensorBoard("logs")])
    >>> history.history["sparsity"]
    [0.21, 0.58, 0.83]
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        frequency: str | int = "epoch",
        exclude: str | Iterable[str] | None = None,
        *,
        include: str | Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        self._every = _check_frequency(frequency, log_dir)
        self._named = Named.of(include, exclude)
        self._files = None if log_dir is None else EventFiles(_folder_in(log_dir))
        self._step = self._epoch_start = 0  # in batches
        # Keras may go on with the next batch at once, if there is nothing to do after one.
        self.async_safe = self._every is None

    def on_train_begin(self, logs: Any = None) -> None:
        """Refuses, as far as this is known by now, what cannot be counted."""
        if has_variables(self.model):
            sort_weights(self.model, self._named)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Goes on counting the batches, after those of a training that was interrupted."""
        if self._every:
            seen = batches_seen(getattr(self.model, "optimizer", None))
            self._step = self._epoch_start = max(self._step, seen)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Writes every `frequency` batches."""
        # Not a glance at `self.model` in between: under JAX it would sync the whole state.
        if self._files and self._every:
            before, self._step = self._step, self._epoch_start + batches_done(batch, self.params)
            if self._step // self._every > before // self._every:
                self._files.write(self._step, *_read(self.model, self._named))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds to the logs; writes once an epoch."""
        model = self.model
        add_logs(model, logs, functools.partial(count_zeros, model, self._named))
        if self._files:
            if not self._every:
                self._files.write(epoch, *_read(self.model, self._named))
            self._files.flush()

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the file."""
        if self._files:
            self._files.close()


def _read(model: keras.Model, named: Named) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """What is written of a model: its scalars and histograms, by their tags."""
    scalars, histograms = {"sparsity": 0.0}, {}
    weights = {id(one.variable): one for one in sort_weights(model, named)[0]}
    seen: Counter[str] = Counter()
    zeros = size = 0
    for path, variable in by_variable(model, [one.variable for one in weights.values()]):
        seen[path] += 1  # Layers of two inner models may have the same.
        name = f"{path} ({seen[path]})" if seen[path] > 1 else path
        weight = weights[id(variable)]
        magnitudes = _magnitudes(weight.values())
        zeros_here = int(np.sum(magnitudes == 0))
        zeros, size = zeros + zeros_here, size + magnitudes.size
        scalars[f"sparsity/{name}"] = zeros_here / magnitudes.size
        if not weight.is_quantized:  # Integers are no magnitudes.
            is_drawn = (magnitudes > 0) & np.isfinite(magnitudes)
            histograms[f"log10_magnitude/{name}"] = np.log10(magnitudes[is_drawn])
    scalars["sparsity"] = zeros / size
    return scalars, histograms


def _magnitudes(weights: Any) -> np.ndarray:
    return np.abs(np.ravel(ops.convert_to_numpy(weights)), dtype="float64")


def _check_frequency(frequency: Any, log_dir: Any) -> int | None:
    """The number of batches, `None` for once an epoch; raises ValueError if it is neither."""
    if frequency == "epoch":
        return None
    if isinstance(frequency, bool) or not (isinstance(frequency, Integral) and int(frequency) >= 1):
        raise ValueError(
            'Argument `frequency` must be "epoch" or an integer >= 1, a number of batches. '
            f"Received: frequency={frequency!r}"
        )
    if log_dir is None:
        raise ValueError(
            "Argument `frequency` is for the files in `log_dir`. Pass that too, or leave out "
            f"`frequency`: the logs are those of epochs. Received: frequency={frequency!r}, "
            "log_dir=None"
        )
    return int(frequency)


def _folder_in(log_dir: Any) -> str:
    """Our folder in `log_dir`; raises TypeError if this is no path."""
    if not isinstance(log_dir, (str, os.PathLike)):
        raise TypeError(
            "Argument `log_dir` must be the path of a folder, a string or a `pathlib.Path`. "
            f"Received: log_dir={log_dir!r}"
        )
    return os.path.join(log_dir, _FOLDER)
