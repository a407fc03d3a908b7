"""A faithful copy of a Keras model, or an error.

The copy goes through a file: the one way that carries all a model is made of, such as the
vocabularies that `keras.models.clone_model` loses. Keras loads a subclassed model without a
`get_config` wrongly or not at all; such a model is made anew by its constructor. Where a
class is not Keras's own, the copy is compared with the original on random inputs.
"""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.comparing import compare, essence, is_subclassed
from keras_lp.deploy.inference import outputs_of
from keras_lp.deploy.writing import temporary_folder


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
    with temporary_folder() as folder:
        path = folder / "model.keras"
        try:
            model.save(path, include_optimizer=False)
            # Not safe mode: what is loaded is the caller's own object, not a foreign file.
            copy = keras.models.load_model(
                path, custom_objects=revivers, compile=False, safe_mode=False
            )
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(_message(model, f"Keras said: {essence(error)}")) from error
    originals, variables = _state(model), _state(copy)
    if list(map(_kind, originals)) != list(map(_kind, variables)):
        raise ValueError(_message(model, "The copy got other variables."))
    for original, variable in zip(originals, variables, strict=True):
        # Keras saves neither the seeds of random layers nor what was frozen in a subclass.
        variable.assign(keras.ops.convert_to_numpy(original))
        variable.trainable = original.trainable
    if custom:
        names = ", ".join(sorted(kind.__name__ for kind in custom.values()))
        agree, reason = compare(model, lambda inputs: outputs_of(copy, inputs), _are_same)
        if agree is False:
            raise ValueError(
                _message(model, f"The copy computes another function. Look at: {names}")
            )
        if agree is None and without_config:
            raise ValueError(_message(model, f"The copy could not be compared: {reason}"))
    return copy


def _message(model: keras.Model, reason: str) -> str:
    return (
        "The model cannot be copied, which is done as Keras saves and loads it. Custom classes "
        "and functions need `keras.saving.register_keras_serializable`; a subclassed model needs "
        "a `get_config` that returns what its constructor was given, a constructor that takes "
        "`**kwargs`, and a `build` if it has several inputs. "
        f"Received: model={model.name!r} of class {type(model).__qualname__}. {reason}"
    )


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


def _are_same(expected: np.ndarray, output: np.ndarray) -> bool:
    is_float = expected.dtype.kind == "f"
    return expected.dtype == output.dtype and np.array_equal(expected, output, equal_nan=is_float)
