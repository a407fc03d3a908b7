"""Whether a `.tflite` file runs in LiteRT and agrees with the Keras model it was made of."""

import contextlib
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.explaining import of_foreign, of_loading, of_running
from keras_lp.deploy.feeding import (
    LENGTHS,
    Feed,
    as_the_model_takes_it,
    feed_of,
    natural_order,
    random_inputs,
    shapes,
)
from keras_lp.deploy.inference import outputs_of
from keras_lp.deploy.interpreting import has_open_sizes, load
from keras_lp.deploy.operations import foreign_operations

_SCALES = (1.0, 100.0)  # of random inputs; the next if outputs do not depend on the inputs
_SLACK = 1e-6  # where all outputs are zero


def check_loads(data: bytes, runtime: str, model: keras.Model | None = None) -> Any:
    """The runner of a file; raises RuntimeError, with a remedy, unless LiteRT loads it.

    Args:
        data: The file.
        runtime: One of `RUNTIMES`.
        model: The model that it was made of, whose layers the error then names.
    """
    try:
        foreign = foreign_operations(data)
        # In a process with TensorFlow, some versions of LiteRT can run these.
        runner = None if foreign else load(data, runtime)
    except Exception as error:
        why = of_loading(data, str(error))
        raise RuntimeError(_refusal("does not load", why)) from error
    if foreign:
        raise RuntimeError(_refusal("does not run", of_foreign(foreign, model)))
    return runner


def check_outputs(runner: Any, model: keras.Model, inputs: Any, tolerance: float) -> float:
    """Largest absolute error of a file against the model; raises RuntimeError if too large.

    Args:
        runner: What `check_loads` returned.
        model: The model.
        inputs: As the model takes them, or `None` for random ones.
        tolerance: Largest error, as a share of the largest magnitude in the same output.
    """
    expected, feed = _run(model, runner, inputs)
    try:
        outputs = runner(**feed)
    except Exception as error:
        raise RuntimeError(_refusal("does not run", of_running(str(error)))) from error
    return max(
        _compare(name, outputs.get(name), array, tolerance)
        for name, array in _named_outputs(expected, list(outputs)).items()
    )


def _run(model: keras.Model, runner: Any, inputs: Any) -> tuple[Any, Feed]:
    """Outputs of the model, and its inputs by their names in the file."""
    details = runner.get_input_details()
    if inputs is not None:
        return _run_on(model, details, inputs)
    for scale in _SCALES:
        expected, feed = _run_on_random(model, details, scale, 0)
        other, _ = _run_on_random(model, details, scale, 1)
        if _differ(expected, other):
            return expected, feed
    raise RuntimeError(
        _refusal(
            "cannot be compared with the model",
            "The model's outputs are the same for all random inputs. Pass real data as `inputs`",
        )
    )


def _run_on_random(model: keras.Model, details: Any, scale: float, seed: int) -> tuple[Any, Feed]:
    """The same on random inputs, of sizes that the model can be called with."""
    *others, last = LENGTHS if has_open_sizes(details.values()) else LENGTHS[:1]
    for length in others:
        with contextlib.suppress(ValueError):
            return _run_on(model, details, random_inputs(model, details, scale, seed, length))
    return _run_on(model, details, random_inputs(model, details, scale, seed, last))


def _run_on(model: keras.Model, details: Any, inputs: Any) -> tuple[Any, Feed]:
    feed = feed_of(model, details, inputs)
    try:
        return outputs_of(model, as_the_model_takes_it(model, feed, inputs)), feed
    except Exception as error:
        raise ValueError(
            "The model cannot be called with the `inputs` to verify the file with. Pass `inputs` "
            f"as the model takes them. Received: {shapes(feed)}. Keras said: {error}"
        ) from error


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
    return dict(zip(sorted(names, key=natural_order), flat, strict=True))


def _compare(name: str, output: np.ndarray, expected: np.ndarray, tolerance: float) -> float:
    """Largest absolute difference; raises if it is too large or not a number."""
    if output.shape != expected.shape:
        raise RuntimeError(
            _refusal(f"has output {name!r} of shape {output.shape}", f"Keras: {expected.shape}")
        )
    if expected.dtype.kind == "f" and not np.isfinite(expected).all():
        raise RuntimeError(
            _refusal(
                "cannot be compared with the model",
                f"The model's own output {name!r} is NaN or infinite at some of the inputs. Look "
                "for weights that are, or pass `inputs` of the range the model was trained on",
            )
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
    return f"The export failed, and nothing was written: the file {what} in LiteRT. {why}"
