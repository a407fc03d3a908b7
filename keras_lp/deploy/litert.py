"""Export to LiteRT (TFLite), with its verification.

`export_tflite` converts, runs the bytes in LiteRT's default interpreter beside the Keras
model, and only then puts them in place, in one step: what stands at the path is either
what stood there before or a file that runs and agrees with the model.
"""

import functools
import gzip
import keyword
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.comparing import symbolic_inputs
from keras_lp.deploy.converting import QUANTIZATIONS, convert
from keras_lp.deploy.encoding import encode_for
from keras_lp.deploy.feeding import one_example, samples_of
from keras_lp.deploy.interpreting import check_runtime, latencies
from keras_lp.deploy.operations import has_loops, has_open_loops, has_state
from keras_lp.deploy.precision import in_float32, policies_of_other_precisions
from keras_lp.deploy.sublayers import within
from keras_lp.deploy.tracing import check_inputs
from keras_lp.deploy.verifying import check_loads, check_outputs
from keras_lp.deploy.writing import check_path, write_atomically
from keras_lp.optional import require
from keras_lp.sparsity.report import check_is_built

# Largest error that verification accepts, as a share of the largest output. Broken files
# are off by about 1; float16 keeps 11 bits of each weight, int8 8 of the largest.
_TOLERANCES = {None: 1e-3, "float16": 2e-2, "dynamic": 0.1, "int8": 0.2}
_FIXED = "takes {} at once: recurrent layers and other loops need a fixed number of examples"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ExportResult:
    """What `export_tflite` wrote; prints as a short table.

    Attributes:
        path: Where the file is.
        bytes: Size of the file.
        gzip_bytes: Size of the file after gzip, as it would travel.
        dense_bytes: Size of the same model exported dense in float32, for comparison.
        max_abs_error: Largest absolute difference between an output of the file in LiteRT
            and of the Keras model, computing in float32; `None` if not verified.
        latency: Median seconds of a run of the file in LiteRT on one thread; `None` if not
            measured.
        dense_latency: That of the dense float32 file.
        notes: What the export did that it was not asked for, and why; and outputs that are the
            same for all inputs.
    """

    path: Path
    bytes: int
    gzip_bytes: int
    dense_bytes: int
    max_abs_error: float | None
    latency: float | None = None
    dense_latency: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        def size(count: int) -> str:
            return f"{count:>12,}  ({count / self.dense_bytes:.1%} of dense float32)"

        error = "not verified" if self.max_abs_error is None else f"{self.max_abs_error:>12.3g}"
        lines = [
            f"{self.path}",
            f"  bytes          {size(self.bytes)}",
            f"  gzip bytes     {size(self.gzip_bytes)}",
            f"  dense bytes    {self.dense_bytes:>12,}",
            f"  max abs error  {error}",
        ]
        if self.latency is not None and self.dense_latency is not None:
            ratio = self.latency / self.dense_latency
            lines.append(
                f"  latency        {1000 * self.latency:>9.3f} ms  "
                f"({ratio:.2f} of dense float32, {1000 * self.dense_latency:.3f} ms)"
            )
        return "\n".join([*lines, *(f"  note           {note}" for note in self.notes)])


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    sparse: bool = True,
    quantization: str | None = None,
    representative_dataset: Any = None,
    verify: bool = True,
    *,
    batch_size: int | None = None,
    runtime: str = "default",
    inputs: Any = None,
    tolerance: float | None = None,
    latency: bool = False,
) -> ExportResult:
    """Writes a model as a `.tflite` file that is verified in LiteRT's default interpreter.

    With sparse encoding only the nonzero weights and their positions take room; LiteRT
    makes dense weights of them (operation DENSIFY) when it loads the file, which then runs as
    fast as the dense one. Run `strip_pruning` first, which makes tiny weights exact zeros.
    Needs TensorFlow and the extra `deploy`. Under another backend, and for int8, TensorFlow
    converts in a process of its own, which imports the classes of the model from their modules.
    The file computes in float32, or int8, whatever precision the model was trained in.

    | `quantization` | weights | activations | `sparse=True` |
    | --- | --- | --- | --- |
    | `None` | float32 | float32 | yes |
    | `"float16"` | float16 | float32 | yes |
    | `"dynamic"` | int8 | float32 | with `runtime="no_delegate"` |
    | `"int8"` | int8 | int8 | with `runtime="no_delegate"` |

    Inputs and outputs of the file have the dtypes of the model's in every case, but for float32
    in place of another precision.

    Args:
        model: A built Keras 3 model. A subclassed one is exported at the sizes that it was built
            with; for others, or for open ones, make a functional model of it:
            `keras.Model(inputs, model(inputs))`.
        path: Path of the file to write, ending in `.tflite`, in an existing folder. An
            existing file is replaced in one step, and only after verification.
        sparse: Whether to encode weights without their zeros, where that makes the file
            smaller. Use `False` for a runtime that lacks the operation DENSIFY, and for int8
            weights.
        quantization: `None`, `"float16"`, `"dynamic"` or `"int8"`, see the table.
        representative_dataset: For `"int8"`, inputs of which the ranges of the activations are
            taken, some hundred examples: an array with a batch dimension, or a list or
            dictionary of arrays as the model takes them, a `tf.data.Dataset` or other
            iterable of such batches, or a function that returns one.
        verify: Whether to compare the outputs of the file in LiteRT with the model's. That it
            loads is checked in any case.
        batch_size: Integer >= 1, to fix how many examples the file takes at once. Defaults to
            any number, or to 1 for recurrent layers and other loops, which need a fixed one.
        runtime: `"default"` for a file that LiteRT's default interpreter runs, or
            `"no_delegate"` for one that has to run without the default delegate XNNPACK only,
            in applications that turn it off. It may be slower there. A few networks get sparse
            weights with `"x86"` or `"no_delegate"` alone, since XNNPACK computes them wrongly
            elsewhere (docs/runtimes.md says which); the result says so. `"x86"` is LiteRT's
            default interpreter on x86 processors with AVX.
        inputs: Inputs of the model to verify with, as the model takes them: an array, or
            a list or dict of arrays, with a batch dimension. A file that takes some number at
            once is run on the first parts of that number. Defaults to 32 examples of the
            `representative_dataset`, or to random numbers from a fixed seed: standard normal
            ones, and integers below the smallest vocabulary of the model's embeddings, or 0
            and 1 without one.
        tolerance: Float >= 0. Largest error that verification accepts, as a share of the
            largest magnitude in the same output; in channels (the last axis, or one shorter
            than all others) of a smaller scale than others, of the largest spread among them.
            Defaults to `1e-3`, `2e-2` for float16, `0.1` for dynamic and `0.2` for int8.
        latency: Whether to measure how long a run takes, against the dense float32 file.

    Returns:
        An `ExportResult` with `path`, `bytes`, `gzip_bytes`, `dense_bytes`,
        `max_abs_error`, `latency`, `dense_latency` and `notes`.

    Raises:
        TypeError: If `model` is no Keras 3 model, or a flag is neither True nor False.
        ValueError: If the model is not built or the shapes of its inputs are not known, an argument
            is out of range, the inputs or the representative dataset do not fit the model, or the
            process that converts cannot import one of its classes.
        FileNotFoundError: If the folder of `path` does not exist.
        ImportError: If TensorFlow or LiteRT is not installed.
        OSError: If the system fails, such as for lack of room.
        RuntimeError: If the conversion fails, or the file does not run in LiteRT or disagrees
            with the model. Nothing is written then.

    Example:
    >>> result = keras_lp.export_tflite(model, "model.tflite", quantization="float16")
    >>> print(result)
    """
    check_is_built(model)
    path = check_path(path, ".tflite")
    _check_flags(sparse=sparse, verify=verify, latency=latency)
    _check_settings(quantization, representative_dataset, runtime, batch_size, tolerance)
    check_inputs(model)
    _check_names(model)
    _check_batch_size(model, batch_size)
    tolerance = _TOLERANCES[quantization] if tolerance is None else tolerance
    require("ai_edge_litert.interpreter", "deploy")

    made = _convert(model, quantization, representative_dataset, batch_size)
    inputs = made.examples if inputs is None else inputs
    encoded, notes = encode_for(runtime, made.file) if sparse else (made.file, ())
    runner = check_loads(encoded, runtime, model)
    error, remarks = None, list[str]()
    if verify:
        with in_float32(model):
            load_again = functools.partial(check_loads, encoded, runtime, model)
            fresh = load_again if has_state(encoded) else lambda: runner
            is_int8 = quantization == "int8"
            error, remarks = check_outputs(fresh, model, inputs, tolerance, is_int8)
    seconds: Sequence[float | None] = (None, None)
    if latency:
        runners = [runner, check_loads(made.dense, runtime, model)]
        seconds = latencies(runners, one_example(model, runner.get_input_details(), inputs))
    write_atomically(path, lambda target: target.write_bytes(encoded))
    return ExportResult(
        path=path,
        bytes=len(encoded),
        gzip_bytes=len(gzip.compress(encoded, compresslevel=9)),
        dense_bytes=len(made.dense),
        max_abs_error=error,
        latency=seconds[0],
        dense_latency=seconds[1],
        notes=(*made.notes, *notes, *remarks),
    )


@dataclass(frozen=True)
class _Converted:
    """What came of a model.

    Attributes:
        file: A file with the weights that were asked for.
        dense: The same model in float32.
        examples: Some of the representative dataset; `None` without one.
        notes: As in `ExportResult`.
    """

    file: bytes
    dense: bytes
    examples: Any
    notes: list[str]


def _convert(
    model: keras.Model, quantization: str | None, dataset: Any, batch_size: int | None
) -> _Converted:
    notes = _notes_on(model)
    at_once = [None, quantization] if quantization in ("float16", "dynamic") else [None]
    fixed = _own_batch_size(model) or 1
    recurrent = within(model, keras.layers.RNN)
    if batch_size is None and any(one.stateful or not one.unroll for one in recurrent):
        batch_size, notes = fixed, [*notes, _FIXED.format(fixed)]
    dense, *others = convert(model, at_once, batch_size=batch_size)
    if batch_size is None and has_open_loops(dense):  # of layers that are not Keras's own
        batch_size, notes = fixed, [*notes, _FIXED.format(fixed)]
        dense, *others = convert(model, at_once, batch_size=batch_size)
    if quantization != "int8":
        return _Converted(others[0] if others else dense, dense, None, notes)
    # The samples for int8 are read as the dense file takes them.
    details = check_loads(dense, "default", model).get_input_details()
    samples, examples = samples_of(model, details, dataset)
    unroll = has_loops(dense) and bool(recurrent)
    if unroll:
        notes.append(
            "recurrent layers are unrolled, as int8 needs; `dynamic` makes a smaller file of them"
        )
    (file,) = convert(model, ["int8"], samples, batch_size, unroll)
    return _Converted(file, dense, examples, notes)


def _notes_on(model: keras.Model) -> list[str]:
    notes = []
    policies = policies_of_other_precisions(model)
    if policies:
        notes.append(f"computes in float32, where the model does in {', '.join(policies)}")
    if not symbolic_inputs(model):
        notes.append(
            "takes inputs of the sizes that the model was built with; for others export "
            "`keras.Model(inputs, model(inputs))` with `inputs = keras.Input(shape)`"
        )
    return notes


def _own_batch_size(model: keras.Model) -> int | None:
    """The number of examples that a model was made for; `None` for any."""
    return next((tensor.shape[0] for tensor in symbolic_inputs(model)), None)


def _check_flags(**flags: Any) -> None:
    """Raises TypeError unless all are True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"Argument `{name}` must be True or False. Received: {name}={flag!r}")


def _check_settings(
    quantization: Any, representative_dataset: Any, runtime: Any, batch_size: Any, tolerance: Any
) -> None:
    """Raises ValueError if an argument is out of its range."""
    if not isinstance(quantization, str | None) or quantization not in QUANTIZATIONS:
        raise ValueError(
            'Argument `quantization` must be None (float32 weights), "float16", "dynamic" (int8 '
            'weights) or "int8" (int8 weights and activations). '
            f"Received: quantization={quantization!r}"
        )
    if (quantization == "int8") != (representative_dataset is not None):
        raise ValueError(
            'Argument `representative_dataset` is needed with `quantization="int8"`, some hundred '
            "examples of the model's inputs, and has no effect otherwise. Received: "
            f"quantization={quantization!r}, representative_dataset of type "
            f"{type(representative_dataset).__name__}"
        )
    check_runtime(runtime)
    if tolerance is not None and not (_is_number(tolerance, Real) and float(tolerance) >= 0):
        raise ValueError(
            "Argument `tolerance` must be a number >= 0, a share of the largest output. "
            f"Received: tolerance={tolerance!r}"
        )
    if batch_size is not None and not (_is_number(batch_size, Integral) and int(batch_size) >= 1):
        raise ValueError(
            "Argument `batch_size` must be an integer >= 1, or None for any number of examples. "
            f"Received: batch_size={batch_size!r}"
        )


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_names(model: keras.Model) -> None:
    """Raises ValueError for a name of an input that TensorFlow cannot keep in the file."""
    for tensor in symbolic_inputs(model):
        name = tensor.name
        if not _NAME.fullmatch(name) or keyword.iskeyword(name) or name == "self":
            raise ValueError(
                "Names of inputs in a .tflite file begin with a letter from A to Z or a digit, go "
                "on with those, `_`, `.` or `-`, and are no word of Python such as `class` or "
                "`self`. Make the model with another one, `keras.Input(name=...)`. Received: "
                f"model={model.name!r} with input {name!r}"
            )


def _check_batch_size(model: keras.Model, batch_size: int | None) -> None:
    """Raises ValueError if a model cannot take so many examples at once."""
    own = _own_batch_size(model)
    if batch_size is not None and own not in (None, batch_size):
        raise ValueError(
            f"Argument `batch_size` must be that of the model, {own}, or None. "
            f"Received: batch_size={batch_size}"
        )
