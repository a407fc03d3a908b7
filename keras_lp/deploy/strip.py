"""Stripping: from the model as trained to a plain model with exact zeros."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import keras
from keras import ops

from keras_lp.sparsity import check_model, check_threshold, decayed_variables


def strip_pruning(
    model: keras.Model, threshold: float = 1e-13, *, exclude: str | Iterable[str] | None = None
) -> keras.Model:
    """Copy of a trained model in which tiny weights are exact zeros.

    Formula: `w = 0 where |w| <= threshold` in the decayed variables; all other variables
    are copied bit by bit. The copy is not compiled: optimizer, its state and constraints
    that were put on variables after construction stay behind. The given model does not
    change.

    Args:
        model: A built Keras 3 model: Sequential, functional or subclassed. A subclassed
            one must be one that Keras can save and load, see `keras.Model.get_config`.
        threshold: Float >= 0. Entries of at most this magnitude become zero. Defaults to
            `1e-13`, as in the paper.
        exclude: Regular expression, or a list of them, searched in the paths of the
            variables, as in `sparsity_report`.

    Returns:
        A new `keras.Model` of the same class, names, shapes and dtypes.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If the model is not built, has no decayed variable or cannot be copied,
            the threshold is negative or not finite, or a pattern is malformed or matches no
            variable.

    Example:
    >>> stripped = keras_lp.strip_pruning(model)
    >>> keras_lp.export_tflite(stripped, "model.tflite")
    """
    check_threshold(threshold)
    decayed = {id(variable) for variable in decayed_variables(model, exclude)}
    copy = _copy(model)
    for original, variable in zip(model.weights, copy.weights, strict=True):
        if id(original) in decayed:
            tiny = ops.less_equal(ops.abs(variable), threshold)
            variable.assign(ops.where(tiny, ops.zeros_like(variable), variable))
    return copy


def _copy(model: keras.Model) -> keras.Model:
    """The model through a file and back, the one copy that carries everything it is made of.

    `keras.models.clone_model` would lose state outside of the weights, such as vocabularies.
    """
    check_model(model)
    custom_objects = {
        layer.__class__.__name__: layer.__class__
        for layer in _walk(model)
        if not hasattr(keras.layers, layer.__class__.__name__)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path, include_optimizer=False)
            # Not safe mode: what is loaded is the caller's own object, not a foreign file.
            copy = keras.models.load_model(
                path, custom_objects=custom_objects, compile=False, safe_mode=False
            )
            check_model(copy)
        except Exception as error:
            raise ValueError(
                "The model could not be copied, which is done as Keras saves and loads it. "
                "A subclassed model or layer needs a `get_config` that returns its "
                "constructor's arguments, and a constructor that accepts `**kwargs`. "
                f"Received: model={model.name!r} ({type(model).__qualname__}). "
                f"Keras said: {error}"
            ) from error
    return copy


def _walk(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The model and the layers in it, nested models included."""
    yield model
    for layer in model.layers:
        yield from _walk(layer) if isinstance(layer, keras.Model) else (layer,)
