"""Functions of TensorFlow between the layers of a tf_keras model, as operations of Keras 3.

tf_keras keeps `tf.nn.relu(x) * 2` and `x[:, 1:]` as layers that name the function. Those that
saved Keras 2 models often hold are written here with `keras.ops`; each takes the arguments of
the function of TensorFlow, by its names.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


def is_function(layer: Any) -> bool:
    """Whether a layer of tf_keras stands for a call of a function of TensorFlow."""
    return type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda")


def call_function_in_keras(
    layer: Any,
    custom: Mapping[Any, Callable[..., Any]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Calls on tensors of Keras 3 what a function of TensorFlow was in a tf_keras model.

    Args:
        layer: The layer of tf_keras.
        custom: From functions of TensorFlow to those to take for them.
        args: What it is called with.
        kwargs: The same, by name.

    Raises:
        ValueError: If the function or one of its arguments is not known here.
    """
    name = layer.get_config()["function"]
    given = {key: _plain(value) for key, value in kwargs.items() if key != "name"}
    if layer.function in custom:
        return custom[layer.function](*_plain(args), **given)
    function = _FUNCTIONS.get(name.removeprefix("compat.v1."))
    remedy = (
        f"Pass `custom_layers={{tf.{name}: function}}` with a function of the same arguments that "
        "computes it with `keras.ops`."
    )
    if function is None:
        raise ValueError(
            f"Layer {layer.name!r} is the function tf.{name}, for which keras_lp knows no "
            f"operation of Keras 3. {remedy}"
        )
    # The first argument has many names in TensorFlow, the others those of the functions here.
    bound = inspect.signature(layer.function).bind(*args, **kwargs).arguments
    first, *others = ((key, _plain(value)) for key, value in bound.items() if key != "name")
    try:
        return function(first[1], **{key: value for key, value in others if value is not None})
    except Exception as error:
        raise ValueError(
            f"Layer {layer.name!r}, the function tf.{name} of {', '.join(bound)}, could not be "
            f"made in Keras 3: {error}. {remedy}"
        ) from error


def _plain(value: Any) -> Any:
    """An argument without constants of TensorFlow."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    is_of_tensorflow = type(value).__module__.startswith("tensorflow.")
    return value.numpy() if is_of_tensorflow and hasattr(value, "numpy") else value


def _shape(x: Any, out_type: Any = None) -> np.ndarray:
    """Sizes, -1 for what is not known: enough to reshape to."""
    return np.array([-1 if size is None else size for size in x.shape])


def _reshape(x: Any, shape: Any) -> Any:
    first, *others = _sizes(shape)
    if first == -1 and -1 in others:  # The first one is what `tf.shape` gave for the batch.
        return keras.layers.Reshape(others)(x)
    return ops.reshape(x, (first, *others))


def _sizes(shape: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in np.ravel(shape))


def _getitem(x: Any, slice_spec: Any) -> Any:
    is_several = isinstance(slice_spec, list)
    return x[tuple(map(_key, slice_spec)) if is_several else _key(slice_spec)]


def _key(one: Any) -> Any:
    """A slice, which tf_keras keeps as a dictionary, or another index."""
    return (
        slice(*(one[name] for name in ("start", "stop", "step"))) if isinstance(one, dict) else one
    )


def _split(x: Any, num_or_size_splits: Any, axis: int = 0, num: int | None = None) -> Any:
    if isinstance(num_or_size_splits, int):
        return ops.split(x, num_or_size_splits, axis)
    return ops.split(x, np.cumsum(num_or_size_splits)[:-1].tolist(), axis)


def _depth_to_space(x: Any, block_size: int, data_format: str = "NHWC") -> Any:
    if data_format != "NHWC":
        raise ValueError(f"data_format={data_format!r} has no counterpart")
    _, height, width, channels = x.shape
    left = channels // block_size**2
    parts = ops.reshape(x, (-1, height, width, block_size, block_size, left))
    parts = ops.transpose(parts, (0, 1, 3, 2, 4, 5))
    return ops.reshape(parts, (-1, height * block_size, width * block_size, left))


def _matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    **others: Any,
) -> Any:
    left = ops.swapaxes(a, -1, -2) if transpose_a or adjoint_a else a
    right = ops.swapaxes(b, -1, -2) if transpose_b or adjoint_b else b
    return ops.matmul(left, right)


def _pad(x: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0) -> Any:
    widths = np.asarray(paddings).tolist()
    values = {"constant_values": constant_values} if mode == "CONSTANT" else {}
    return ops.pad(x, widths, mode.lower(), **values)


def _resize(
    x: Any,
    size: Any,
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Any:
    if preserve_aspect_ratio:
        raise ValueError("preserve_aspect_ratio=True has no counterpart")
    sizes = _sizes(size)
    resized = ops.image.resize(x, sizes, method, antialias=antialias, data_format="channels_last")
    return resized if method == "nearest" else ops.cast(resized, "float32")


def _norm(x: Any, axis: Any = None, keepdims: bool = False, **order: Any) -> Any:
    if order.get("ord", "euclidean") not in ("euclidean", 2):
        raise ValueError(f"of the orders only the Euclidean one is known, not {order}")
    return ops.sqrt(_reduced(ops.sum)(ops.square(x), axis, keepdims))


def _one_hot(
    x: Any,
    depth: int,
    on_value: Any = 1,
    off_value: Any = 0,
    axis: int = -1,
    dtype: Any = "float32",
) -> Any:
    found = ops.one_hot(x, int(depth), axis=axis, dtype=_dtype(dtype))
    return found if (on_value, off_value) == (1, 0) else found * (on_value - off_value) + off_value


def _of_two(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(_constant(x, y), _constant(y, x))


def _constant(value: Any, other: Any) -> Any:
    """A constant as an array of the dtype of the tensor beside it; a file keeps it as a list."""
    is_constant = isinstance(value, (list, np.ndarray)) and hasattr(other, "dtype")
    return np.asarray(value, _dtype(other.dtype)) if is_constant else value


def _argument(function: Callable[..., Any]) -> Callable[..., Any]:
    def found(x: Any, axis: int | None = 0, output_type: Any = "int64") -> Any:
        return ops.cast(function(x, axis=axis), _dtype(output_type))

    return found


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        axes = None if axis is None else _sizes(axis)
        return function(x, axis=axes[0] if axes and len(axes) == 1 else axes, keepdims=keepdims)

    return reduce


def _pooled(function: Callable[..., Any]) -> Callable[..., Any]:
    def pool(x: Any, ksize: Any, strides: Any, padding: str, data_format: str = "NHWC") -> Any:
        if data_format != "NHWC":
            raise ValueError(f"data_format={data_format!r} has no counterpart")
        sizes, steps = (_window(one) for one in (ksize, strides))
        return function(x, sizes, steps, padding.lower(), data_format="channels_last")

    return pool


def _window(size: Any) -> tuple[int, ...]:
    """Height and width out of one number, two, or four with those of batch and channels."""
    sizes = _sizes(size)
    return {1: sizes * 2, 2: sizes, 4: sizes[1:3]}[len(sizes)]


def _dtype(dtype: Any) -> str:
    return keras.backend.standardize_dtype(dtype)


_UNARY = {
    "identity": lambda x: x,
    "math.abs": ops.abs,
    "math.ceil": ops.ceil,
    "math.cos": ops.cos,
    "math.erf": ops.erf,
    "math.exp": ops.exp,
    "math.expm1": ops.expm1,
    "math.floor": ops.floor,
    "math.is_finite": ops.isfinite,
    "math.is_nan": ops.isnan,
    "math.log": ops.log,
    "math.log1p": ops.log1p,
    "math.log_sigmoid": ops.log_sigmoid,
    "math.logical_not": ops.logical_not,
    "math.negative": ops.negative,
    "math.reciprocal": ops.reciprocal,
    "math.round": ops.round,
    "math.rsqrt": ops.rsqrt,
    "math.sigmoid": ops.sigmoid,
    "math.sign": ops.sign,
    "math.sin": ops.sin,
    "math.softplus": ops.softplus,
    "math.sqrt": ops.sqrt,
    "math.square": ops.square,
    "math.tanh": ops.tanh,
    "nn.elu": ops.elu,
    "nn.relu": ops.relu,
    "nn.relu6": ops.relu6,
    "nn.selu": ops.selu,
    "nn.softsign": ops.softsign,
    "stop_gradient": ops.stop_gradient,
}
_BINARY = {
    "__operators__.add": ops.add,
    "floor_div": ops.floor_divide,
    "math.add": ops.add,
    "math.divide": ops.divide,
    "math.divide_no_nan": ops.divide_no_nan,
    "math.equal": ops.equal,
    "math.floordiv": ops.floor_divide,
    "math.floormod": ops.mod,
    "math.greater": ops.greater,
    "math.greater_equal": ops.greater_equal,
    "math.less": ops.less,
    "math.less_equal": ops.less_equal,
    "math.logical_and": ops.logical_and,
    "math.logical_or": ops.logical_or,
    "math.maximum": ops.maximum,
    "math.minimum": ops.minimum,
    "math.multiply": ops.multiply,
    "math.not_equal": ops.not_equal,
    "math.pow": ops.power,
    "math.squared_difference": lambda x, y: ops.square(ops.subtract(x, y)),
    "math.subtract": ops.subtract,
    "math.truediv": ops.divide,
}
_REDUCTIONS = {
    "math.reduce_all": ops.all,
    "math.reduce_any": ops.any,
    "math.reduce_logsumexp": ops.logsumexp,
    "math.reduce_max": ops.max,
    "math.reduce_mean": ops.mean,
    "math.reduce_min": ops.min,
    "math.reduce_prod": ops.prod,
    "math.reduce_std": ops.std,
    "math.reduce_sum": ops.sum,
    "math.reduce_variance": ops.var,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_UNARY,
    **{name: _of_two(function) for name, function in _BINARY.items()},
    **{name: _reduced(function) for name, function in _REDUCTIONS.items()},
    "__operators__.getitem": _getitem,
    "broadcast_to": lambda x, shape: ops.broadcast_to(x, _sizes(shape)),
    "cast": lambda x, dtype: ops.cast(x, _dtype(dtype)),
    "clip_by_value": lambda x, clip_value_min, clip_value_max: ops.clip(
        x, clip_value_min, clip_value_max
    ),
    "concat": lambda x, axis: ops.concatenate(x, int(axis)),
    "einsum": lambda equation, **inputs: ops.einsum(equation, *inputs["inputs"]),
    "expand_dims": lambda x, axis: ops.expand_dims(x, int(axis)),
    "gather": lambda x, indices, axis=0, **_: ops.take(x, np.asarray(indices), axis=axis),
    "image.resize": _resize,
    "linalg.matmul": _matmul,
    "math.add_n": lambda x: functools.reduce(ops.add, x),
    "math.argmax": _argument(ops.argmax),
    "math.argmin": _argument(ops.argmin),
    "math.cumsum": lambda x, axis=0: ops.cumsum(x, axis=axis),
    "math.l2_normalize": lambda x, axis, epsilon=1e-12: (
        x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=axis, keepdims=True), epsilon))
    ),
    "math.top_k": lambda x, k=1, sorted=True: ops.top_k(x, int(k), sorted),  # noqa: A006
    "nn.avg_pool2d": _pooled(ops.average_pool),
    "nn.bias_add": lambda x, bias: ops.add(x, bias),
    "nn.depth_to_space": _depth_to_space,
    "nn.gelu": lambda x, approximate=False: ops.gelu(x, approximate),
    "nn.leaky_relu": lambda x, alpha=0.2: ops.leaky_relu(x, alpha),
    "nn.log_softmax": lambda x, axis=-1: ops.log_softmax(x, axis),
    "nn.max_pool2d": _pooled(ops.max_pool),
    "nn.silu": lambda x, beta=1.0: x * ops.sigmoid(beta * x),
    "nn.softmax": lambda x, axis=-1: ops.softmax(x, axis),
    "norm": _norm,
    "one_hot": _one_hot,
    "ones_like": lambda x, dtype=None: ops.ones_like(x, dtype and _dtype(dtype)),
    "pad": _pad,
    "repeat": lambda x, repeats, axis=None: ops.repeat(x, repeats, axis),
    "reshape": _reshape,
    "reverse": lambda x, axis: functools.reduce(ops.flip, _sizes(axis), x),
    "roll": lambda x, shift, axis: ops.roll(x, shift, axis),
    "shape": _shape,
    "split": _split,
    "squeeze": lambda x, axis=None: ops.squeeze(x, axis if axis is None else _sizes(axis)),
    "stack": lambda x, axis=0: ops.stack(x, axis),
    "tile": lambda x, multiples: ops.tile(x, _sizes(multiples)),
    "transpose": lambda x, perm=None, conjugate=False: ops.transpose(x, perm),
    "unstack": lambda x, num=None, axis=0: ops.unstack(x, num, axis),
    "where": lambda condition, x=None, y=None: ops.where(condition, x, y),
    "zeros_like": lambda x, dtype=None: ops.zeros_like(x, dtype and _dtype(dtype)),
}
