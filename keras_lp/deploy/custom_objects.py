"""Classes and functions of a model that are not Keras's own, for another process to import."""

import importlib
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import keras

from keras_lp.deploy.parts import to_be_revived
from keras_lp.deploy.sublayers import within

# Keras finds what comes from these by its own names.
_PACKAGES = ("builtins", "keras", "jax", "numpy", "tensorflow", "torch")


def check_is_of_keras(model: keras.Model) -> None:
    """Raises ValueError for a model with modules of torch, which Keras runs under torch alone."""
    wrappers = [layer.name for layer in within(model, keras.layers.TorchModuleWrapper)]
    if wrappers:
        raise ValueError(
            "TensorFlow cannot convert modules of torch. Convert the model with the package "
            '`litert-torch`, `litert_torch.convert(model.eval(), (x,)).export("dense.tflite")`, '
            'and then leave the zeros out, `keras_lp.encode_tflite("dense.tflite", path)`. '
            f"Received: model={model.name!r} with layers {', '.join(sorted(wrappers))}"
        )


def custom_objects_of(model: keras.Model, config: Any) -> dict[str, str]:
    """Where the custom objects that the configuration of a model names can be imported from.

    Args:
        model: The model.
        config: Its configuration, as Keras saves it.

    Returns:
        `module:name` by the name that Keras looks for.

    Raises:
        ValueError: If one is defined in the script that was started, or in a function.
    """
    named = set(_strings(config))
    objects = {}
    for layer in within(model):
        for value in (layer, *vars(layer).values()):
            kind = value if inspect.isfunction(value) else type(value)
            if _is_custom(kind) and keras.saving.get_registered_name(kind) in named:
                objects[keras.saving.get_registered_name(kind)] = kind
    lost = sorted(kind.__qualname__ for kind in objects.values() if not _is_importable(kind))
    if lost:
        raise ValueError(
            f"Under the {keras.backend.backend()} backend TensorFlow converts a model in a process "
            "of its own, which imports the model's custom classes and functions. It cannot import "
            "what is defined in the script that was started, or in a function: move them to the "
            "top level of a module and import them from there. "
            f"Received: model={model.name!r} with {', '.join(lost)}"
        )
    return {name: f"{kind.__module__}:{kind.__qualname__}" for name, kind in objects.items()}


def import_object(place: str) -> Any:
    """Imports what `custom_objects_of` tells the place of, as Keras is to revive it."""
    module, _, name = place.partition(":")
    return to_be_revived(operator.attrgetter(name)(importlib.import_module(module)))


def _is_custom(kind: Any) -> bool:
    is_serializable = inspect.isfunction(kind) or hasattr(kind, "get_config")
    return is_serializable and kind.__module__.partition(".")[0] not in _PACKAGES


def _is_importable(kind: Any) -> bool:
    return kind.__module__ != "__main__" and "<locals>" not in kind.__qualname__


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings([*value.values()])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _strings(each)
