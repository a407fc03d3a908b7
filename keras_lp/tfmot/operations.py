"""Operations of a functional model that are no layers: `x + y`, `keras.ops.mean(x)`, `x[:, 0]`.

In tf_keras each becomes a layer of one class, `Operation`, that names the operation of Keras 3
and computes it with TensorFlow, so that it can be saved, copied, wrapped by TF-MOT and
turned back.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_lp.optional import import_tf_keras
from keras_lp.tfmot.graph import is_symbolic

# Of two tensors these are layers, which TF-MOT knows; and so is this one of a list of them.
_MERGES = frozenset({"Add", "Subtract", "Multiply", "Maximum", "Minimum"})
_CONCATENATE = "Concatenate"
# Where `keras.ops` has another name than the class in lower case.
_FUNCTIONS_OF_KERAS = {"TrueDivide": "true_divide", "HardSilu": "hard_silu"}


def call_in_tf_keras(
    name: str,
    kind: str,
    settings: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Calls on tensors of tf_keras what an operation of Keras 3 is there.

    Args:
        name: Name of the operation in its model.
        kind: Class of the operation, such as "Mean".
        settings: What it was created with, such as `{"axis": 1}`.
        args: What it is called with; tensors, and other values in between.
        kwargs: The same, by name.

    Raises:
        ValueError: If there is nothing like it.
    """
    tf_keras = import_tf_keras()
    tensors: list[Any] = []
    template = _take_tensors([list(args), dict(kwargs)], tensors)
    # The layers take other pairs of ranks too, but in a way of their own.
    if kind in _MERGES and len(tensors) == 2 and tensors[0].shape.rank == tensors[1].shape.rank:
        return getattr(tf_keras.layers, kind)(name=name)(tensors)
    if kind == _CONCATENATE:
        return tf_keras.layers.Concatenate(name=name, **settings)(tensors)
    if kind not in _functions():
        raise ValueError(
            f"Operation {name!r} (class {kind} of `keras.ops`) has no counterpart in tf_keras. Put "
            "it into a layer of your own and pass that in `custom_layers`."
        )
    layer = operation_class()(kind, dict(settings), template, name=name)
    return layer(tensors if len(tensors) > 1 else tensors[0])


def call_in_keras(layer: Any, tensors: Sequence[Any]) -> Any:
    """Calls on tensors of Keras 3 what an `Operation` of tf_keras was there."""
    args, kwargs = _put_tensors(layer.template, tensors)
    if layer.kind == "GetItem":
        return args[0][args[1]]
    function = getattr(keras.ops, _FUNCTIONS_OF_KERAS.get(layer.kind, _snake_case(layer.kind)))
    settings = dict(layer.settings)
    if layer.kind == "Einsum":
        args.insert(0, settings.pop("subscripts"))
    return function(*args, **settings, **kwargs)


@functools.cache
def operation_class() -> Any:
    """The class of tf_keras layers that compute an operation of Keras 3."""
    tf_keras = import_tf_keras()
    base: Any = tf_keras.layers.Layer

    @tf_keras.saving.register_keras_serializable("keras_lp")
    class Operation(base):
        """Computes an operation of Keras 3 on tensors of TensorFlow.

        Args:
            kind: Class of the operation.
            settings: What it was created with.
            template: Its arguments, with places for tensors.
        """

        def __init__(self, kind: str, settings: Any, template: Any, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.kind = kind
            # As JSON would give them back; tf_keras wraps other lists and dicts.
            self._config = {"kind": kind, "settings": settings, "template": template}

        @property
        def settings(self) -> dict[str, Any]:
            return dict(self.get_config()["settings"])

        @property
        def template(self) -> Any:
            return self.get_config()["template"]

        def call(self, inputs: Any) -> Any:
            tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            args, kwargs = _put_tensors(self.template, tensors)
            return _functions()[self.kind](*args, **self.settings, **kwargs)

        def get_prunable_weights(self) -> list[Any]:
            """None; by this method TF-MOT lets the layer be."""
            return []

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), **self._config}

    return Operation


def _take_tensors(value: Any, tensors: list[Any]) -> Any:
    """The value with places in the place of tensors, which are added to a list."""
    if isinstance(value, (list, tuple)):
        return [_take_tensors(one, tensors) for one in value]
    if isinstance(value, dict):
        return {key: _take_tensors(one, tensors) for key, one in value.items()}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
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
        return {key: _put_tensors(one, tensors) for key, one in template.items()}
    return template


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Functions of TensorFlow that compute the operations, by their classes."""
    import tensorflow as tf

    nn = tf.nn
    return {
        "Absolute": tf.abs,
        "Add": lambda a, b: a + b,
        "All": tf.reduce_all,
        "Any": tf.reduce_any,
        "BroadcastTo": tf.broadcast_to,
        "Cast": lambda x, dtype: tf.cast(x, dtype),
        "Clip": lambda x, x_min, x_max: tf.clip_by_value(x, x_min, x_max),
        "Cos": tf.cos,
        "Divide": lambda a, b: a / b,
        "Einsum": lambda *operands, subscripts: tf.einsum(subscripts, *operands),
        "Elu": lambda x, alpha: tf.where(x > 0, x, alpha * tf.math.expm1(tf.minimum(x, 0.0))),
        "Equal": tf.equal,
        "Exp": tf.exp,
        "ExpandDims": lambda x, axis: tf.expand_dims(x, axis),
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
        "LogSigmoid": tf.math.log_sigmoid,
        "LogSoftmax": lambda x, axis: nn.log_softmax(x, axis=axis),
        "LogicalAnd": tf.logical_and,
        "LogicalNot": tf.logical_not,
        "LogicalOr": tf.logical_or,
        "Matmul": tf.matmul,
        "Max": lambda x, axis, keepdims, initial: tf.reduce_max(x, axis, keepdims),
        "Maximum": tf.maximum,
        "Mean": tf.reduce_mean,
        "Min": lambda x, axis, keepdims, initial: tf.reduce_min(x, axis, keepdims),
        "Minimum": tf.minimum,
        "Multiply": lambda a, b: a * b,
        "Negative": tf.negative,
        "NotEqual": tf.not_equal,
        "OnesLike": lambda x, dtype: tf.ones_like(x, dtype),
        "Power": lambda a, b: a**b,
        "Reciprocal": tf.math.reciprocal,
        "Relu": nn.relu,
        "Relu6": nn.relu6,
        "Repeat": lambda x, repeats, axis: tf.repeat(x, repeats, axis),
        "Reshape": lambda x, newshape: tf.reshape(x, [-1 if n is None else n for n in newshape]),
        "Selu": nn.selu,
        "Sigmoid": tf.sigmoid,
        "Silu": nn.silu,
        "Sin": tf.sin,
        "Softmax": lambda x, axis: nn.softmax(x, axis=axis),
        "Softplus": tf.math.softplus,
        "Softsign": nn.softsign,
        "Sqrt": tf.sqrt,
        "Square": tf.square,
        "Squeeze": lambda x, axis: tf.squeeze(x, axis),
        "Stack": lambda x, axis: tf.stack(x, axis),
        "Std": tf.math.reduce_std,
        "Subtract": lambda a, b: a - b,
        "Sum": tf.reduce_sum,
        "Swapaxes": _swap_axes,
        "Tanh": tf.tanh,
        "Tile": lambda x, repeats: tf.tile(x, repeats),
        "Transpose": lambda x, axes: tf.transpose(x, axes),
        "TrueDivide": lambda a, b: a / b,
        "Var": tf.math.reduce_variance,
        "ZerosLike": lambda x, dtype: tf.zeros_like(x, dtype),
    }


def _swap_axes(x: Any, axis1: int, axis2: int) -> Any:
    import tensorflow as tf

    axes = list(range(x.shape.rank))
    axes[axis1], axes[axis2] = axes[axis2], axes[axis1]
    return tf.transpose(x, axes)
