"""A faithful copy of a Keras model, or an error.

The copy goes through a file: the one way that carries all a model is made of, such as the
vocabularies that `keras.models.clone_model` loses. Functions that no file can hold are in the
copy themselves. Keras loads a subclassed model without a `get_config` wrongly or not at all;
such a model is made anew by its constructor. Where a class or a function is not Keras's own,
the copy is compared with the original on random inputs.
"""

from typing import Any

import keras
import numpy as np

from keras_lp.deploy.adapters import take_out_adapters
from keras_lp.deploy.comparing import compare, essence
from keras_lp.deploy.inference import outputs_of
from keras_lp.deploy.parts import (
    custom_functions,
    is_custom,
    lacks_config,
    named_functions,
    parts_of,
    to_be_revived,
)
from keras_lp.deploy.writing import temporary_folder
from keras_lp.sparsity.weights import weights_of


def copy_model(model: keras.Model) -> keras.Model:
    """Copies a built model, without its optimizer; the given model does not change.

    Args:
        model: A built Keras 3 model.

    Returns:
        A new model of the same class with weights of the same shapes, dtypes and bits.

    Raises:
        ValueError: If Keras cannot save and load the model, or another one came out.
        OSError: If the system fails, such as where no room is left for the file.
    """
    parts = parts_of(model)
    classes = _custom_classes(model, parts)
    revivers = {name: to_be_revived(kind) for name, kind in classes.items()}
    copy, functions = _saved_and_loaded(model, parts, revivers)
    _copy_state(model, copy)
    if classes or functions:
        agree, reason = compare(model, lambda inputs: outputs_of(copy, inputs), _are_same)
        if agree is False:
            suspects = {
                type(part).__name__ for part in parts if is_custom(part) or custom_functions(part)
            }
            raise ValueError(
                _message(
                    model,
                    f"The copy computes another function. Look at: {', '.join(sorted(suspects))}",
                )
            )
        if agree is None and any(map(lacks_config, classes.values())):
            raise ValueError(_message(model, f"The copy could not be compared: {reason}"))
    return copy


def _saved_and_loaded(
    model: keras.Model, parts: list[Any], revivers: dict[str, Any]
) -> tuple[keras.Model, dict[str, Any]]:
    """What Keras makes of the model, and the functions that it shares with the model."""
    with temporary_folder() as folder:
        path = folder / "model.keras"
        try:
            with named_functions(parts) as functions:
                model.save(path, include_optimizer=False)
            take_out_adapters(path)
            # Not safe mode: what is loaded is the caller's own object, not a foreign file.
            copy = keras.models.load_model(
                path, custom_objects={**revivers, **functions}, compile=False, safe_mode=False
            )
        except (MemoryError, OSError):
            raise
        except Exception as error:
            raise ValueError(_message(model, f"Keras said: {essence(error)}")) from error
    return copy, functions


def paired(model: keras.Model, copy: keras.Model) -> list[tuple[Any, Any]]:
    """The weights and seeds of a model, each with that of its copy; adapters (LoRA) have none.

    Raises:
        ValueError: If the copy has other variables.
    """
    originals, variables = _state(model), _state(copy)
    if list(map(_kind, originals)) != list(map(_kind, variables)):
        # A layer that was quantized when it was built already has its own in another order.
        originals, variables = _by_name(model, originals), _by_name(copy, variables)
        if list(map(_named_kind, originals)) != list(map(_named_kind, variables)):
            raise ValueError(_message(model, "The copy got other variables."))
    return list(zip(originals, variables, strict=True))


def _copy_state(model: keras.Model, copy: keras.Model) -> None:
    """Assigns what Keras saves not: the seeds of random layers, and what is frozen in a subclass.

    Raises ValueError if the copy has other variables.
    """
    # In layers with adapters these are merged into what Keras saves.
    merged = {id(one.variable) for one in weights_of(model) if one.has_adapters}
    for original, variable in paired(model, copy):
        if id(original) not in merged:
            variable.assign(keras.ops.convert_to_numpy(original))
            variable.trainable = original.trainable


def _message(model: keras.Model, reason: str) -> str:
    return (
        "The model cannot be copied, which is done as Keras saves and loads it. Classes within "
        "custom layers need `keras.saving.register_keras_serializable`; a subclassed model needs "
        "a `get_config` that returns what its constructor was given, a constructor that takes "
        "`**kwargs`, and a `build` if it has several inputs. "
        f"Received: model={model.name!r} of class {type(model).__qualname__}. {reason}"
    )


def _state(model: keras.Model) -> list[Any]:
    """Weights and seeds of a model, without the state of its metrics and without adapters."""
    left_out = {id(variable) for variable in model.metrics_variables}
    left_out |= {id(one.variable) for one in weights_of(model) if one.is_adapter}
    return [variable for variable in model.variables if id(variable) not in left_out]


def _by_name(model: keras.Model, variables: list[Any]) -> list[Any]:
    """The variables with those of each layer in the order of their names."""
    layers = {id(one.variable): id(one.layer) for one in weights_of(model)}
    places: dict[int, int] = {}
    for place, variable in enumerate(variables):
        places.setdefault(layers.get(id(variable), id(variable)), place)
    return sorted(variables, key=lambda v: (places[layers.get(id(v), id(v))], v.name))


def _kind(variable: Any) -> tuple[Any, ...]:
    return tuple(variable.shape), variable.dtype


def _named_kind(variable: Any) -> tuple[Any, ...]:
    return variable.name, *_kind(variable)


def _custom_classes(model: keras.Model, parts: list[Any]) -> dict[str, Any]:
    """The classes that are not Keras's own, by the names that Keras looks for."""
    classes: dict[str, Any] = {}
    for kind in map(type, filter(is_custom, parts)):
        name = keras.saving.get_registered_name(kind)
        if classes.setdefault(name, kind) is not kind:
            raise ValueError(_message(model, f"Two classes have the name {name!r}"))
    return classes


def _are_same(expected: np.ndarray, output: np.ndarray) -> bool:
    is_float = expected.dtype.kind == "f"
    return expected.dtype == output.dtype and np.array_equal(expected, output, equal_nan=is_float)
