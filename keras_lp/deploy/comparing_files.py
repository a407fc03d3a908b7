"""Comparison of two `.tflite` files on the same data, in LiteRT."""

import functools
import gzip
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_lp.deploy.explaining import of_loading
from keras_lp.deploy.feeding import (
    Details,
    Feed,
    example_count,
    feed_of_any_number,
    fixed_size,
    natural_order,
)
from keras_lp.deploy.interpreting import check_runtime, latencies, load
from keras_lp.deploy.writing import check_source

_PART = 256  # examples in a run, where a file takes any number


@dataclass(frozen=True)
class TfliteFile:
    """What was measured of one file.

    Attributes:
        path: Where it is.
        bytes: Its size.
        gzip_bytes: Its size after gzip, as it would travel.
        latency: Median seconds for an example on one thread: of a run with one, or with as
            many as one of the files takes at once, by their number.
        accuracy: Share of examples that it classifies as their labels say; `None` without
            labels.
    """

    path: Path
    bytes: int
    gzip_bytes: int
    latency: float
    accuracy: float | None


@dataclass(frozen=True)
class TfliteComparison:
    """What `compare_tflite` found; prints as a table.

    Attributes:
        first: A `TfliteFile`.
        second: The other one.
        examples: Number of examples that both ran on.
        agreement: Share of examples that both put in the same class; `None` where outputs are no
            classes.
        max_abs_difference: Largest absolute difference of their outputs.
    """

    first: TfliteFile
    second: TfliteFile
    examples: int
    agreement: float | None
    max_abs_difference: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain values, ready for JSON."""
        data = asdict(self)
        for name in ("first", "second"):
            data[name]["path"] = str(data[name]["path"])
        return data

    def __str__(self) -> str:
        files = (self.first, self.second)
        rows = [("", *(file.path.name for file in files))]
        rows += [
            ("bytes", *(f"{file.bytes:,}" for file in files)),
            ("gzip bytes", *(f"{file.gzip_bytes:,}" for file in files)),
            ("latency", *(f"{1000 * file.latency:.3f} ms" for file in files)),
        ]
        if self.first.accuracy is not None:
            rows.append(("accuracy", *(f"{file.accuracy:.2%}" for file in files)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows
        ]
        if self.agreement is not None:
            lines.append(f"Same class: {self.agreement:.2%} of {self.examples:,} examples.")
        lines.append(f"Largest difference of outputs: {self.max_abs_difference:.3g}.")
        return "\n".join(lines)


def compare_tflite(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    inputs: Any,
    labels: Any = None,
    *,
    runtime: str = "default",
) -> TfliteComparison:
    """Runs two `.tflite` files on the same examples and measures both.

    A class is the index of the largest value along the last axis of a file's only output; an
    output of one column is a probability, and its class is whether it exceeds 0.5, where there
    are labels. Numbers that are NaN or infinite are an error.

    Args:
        first: Path of a file.
        second: Path of another.
        inputs: Arrays by the names of the files' inputs, each with a batch dimension, or one
            array for files with one input.
        labels: Integer classes, one for each example, or one-hot rows of them.
        runtime: `"default"` for LiteRT as applications get it, or `"no_delegate"`, as in
            `export_tflite`.

    Returns:
        A `TfliteComparison` with `first`, `second`, `examples`, `agreement`, `max_abs_difference`
        and `to_dict()`.

    Raises:
        TypeError: If `first` or `second` is no path.
        FileNotFoundError: If one of them does not exist.
        ValueError: If the inputs or the labels do not fit the files, or the outputs of the files
            not each other.
        RuntimeError: If LiteRT does not run a file, or it gives NaN.
        ImportError: If LiteRT is not installed.

    Example:
    >>> result = keras_lp.compare_tflite("dense.tflite", "sparse.tflite", x_test, y_test)
    >>> print(result)
    """
    check_runtime(runtime)
    paths = [check_source("first", first), check_source("second", second)]
    runners = [_load(path, runtime) for path in paths]
    feeds = [_feed(runner.get_input_details(), inputs) for runner in runners]
    outputs = [
        _run(path, runner, feed) for path, runner, feed in zip(paths, runners, feeds, strict=True)
    ]
    difference = _largest_difference(*outputs)
    classes = [_classes(output, labels is not None) for output in outputs]
    accuracies: Sequence[float | None] = (None, None)
    if labels is not None:
        accuracies = [_accuracy(*both, labels) for both in zip(outputs, classes, strict=True)]
    seconds = _latencies(runners, feeds)
    files = [
        TfliteFile(path, path.stat().st_size, _gzip_bytes(path), latency, accuracy)
        for path, latency, accuracy in zip(paths, seconds, accuracies, strict=True)
    ]
    return TfliteComparison(
        first=files[0],
        second=files[1],
        examples=example_count(feeds[0]),
        agreement=None if classes[0] is None else float(np.mean(classes[0] == classes[1])),
        max_abs_difference=difference,
    )


def _load(path: Path, runtime: str) -> Any:
    data = path.read_bytes()
    try:
        runner = load(data, runtime)
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"{path} does not run in LiteRT. {of_loading(data, str(error))}"
        ) from error
    details = [*runner.get_input_details().values(), *runner.get_output_details().values()]
    if any(detail["quantization"][0] for detail in details):
        raise ValueError(
            f"{path} has quantized inputs or outputs, which are no plain numbers. Export it with "
            "float32 inputs and outputs, as `keras_lp.export_tflite` does"
        )
    return runner


def _feed(details: Details, inputs: Any) -> Feed:
    """The inputs of a file by their names, all examples in one array."""
    names = list(details)
    if isinstance(inputs, Mapping):
        if len(inputs) == len(names) == 1:  # Files of two models may name their input otherwise.
            inputs = dict.fromkeys(names, *inputs.values())
        missing = [name for name in names if name not in inputs]
        if missing:
            raise ValueError(
                "Argument `inputs` must hold an array for each input of the files, "
                f"{', '.join(names)}. Received: arrays {', '.join(inputs)}"
            )
        inputs = {name: inputs[name] for name in names}
    return feed_of_any_number(None, details, inputs)


def _run(path: Path, runner: Any, feed: Feed) -> list[np.ndarray]:
    """The outputs of a file, in its order, of all examples."""
    count, size = example_count(feed), fixed_size(runner.get_input_details())
    parts = []
    for start in range(0, count, size or _PART):
        # The last examples once more, where a file takes no fewer.
        most = start + size if size else min(start + _PART, count)
        rows = np.minimum(np.arange(start, most), count - 1)
        try:
            parts.append(runner(**{name: array[rows] for name, array in feed.items()}))
        except Exception as error:
            raise RuntimeError(f"{path} does not run in LiteRT. LiteRT said: {error}") from error
    names = sorted(parts[0], key=natural_order)
    outputs = [np.concatenate([part[name] for part in parts])[:count] for name in names]
    if not all(np.isfinite(array).all() for array in outputs if array.dtype.kind == "f"):
        raise RuntimeError(
            f"{path} gives outputs that are NaN or infinite, which cannot be compared. Look at the "
            "weights of its model, and for inputs beyond what it was trained on"
        )
    return outputs


def _largest_difference(outputs: list[np.ndarray], others: list[np.ndarray]) -> float:
    kinds = [[(array.shape, array.dtype.kind) for array in each] for each in (outputs, others)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            "Both files must have the same outputs. Received: outputs of shapes "
            f"{[array.shape for array in outputs]} and {[array.shape for array in others]}"
        )
    pairs = zip(outputs, others, strict=True)
    return max(float(np.max(np.abs(a.astype("float64") - b), initial=0)) for a, b in pairs)


def _classes(outputs: list[np.ndarray], has_labels: bool) -> np.ndarray | None:
    """The class of each example; `None` where outputs are none."""
    if len(outputs) == 1 and outputs[0].ndim > 1 and outputs[0].shape[-1] > 1:
        return np.argmax(outputs[0], axis=-1)
    if len(outputs) == 1 and has_labels:
        return (outputs[0] > 0.5).astype(int)
    return None


def _accuracy(outputs: list[np.ndarray], classes: np.ndarray | None, labels: Any) -> float:
    """Share of the examples whose class is their label."""
    if classes is None:
        raise ValueError(
            f"Argument `labels` is for files with one output. Received files with {len(outputs)}"
        )
    (output,) = outputs
    width = output.shape[-1] if output.ndim > 1 else 1
    if width == 1 and not np.all((output >= 0) & (output <= 1)):
        raise ValueError(
            "Argument `labels` is for outputs that are classes: one column must hold "
            "probabilities. Leave the labels out, or add a sigmoid to the model. Received: "
            f"outputs from {output.min():.3g} to {output.max():.3g}"
        )
    count = max(width, 2)
    try:
        wanted = np.asarray(labels)
    except ValueError as error:
        raise ValueError(_not_classes(classes, count, f"{error}")) from error
    if wanted.ndim == classes.ndim + 1 and wanted.shape[-1] == count:
        wanted = np.argmax(wanted, axis=-1)
    is_number = wanted.dtype.kind in "biuf" and wanted.size == classes.size
    if not is_number or not np.all(np.isin(wanted, np.arange(count))):
        received = f"shape {wanted.shape}, dtype {wanted.dtype}"
        if is_number:
            received += f", values from {wanted.min()} to {wanted.max()}"
        raise ValueError(_not_classes(classes, count, received))
    return float(np.mean(classes == wanted.reshape(classes.shape)))


def _not_classes(classes: np.ndarray, count: int, received: str) -> str:
    return (
        f"Argument `labels` must hold a class from 0 to {count - 1} for each example, shape "
        f"{classes.shape}, or one-hot rows of {count}. Received: {received}"
    )


def _latencies(runners: Sequence[Any], feeds: Sequence[Feed]) -> list[float]:
    """Median seconds that each file takes for an example.

    Where one of them takes some number at once, the other is given as many.
    """
    fixed = [fixed_size(runner.get_input_details()) for runner in runners]
    sizes = [own or max(filter(None, fixed), default=1) for own in fixed]
    runs = []
    for runner, feed, size in zip(runners, feeds, sizes, strict=True):
        rows = np.minimum(np.arange(size), example_count(feed) - 1)
        runs.append(functools.partial(runner, **{name: feed[name][rows] for name in feed}))
    return [run / size for run, size in zip(latencies(runs, {}), sizes, strict=True)]


def _gzip_bytes(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), compresslevel=9))
