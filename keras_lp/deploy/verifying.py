"""Whether a `.tflite` file runs in LiteRT and agrees with the Keras model it was made of."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.explaining import of_foreign, of_loading, of_running
from keras_lp.deploy.feeding import (
    Details,
    Feed,
    as_the_model_takes_it,
    example_count,
    feed_of,
    fixed_size,
    lengths_for,
    natural_order,
    parts_of,
    random_inputs,
    shapes,
)
from keras_lp.deploy.inference import outputs_of
from keras_lp.deploy.interpreting import first_that_fits, load
from keras_lp.deploy.judging import check_output, refusal
from keras_lp.deploy.operations import foreign_operations
from keras_lp.sparsity.dead import explain_dead, is_constant

_SCALES = (1.0, 100.0)  # of random inputs; the next if outputs do not depend on the inputs
_EXAMPLES = 8  # random ones, where the file takes fewer at once
_WRITE_IT = "`verify=False` writes the file all the same"

Run = tuple[Any, Feed]  # outputs of the model, and its inputs by their names in the file


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
        raise RuntimeError(refusal("does not load", why)) from error
    if foreign:
        raise RuntimeError(refusal("does not run", of_foreign(foreign, model)))
    return runner


def check_outputs(
    fresh: Callable[[], Any],
    model: keras.Model,
    inputs: Any,
    tolerance: float,
    is_int8: bool = False,
) -> tuple[float, list[str]]:
    """Largest absolute error of a file against the model; raises RuntimeError if too large.

    Args:
        fresh: Returns a runner of the file in the state that it is loaded in, as the model is run
            from the same state each time.
        model: The model.
        inputs: As the model takes them, or `None` for random ones.
        tolerance: Largest error, as in `check_output`.
        is_int8: Whether the file computes in int8.

    Returns:
        The error, and notes on what to look at in the model.
    """
    details = fresh().get_input_details()
    if inputs is None:
        runs, vary = _runs_on_random(model, details)
    else:
        runs = [_run_on(model, details, part) for part in parts_of(model, details, inputs)]
        vary = _vary_with(model, details, inputs, runs)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for wanted, feed in runs:
        outputs = _run_file(fresh(), feed)
        for name, array in _named_outputs(wanted, list(outputs)).items():
            pairs.setdefault(name, []).append((outputs[name], array))
    errors = []
    for name, arrays in pairs.items():
        output, expected = map(_joined, zip(*arrays, strict=True))
        errors.append(check_output(name, output, expected, tolerance, is_int8))
    return max(errors), _notes_on_constants(model, _named_outputs(vary, list(pairs)))


def _run_file(runner: Any, feed: Feed) -> dict[str, np.ndarray]:
    try:
        return runner(**feed)
    except Exception as error:
        raise RuntimeError(refusal("does not run", of_running(str(error)))) from error


def _joined(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """The outputs of several runs as those of one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(np.atleast_1d(*arrays))


def _runs_on_random(model: keras.Model, details: Details) -> tuple[list[Run], Any]:
    """Runs of the model on random inputs, and which outputs differ between them.

    Of the scales of inputs it is the one at which most outputs differ. Raises RuntimeError if none
    does at any.
    """
    count = max(2, _EXAMPLES // (fixed_size(details) or _EXAMPLES))
    tried = []
    for scale in _SCALES:
        runs = [_run_on_random(model, details, scale, seed) for seed in range(count)]
        tried.append((runs, _differ(runs[0][0], runs[1][0])))
        if all(keras.tree.flatten(tried[-1][1])):
            break
    vary = functools.reduce(_either, (differ for _, differ in tried))
    if not any(keras.tree.flatten(vary)):
        advice = _WRITE_IT if is_constant(model) else "Or pass real data as `inputs`"
        raise RuntimeError(
            refusal(
                "cannot be compared with the model",
                f"The model's outputs are the same for all random inputs. {_why_constant(model)} "
                f"{advice}",
            )
        )
    return max(tried, key=lambda each: sum(keras.tree.flatten(each[1])))[0], vary


def _vary_with(model: keras.Model, details: Details, inputs: Any, runs: list[Run]) -> Any:
    """Which outputs are others for other inputs; raises RuntimeError if none is."""
    (outputs, feed), *rest = runs
    vary = keras.tree.map_structure(lambda _: False, outputs)
    others = itertools.chain(
        (other for other, _ in rest), _on_other_inputs(model, details, inputs, feed)
    )
    for other in others:
        if other is None:  # Nothing is known of what else the model takes.
            return (
                vary
                if any(keras.tree.flatten(vary))
                else keras.tree.map_structure(lambda _: True, vary)
            )
        vary = _either(vary, _differ(outputs, other))
        if all(keras.tree.flatten(vary)):
            break
    if not any(keras.tree.flatten(vary)):
        raise RuntimeError(
            refusal(
                "cannot be compared with the model",
                "The model's outputs are the same for all inputs, the given and random ones. "
                f"{_why_constant(model)} {_WRITE_IT}",
            )
        )
    return vary


def _on_other_inputs(
    model: keras.Model, details: Details, inputs: Any, feed: Feed
) -> Iterator[Any]:
    """What the model gives for other inputs; `None` where none are known.

    Those are the given ones in other places of the batch, and random ones. Batches are of the same
    size, since the last digits of an output depend on its place.
    """
    yield outputs_of(model, _in_other_places(model, inputs, feed))
    count = example_count(feed)
    for scale in _SCALES:
        try:
            others = _of_size(count, random_inputs(model, details, scale, seed=0))
            yield _run_on(model, details, others)[0]
        except ValueError:
            yield None


def _in_other_places(model: keras.Model, inputs: Any, feed: Feed) -> Any:
    rolled = {name: np.roll(array, 1, axis=0) for name, array in feed.items()}
    return as_the_model_takes_it(model, rolled, inputs)


def _of_size(count: int, inputs: Any) -> Any:
    return keras.tree.map_structure(lambda a: np.resize(a, (count, *a.shape[1:])), inputs)


def _differ(outputs: Any, others: Any) -> Any:
    """Which outputs are not those of another run, in their structure."""
    return keras.tree.map_structure(lambda a, b: not np.array_equal(a, b), outputs, others)


def _either(some: Any, others: Any) -> Any:
    return keras.tree.map_structure(lambda a, b: a or b, some, others)


def _notes_on_constants(model: keras.Model, vary: dict[str, bool]) -> list[str]:
    """A note on the outputs that are the same for all inputs, if there are any."""
    names = [repr(name) for name, varies in vary.items() if not varies]
    if not names:
        return []
    subject = f"output {names[0]} is" if len(names) == 1 else f"outputs {', '.join(names)} are"
    why = explain_dead(model) or "This is right for constants, such as anchors"
    return [f"{subject} the same for all inputs that were tried. {why}"]


def _why_constant(model: keras.Model) -> str:
    """Which layers let nothing through, as far as their weights say it."""
    return explain_dead(model) or (
        "Look for an activation that is the same for all, such as a ReLU whose inputs are < 0."
    )


def _run_on_random(model: keras.Model, details: Details, scale: float, seed: int) -> Run:
    """The same on random inputs, of sizes that the model can be called with."""

    def run(length: int) -> Run:
        return _run_on(model, details, random_inputs(model, details, scale, seed, length))

    return first_that_fits(run, lengths_for(details))


def _run_on(model: keras.Model, details: Details, inputs: Any) -> Run:
    feed = feed_of(model, details, inputs)
    try:
        return outputs_of(model, as_the_model_takes_it(model, feed, inputs)), feed
    except Exception as error:
        raise ValueError(
            "The model cannot be called with the `inputs` to verify the file with. Pass `inputs` "
            f"as the model takes them. Received: {shapes(feed)}. Keras said: {error}"
        ) from error


def _named_outputs(outputs: Any, names: list[str]) -> dict[str, Any]:
    """The model's outputs, or what there is for each of them, by their names in the file."""
    if isinstance(outputs, dict) and set(outputs) == set(names):
        return outputs
    flat = keras.tree.flatten(outputs)
    if len(flat) != len(names):
        raise RuntimeError(
            refusal("has other outputs", f"{len(names)} where the model has {len(flat)}")
        )
    return dict(zip(sorted(names, key=natural_order), flat, strict=True))
