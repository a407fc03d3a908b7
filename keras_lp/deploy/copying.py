"""A faithful copy of a Keras model, or an error.

The copy goes through a file: the one way that carries all a model is made of, such as the
vocabularies that `keras.models.clone_model` loses. Keras loads a subclassed model without a
`get_config` wrongly or not at all; such a model is made anew by its constructor and the
result compared with the original.
"""

import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np


def copy_model(model: keras.Model) -> keras.Model:
    """Copies a built model, without its optimizer; the given model does not change.

    Args:
        model: A built Keras 3 model.

    Returns:
        A new model of the same class with weights of the same shapes, dtypes and bits.

    Raises:
        ValueError: If Keras cannot save and load the model, or would load another one.
    """
    layers = list(_revived_layers(model))
    without_config = [
        layer
        for layer in layers
        if _is_subclassed(layer) and type(layer).get_config is keras.Model.get_config
    ]
    revivers = _by_name(map(type, layers)) | {
        name: _constructing(kind) for name, kind in _by_name(map(type, without_config)).items()
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
            first = str(error).strip().partition("\n")[0]
            raise ValueError(_message(model, f"Keras said: {first}")) from error
    guessed = sorted({type(layer).__name__ for layer in without_config if _arguments(layer)})
    if guessed and not _agree(model, copy):
        raise ValueError(_message(model, f"`get_config` is missing in: {', '.join(guessed)}"))
    return copy


def is_functional(model: keras.Model) -> bool:
    """Whether the model is a graph of layers; such a model lists its `operations`."""
    return hasattr(model, "operations")


def _message(model: keras.Model, reason: str) -> str:
    return (
        "The model cannot be copied, which is done as Keras saves and loads it. Give each "
        "subclassed model or layer whose constructor takes arguments a `get_config` that "
        "returns them, and let the constructor take `**kwargs`. "
        f"Received: model={model.name!r} of class {type(model).__qualname__}. {reason}"
    )


def _revived_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The model and those layers in it that come from its config.

    The layers of a subclassed model do not: its constructor makes them.
    """
    yield model
    if _is_subclassed(model):
        return
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _revived_layers(layer)
        else:
            yield layer


def _is_subclassed(layer: keras.layers.Layer) -> bool:
    """Whether `layer` is a model that is neither Sequential nor functional."""
    is_model = isinstance(layer, keras.Model)
    return is_model and not (isinstance(layer, keras.Sequential) or is_functional(layer))


def _by_name(kinds: Any) -> dict[str, Any]:
    """The users' classes by the names that Keras looks for; classes of Keras are left out."""
    return {
        keras.saving.get_registered_name(kind): kind
        for kind in kinds
        if not kind.__module__.startswith("keras.")
    }


def _constructing(kind: Any) -> Any:
    """The class with a `from_config` that calls the constructor without arguments."""

    class Constructing(kind):
        @classmethod
        def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
            return kind()

    return Constructing


def _arguments(layer: keras.layers.Layer) -> list[str]:
    """The constructor's own arguments, whose values nobody recorded."""
    parameters = inspect.signature(type(layer).__init__).parameters.values()
    named = (p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return [name for name in named if name not in ("self", "name", "dtype", "trainable")]


def _agree(model: keras.Model, copy: keras.Model) -> bool:
    """Whether both compute the same function of a random batch of the recorded shape."""
    shape = (model.get_build_config() or {}).get("input_shape")
    if shape is None:
        return False  # Several positional inputs: nothing to call the model with.
    inputs = _random_batch(np.random.default_rng(0), shape)
    left, right = (keras.tree.flatten(each(inputs, training=False)) for each in (model, copy))
    return all(
        np.array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
        for a, b in zip(left, right, strict=True)
    )


def _random_batch(random: np.random.Generator, shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: _random_batch(random, value) for key, value in shape.items()}
    if any(isinstance(size, (dict, list, tuple)) for size in shape):
        return [_random_batch(random, value) for value in shape]
    # In [0, 1): as an integer it is 0, which every vocabulary has.
    return random.random([2 if size is None else size for size in shape]).astype("float32")
