"""Files that TensorBoard reads, written with its own package on every backend.

Not with `tf.summary`: it needs TensorFlow beside that package, and for a histogram more than
200 bytes of memory for each weight.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_lp.optional import require

_EXTRA = "tensorboard"
_BINS = 10  # of a histogram, in each unit


class EventFiles:
    """Writes scalars and histograms into a folder; a new file at the first one after `close`.

    Args:
        folder: Path of the folder, made when it is first written to.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open = require("tensorboard.summary.writer.event_file_writer", _EXTRA).EventFileWriter
        self._event = require("tensorboard.compat.proto.event_pb2", _EXTRA).Event
        self._summary = require("tensorboard.compat.proto.summary_pb2", _EXTRA)
        self._writer: Any = None

    def write(
        self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, np.ndarray]
    ) -> None:
        """Writes the values of one step, by their tags."""
        value = self._summary.Summary.Value
        values = [value(tag=tag, simple_value=number) for tag, number in scalars.items()]
        values += [value(tag=tag, histo=self._bin(array)) for tag, array in histograms.items()]
        self._writer = self._writer or self._open(self._folder)
        summary = self._summary.Summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Sees to it that all is on disk."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Flushes, and ends the file."""
        if self._writer:
            self._writer.close()
        self._writer = None

    def _bin(self, array: np.ndarray) -> Any:
        """Counts between edges that are the same at all steps, multiples of `1 / _BINS`."""
        if not array.size:
            return self._summary.HistogramProto()
        numbers = np.floor(array * _BINS).astype(int)
        first = numbers.min()
        counts = np.bincount(numbers - first)
        limits = (first + 1 + np.arange(len(counts))) / _BINS
        return self._summary.HistogramProto(
            min=array.min(), max=array.max(), num=array.size, bucket_limit=limits, bucket=counts
        )
