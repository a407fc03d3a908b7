"""The decoupled p-norm decay as pure functions on tensors.

`decay_factor` is what a weight is multiplied by in one optimizer step, `penalty` the
norm that this step descends on. Plain arithmetic in float32 or wider, no autodiff.
Source: Outmezguine and Levi, "Decoupled Weight Decay for Any p Norm", arXiv:2404.10824.
"""

import math
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_lp.powers import scaled_power

# Fits float32; |w|**p is 0, 1 or inf in every dtype long before p is so large.
_LARGEST = 3e38


def decay_factor(weights: Any, strength: Any, p: Any) -> Any:
    """Factor in [0, 1] that one decay step multiplies each weight by.

    Formula: `factor(w) = 1 / (1 + strength * |w|**(p - 2))`, the proximal step on the
    quadratic majorizer of the penalty at `w` (arXiv:2404.10824); for several norms
    `1 / (1 + sum_k strength_k * |w|**(p_k - 2))`. Its limits hold exactly and no finite
    input gives a NaN: `strength == 0` gives 1; `w == 0` gives 0 for `p < 2`,
    `1 / (1 + strength)` for `p == 2` and 1 for `p > 2`. Where the backend flushes
    subnormal numbers, a subnormal weight or strength counts as 0.

    A Python number `p` in {0, 0.5, 1, 1.5, 2} needs square roots and divisions only, any
    other `p` one logarithm and one exponential per weight.

    Args:
        weights: Float tensor, array or variable of any shape.
        strength: Float >= 0 or scalar tensor, `learning_rate * weight_decay`; for several
            norms a list or tuple of them.
        p: Float >= 0 or scalar tensor, the exponent of the norm; for several norms a list
            or tuple of the same length.

    Returns:
        Tensor of the shape of `weights`; float64 for float64 weights where Keras computes
        in float64, on TensorFlow, otherwise float32.

    Raises:
        ValueError: If `strength` or `p` is a number that is negative or not finite, or they
            are not equally many.

    Example:
    >>> keras_lp.decay_factor([0.0, 0.01, 1.0], strength=0.01, p=1)
    [0.0, 0.5, 0.990099]
    >>> keras_lp.decay_factor([0.01, 1.0], strength=(0.01, 1.0), p=(1, 2))
    [0.3333333, 0.4975124]
    """
    divisor = decay_divisor(weights, strength, p)
    # Graphs of TensorFlow get a reciprocal here that is not exact at 1.
    return ops.where(divisor == 1, ops.ones_like(divisor), 1.0 / divisor)


def decay_divisor(weights: Any, strength: Any, p: Any) -> Any:
    """What one decay step divides each weight by, `1 / decay_factor`; inf at a fixed zero."""
    magnitude = ops.abs(at_least_float32(weights))
    terms = [_term(magnitude, s, q) for s, q in pair_norms("strength", strength, p)]
    return 1.0 + sum(terms[1:], terms[0])


def penalty(weights: Any, weight_decay: Any, p: Any) -> Any:
    """Penalty whose majorizer the decay descends on.

    Formula: `R(w) = weight_decay / p * sum(|w|**p)`; for `p == 0` its limit up to a
    constant, `weight_decay * sum(log|w|)`, which is `-inf` once a weight is 0. Several
    norms add up. In the convention of the paper's code, `lambda_p = weight_decay / p`.

    Args:
        weights: Float tensor, array or variable of any shape.
        weight_decay: Float >= 0 or scalar tensor, the strength; for several norms a list or
            tuple of them.
        p: Float >= 0, the exponent of the norm; for several norms a list or tuple of the
            same length.

    Returns:
        Scalar tensor; float64 for float64 weights where Keras computes in float64, on
        TensorFlow, otherwise float32.

    Raises:
        ValueError: If `weight_decay` or `p` is negative or not finite, or they are not
            equally many.

    Example:
    >>> keras_lp.penalty([3.0, -4.0], weight_decay=0.1, p=2)
    1.25
    """
    weights = at_least_float32(weights)
    total = ops.zeros((), weights.dtype)
    for strength, exponent in pair_norms("weight_decay", weight_decay, p):
        strength = _cast(strength, weights.dtype)
        value = ops.sum(_power_over_p(ops.abs(weights), check_exponent(exponent)))
        # At p = 0 the sum may be infinite, which no strength of 0 would undo.
        total += ops.where(strength > 0, strength * value, ops.zeros_like(value))
    return total


def pair_norms(name: str, strengths: Any, exponents: Any) -> tuple[tuple[Any, Any], ...]:
    """Strength and exponent of each norm, where they are numbers checked.

    Args:
        name: What the caller's argument `strengths` is called, for the message.
        strengths: One strength, or a list or tuple of them.
        exponents: One exponent, or a list or tuple of them.

    Raises:
        ValueError: If a number is out of its range, or strengths and exponents are not
            equally many.
    """
    one = not (is_several(strengths) or is_several(exponents))
    lists = ((strengths,), (exponents,)) if one else (strengths, exponents)
    if not (all(map(is_several, lists)) and len(lists[0]) == len(lists[1]) > 0):
        raise ValueError(
            f"Arguments `{name}` and `p` must be one value each, or for several norms lists of "
            f"the same length, such as `{name}=(0.01, 0.0001), p=(0.8, 2)`. "
            f"Received: {name}={strengths!r}, p={exponents!r}"
        )
    return tuple(
        (
            check_strength(name, strength) if is_number(strength) else strength,
            check_exponent(exponent) if is_number(exponent) else exponent,
        )
        for strength, exponent in zip(*lists, strict=True)
    )


def is_several(value: Any) -> bool:
    """Whether `value` holds one value for each of several norms."""
    return isinstance(value, (list, tuple))


def is_number(value: Any) -> bool:
    """Whether `value` is a plain number, whose range can be checked at once."""
    return not (ops.is_tensor(value) or isinstance(value, (keras.Variable, LearningRateSchedule)))


def check_exponent(p: Any) -> float:
    """Returns `p` as a float; raises ValueError unless it is finite and >= 0."""
    return _check_non_negative("p", p, "2 is ordinary weight decay, 0.8 a good sparse start")


def check_strength(name: str, value: Any) -> float:
    """Returns `value` as a float; raises ValueError unless it is >= 0 and finite in float32."""
    hint = f"0 turns the decay off, {_LARGEST:.1e} is the largest"
    return _check_non_negative(name, value, hint, _LARGEST)


def _check_non_negative(name: str, value: Any, hint: str, largest: float = math.inf) -> float:
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and 0 <= number <= largest):
        raise ValueError(
            f"Argument `{name}` must be a finite number >= 0 ({hint}). Received: {name}={value!r}"
        )
    return number


def _term(magnitude: Any, strength: Any, p: Any) -> Any:
    """What one norm adds to the denominator: 0 where its strength is 0."""
    strength = _cast(strength, magnitude.dtype)
    term = _scaled_power(magnitude, strength, p)
    # 0 * inf is the one NaN that finite inputs can make.
    return ops.where(strength > 0, term, ops.zeros_like(term))


def _scaled_power(magnitude: Any, strength: Any, p: Any) -> Any:
    """`strength * |w|**(p - 2)`, ordered so that only the result itself can overflow."""
    if not is_number(p):
        return scaled_power(magnitude, strength, _cast(p, magnitude.dtype) - 2.0)
    if p == 2:
        return strength * ops.ones_like(magnitude)
    if p == 1.5:
        return strength / ops.sqrt(magnitude)
    if p == 1:
        return strength / magnitude
    if p == 0.5:
        root = ops.rsqrt(magnitude)
        return strength * root * ops.square(root)
    if p == 0:
        return ops.square(ops.sqrt(strength) / magnitude)
    return scaled_power(magnitude, strength, min(p, _LARGEST) - 2.0)


def _power_over_p(magnitude: Any, p: float) -> Any:
    """`|w|**p / p`, and `log|w|` for p = 0."""
    if p == 0:
        return ops.log(magnitude)
    if p == 0.5:
        return ops.sqrt(magnitude) / p
    if p == 1:
        return magnitude
    if p == 1.5:
        return magnitude * ops.sqrt(magnitude) / p
    if p == 2:
        return ops.square(magnitude) / p
    # One exponential, since XLA divides by multiplying with a reciprocal that may be 0.
    power = ops.exp(min(p, _LARGEST) * ops.log(magnitude) - math.log(p))
    # A p that is 0 in float32 makes 0 * -inf above.
    return ops.where(magnitude == 0, ops.zeros_like(power), power)


def at_least_float32(value: Any) -> Any:
    """`value` as a tensor of a precision in which the decay does not underflow."""
    value = ops.convert_to_tensor(value)
    return ops.cast(value, keras.backend.result_type(value.dtype, "float32"))


def _cast(value: Any, dtype: Any) -> Any:
    """`value` as a tensor; a plain number keeps its full precision on the way."""
    return ops.convert_to_tensor(value, dtype) if is_number(value) else ops.cast(value, dtype)
