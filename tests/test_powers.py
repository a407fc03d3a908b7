import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_lp.powers import scaled_power

TINY, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
COUNT = 64
on_xla = pytest.mark.backend("tensorflow", "jax")


@functools.cache
def through_xla(function):
    """The function of tensors, compiled by XLA."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def one_by_one(function):
    """The function of tensors, whose operations run by themselves."""
    return function


ways = pytest.mark.parametrize("way", [pytest.param(through_xla, marks=on_xla), one_by_one])


def power(way, x, scale, exponent):
    arguments = (ops.convert_to_tensor(np.float32(one)) for one in (x, scale, exponent))
    return ops.convert_to_numpy(way(scaled_power)(*arguments))


@ways
@given(st.data())
def test_power_equals_the_float64_power_over_the_whole_range(way, data):
    magnitudes = st.floats(np.log(TINY), np.log(LARGEST) - 1e-3)
    seed = data.draw(st.integers(0, 2**32 - 1))
    scale = np.float32(np.exp(data.draw(magnitudes)))
    exponent = np.float32(data.draw(st.floats(-3, 3)))
    random = np.random.default_rng(seed)
    x = np.exp(random.uniform(np.log(TINY), np.log(LARGEST) - 1e-3, COUNT)).astype("float32")
    found = power(way, x, scale, exponent)
    orders = exponent.astype("float64") * np.log2(x.astype("float64"))
    expected = orders + np.log2(np.float64(scale))
    is_normal = abs(expected) < 126
    allowed = 1e-6 + 2e-7 * (abs(orders) + abs(np.log2(np.float64(scale))))
    error = abs(found[is_normal] / np.exp2(expected[is_normal]) - 1)
    assert (error <= allowed[is_normal]).all()
    assert (found[expected < -126] <= 2 * TINY).all()
    assert (found[expected > 126] > 2.0**125).all()


@ways
@pytest.mark.parametrize("exponent", [-2.0, -1.2, -0.01, 0.0, 0.7, 2.0])
def test_power_of_zero_and_of_what_is_no_number_is_as_in_numpy(way, exponent):
    x = np.array([0.0, 1.0, np.nan], "float32")
    found = power(way, x, 1.0, exponent)
    with np.errstate(divide="ignore"):
        expected = x**exponent
    if exponent == 0:
        expected[2] = 1.0  # As nothing depends on x.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2 * TINY)


@on_xla
def test_power_of_a_subnormal_number_is_that_of_zero_where_xla_compiles():
    x = np.array([0.5 * TINY, 1.01 * TINY], "float32")
    less, least = power(through_xla, x, 1e-30, -1.2)
    assert less == np.inf
    assert least == pytest.approx(1e-30 * (1.01 * TINY) ** -1.2, rel=1e-4)


@ways
def test_a_scale_of_zero_leaves_nothing(way):
    assert (power(way, [1e-3, 1.0, 1e3], 0.0, -1.2) <= TINY).all()


@on_xla
@pytest.mark.parametrize(
    ("way", "dtype", "is_ours"),
    [
        (through_xla, "float32", True),
        pytest.param(
            through_xla, "float64", False, marks=pytest.mark.backend("tensorflow", reason="float64")
        ),
        (one_by_one, "float32", False),
    ],
)
def test_functions_of_our_own_are_for_what_xla_compiles_in_float32(
    monkeypatch, way, dtype, is_ours
):
    calls = []
    for name in ("log", "exp"):
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda x, f=original: calls.append(x) or f(x))
    x = ops.convert_to_tensor(np.array([0.5], dtype))
    scale = ops.convert_to_tensor(np.array(0.1, dtype))
    found = ops.convert_to_numpy(way(lambda x, scale: scaled_power(x, scale, -1.2))(x, scale))
    assert found == pytest.approx(0.1 * 0.5**-1.2, rel=1e-6)
    assert (not calls) == is_ours


@pytest.mark.backend("tensorflow")
def test_tensorflow_tells_where_in_a_training_xla_compiles(monkeypatch):
    import tensorflow as tf

    inner = tf.function(lambda x: scaled_power(x, ops.ones(()), -1.2))
    calls = []
    original = ops.log
    monkeypatch.setattr(ops, "log", lambda x: calls.append(x) or original(x))
    tf.function(lambda x: inner(x) + 1.0, jit_compile=True)(tf.ones(3))
    assert not calls
    tf.function(lambda x: inner(x) + 1.0)(tf.ones(4))
    assert calls
