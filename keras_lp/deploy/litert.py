"""Export to LiteRT (TFLite) and its verification.

`export_tflite` converts, runs the bytes in LiteRT's default interpreter beside the Keras
model, and only then puts them in place, in one step: what stands at the path is either
what stood there before or a file that runs and agrees with the model.
"""

import gzip
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.comparing import is_functional, is_subclassed
from keras_lp.deploy.inference import outputs_of
from keras_lp.deploy.sparse_encoding import encode_zeros
from keras_lp.optional import require
from keras_lp.sparsity.report import check_model

# Largest error that verification accepts, as a share of the largest output. Broken files
# are off by about 1; float16 keeps 11 bits of each weight.
_TOLERANCES = {None: 1e-3, "float16": 2e-2}
_BATCH = 8  # random inputs, where the model leaves the batch size open
_LENGTH = 16  # of the other dimensions that the model leaves open
_SCALES = (1.0, 100.0)  # of random inputs; the next if outputs do not depend on the inputs
_SLACK = 1e-6  # where all outputs are zero


@dataclass(frozen=True)
class ExportResult:
    """What `export_tflite` wrote; prints as a short table.

    Attributes:
        path: Where the file is.
        bytes: Size of the file.
        gzip_bytes: Size of the file after gzip, as it would travel.
        dense_bytes: Size of the same model exported dense in float32, for comparison.
        max_abs_error: Largest absolute difference between an output of the file in LiteRT
            and of the Keras model; `None` if not verified.
    """

    path: Path
    bytes: int
    gzip_bytes: int
    dense_bytes: int
    max_abs_error: float | None

    def __str__(self) -> str:
        def size(count: int) -> str:
            return f"{count:>12,}  ({count / self.dense_bytes:.1%} of dense float32)"

        error = "not verified" if self.max_abs_error is None else f"{self.max_abs_error:>12.3g}"
        return (
            f"{self.path}\n"
            f"  bytes          {size(self.bytes)}\n"
            f"  gzip bytes     {size(self.gzip_bytes)}\n"
            f"  dense bytes    {self.dense_bytes:>12,}\n"
            f"  max abs error  {error}"
        )


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    sparse: bool = True,
    quantization: str | None = None,
    verify: bool = True,
    *,
    inputs: Any = None,
    tolerance: float | None = None,
) -> ExportResult:
    """Writes a model as a `.tflite` file that is verified in LiteRT's default interpreter.

    With sparse encoding only the nonzero weights and their positions take room; LiteRT
    makes dense weights of them (operation DENSIFY) when it loads the file, which then runs as
    fast as the dense one. Run `strip_pruning` first, which makes tiny weights exact zeros.
    Needs the TensorFlow backend and the extra `deploy`.

    Args:
        model: A built Keras 3 model.
        path: Path of the file to write, ending in `.tflite`, in an existing folder. An
            existing file is replaced in one step, and only after verification.
        sparse: Whether to encode weights without their zeros, where that makes the file
            smaller. Use `False` for a runtime that lacks the operation DENSIFY.
        quantization: `None` for float32 weights, or `"float16"` for weights rounded to
            float16 (inputs and outputs stay float32).
        verify: Whether to run the file in LiteRT and compare its outputs with the model's.
        inputs: Inputs of the model to verify with, as the model takes them: an array, or
            a list or dict of arrays, with a batch dimension. Defaults to random numbers from
            a fixed seed: standard normal ones, and integers below the smallest vocabulary
            of the model's embeddings, or 0 and 1 without one.
        tolerance: Float >= 0. Largest error that verification accepts, as a share of the
            largest magnitude in the same output. Defaults to `1e-3`, and `2e-2` for
            float16.

    Returns:
        An `ExportResult` with `path`, `bytes`, `gzip_bytes`, `dense_bytes` and
        `max_abs_error`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If the model is not built, an argument is out of range, or the inputs
            do not fit the model.
        FileNotFoundError: If the folder of `path` does not exist.
        ImportError: If TensorFlow or LiteRT is not installed.
        RuntimeError: If the backend is not TensorFlow, the conversion fails, or the file
            does not run in LiteRT or disagrees with the model. Nothing is written then.

    Example:
    >>> result = keras_lp.export_tflite(model, "model.tflite", quantization="float16")
    >>> print(result)
    """
    check_model(model)
    path = _check_path(path)
    if quantization not in tuple(_TOLERANCES):  # A tuple, since the value may not be hashable.
        raise ValueError(
            'Argument `quantization` must be None (float32 weights) or "float16". '
            f"Received: quantization={quantization!r}"
        )
    if tolerance is None:
        tolerance = _TOLERANCES[quantization]
    elif not (isinstance(tolerance, Real) and float(tolerance) >= 0):
        raise ValueError(
            "Argument `tolerance` must be a number >= 0, a share of the largest output. "
            f"Received: tolerance={tolerance!r}"
        )
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "`export_tflite` needs the TensorFlow backend. Save the model with `model.save` "
            "and export it in a process started with KERAS_BACKEND=tensorflow. "
            f"Received: backend={keras.backend.backend()!r}"
        )
    interpreter = require("ai_edge_litert.interpreter", "deploy")

    data = _convert(model, quantization)
    dense_bytes = len(data if quantization is None else _convert(model, None))
    if sparse:
        data = encode_zeros(data)
    error = _verify(interpreter, data, model, inputs, tolerance) if verify else None
    _write_atomically(path, data)
    return ExportResult(
        path=path,
        bytes=len(data),
        gzip_bytes=len(gzip.compress(data, compresslevel=9)),
        dense_bytes=dense_bytes,
        max_abs_error=error,
    )


def _check_path(path: str | os.PathLike[str]) -> Path:
    received = f"Received: path={path!r}"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Argument `path` must be a string or a path. {received}")
    path = Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"Argument `path` must end in `.tflite`. {received}")
    target = _target(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            "The folder of argument `path` does not exist; create it first "
            f"(`mkdir -p {target.parent}`). {received}"
        )
    if target.is_dir():
        raise ValueError(f"Argument `path` must name a file, but is a folder. {received}")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(
            f"The folder of argument `path` cannot be written to; choose another. {received}"
        )
    return path


def _target(path: Path) -> Path:
    """Where the file is to be: a link stays a link."""
    return Path(os.path.realpath(path))


def _convert(model: keras.Model, quantization: str | None) -> bytes:
    """The model as the bytes of a `.tflite` file with dense weights."""
    tf = require("tensorflow", "tensorflow")
    options: dict[str, Any] = {}
    optimizations = []
    if quantization == "float16":
        optimizations.append(tf.lite.Optimize.DEFAULT)
        options["target_spec"] = {"supported_types": [tf.float16]}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        try:
            model.export(
                str(file), format="litert", verbose=False, optimizations=optimizations, **options
            )
        except Exception as error:
            raise RuntimeError(
                "The model could not be converted to LiteRT, nothing was written. "
                f"Received: model={model.name!r}, quantization={quantization!r}. "
                f"The converter said: {error}"
            ) from error
        return file.read_bytes()


def _verify(
    interpreter: Any, data: bytes, model: keras.Model, inputs: Any, tolerance: float
) -> float:
    """Largest absolute error of the file against the model; raises if it is too large."""
    try:
        foreign = _tensorflow_operations(data)
        runner = interpreter.Interpreter(model_content=data).get_signature_runner()
    except Exception as error:
        raise RuntimeError(_refusal("does not load", f"LiteRT said: {error}")) from error
    if foreign:
        # Not left to LiteRT: in a process with TensorFlow some versions can run these.
        raise RuntimeError(
            _refusal(
                "does not run",
                f"It has operations that only TensorFlow knows: {', '.join(foreign)}. They come "
                "from layers such as a recurrent one without `unroll=True`, or one that computes "
                'in half precision (set `layer.dtype_policy = "float32"` before the export)',
            )
        )
    details = runner.get_input_details()
    if inputs is not None:
        expected, feed = _run(model, details, inputs)
    else:
        for scale in _SCALES:
            expected, feed = _run(model, details, _random_inputs(model, details, scale, seed=0))
            other, _ = _run(model, details, _random_inputs(model, details, scale, seed=1))
            if _differ(expected, other):
                break
        else:
            raise RuntimeError(
                _refusal(
                    "cannot be compared with the model",
                    "The model's outputs are the same for all random inputs. Pass real data as "
                    "`inputs`",
                )
            )
    try:
        outputs = runner(**feed)
    except Exception as error:
        raise RuntimeError(_refusal("does not run", f"LiteRT said: {error}")) from error
    return max(
        _compare(name, outputs.get(name), array, tolerance)
        for name, array in _named_outputs(expected, list(outputs)).items()
    )


def _tensorflow_operations(data: bytes) -> list[str]:
    """Names of the operations in a file that LiteRT's default interpreter does not have."""
    schema = require("ai_edge_litert.schema_py_generated", "deploy")
    model = schema.Model.GetRootAs(data, 0)
    codes = (
        model.OperatorCodes(index).CustomCode() for index in range(model.OperatorCodesLength())
    )
    return sorted(code.decode() for code in codes if code is not None and code.startswith(b"Flex"))


def _run(model: keras.Model, details: dict[str, Any], inputs: Any) -> tuple[Any, dict[str, Any]]:
    """Outputs of the model, and its inputs as arrays by their names in the file."""
    names = _input_names(model, details)
    is_single = len(names) == 1 and not isinstance(inputs, dict)
    if isinstance(inputs, dict) and set(inputs) == set(names):
        arrays = [inputs[name] for name in names]
    elif is_single:  # An array, nested lists of numbers, or a list of one array.
        rank = len(details[names[0]]["shape_signature"])
        is_wrapped = isinstance(inputs, (list, tuple)) and len(inputs) == 1
        arrays = [inputs[0] if is_wrapped and np.ndim(inputs[0]) == rank else inputs]
    else:
        arrays = keras.tree.flatten(inputs)
    if len(arrays) != len(names):
        raise ValueError(
            f"Argument `inputs` must hold {len(names)} arrays, one for each input of the model "
            f"({', '.join(names)}). Received: {len(arrays)} values"
        )
    feed = {
        name: _checked_input(name, details[name], array)
        for name, array in zip(names, arrays, strict=True)
    }
    try:
        return outputs_of(model, feed[names[0]] if is_single else inputs), feed
    except Exception as error:
        raise ValueError(
            "The model cannot be called with the `inputs` to verify the file with. Pass `inputs` "
            f"as the model takes them. Received: {_shapes(feed)}. Keras said: {error}"
        ) from error


def _input_names(model: keras.Model, details: dict[str, Any]) -> list[str]:
    """Names of the inputs in the file, in the order in which the model takes them."""
    if is_functional(model):
        return [tensor.name for tensor in keras.tree.flatten(model.input)]
    return sorted(details, key=_natural_order)


def _checked_input(name: str, detail: dict[str, Any], value: Any) -> np.ndarray:
    expected = tuple(map(int, detail["shape_signature"]))
    try:
        array = np.asarray(value, dtype=detail["dtype"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Argument `inputs` must hold numbers for input {name!r}. Received: {value!r}"
        ) from error
    fits = array.ndim == len(expected) and all(
        want in (-1, got) for want, got in zip(expected, array.shape, strict=True)
    )
    if not fits or array.size == 0:
        raise ValueError(
            f"Argument `inputs` must hold a non-empty array of shape {expected} for input "
            f"{name!r}, where -1 is any size. Received: shape {array.shape}"
        )
    return array


def _shapes(feed: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} of shape {array.shape}" for name, array in feed.items())


def _random_inputs(model: keras.Model, details: dict[str, Any], scale: float, seed: int) -> Any:
    """Random inputs in the structure that the model takes."""
    names = _input_names(model, details)
    if len(names) > 1 and not is_functional(model):
        raise ValueError(
            "Argument `inputs` is needed to verify a subclassed model with several inputs. "
            "Pass a batch of data as the model takes it. Received: inputs=None for "
            f"{len(names)} inputs"
        )
    # The exporter leaves the batch size open, whatever the model's own.
    batches = [None] if is_subclassed(model) else [tensor.shape[0] for tensor in model.inputs]
    random, vocabulary = np.random.default_rng(seed), _smallest_vocabulary(model)
    arrays = [
        _random_input(random, name, details[name], batch or _BATCH, scale, vocabulary)
        for name, batch in zip(names, batches, strict=True)
    ]
    return keras.tree.pack_sequence_as(model.input, arrays) if is_functional(model) else arrays[0]


def _smallest_vocabulary(model: keras.Model) -> int:
    """Number of integers that every embedding of the model knows."""
    sizes = []
    layers = [*model.layers]
    while layers:
        layer = layers.pop()
        layers += getattr(layer, "layers", [])
        if isinstance(layer, keras.layers.Embedding):
            sizes.append(layer.input_dim)
    return min(sizes, default=2)


def _random_input(
    random: np.random.Generator,
    name: str,
    detail: dict[str, Any],
    batch: int,
    scale: float,
    vocabulary: int,
) -> np.ndarray:
    shape = [_LENGTH if size == -1 else size for size in detail["shape_signature"]]
    shape[:1] = [batch] if shape else []
    dtype = np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return (scale * random.normal(size=shape)).astype(dtype)
    if dtype.kind in "iu":
        return random.integers(0, vocabulary, size=shape).astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, size=shape).astype(dtype)
    raise ValueError(
        f"Argument `inputs` is needed to verify a model whose input {name!r} has dtype {dtype}. "
        "Received: inputs=None"
    )


def _differ(outputs: Any, others: Any) -> bool:
    """Whether every float output, or every output if none is float, differs in another run."""
    pairs = list(zip(keras.tree.flatten(outputs), keras.tree.flatten(others), strict=True))
    floats = [pair for pair in pairs if pair[0].dtype.kind == "f"]
    return not any(np.array_equal(a, b) for a, b in floats or pairs)


def _named_outputs(outputs: Any, names: list[str]) -> dict[str, np.ndarray]:
    """The model's outputs by their names in the file."""
    if isinstance(outputs, dict) and set(outputs) == set(names):
        return outputs
    flat = keras.tree.flatten(outputs)
    if len(flat) != len(names):
        raise RuntimeError(
            _refusal("has other outputs", f"{len(names)} where the model has {len(flat)}")
        )
    return dict(zip(sorted(names, key=_natural_order), flat, strict=True))


def _natural_order(name: str) -> list[Any]:
    """Sort key under which output_10 comes after output_9, as the exporter counts."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split("_")]


def _compare(name: str, output: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """Largest absolute difference; raises if it is too large or not a number."""
    if output.shape != expected.shape:
        raise RuntimeError(
            _refusal(f"has output {name!r} of shape {output.shape}", f"Keras: {expected.shape}")
        )
    expected = expected.astype("float64")
    error = float(np.max(np.abs(output - expected), initial=0.0))
    scale = float(np.max(np.abs(expected), initial=0.0))
    if not error <= (tolerance * scale if scale > 0 else _SLACK):
        raise RuntimeError(
            _refusal(
                f"disagrees with the model in output {name!r}",
                f"Largest error {error:.3g} at a largest output of {scale:.3g}, allowed "
                f"{tolerance * scale:.3g}. Pass `inputs` of the range the model was trained "
                "on, or a larger `tolerance` if this error is acceptable",
            )
        )
    return error


def _refusal(what: str, why: str) -> str:
    return f"Verification failed, nothing was written: the file {what} in LiteRT. {why}"


def _write_atomically(path: Path, data: bytes) -> None:
    """Puts the bytes at `path` in one step, or leaves what stands there as it is."""
    target = _target(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
