"""Whether a `.tflite` file runs in LiteRT and agrees with the Keras model it was made of."""

import contextlib
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.feeding import (
    LENGTHS,
    Feed,
    as_the_model_takes_it,
    example_count,
    feed_of,
    natural_order,
    random_inputs,
    shapes,
)
from keras_lp.deploy.inference import outputs_of
from keras_lp.deploy.interpreting import has_open_sizes, load, tensorflow_operations
from keras_lp.deploy.judging import check_output, refusal
from keras_lp.sparsity.report import sparsity_report

_SCALES = (1.0, 100.0)  # of random inputs; the next if outputs do not depend on the inputs
_HALF_PRECISION = (
    "They come from layers that compute in half precision: set "
    '`layer.dtype_policy = "float32"` before the export'
)
_SOURCES = {  # by a part of the names of the operations
    "TensorList": "They come from a recurrent layer: make it with `unroll=True`",
    "Table": "They come from a layer that looks words or numbers up: do so before the model",
}


def check_loads(data: bytes, runtime: str, remedy: str = "") -> Any:
    """The runner of a file; raises RuntimeError, with a remedy, unless LiteRT loads it."""
    try:
        foreign = tensorflow_operations(data)
        # In a process with TensorFlow, some versions of LiteRT can run these.
        runner = None if foreign else load(data, runtime)
    except Exception as error:
        why = f"LiteRT said: {error}"
        raise RuntimeError(refusal("does not load", f"{remedy}{why}")) from error
    if foreign:
        raise RuntimeError(
            refusal(
                "does not run",
                f"It has operations that only TensorFlow knows: {', '.join(foreign)}. "
                f"{_source_of(foreign)}",
            )
        )
    return runner


def _source_of(operations: list[str]) -> str:
    """What operations come from that only TensorFlow knows, and what to do."""
    sources = [text for part, text in _SOURCES.items() if any(part in name for name in operations)]
    return ". ".join(sources or [_HALF_PRECISION])


def check_outputs(runner: Any, model: keras.Model, inputs: Any, tolerance: float) -> float:
    """Largest absolute error of a file against the model; raises RuntimeError if too large.

    Args:
        runner: What `check_loads` returned.
        model: The model.
        inputs: As the model takes them, or `None` for random ones.
        tolerance: Largest error, as in `check_output`.
    """
    expected, feed = _run(model, runner, inputs)
    try:
        outputs = runner(**feed)
    except Exception as error:
        raise RuntimeError(refusal("does not run", f"LiteRT said: {error}")) from error
    return max(
        check_output(name, outputs.get(name), array, tolerance)
        for name, array in _named_outputs(expected, list(outputs)).items()
    )


def _run(model: keras.Model, runner: Any, inputs: Any) -> tuple[Any, Feed]:
    """Outputs of the model, and its inputs by their names in the file."""
    details = runner.get_input_details()
    if inputs is not None:
        expected, feed = _run_on(model, details, inputs)
        if _depend_on_inputs(model, details, inputs, feed, expected):
            return expected, feed
        raise RuntimeError(
            refusal(
                "cannot be compared with the model",
                "The model's outputs are the same for all inputs, those in `inputs` and random "
                f"ones. {_why_constant(model)} `verify=False` writes the file all the same",
            )
        )
    for scale in _SCALES:
        expected, feed = _run_on_random(model, details, scale, 0)
        other, _ = _run_on_random(model, details, scale, 1)
        if _differ(expected, other):
            return expected, feed
    raise RuntimeError(
        refusal(
            "cannot be compared with the model",
            f"The model's outputs are the same for all random inputs. {_why_constant(model)} Or "
            "pass real data as `inputs`",
        )
    )


def _depend_on_inputs(
    model: keras.Model, details: Any, inputs: Any, feed: Feed, outputs: Any
) -> bool:
    """Whether any output is another one for other inputs.

    Those are the given ones in other places of the batch, and random ones. Batches are of the same
    size, since the last digits of an output depend on its place.
    """
    if _any_differs(outputs, outputs_of(model, _in_other_places(model, inputs, feed))):
        return True
    count = example_count(feed)
    for scale in _SCALES:
        try:
            others = _of_size(count, random_inputs(model, details, scale, seed=0))
            other, _ = _run_on(model, details, others)
        except ValueError:  # Nothing is known of what the model takes.
            return True
        if _any_differs(outputs, other):
            return True
    return False


def _in_other_places(model: keras.Model, inputs: Any, feed: Feed) -> Any:
    rolled = {name: np.roll(array, 1, axis=0) for name, array in feed.items()}
    taken = as_the_model_takes_it(model, rolled, inputs)
    if taken is inputs:  # The arrays of a subclassed model, whose names are not known.
        return keras.tree.map_structure(lambda array: np.roll(array, 1, axis=0), inputs)
    return taken


def _of_size(count: int, inputs: Any) -> Any:
    return keras.tree.map_structure(lambda a: np.resize(a, (count, *a.shape[1:])), inputs)


def _any_differs(outputs: Any, others: Any) -> bool:
    pairs = zip(keras.tree.flatten(outputs), keras.tree.flatten(others), strict=True)
    return not all(np.array_equal(a, b) for a, b in pairs)


def _why_constant(model: keras.Model) -> str:
    """Which layers let nothing through, as far as their weights say it."""
    with contextlib.suppress(ValueError):  # Nothing is decayed.
        rows = sparsity_report(model).layers
        if dead := [row.name for row in rows if row.zeros == row.size]:
            return f"The kernels of these layers are all zeros: {', '.join(dead)}."
    return "Look for an activation that is the same for all, such as a ReLU whose inputs are < 0."


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
            refusal("has other outputs", f"{len(names)} where the model has {len(flat)}")
        )
    return dict(zip(sorted(names, key=natural_order), flat, strict=True))
