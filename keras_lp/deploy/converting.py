"""From a Keras model to the bytes of `.tflite` files with dense weights.

The converter is TensorFlow's. Under another backend it runs in a process of its own, which
gets the model as a `.keras` file and gives the bytes back as files:

    KERAS_BACKEND=tensorflow python -m keras_lp.deploy.converting FOLDER
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.comparing import essence, is_functional, is_subclassed
from keras_lp.optional import require

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
# Files in the folder that a process of its own is given.
_MODEL, _SAMPLES, _REQUEST = "model.keras", "samples.npz", "request.json"
_RESULT, _ERROR = "{}.tflite", "error.txt"

Samples = Sequence[dict[str, np.ndarray]]


def convert(
    model: keras.Model,
    quantizations: Sequence[str | None] = (None,),
    samples: Samples = (),
    batch_size: int | None = None,
) -> list[bytes]:
    """Converts a model, with dense weights.

    Args:
        model: A built model.
        quantizations: Of `QUANTIZATIONS`, one for each file.
        samples: For "int8", inputs by their names in the file, each with a batch dimension, of
            which the ranges of activations are taken.
        batch_size: Number of examples that the file takes at once; `None` for that of the
            model, which is any number unless it says another.

    Returns:
        The bytes of each file.

    Raises:
        RuntimeError: If the conversion fails, with what the converter said.
    """
    is_here = keras.backend.backend() == "tensorflow"
    run = _convert_here if is_here else _convert_in_a_process
    try:
        return run(model, quantizations, samples, batch_size)
    except ImportError:
        raise
    except Exception as error:
        raise RuntimeError(
            "The model could not be converted to LiteRT, nothing was written. "
            f"Received: model={model.name!r}, quantization={quantizations[-1]!r}. "
            f"The converter said: {essence(error)}"
        ) from error


def _convert_here(
    model: keras.Model,
    quantizations: Sequence[str | None],
    samples: Samples,
    batch_size: int | None,
    names: Sequence[str] = (),
) -> list[bytes]:
    signature = None
    if batch_size is not None or names:
        signature = _signature(model, batch_size, names)
    return [_export(model, quantization, samples, signature) for quantization in quantizations]


def _export(
    model: keras.Model, quantization: str | None, samples: Samples, signature: Any
) -> bytes:
    tf = require("tensorflow", "tensorflow")
    options: dict[str, Any] = {}
    if quantization is not None:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    if quantization == "int8":
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]}
        options["representative_dataset"] = lambda: iter(samples)
    if signature is not None:
        options["input_signature"] = signature
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # TensorFlow's own use of it, while it looks at the samples.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        file = Path(folder) / _RESULT.format("model")
        model.export(str(file), format="litert", verbose=False, **options)
        return file.read_bytes()


def _signature(model: keras.Model, batch_size: int | None, names: Sequence[str]) -> Any:
    """What Keras is to make of the inputs: their shapes, the number of examples and names."""

    def spec(tensor: Any, name: str) -> keras.InputSpec:
        shape = (batch_size, *tensor.shape[1:])
        return keras.InputSpec(shape=shape, dtype=tensor.dtype, name=name)

    # A Sequential model that was not called yet, such as a loaded one, has no `input`.
    structure = model.input if is_functional(model) else model.inputs[0]
    names = names or _names_of_inputs(model)
    specs = [spec(t, n) for t, n in zip(keras.tree.flatten(structure), names, strict=True)]
    return [keras.tree.pack_sequence_as(structure, specs)]


def _names_of_inputs(model: keras.Model) -> list[str]:
    """Names of the inputs, in the order in which the model takes them."""
    return [] if is_subclassed(model) else [tensor.name for tensor in model.inputs]


def _convert_in_a_process(
    model: keras.Model,
    quantizations: Sequence[str | None],
    samples: Samples,
    batch_size: int | None,
) -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save(folder / _MODEL, include_optimizer=False)
        arrays = {f"{n}/{key}": a for n, sample in enumerate(samples) for key, a in sample.items()}
        np.savez(folder / _SAMPLES, allow_pickle=False, **arrays)
        request = {
            "quantizations": list(quantizations),
            "batch_size": batch_size,
            "names": _names_of_inputs(model),  # Keras gives inputs without one another name.
        }
        (folder / _REQUEST).write_text(json.dumps(request))
        process = subprocess.run(
            [sys.executable, "-m", "keras_lp.deploy.converting", place],
            env={
                **os.environ,
                "KERAS_BACKEND": "tensorflow",
                "CUDA_VISIBLE_DEVICES": "-1",  # It would take memory from the training.
                "TMPDIR": place,  # What TensorFlow leaves goes with the folder.
                "PYTHONPATH": os.pathsep.join(sys.path),  # For modules of the caller's classes.
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode == 0:
            names = map(_RESULT.format, range(len(quantizations)))
            return [(folder / name).read_bytes() for name in names]
        raise RuntimeError(
            f"(in a process with the TensorFlow backend) {_reason(process, folder / _ERROR)}"
        )


def _reason(process: subprocess.CompletedProcess, error: Path) -> str:
    """Why the process failed, in one line."""
    if error.exists():
        return error.read_text(encoding="utf-8")
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return f"the process was ended by {name}, as the system does where memory runs out"
    last = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return f"the process, which needs the extra `tensorflow`, ended with {last}"


def _remark(error: Exception) -> str:
    """What to do about an error that this process alone has."""
    if isinstance(error, ImportError):
        return "It needs the extra `tensorflow`. "
    if "Could not locate" in str(error):
        return "It finds custom classes in modules, not in the script that was started. "
    return ""


def _samples_in(path: Path) -> list[dict[str, np.ndarray]]:
    samples: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            number, _, name = key.partition("/")
            samples.setdefault(int(number), {})[name] = file[key]
    return list(samples.values())


def main(name: str) -> int:
    """Converts what lies in a folder; the work of the process of its own."""
    folder = Path(name)
    try:
        request = json.loads((folder / _REQUEST).read_text())
        # Not safe mode: the model is the caller's own object, not a foreign file.
        model = keras.models.load_model(folder / _MODEL, compile=False, safe_mode=False)
        files = _convert_here(model, samples=_samples_in(folder / _SAMPLES), **request)
        for number, data in enumerate(files):
            (folder / _RESULT.format(number)).write_bytes(data)
    except Exception as error:
        (folder / _ERROR).write_text(_remark(error) + essence(error), encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
