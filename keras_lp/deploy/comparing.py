"""Whether what was made of a model computes the same function, tried on random inputs."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.inference import outputs_of

_BATCH, _LENGTH = 4, 16  # of random inputs, where a model leaves its dimensions open
# Numbers in [0, 1), which are 0 as integers, small integers, and numbers of several scales.
_DRAWS = (
    lambda random, sizes: random.random(sizes),
    lambda random, sizes: random.integers(0, 2, sizes),
    lambda random, sizes: random.integers(0, 10, sizes),
    lambda random, sizes: random.normal(size=sizes),
    lambda random, sizes: 100 * random.normal(size=sizes),
)


def compare(
    model: keras.Model,
    run: Callable[[Any], Any],
    is_same: Callable[[np.ndarray, np.ndarray], bool],
    nudge: float = 0.0,
    run_model: Callable[[Any], Any] | None = None,
) -> tuple[bool | None, str]:
    """Whether a model and what was made of it give the same outputs of random batches.

    Args:
        model: A built model.
        run: Gives the outputs of the other, as NumPy arrays in any structure.
        is_same: Whether an output of the model and one of the other count as the same.
        nudge: A relative change of the inputs, up to so much and different for each. A batch
            tells nothing of an output that it changes in the model itself, as where two equal
            numbers are the largest; by default every batch tells.
        run_model: Gives the outputs of the model at inference; by default a plain call does.

    Returns:
        Whether they do, and an empty string; or `None` and the reason if no batch tells, such as
        where the model cannot be called with any.
    """
    run_model = run_model or functools.partial(outputs_of, model)
    has_run = other_has_run = compared = False
    reason = ""
    for draw in _DRAWS:
        random = np.random.default_rng(0)
        try:
            inputs = _random_batch(functools.partial(draw, random), _input_shape(model))
            inputs = _in_range(inputs, model)
            expected = keras.tree.flatten(run_model(inputs))
            has_run = True
            outputs = keras.tree.flatten(run(inputs))
            other_has_run = True
        except Exception as error:
            reason = essence(error)  # Not every draw suits: an embedding takes no -1.
            continue
        if all(map(is_same, expected, outputs)):
            compared = True
            continue
        near = [
            keras.tree.flatten(run_model(keras.tree.map_structure(function, inputs)))
            for function in (lambda x: _nudged(x, nudge), lambda x: _nudged(x, nudge, True))
        ]
        for one, other, *others in zip(expected, outputs, *near, strict=True):
            if not is_same(one, other) and all(is_same(one, again) for again in others):
                return False, ""
        reason = "The last digits of its inputs decide what it computes"
    if compared:
        return True, ""
    return (False if has_run and not other_has_run else None), reason


def essence(error: Exception) -> str:
    """The line of Keras's long messages that tells what is missing, else the first one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "Could not locate" in line), lines[0])


def is_functional(model: keras.Model) -> bool:
    """Whether the model is a graph of layers; such a model lists its `operations`."""
    return hasattr(model, "operations")


def is_subclassed(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is a model that is neither Sequential nor functional."""
    is_model = isinstance(layer, keras.Model)
    return is_model and not (isinstance(layer, keras.Sequential) or is_functional(layer))


def symbolic_inputs(model: keras.Model) -> list[Any]:
    """The inputs of a model, in the order in which it takes them.

    None of a subclassed model, nor of a Sequential one with a layer that takes arrays alone.
    """
    return [] if is_subclassed(model) else getattr(model, "inputs", [])


def _input_shape(model: keras.Model) -> Any:
    """Shape of the input, or shapes in the structure that the model takes."""
    if is_functional(model):
        return keras.tree.map_structure(lambda tensor: tensor.shape, model.input)
    if isinstance(model, keras.Sequential):
        return model.inputs[0].shape
    for shape in _likely_shapes(model):
        with contextlib.suppress(Exception):
            outputs_of(model, _random_batch(np.zeros, shape))
            return shape
    raise ValueError("Nothing tells the shape of its input, as it was never called")


def _likely_shapes(model: keras.Model) -> Iterator[Any]:
    """Shapes that a subclassed model may take, the likeliest first."""
    built = (model.get_build_config() or {}).get("input_shape")
    if built is not None:
        yield built
    # A model that builds itself, `build(self, input_shape=(None, 48, 48, 3))`.
    for parameter in inspect.signature(model.build).parameters.values():
        if isinstance(parameter.default, tuple):
            yield parameter.default
    for layer in model.layers:  # One of them takes the input, often the first.
        if layer.built and layer.input_spec is not None:
            yield from map(_shape_of, keras.tree.flatten(layer.input_spec))


def _shape_of(spec: keras.InputSpec) -> tuple[int | None, ...]:
    if spec.shape is not None:
        return tuple(spec.shape)
    sizes: list[int | None] = [None] * (spec.ndim or spec.min_ndim or 0)
    for axis, size in (spec.axes or {}).items():
        sizes[axis] = size
    return tuple(sizes)


def _in_range(inputs: Any, model: keras.Model) -> Any:
    """Inputs without numbers beyond what an input of integers can hold: they become any integer."""
    if is_subclassed(model):
        return inputs
    dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in model.inputs]
    if not any(dtype.startswith(("int", "uint")) for dtype in dtypes):
        return inputs
    limits = [np.iinfo(dtype) if "int" in dtype else np.finfo("float32") for dtype in dtypes]
    clipped = [
        np.clip(x, limit.min, limit.max)
        for x, limit in zip(keras.tree.flatten(inputs), limits, strict=True)
    ]
    return keras.tree.pack_sequence_as(inputs, clipped)


def _nudged(x: np.ndarray, nudge: float, is_reversed: bool = False) -> np.ndarray:
    """The inputs, each a little larger, so that integers stay the same integers.

    Reversed, the larger of two that were equal is the other one.
    """
    room = nudge * (np.abs(x) + np.mean(np.abs(x)))
    share = np.random.default_rng(0).uniform(0.5, 1.0, x.shape)
    return (x + room * (1.5 - share if is_reversed else share)).astype(x.dtype)


def _random_batch(draw: Any, shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: _random_batch(draw, value) for key, value in shape.items()}
    if any(isinstance(size, (dict, list, tuple)) for size in shape):
        return [_random_batch(draw, value) for value in shape]
    sizes = [shape[0] or _BATCH, *(size or _LENGTH for size in shape[1:])]
    return draw(sizes).astype("float32")
