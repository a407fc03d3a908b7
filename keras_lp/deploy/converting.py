"""From a Keras model to the bytes of `.tflite` files with dense weights.

The converter is TensorFlow's. It runs in a process of its own where Keras has another backend, and
for int8, whose calibrator can end the process that it runs in. That process gets a folder with the
model, as a SavedModel or a `.keras` file, and gives the bytes back as files:

    KERAS_BACKEND=tensorflow python -m keras_lp.deploy.converting FOLDER
"""

import contextlib
import json
import os
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.comparing import symbolic_inputs
from keras_lp.deploy.custom_objects import check_is_of_keras, custom_objects_of, import_object
from keras_lp.deploy.explaining import of_conversion, of_ending
from keras_lp.deploy.sublayers import within
from keras_lp.deploy.tracing import trace
from keras_lp.deploy.writing import temporary_folder
from keras_lp.optional import require

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
# Files in the folder that a process of its own is given.
_TRACED, _MODEL, _SAMPLES, _REQUEST = "traced", "model.keras", "samples.npz", "request.json"
_RESULT, _ERROR = "{}.tflite", "error.txt"

Samples = Sequence[dict[str, np.ndarray]]


def convert(
    model: keras.Model,
    quantizations: Sequence[str | None] = (None,),
    samples: Samples = (),
    batch_size: int | None = None,
    unroll: bool = False,
) -> list[bytes]:
    """Converts a model, with dense weights. It computes in float32, whatever it was trained in.

    Args:
        model: A built model.
        quantizations: Of `QUANTIZATIONS`, one for each file.
        samples: For "int8", inputs by their names in the file, each with a batch dimension, of
            which the ranges of activations are taken.
        batch_size: Number of examples that the file takes at once; `None` for any.
        unroll: Whether recurrent layers are laid out step by step, in place of a loop.

    Returns:
        The bytes of each file.

    Raises:
        RuntimeError: If the conversion fails, with what to do and what the converter said.
        ValueError: If the process that converts cannot have all that the model is made of.
        OSError: If the system fails, such as for lack of room.
    """
    how: dict[str, Any] = {"batch_size": batch_size, "names": _names(model), "unroll": unroll}
    is_here = keras.backend.backend() == "tensorflow"
    if not is_here:
        check_is_of_keras(model)
    with temporary_folder() as folder:
        with _explained(model, quantizations):
            if is_here:
                trace(model, folder / _TRACED, **how)
            else:
                model.save(folder / _MODEL, include_optimizer=False)
        if is_here and _is_safe(model, quantizations):
            with _explained(model, quantizations):
                return [_convert_traced(folder, quantization) for quantization in quantizations]
        custom = {} if is_here else custom_objects_of(model, _config_in(folder / _MODEL))
        request = {"quantizations": list(quantizations), "trace": how, "custom_objects": custom}
        with _explained(model, quantizations):
            return _convert_in_a_process(folder, request, samples)


def _is_safe(model: keras.Model, quantizations: Sequence[str | None]) -> bool:
    """Whether a conversion is known to leave the process that it runs in as it is.

    Of 145 kinds of layers and operations none ended the process but for int8, where nearly every
    loop did (TensorFlow 2.21). What Keras has quantized makes the converter print pages.
    """
    is_quantized = any(layer.quantization_mode for layer in within(model))
    return "int8" not in quantizations and not is_quantized


def _names(model: keras.Model) -> list[str]:
    # Keras gives inputs without a name another one when it loads a model.
    return [tensor.name for tensor in symbolic_inputs(model)]


@contextlib.contextmanager
def _explained(model: keras.Model, quantizations: Sequence[str | None]) -> Iterator[None]:
    """Makes one error of what goes wrong in a conversion, unless it is the system that fails."""
    try:
        yield
    except (ImportError, OSError, MemoryError):
        raise
    except Exception as error:
        raise RuntimeError(
            "The model could not be converted to LiteRT, nothing was written. "
            f"Received: model={model.name!r}, quantization={quantizations[-1]!r}. "
            f"{of_conversion(str(error), model)}"
        ) from error


def _convert_traced(folder: Path, quantization: str | None, samples: Samples = ()) -> bytes:
    """Converts the SavedModel in a folder."""
    tf = require("tensorflow", "tensorflow")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / _TRACED))
    # What LiteRT lacks comes into the file as an operation of TensorFlow's, which then has a name.
    builtins = tf.lite.OpsSet.TFLITE_BUILTINS
    converter.target_spec.supported_ops = [builtins, tf.lite.OpsSet.SELECT_TF_OPS]
    converter.experimental_enable_resource_variables = True
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: iter(samples)
    with warnings.catch_warnings():
        # TensorFlow's own use of it, while it looks at the samples.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        return converter.convert()


def _convert_in_a_process(folder: Path, request: dict[str, Any], samples: Samples) -> list[bytes]:
    arrays: dict[str, Any] = {
        f"{n}/{key}": array for n, sample in enumerate(samples) for key, array in sample.items()
    }
    np.savez(folder / _SAMPLES, **arrays)
    (folder / _REQUEST).write_text(json.dumps(request))
    process = subprocess.run(
        [sys.executable, "-m", "keras_lp.deploy.converting", str(folder)],
        env={
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "-1",  # It would take memory from the training.
            "TMPDIR": str(folder),  # What TensorFlow leaves goes with the folder.
            "PYTHONPATH": os.pathsep.join(sys.path),  # For modules of the caller's classes.
        },
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if process.returncode == 0:
        names = map(_RESULT.format, range(len(request["quantizations"])))
        return [(folder / name).read_bytes() for name in names]
    error = folder / _ERROR
    if error.exists():
        raise RuntimeError(error.read_text(encoding="utf-8"))
    quantization = request["quantizations"][-1]
    raise RuntimeError(of_ending(process.returncode, process.stderr, quantization))


def _config_in(path: Path) -> Any:
    """The configuration of the model in a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"))


def _samples_in(path: Path) -> list[dict[str, np.ndarray]]:
    samples: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            samples.setdefault(int(number), {})[name] = file[key]
    return list(samples.values())


def _trace_saved(folder: Path, request: dict[str, Any]) -> None:
    """Makes the SavedModel of the `.keras` file in a folder."""
    custom = {name: import_object(place) for name, place in request["custom_objects"].items()}
    # Not safe mode: the model is the caller's own object, not a foreign file.
    model = keras.models.load_model(folder / _MODEL, custom, compile=False, safe_mode=False)
    trace(model, folder / _TRACED, **request["trace"])


def main(name: str) -> int:
    """Converts what lies in a folder; the work of the process of its own."""
    folder = Path(name)
    try:
        request = json.loads((folder / _REQUEST).read_text())
        if not (folder / _TRACED).exists():
            _trace_saved(folder, request)
        samples = _samples_in(folder / _SAMPLES)
        for number, quantization in enumerate(request["quantizations"]):
            data = _convert_traced(folder, quantization, samples)
            (folder / _RESULT.format(number)).write_bytes(data)
    except Exception as error:
        (folder / _ERROR).write_text(f"{error or type(error).__name__}", encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
