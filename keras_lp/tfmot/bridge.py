"""A Keras 3 model as a tf_keras model, and back.

TF-MOT knows the models of tf_keras (Keras 2) only. A Sequential or functional model is made
again layer by layer and gets the same weights; then both run on random inputs, so that a
layer that computes something else in the other library is found.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.comparing import compare, is_functional
from keras_lp.deploy.inference import in_graph
from keras_lp.optional import check_tf_keras_is_built, is_tf_keras_model
from keras_lp.sparsity.report import check_is_built
from keras_lp.tfmot.graph import (
    calls_in_keras,
    calls_in_tf_keras,
    ends_in_keras,
    ends_in_tf_keras,
    repeat_calls,
    with_tensors,
)
from keras_lp.tfmot.layers import (
    LOOKUPS,
    Direction,
    convert_layer,
    errors_name,
    from_tf_keras_direction,
    to_tf_keras_direction,
)
from keras_lp.tfmot.operations import call_in_keras, call_in_tf_keras, operation_class
from keras_lp.tfmot.tf_functions import call_function_in_keras, is_function

# Largest difference of two outputs, as a share of the largest output. Backends and fused
# operations differ in the last digits; another function differs in the first.
_TOLERANCE = 1e-3
_NUDGE = 1e-5  # of inputs, as much as the rounding of some layers
# Wrappers whose weights stand in another order in the two libraries, or where a part is frozen:
# the layers in them, and the weights that are their own.
_PARTS = {
    "Bidirectional": ("forward_layer", "backward_layer"),
    "SpectralNormalization": ("layer",),
}
_OWN_WEIGHTS = {"SpectralNormalization": ("vector_u",)}


def to_tf_keras(model: keras.Model, custom_layers: Mapping[type, type] | None = None) -> Any:
    """Makes a tf_keras (Keras 2) model of a Keras 3 model, with the same weights.

    Layers keep their names, arguments, regularizers and constraints. Layers and models that
    are shared or nested are so again; operations of `keras.ops` in a functional model become
    layers. The model is not compiled. Both are then compared on random inputs.

    Args:
        model: A built Keras 3 model, Sequential or functional, on any backend.
        custom_layers: Dictionary from classes of Keras 3 layers to the tf_keras classes to take
            for them, which need the same constructor arguments and weights. A class for
            `Lambda` needs no arguments; its `function` and `arguments` are those of the layer.
            Defaults to `None`.

    Returns:
        A `tf_keras.Model`.

    Raises:
        TypeError: If `model` is no Keras 3 model, or is a subclassed one.
        ValueError: If the model is not built, a layer or one of its arguments has no
            counterpart in tf_keras, or the tf_keras model computes something else.
        ImportError: If tf_keras is not installed (extra `deploy`).

    Example:
    >>> legacy = keras_lp.tfmot.to_tf_keras(model)
    >>> legacy.compile("adam", "mse")
    """
    check_is_built(model)
    made = _Rebuilding(to_tf_keras_direction(), custom_layers).run(model)
    _check_same(model, made, "tf_keras")
    return made


def from_tf_keras(model: Any, custom_layers: Mapping[Any, Any] | None = None) -> keras.Model:
    """Makes a Keras 3 model of a tf_keras (Keras 2) model, with the same weights.

    Args:
        model: A built tf_keras model, Sequential or functional, without wrappers of TF-MOT:
            `keras_lp.strip_pruning` takes those off. What calls in it say on `training` holds
            at inference only, as the training of the whole model overrides it in Keras 3.
        custom_layers: Dictionary from classes of tf_keras layers to the Keras 3 classes to take
            for them, as in `to_tf_keras`; and from functions
            of TensorFlow that stand between the layers, such as `tf.nn.relu(x)`, to functions of
            the same arguments on tensors of Keras 3, where keras_lp does not know the function.
            Defaults to `None`.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        TypeError: If `model` is no tf_keras model, or is a subclassed one.
        ValueError: If the model is not built, a layer or one of its arguments has no
            counterpart in Keras 3, or the Keras 3 model computes something else.
        ImportError: If tf_keras is not installed (extra `deploy`).

    Example:
    >>> model = keras_lp.tfmot.from_tf_keras(legacy)
    """
    check_tf_keras_model(model)
    made = _Rebuilding(from_tf_keras_direction(), custom_layers).run(model)
    _check_same(made, model, "Keras 3")
    return made


def check_tf_keras_model(model: Any) -> None:
    """Raises TypeError or ValueError unless `model` is a built model of tf_keras."""
    if not is_tf_keras_model(model):
        raise TypeError(
            "Argument `model` must be a tf_keras model (`tf_keras.Model`). "
            f"Received: model={model!r} (type {type(model).__module__}.{type(model).__name__})"
        )
    check_tf_keras_is_built(model)
    wrapped = [layer.name for layer in model.submodules if _is_of_tfmot(layer)]
    if wrapped:
        raise ValueError(
            "Argument `model` must be without wrappers of TF-MOT. Take them off first, by "
            "`keras_lp.strip_pruning` or `tfmot.clustering.keras.strip_clustering`; those of "
            "quantization-aware training stay, and TensorFlow converts such a model. Received: "
            f"model={model.name!r} with {', '.join(wrapped[:3])}"
        )


def _is_of_tfmot(layer: Any) -> bool:
    # Those of keras-lp are of a class of TF-MOT's.
    modules = {kind.__module__.split(".")[0] for kind in type(layer).__mro__}
    return "tensorflow_model_optimization" in modules and hasattr(layer, "get_config")


class _Rebuilding:
    """One model on its way from one library to the other."""

    def __init__(self, direction: Direction, custom_layers: Mapping[Any, Any] | None) -> None:
        self._direction = direction
        self._custom = {} if custom_layers is None else _check_custom(custom_layers, direction)
        self._to_tf_keras = direction.source is keras
        self._made: dict[int, tuple[Any, Any]] = {}  # Each layer, and what was made of it.

    def run(self, model: Any) -> Any:
        """Makes the model and gives it the weights."""
        made = self._make(model)
        source = self._direction.source.Model
        for layer, copy in self._made.values():
            # The layers of a model are here too, those of one that a layer wraps as well.
            if not (isinstance(layer, source) or isinstance(getattr(layer, "layer", None), source)):
                _copy_weights(layer, copy)
        for layer, copy in reversed(self._made.values()):  # A model passes it on to its layers.
            if copy.trainable != layer.trainable:  # So does a wrapper, which may hold a frozen one.
                copy.trainable = layer.trainable
        return made

    def _make(self, layer: Any) -> Any:
        """A layer or model made again; the same for the same, since layers may be shared."""
        if id(layer) not in self._made:
            self._made[id(layer)] = layer, self._make_anew(layer)
        return self._made[id(layer)][1]

    def _make_anew(self, layer: Any) -> Any:
        source = self._direction.source
        if isinstance(layer, source.Sequential):
            return self._make_sequential(layer)
        if isinstance(layer, source.Model):
            return self._make_functional(layer)
        return convert_layer(layer, self._direction, self._custom, self._make)

    def _make_sequential(self, model: Any) -> Any:
        first = self._make_input(model.inputs[0], model.inputs[0].name)
        made = self._direction.target.Sequential([first], name=model.name)
        for layer in model.layers:
            copy = self._make(layer)
            with errors_name(layer, self._direction, self._custom):
                made.add(copy)
        return made

    def _make_functional(self, model: Any) -> Any:
        # A functional model of tf_keras has an `input` of its own, as it may be called again.
        of_layers = self._direction.source.Model.input
        is_graph = is_functional(model) if self._to_tf_keras else type(model).input is not of_layers
        if not is_graph:
            raise TypeError(
                "Argument `model` must be Sequential or functional; what a subclassed model "
                "computes is in its `call`, which cannot be read. Received: model="
                f"{model.name!r} of class {type(model).__name__}"
            )
        calls, ends = (
            (calls_in_keras, ends_in_keras)
            if self._to_tf_keras
            else (calls_in_tf_keras, ends_in_tf_keras)
        )
        tensors: dict[Any, Any] = {}
        repeat_calls(list(calls(model)), tensors, self._call)
        inputs, outputs = (with_tensors(end, tensors) for end in ends(model))
        return self._direction.target.Model(inputs, outputs, name=model.name)

    def _make_input(self, tensor: Any, name: str) -> Any:
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        shape, batch_size = tuple(tensor.shape[1:]), tensor.shape[0]
        return self._direction.target.Input(shape, batch_size, name=name, dtype=dtype)

    def _call(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        layers = self._direction.source.layers
        if isinstance(operation, layers.InputLayer):
            _check_input(operation, self._direction)
            return self._make_input(operation.output, operation.name)
        if not isinstance(operation, layers.Layer):
            return call_in_tf_keras(operation, args, kwargs)
        if not self._to_tf_keras and isinstance(operation, operation_class()):
            return call_in_keras(operation, keras.tree.flatten(args))
        if not self._to_tf_keras and is_function(operation):
            return call_function_in_keras(operation, self._custom, args, kwargs)
        layer = self._make(operation)
        # By name, as a wrapper of TF-MOT passes on the first one only.
        names = list(inspect.signature(layer.call).parameters)
        kwargs = {**dict(zip(names[1:], args[1:], strict=False)), **kwargs}
        if self._to_tf_keras:
            # In Keras 3 the training of the whole model overrides it, in tf_keras it would not.
            kwargs.pop("training", None)
            if "mask" in names:  # Where Keras 3 has none, tf_keras might find one.
                kwargs.setdefault("mask", None)
        else:
            if "mask" not in names and kwargs.get("mask") is None:
                kwargs.pop("mask", None)  # That of tf_keras takes one, and was called without.
            if args and isinstance(operation, (layers.RNN, layers.Bidirectional)):
                # There the initial state comes in one list with the inputs.
                first, *state = args[0] if isinstance(args[0], (list, tuple)) else args
                args, kwargs = [first], {**kwargs, "initial_state": state or None}
        with errors_name(operation, self._direction, self._custom):
            return layer(*args[:1], **kwargs)


def _check_custom(custom_layers: Any, direction: Direction) -> Mapping[Any, Any]:
    """The argument `custom_layers`; raises TypeError unless it maps layers to layers."""
    libraries = direction.source, direction.target

    def is_pair(pair: tuple[Any, Any]) -> bool:
        if direction.target is keras and not any(isinstance(one, type) for one in pair):
            return all(map(callable, pair))  # A function of TensorFlow, and what to take for it.
        return all(
            isinstance(kind, type) and issubclass(kind, library.layers.Layer)
            for kind, library in zip(pair, libraries, strict=True)
        )

    if not isinstance(custom_layers, Mapping) or not all(map(is_pair, custom_layers.items())):
        functions = ", or from functions of TensorFlow to functions of Keras 3"
        raise TypeError(
            f"Argument `custom_layers` must be a dictionary from classes of {direction.source_name}"
            f" layers to classes of {direction.target_name} layers"
            f"{functions if direction.target is keras else ''}. Received: "
            f"custom_layers={custom_layers!r}"
        )
    return custom_layers


def _check_input(layer: Any, direction: Direction) -> None:
    """Raises ValueError for an input that the target has no like of."""
    for argument in ("sparse", "optional", "ragged"):
        if getattr(layer, argument, False):
            raise ValueError(
                f"Argument `{argument}` of input {layer.name!r} has no counterpart in "
                f"{direction.target_name}. Make the model with an input without it. "
                f"Received: {argument}=True"
            )


def _copy_weights(layer: Any, copy: Any) -> None:
    if type(layer).__name__ in LOOKUPS:
        return
    parts = _PARTS.get(type(layer).__name__, ())
    for name in parts:
        _copy_weights(getattr(layer, name), getattr(copy, name))
    if parts:
        for name in _OWN_WEIGHTS.get(type(layer).__name__, ()):
            getattr(copy, name).assign(keras.ops.convert_to_numpy(getattr(layer, name)))
        return
    weights = layer.get_weights()
    shapes, others = ([w.shape for w in one] for one in (weights, copy.get_weights()))
    if shapes != others:
        raise ValueError(
            f"Layer {layer.name!r} of class {type(layer).__name__} has other weights than the "
            f"{type(copy).__module__}.{type(copy).__name__} made of it. Received: weights of the "
            f"shapes {shapes}, where that has {others}"
        )
    copy.set_weights(weights)
    if hasattr(copy, "finalize_state"):  # What it computes from its weights.
        copy.finalize_state()


def _check_same(model: keras.Model, legacy: Any, made: str) -> None:
    """Raises ValueError unless a Keras 3 model and one of tf_keras compute the same."""

    def run(inputs: Any) -> Any:
        legacy.reset_states()
        outputs = legacy(inputs, training=False)
        legacy.reset_states()
        return keras.tree.map_structure(np.asarray, outputs)

    def is_same(expected: np.ndarray, output: np.ndarray) -> bool:
        if expected.shape != output.shape:
            return False
        # Encodings of categories are integers in Keras 3, and the same floats in tf_keras.
        if not expected.dtype.kind == output.dtype.kind == "f":
            return np.array_equal(expected, output)
        # Where numbers overflow, the last digits decide by what.
        finite = np.isfinite(expected) & np.isfinite(output)
        if not finite.any():
            return not np.isfinite(expected).any()
        expected, output = expected[finite].astype("float64"), output[finite].astype("float64")
        scale = np.max(np.abs(expected), initial=0.0)
        return bool(np.max(np.abs(expected - output), initial=0.0) <= _TOLERANCE * scale)

    same, reason = compare(model, run, is_same, _NUDGE, in_graph(model))
    if same is False:
        raise ValueError(
            f"The {made} model computes something else than the given one. Some layer means "
            "another thing there; find it with parts of the model, and pass a layer of your own "
            f"for it in `custom_layers`. {reason and reason + '. '}Received: model={model.name!r}"
        )
