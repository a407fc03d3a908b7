"""Operations of a functional model that are no layers: `x + y`, `keras.ops.mean(x)`, `x[:, 0]`.

In tf_keras each becomes a layer of one class, `Operation`, that holds the operation as Keras 3
describes it and computes it with TensorFlow, so that it can be saved, copied, wrapped by TF-MOT
and turned back. The frequent ones are written here for it. Any other one computes itself, where
Keras 3 computes with TensorFlow too.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_lp.optional import import_tf_keras
from keras_lp.tfmot.graph import is_symbolic

# Of two tensors these are layers, which TF-MOT knows; and so is this one of a list of them.
_MERGES = frozenset({"Add", "Subtract", "Multiply", "Maximum", "Minimum"})
_CONCATENATE = "Concatenate"


def call_in_tf_keras(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Calls on tensors of tf_keras what an operation of Keras 3 is there.

    Args:
        operation: The operation.
        args: What it is called with; tensors, and other values in between.
        kwargs: The same, by name.

    Raises:
        ValueError: If there is nothing like it.
    """
    tf_keras = import_tf_keras()
    tensors: list[Any] = []
    template = _take_tensors([list(args), dict(kwargs)], tensors)
    kind, name = type(operation).__name__, operation.name
    # The layers take other pairs of ranks too, but in a way of their own.
    if kind in _MERGES and len(tensors) == 2 and tensors[0].shape.rank == tensors[1].shape.rank:
        return getattr(tf_keras.layers, kind)(name=name)(tensors)
    described = keras.saving.serialize_keras_object(operation)
    if kind == _CONCATENATE:
        return tf_keras.layers.Concatenate(axis=described["config"]["axis"], name=name)(tensors)
    if kind not in _functions() and keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Operation {name!r} (class {kind} of `keras.ops`) has no counterpart in tf_keras of "
            "its own, and computes itself there where Keras 3 computes with TensorFlow too: start "
            "the process with KERAS_BACKEND=tensorflow, or put the operation into a layer of your "
            f"own and pass that in `custom_layers`. Received: backend={keras.backend.backend()!r}"
        )
    layer = operation_class()(json.dumps(described), template, name=name)
    return layer(tensors if len(tensors) > 1 else tensors[0])


def call_in_keras(layer: Any, tensors: Sequence[Any]) -> Any:
    """Calls on tensors of Keras 3 what an `Operation` of tf_keras was there."""
    args, kwargs = _put_tensors(layer.template, tensors)
    return keras.saving.deserialize_keras_object(layer.described)(*args, **kwargs)


@functools.cache
def operation_class() -> Any:
    """The class of tf_keras layers that compute an operation of Keras 3."""
    tf_keras = import_tf_keras()
    base: Any = tf_keras.layers.Layer

    @tf_keras.saving.register_keras_serializable("keras_lp")
    class Operation(base):
        """Computes an operation of Keras 3 on tensors of TensorFlow.

        Args:
            operation: The operation as Keras 3 describes it, in JSON.
            template: Its arguments, with places for tensors.
        """

        def __init__(self, operation: str, template: Any, **arguments: Any) -> None:
            super().__init__(**arguments)
            # As JSON would give them back; tf_keras wraps other lists and dicts.
            self._config = {"operation": operation, "template": template}

        @property
        def described(self) -> dict[str, Any]:
            return json.loads(self._config["operation"])

        @property
        def template(self) -> Any:
            return self.get_config()["template"]

        def call(self, inputs: Any) -> Any:
            tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            args, kwargs = _put_tensors(self.template, tensors)
            described = self.described
            function = _functions().get(described["class_name"])
            settings = {k: v for k, v in described["config"].items() if k != "name"}
            if function is not None:
                with contextlib.suppress(NotImplementedError):
                    return function(*args, **settings, **kwargs)
            return _operation_of(described)(*args, **kwargs)

        def get_prunable_weights(self) -> list[Any]:
            """None; by this method TF-MOT lets the layer be."""
            return []

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), **self._config}

    return Operation


def _operation_of(described: Mapping[str, Any]) -> Any:
    """The operation of Keras 3 itself; raises RuntimeError where it would compute elsewhere."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"The model has the operation {described['class_name']} of `keras.ops`, which computes "
            "itself where Keras 3 computes with TensorFlow. Start the process with "
            f"KERAS_BACKEND=tensorflow. Received: backend={keras.backend.backend()!r}"
        )
    return keras.saving.deserialize_keras_object(described)


def _take_tensors(value: Any, tensors: list[Any]) -> Any:
    """The value as JSON can hold it, with places in the place of tensors, added to a list."""
    if isinstance(value, (list, tuple)):
        return [_take_tensors(one, tensors) for one in value]
    if isinstance(value, dict):
        return {key: _take_tensors(one, tensors) for key, one in value.items()}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if is_symbolic(value):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    return value


def _put_tensors(template: Any, tensors: Sequence[Any]) -> Any:
    if isinstance(template, (list, tuple)):
        return [_put_tensors(one, tensors) for one in template]
    if isinstance(template, dict):
        if template.keys() == {"tensor"}:
            return tensors[template["tensor"]]
        if template.keys() == {"slice"}:
            return slice(*template["slice"])
        if template.keys() == {"array", "dtype"}:
            return np.array(template["array"], template["dtype"])
        return {key: _put_tensors(one, tensors) for key, one in template.items()}
    return template


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Functions of TensorFlow that compute the operations, by their classes."""
    import tensorflow as tf

    nn = tf.nn
    return {
        "Absolute": tf.abs,
        "Add": lambda a, b: a + b,
        "All": tf.reduce_all,
        "Amax": lambda x, axis, keepdims: tf.reduce_max(x, axis, keepdims),
        "Amin": lambda x, axis, keepdims: tf.reduce_min(x, axis, keepdims),
        "Any": tf.reduce_any,
        "Argmax": lambda x, axis, keepdims: _index(tf.argmax, x, axis, keepdims),
        "Argmin": lambda x, axis, keepdims: _index(tf.argmin, x, axis, keepdims),
        "BroadcastTo": tf.broadcast_to,
        "Cast": lambda x, dtype: tf.cast(x, dtype),
        "Ceil": tf.math.ceil,
        "Clip": lambda x, x_min, x_max: tf.clip_by_value(x, x_min, x_max),
        "Cos": tf.cos,
        "Cumsum": lambda x, axis, dtype=None: tf.cumsum(*_along(x, axis)),
        "Divide": lambda a, b: a / b,
        "Einsum": lambda *operands, subscripts: tf.einsum(subscripts, *operands),
        "Elu": lambda x, alpha: tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0.0))),
        "Equal": tf.equal,
        "Erf": tf.math.erf,
        "Exp": tf.exp,
        "ExpandDims": lambda x, axis: tf.expand_dims(x, axis),
        "Expm1": tf.math.expm1,
        "Flip": lambda x, axis: tf.reverse(x, _axes(x, axis)),
        "Floor": tf.floor,
        "FloorDivide": lambda a, b: a // b,
        "Gelu": lambda x, approximate: nn.gelu(x, approximate=approximate),
        "GetItem": lambda x, key: x[tuple(key) if isinstance(key, list) else key],
        "Greater": tf.greater,
        "GreaterEqual": tf.greater_equal,
        "HardSigmoid": lambda x: nn.relu6(x + 3.0) / 6.0,
        "HardSilu": lambda x: x * nn.relu6(x + 3.0) / 6.0,
        "LeakyRelu": lambda x, negative_slope: nn.leaky_relu(x, alpha=negative_slope),
        "Less": tf.less,
        "LessEqual": tf.less_equal,
        "Log": tf.math.log,
        "Log1p": tf.math.log1p,
        "LogSigmoid": tf.math.log_sigmoid,
        "LogSoftmax": lambda x, axis: nn.log_softmax(x, axis=axis),
        "LogicalAnd": tf.logical_and,
        "LogicalNot": tf.logical_not,
        "LogicalOr": tf.logical_or,
        "Logsumexp": lambda x, axis, keepdims: tf.reduce_logsumexp(x, axis, keepdims),
        "Matmul": tf.matmul,
        "Max": lambda x, axis, keepdims, initial: tf.reduce_max(x, axis, keepdims),
        "Maximum": tf.maximum,
        "Mean": tf.reduce_mean,
        "Min": lambda x, axis, keepdims, initial: tf.reduce_min(x, axis, keepdims),
        "Minimum": tf.minimum,
        "Mod": lambda a, b: a % b,
        "Multiply": lambda a, b: a * b,
        "Negative": tf.negative,
        "Norm": lambda x, axis, keepdims, **order: tf.norm(
            x, order["ord"] or "euclidean", axis, keepdims
        ),
        "NotEqual": tf.not_equal,
        "OneHot": lambda x, num_classes, axis, dtype, sparse: tf.one_hot(
            x, num_classes, axis=axis, dtype=dtype
        ),
        "OnesLike": lambda x, dtype: tf.ones_like(x, dtype),
        "Pad": _pad,
        "Power": lambda a, b: a**b,
        "Prod": lambda x, axis, keepdims, dtype=None: tf.reduce_prod(x, axis, keepdims),
        "RMSNorm": rms_normalization,
        "Reciprocal": tf.math.reciprocal,
        "Relu": nn.relu,
        "Relu6": nn.relu6,
        "Repeat": lambda x, repeats, axis: tf.repeat(x, repeats, axis),
        "Reshape": lambda x, newshape: tf.reshape(x, [-1 if n is None else n for n in newshape]),
        "Resize": _resize,
        "Rsqrt": tf.math.rsqrt,
        "Selu": nn.selu,
        "Sigmoid": tf.sigmoid,
        "Sign": tf.sign,
        "Silu": nn.silu,
        "Sin": tf.sin,
        "Softmax": lambda x, axis: nn.softmax(x, axis=axis),
        "Softplus": tf.math.softplus,
        "Softsign": nn.softsign,
        "Split": lambda x, indices_or_sections, axis: _split(x, indices_or_sections, axis),
        "Sqrt": tf.sqrt,
        "Square": tf.square,
        "Squeeze": lambda x, axis: tf.squeeze(x, axis),
        "Stack": lambda x, axis: tf.stack(x, axis),
        "Std": tf.math.reduce_std,
        "StopGradient": tf.stop_gradient,
        "Subtract": lambda a, b: a - b,
        "Sum": tf.reduce_sum,
        "Swapaxes": _swap_axes,
        "Take": lambda x, indices, axis: _take(*_along(x, axis), indices),
        "Tanh": tf.tanh,
        "Tile": lambda x, repeats: tf.tile(x, repeats),
        "TopK": lambda x, k, **order: tuple(tf.math.top_k(x, k, **order)),
        "Transpose": lambda x, axes: tf.transpose(x, axes),
        "TrueDivide": lambda a, b: a / b,
        "Unstack": lambda x, num, axis: tf.unstack(x, num, axis),
        "Var": tf.math.reduce_variance,
        "Where": tf.where,
        "ZerosLike": lambda x, dtype: tf.zeros_like(x, dtype),
    }


def rms_normalization(
    x: Any, scale: Any = None, axis: Any = -1, epsilon: float | None = None
) -> Any:
    """`scale * x / sqrt(mean(x**2) + epsilon)` over some axes, in float32 at least."""
    import tensorflow as tf

    wide = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    mean = tf.reduce_mean(tf.square(wide), axis=axis, keepdims=True)
    normed = wide * tf.math.rsqrt(mean + (keras.config.epsilon() if epsilon is None else epsilon))
    if scale is not None:
        axes = axis if isinstance(axis, (list, tuple)) else [axis]
        shape = [1] * len(x.shape)
        for one in axes:
            shape[one] = x.shape[one]
        normed *= tf.cast(tf.reshape(scale, shape), normed.dtype)
    return tf.cast(normed, x.dtype)


def _along(x: Any, axis: int | None) -> tuple[Any, int]:
    """What an operation goes along: an axis, or without one all numbers in a row."""
    import tensorflow as tf

    return (tf.reshape(x, [-1]), 0) if axis is None else (x, axis)


def _axes(x: Any, axis: Any) -> Any:
    if axis is None:
        return list(range(x.shape.rank))
    return [axis] if isinstance(axis, int) else axis


def _take(x: Any, axis: int, indices: Any) -> Any:
    import tensorflow as tf

    return tf.gather(x, indices, axis=axis)


def _index(function: Callable[..., Any], x: Any, axis: int | None, keepdims: bool) -> Any:
    """Position of the largest or least number, as int32 as in Keras 3."""
    import tensorflow as tf

    rank = x.shape.rank
    if axis is None:
        found = function(tf.reshape(x, [-1]), output_type=tf.int32)
        return tf.reshape(found, [1] * rank) if keepdims else found
    found = function(x, axis, output_type=tf.int32)
    return tf.expand_dims(found, axis) if keepdims else found


def _pad(x: Any, pad_width: Any, mode: str, constant_values: Any = None) -> Any:
    import tensorflow as tf

    return tf.pad(x, pad_width, mode, 0 if constant_values is None else constant_values)


def _resize(x: Any, size: Any, interpolation: str, antialias: bool, **others: Any) -> Any:
    """Images as Keras 3 resizes them by default: stretched, channels last."""
    import tensorflow as tf

    changed = {name: value for name, value in others.items() if name.endswith("ratio") and value}
    if changed or others.get("data_format") == "channels_first":
        raise NotImplementedError
    resized = tf.image.resize(x, size, interpolation, antialias=antialias)
    return tf.cast(resized, x.dtype)


def _split(x: Any, indices_or_sections: Any, axis: int) -> Any:
    import tensorflow as tf

    if isinstance(indices_or_sections, int):
        return tf.split(x, indices_or_sections, axis)
    ends = [*indices_or_sections, x.shape[axis]]
    return tf.split(x, [end - start for start, end in zip([0, *ends], ends, strict=False)], axis)


def _swap_axes(x: Any, axis1: int, axis2: int) -> Any:
    import tensorflow as tf

    axes = list(range(x.shape.rank))
    axes[axis1], axes[axis2] = axes[axis2], axes[axis1]
    return tf.transpose(x, axes)
