"""Powers of positive numbers, one logarithm and one exponential each.

`scaled_power` is all of it. Where XLA compiles float32 it takes functions of our own, made of
the bits of a number and a polynomial, as accurate as XLA's and a third of their price: these
two are what a decay step costs more than AdamW's.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

# The parts of a float32: the bits of the fraction, what is added to the exponent, the least number.
_FRACTION_BITS, _BIAS, _LEAST = 23, 127, 2.0**-126
# Bits of sqrt(1/2): the numbers from there to its double have the binary logarithms -1/2 to 1/2.
_ROOT_BITS = int(np.float32(0.5**0.5).view("int32"))


def scaled_power(x: Any, scale: Any, exponent: Any) -> Any:
    """`scale * x**exponent`, where only the result itself can overflow or underflow.

    A NaN stays one, and `0**0` is 1.

    Args:
        x: Tensor of numbers >= 0, float32 or wider.
        scale: Scalar tensor > 0 of the same dtype.
        exponent: Python number, or a scalar tensor of the same dtype.

    Returns:
        Tensor like `x`. In float32 its relative error is up to 1e-6, and 2e-7 for each binary
        order of magnitude of `x**exponent` and of `scale`, by either way.
    """
    is_fast = keras.backend.standardize_dtype(x.dtype) == "float32" and _xla_compiles(x)
    log, exp = (_log2, _exp2) if is_fast else (ops.log, ops.exp)
    logarithm = exponent * log(x)
    if ops.is_tensor(exponent):
        logarithm = ops.where(exponent == 0, ops.zeros_like(logarithm), logarithm)
    return exp(logarithm + log(scale))


def _log2(x: Any) -> Any:
    """Binary logarithm of float32 numbers >= 0; -inf for 0 and what is less than normal."""
    bits = ops.view(x, "int32")
    exponent = ops.right_shift(bits - _ROOT_BITS, _FRACTION_BITS)
    over_1 = ops.view(bits - ops.left_shift(exponent, _FRACTION_BITS), "float32") - 1.0
    logarithm = ops.cast(exponent, "float32") + over_1 * _value(_LOG2, over_1)
    return ops.where(x >= _LEAST, logarithm, x - np.inf)  # Which leaves a NaN one.


def _exp2(x: Any) -> Any:
    """2 to the power of float32 numbers; inf over 127.5, and 2**-126 for all that is less."""
    most, least = 1.0 + _BIAS, 1.0 - _BIAS
    x = ops.where(x > most, most, x)  # A NaN stays one, as not in ops.clip.
    x = ops.where(x < least, least, x)
    biased = ops.cast(x + (_BIAS + 0.5), "int32")  # Rounds down, as nothing is negative.
    rest = x - (ops.cast(biased, "float32") - _BIAS)
    return ops.view(ops.left_shift(biased, _FRACTION_BITS), "float32") * _value(_EXP2, rest)


def _polynomial(function: Callable[[Any], Any], least: float, most: float, degree: int) -> Any:
    """Coefficients, the highest first, that fit a function between two numbers."""
    fitted = np.polynomial.Chebyshev.interpolate(function, degree, (least, most))
    return fitted.convert(kind=np.polynomial.Polynomial).coef[::-1].tolist()


_LOG2 = _polynomial(lambda x: np.log2(1 + x) / x, 0.5**0.5 - 1, 2**0.5 - 1, 6)
_EXP2 = [*_polynomial(np.exp2, -0.5, 0.5, 5)[:-1], 1.0]  # At 0 it is 1.


def _value(coefficients: list[float], x: Any) -> Any:
    """A polynomial at `x`."""
    total = coefficients[0]
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _xla_compiles(x: Any) -> bool:
    """Whether `x` is in a function that XLA compiles, which makes one pass of many operations."""
    if keras.backend.backend() == "jax":
        import jax

        return isinstance(x, jax.core.Tracer)
    if keras.backend.backend() == "tensorflow":
        return _tensorflow_compiles()
    return False


def _tensorflow_compiles() -> bool:
    """The same under TensorFlow, which tells nobody but itself whether `jit_compile` is set."""
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))
