"""A faithful copy of a Keras model, or an error.

The copy goes through a file: the one way that carries all a model is made of, such as the
vocabularies that `keras.models.clone_model` loses. Keras loads a subclassed model without a
`get_config` wrongly or not at all; such a model is made anew by its constructor. Where a
class is not Keras's own, the copy is compared with the original on random inputs.
"""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
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


def copy_model(model: keras.Model) -> keras.Model:
    """Copies a built model, without its optimizer; the given model does not change.

    Args:
        model: A built Keras 3 model.

    Returns:
        A new model of the same class with weights of the same shapes, dtypes and bits.

    Raises:
        ValueError: If Keras cannot save and load the model, or another one came out.
    """
    layers = list(_revived_layers(model))
    custom = _custom_classes(model, layers)
    without_config = [
        kind
        for kind in custom.values()
        if issubclass(kind, keras.Model) and kind.get_config is keras.Model.get_config
    ]
    revivers = {
        name: _constructing(kind) if kind in without_config else kind
        for name, kind in custom.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path, include_optimizer=False)
            # Not safe mode: what is loaded is the caller's own object, not a foreign file.
            copy = keras.models.load_model(
                path, custom_objects=revivers, compile=False, safe_mode=False
            )
        except Exception as error:
            raise ValueError(_message(model, f"Keras said: {_essence(error)}")) from error
    originals, variables = _state(model), _state(copy)
    if list(map(_kind, originals)) != list(map(_kind, variables)):
        raise ValueError(_message(model, "The copy got other variables."))
    for original, variable in zip(originals, variables, strict=True):
        # Keras saves neither the seeds of random layers nor what was frozen in a subclass.
        variable.assign(keras.ops.convert_to_numpy(original))
        variable.trainable = original.trainable
    if custom:
        names = ", ".join(sorted(kind.__name__ for kind in custom.values()))
        agree, reason = _compare(model, copy)
        if agree is False:
            raise ValueError(
                _message(model, f"The copy computes another function. Look at: {names}")
            )
        if agree is None and without_config:
            raise ValueError(_message(model, f"The copy could not be compared: {reason}"))
    return copy


def is_functional(model: keras.Model) -> bool:
    """Whether the model is a graph of layers; such a model lists its `operations`."""
    return hasattr(model, "operations")


def is_subclassed(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is a model that is neither Sequential nor functional."""
    is_model = isinstance(layer, keras.Model)
    return is_model and not (isinstance(layer, keras.Sequential) or is_functional(layer))


def _message(model: keras.Model, reason: str) -> str:
    return (
        "The model cannot be copied, which is done as Keras saves and loads it. Custom classes "
        "and functions need `keras.saving.register_keras_serializable`; a subclassed model needs "
        "a `get_config` that returns what its constructor was given, a constructor that takes "
        "`**kwargs`, and a `build` if it has several inputs. "
        f"Received: model={model.name!r} of class {type(model).__qualname__}. {reason}"
    )


def _essence(error: Exception) -> str:
    """The line of Keras's long messages that tells what is missing, else the first one."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "Could not locate" in line), lines[0])


def _state(model: keras.Model) -> list[Any]:
    """Weights and seeds of a model, without the state of its metrics."""
    metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in metrics]


def _kind(variable: Any) -> tuple[Any, ...]:
    return tuple(variable.shape), variable.dtype


def _revived_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The model and those layers in it that come from its config.

    The layers of a subclassed model do not: its constructor makes them.
    """
    yield model
    if is_subclassed(model):
        return
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _revived_layers(layer)
        else:
            yield layer


def _custom_classes(model: keras.Model, layers: list[keras.layers.Layer]) -> dict[str, Any]:
    """The classes of the layers that are not Keras's own, by the names that Keras looks for."""
    classes: dict[str, Any] = {}
    for kind in map(type, layers):
        if not kind.__module__.startswith("keras."):
            name = keras.saving.get_registered_name(kind)
            if classes.setdefault(name, kind) is not kind:
                raise ValueError(_message(model, f"Two classes have the name {name!r}"))
    return classes


def _constructing(kind: Any) -> Any:
    """The class with a `from_config` that calls the constructor without arguments."""

    class Constructing(kind):
        @classmethod
        def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
            return kind()

    return Constructing


def _compare(model: keras.Model, copy: keras.Model) -> tuple[bool | None, str]:
    """Whether both compute the same function of random batches.

    Returns `None` and the reason if the model cannot be called with any of them.
    """
    compared, reason = False, ""
    for draw in _DRAWS:
        random = np.random.default_rng(0)
        try:
            inputs = _random_batch(functools.partial(draw, random), _input_shape(model))
            expected = keras.tree.flatten(outputs_of(model, inputs))
        except Exception as error:
            reason = _essence(error)  # Not every draw suits: an embedding takes no -1.
            continue
        compared = True
        outputs = keras.tree.flatten(outputs_of(copy, inputs))
        for a, b in zip(expected, outputs, strict=True):
            if a.dtype != b.dtype or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                return False, ""
    return (True, "") if compared else (None, reason)


def _input_shape(model: keras.Model) -> Any:
    """Shape of the input, or shapes in the structure that the model takes."""
    if is_functional(model):
        return keras.tree.map_structure(lambda tensor: tensor.shape, model.input)
    if isinstance(model, keras.Sequential):
        return model.inputs[0].shape
    return model.get_build_config()["input_shape"]


def _random_batch(draw: Any, shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: _random_batch(draw, value) for key, value in shape.items()}
    if any(isinstance(size, (dict, list, tuple)) for size in shape):
        return [_random_batch(draw, value) for value in shape]
    sizes = [shape[0] or _BATCH, *(size or _LENGTH for size in shape[1:])]
    return draw(sizes).astype("float32")
