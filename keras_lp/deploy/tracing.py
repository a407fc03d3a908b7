"""From a Keras model to the SavedModel that TensorFlow's converter takes."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_lp.deploy.comparing import is_functional, symbolic_inputs
from keras_lp.deploy.precision import in_float32
from keras_lp.deploy.sublayers import within
from keras_lp.optional import require


def trace(
    model: keras.Model,
    folder: Path,
    batch_size: int | None = None,
    names: Sequence[str] = (),
    unroll: bool = False,
) -> None:
    """Writes what a model computes at inference, in float32, as a SavedModel.

    Args:
        model: A built model. It does not change.
        folder: Where the SavedModel is to be.
        batch_size: Number of examples at once; `None` for any.
        names: Names of the inputs, in the order in which the model takes them; its own by default.
        unroll: Whether recurrent layers are laid out step by step, in place of a loop.
    """
    tf = require("tensorflow", "tensorflow")
    with in_float32(model), _unrolled(model) if unroll else contextlib.nullcontext():
        signature = keras.tree.map_structure(
            lambda spec: tf.TensorSpec(spec.shape, spec.dtype, spec.name),
            _signature(model, batch_size, names),
        )
        serve = tf.function(_flat(model), input_signature=[signature], autograph=False)
        traced = serve.get_concrete_function()
    # Not Keras's exporter, which traces a model four times.
    module = tf.Module()
    module.captured = [
        *traced.variables,
        *within(model, tf.saved_model.experimental.TrackableResource),
    ]
    tf.saved_model.save(module, str(folder), signatures=traced)


def check_inputs(model: keras.Model) -> None:
    """Raises ValueError unless the shapes of a model's inputs are known."""
    if not symbolic_inputs(model):
        _shape_when_built(model)


@contextlib.contextmanager
def _unrolled(model: keras.Model) -> Iterator[None]:
    layers = within(model, keras.layers.RNN)
    before = [layer.unroll for layer in layers]
    try:
        for layer in layers:
            layer.unroll = True
        yield
    finally:
        for layer, unroll in zip(layers, before, strict=True):
            layer.unroll = unroll


def _flat(model: keras.Model) -> Callable[[Any], Any]:
    """The model as a function whose outputs a signature can name."""

    def serve(inputs: Any) -> Any:
        outputs = model(inputs, training=False)
        parts = outputs.values() if isinstance(outputs, dict) else outputs
        is_nested = keras.tree.is_nested(outputs) and any(map(keras.tree.is_nested, parts))
        return keras.tree.flatten(outputs) if is_nested else outputs

    return serve


def _signature(model: keras.Model, batch_size: int | None, names: Sequence[str]) -> Any:
    """What the inputs are: the number of examples, their shapes, dtypes and names."""
    tensors = symbolic_inputs(model)
    if is_functional(model):
        structure = model.input
    elif tensors:  # A Sequential model that was not called yet, such as a loaded one.
        structure = tensors[0]
    else:
        structure = _placeholders(model, _shape_when_built(model))
        tensors = keras.tree.flatten(structure)
    names = names or [tensor.name for tensor in tensors]
    specs = [
        keras.InputSpec(shape=(batch_size, *tensor.shape[1:]), dtype=tensor.dtype, name=name)
        for tensor, name in zip(tensors, names, strict=True)
    ]
    return keras.tree.pack_sequence_as(structure, specs)


def _shape_when_built(model: keras.Model) -> Any:
    """The shape of the input that a model was built with, or shapes in the structure it takes."""
    shape = (model.get_build_config() or {}).get("input_shape")
    if not shape:
        raise ValueError(
            "Argument `model` must have inputs of known shapes. Make a functional model of it, "
            "`inputs = keras.Input(shape)` and `keras.Model(inputs, model(inputs))`, and export "
            f"that. Received: model={model.name!r} of class {type(model).__qualname__}"
        )
    return shape


def _placeholders(model: keras.Model, shape: Any) -> Any:
    """Tensors without values of a shape, or of the shapes in a structure."""
    count = itertools.count()

    def placeholder(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {key: placeholder(value) for key, value in sorted(shape.items())}
        if any(isinstance(size, (dict, list, tuple)) for size in shape):
            return [placeholder(value) for value in shape]
        number = next(count)
        name = f"args_0_{number}" if number else "args_0"
        return keras.KerasTensor(shape, dtype=model.input_dtype, name=name)

    return placeholder(shape)
