"""A Keras 3 model as a tf_keras model, and back.

TF-MOT knows the models of tf_keras (Keras 2) only. A Sequential or functional model is made
again layer by layer, gets the same weights, and is then run beside the original.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_lp.tfmot.graph import (
    calls_in_keras,
    calls_in_tf_keras,
    ends_in_keras,
    ends_in_tf_keras,
    repeat_calls,
    with_tensors,
)
from keras_lp.tfmot.layers import (
    Direction,
    convert_layer,
    from_tf_keras_direction,
    to_tf_keras_direction,
)
from keras_lp.tfmot.libraries import import_tf_keras
from keras_lp.tfmot.operations import call_in_keras, call_in_tf_keras, operation_class
from keras_lp.sparsity.report import check_model


def to_tf_keras(
    model: keras.Model, custom_layers: Mapping[type, type] | None = None
) -> Any:
    """Makes a tf_keras model of a Keras 3 model, with the same weights.
    """
    check_model(model)
    return _Rebuilding(to_tf_keras_direction(), custom_layers).run(model)


def from_tf_keras(model: Any, custom_layers: Mapping[type, type] | None = None) -> keras.Model:
    """Makes a Keras 3 model of a tf_keras model, with the same weights."""
    return _Rebuilding(from_tf_keras_direction(), custom_layers).run(model)


class _Rebuilding:
    """One model on its way from one library to the other."""

    def __init__(
        self, direction: Direction, custom_layers: Mapping[type, type] | None
    ) -> None:
        self._direction = direction
        self._custom = custom_layers or {}
        self._to_tf_keras = direction.source is keras
        self._made: dict[int, tuple[Any, Any]] = {}  # each layer and what was made of it

    def run(self, model: Any) -> Any:
        """Makes the model and gives it the weights."""
        made = self._make(model)
        for layer, copy in self._made.values():
            _copy_weights(layer, copy)
        return made

    def _make(self, layer: Any) -> Any:
        """A layer or model made again; the same for the same, since layers may be shared."""
        if id(layer) not in self._made:
            self._made[id(layer)] = layer, self._made_anew(layer)
        return self._made[id(layer)][1]

    def _made_anew(self, layer: Any) -> Any:
        source, target = self._direction.source, self._direction.target
        if isinstance(layer, source.Sequential):
            return self._sequential(layer)
        if isinstance(layer, source.Model):
            return self._functional(layer)
        return convert_layer(layer, self._direction, self._custom, self._make)

    def _sequential(self, model: Any) -> Any:
        target = self._direction.target
        layers = [self._make(layer) for layer in model.layers]
        return target.Sequential([self._input(model.inputs[0]), *layers], name=model.name)

    def _functional(self, model: Any) -> Any:
        calls = calls_in_keras if self._to_tf_keras else calls_in_tf_keras
        ends = ends_in_keras if self._to_tf_keras else ends_in_tf_keras
        tensors: dict[Any, Any] = {}
        repeat_calls(list(calls(model)), tensors, self._apply)
        inputs, outputs = (with_tensors(end, tensors) for end in ends(model))
        return self._direction.target.Model(inputs, outputs, name=model.name)

    def _apply(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        source = self._direction.source
        if isinstance(operation, source.layers.InputLayer):
            return self._input(operation.output, operation.name)
        if not isinstance(operation, source.layers.Layer):
            settings = operation.get_config()
            settings.pop("name")
            return call_in_tf_keras(operation.name, type(operation).__name__, settings, args, kwargs)
        if not self._to_tf_keras and isinstance(operation, operation_class()):
            return call_in_keras(operation, keras.tree.flatten(args))
        return self._make(operation)(*args, **kwargs)

    def _input(self, tensor: Any, name: str | None = None) -> Any:
        return self._direction.target.Input(
            tuple(tensor.shape[1:]),
            batch_size=tensor.shape[0],
            dtype=str(keras.backend.standardize_dtype(tensor.dtype)),
            name=name or tensor.name,
        )


def _copy_weights(layer: Any, copy: Any) -> None:
    if hasattr(layer, "layers"):
        return
    copy.set_weights(layer.get_weights())
    copy.trainable = layer.trainable
