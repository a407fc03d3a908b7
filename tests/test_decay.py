import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_lp import decay_factor, penalty

FLOATS = {
    "float64": np.float64,
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
CHEAP = (0, 0.5, 1, 1.5, 2)
# On JAX and torch, Keras promotes float64 and float32 to float32.
IN_FLOAT64 = pytest.param("float64", marks=pytest.mark.backend("tensorflow"))
every_float = pytest.mark.parametrize("dtype", [IN_FLOAT64, "float32", "bfloat16", "float16"])


def tiny(dtype):
    """The smallest normal number of the precision that the factor is computed in."""
    return float(np.finfo(np.float64 if dtype == "float64" else np.float32).tiny)


def reference_factor(weights, strength, p):
    """The formula in float64, by logarithms so that no power overflows on the way."""
    magnitude = np.abs(weights.astype(np.float64))
    if strength == 0:
        return np.ones_like(magnitude)
    if p == 2:
        return np.full_like(magnitude, 1 / (1 + strength))
    with np.errstate(divide="ignore", over="ignore"):
        return 1 / (1 + np.exp(np.log(strength) + (p - 2) * np.log(magnitude)))


def factor(weights, strength, p):
    return keras.ops.convert_to_numpy(decay_factor(weights, strength, p))


def compiled(function):
    """The function of numbers and an array as a graph, where the backend has graphs."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function, static_argnums=(1, 2))
    return function


@st.composite
def weights(draw, dtype):
    """Magnitudes over the whole range of the dtype, with its special values."""
    kind = FLOATS[dtype]
    limits = ml_dtypes.finfo(kind)
    special = [0.0, -0.0, float(limits.max), float(limits.tiny), float(limits.smallest_subnormal)]
    powers = st.floats(np.log10(float(limits.tiny)), np.log10(float(limits.max)) - 1e-3)
    signs = st.sampled_from([-1, 1])
    normal = st.builds(lambda power, sign: sign * 10.0**power, powers, signs)
    values = draw(st.lists(st.one_of(st.sampled_from(special), normal), min_size=2, max_size=12))
    array = np.array(values).astype(kind)
    assert np.isfinite(array.astype(np.float64)).all()
    return array


exponents = st.one_of(st.sampled_from(CHEAP), st.floats(0, 4))
strengths = st.one_of(
    st.just(0.0), st.floats(0, 1e6), st.builds(lambda e: 10.0**e, st.floats(-45, 6))
)


@every_float
@given(data=st.data(), strength=strengths, p=exponents)
def test_factor_equals_the_float64_formula_over_the_whole_range(dtype, data, strength, p):
    array = data.draw(weights(dtype))
    # Subnormal numbers may be flushed to zero; their own test says what holds for them.
    array = np.where(np.abs(array.astype(np.float64)) < tiny(dtype), np.zeros_like(array), array)
    strength = 0.0 if strength < tiny(dtype) else strength
    result = factor(array, strength, p)
    # exp(z) in float32 is good to |z| * 6e-8, and |z| stays under 88 before it saturates.
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    np.testing.assert_allclose(result, reference_factor(array, strength, p), 0, tolerance)


@every_float
@given(data=st.data(), strength=strengths, p=exponents)
def test_factor_lies_in_0_to_1_and_is_never_nan(dtype, data, strength, p):
    result = factor(data.draw(weights(dtype)), strength, p)
    assert (result >= 0).all()
    assert (result <= 1).all()


@every_float
@given(data=st.data(), strength=strengths, p=exponents)
def test_factor_rises_with_magnitude_for_p_below_2_and_falls_above(dtype, data, strength, p):
    array = data.draw(weights(dtype))
    array = array[np.argsort(np.abs(array.astype(np.float64)), kind="stable")]
    steps = np.diff(factor(array, strength, p).astype(np.float64))
    # A reciprocal square root depends on the place in the tensor, in its last bits, and an
    # exponential or a logarithm is not monotone in them.
    slack = 1e-6 if p == 0.5 else 0 if p in CHEAP else 1e-5
    if p <= 2:
        assert (steps >= -slack).all()
    if p >= 2:
        assert (steps <= slack).all()


@every_float
@given(data=st.data(), strength=strengths, p=exponents)
def test_factor_of_a_subnormal_weight_lies_between_those_of_its_neighbours(
    dtype, data, strength, p
):
    share = data.draw(st.floats(0, 1, exclude_min=True, exclude_max=True))
    kind = FLOATS["bfloat16" if dtype == "bfloat16" else "float32" if dtype != "float64" else dtype]
    result = factor(np.array([0, share * tiny(dtype), tiny(dtype)], kind), strength, p)
    slack = 1e-5
    assert min(result[0], result[2]) - slack <= result[1] <= max(result[0], result[2]) + slack


@every_float
@pytest.mark.parametrize("p", [0, 0.3, 0.5, 1, 1.5, 1.7, 2, 2.5, 4])
def test_factor_at_zero_and_at_strength_zero_is_exact(dtype, p):
    array = np.array([0.0, -0.0, 1e-3, -7.0], FLOATS[dtype])
    at_zero = 0.0 if p < 2 else 1.0 if p > 2 else 0.5
    for function in (decay_factor, compiled(decay_factor)):
        result = [keras.ops.convert_to_numpy(function(array, s, p)) for s in (0.0, 1.0)]
        np.testing.assert_array_equal(result[0], np.ones(4))
        np.testing.assert_array_equal(result[1][:2], [at_zero, at_zero])


@every_float
@pytest.mark.parametrize("p", [0.8, 1, 2])
def test_factor_has_the_shape_of_the_weights_and_at_least_float32(dtype, p):
    result = factor(np.ones((2, 3), FLOATS[dtype]), 0.1, p)
    assert result.shape == (2, 3)
    assert result.dtype == (np.float64 if dtype == "float64" else np.float32)


def test_factor_takes_python_numbers_tensors_and_variables_alike():
    expected = 1 / (1 + 0.1 * 0.5 ** (0.8 - 2))
    variable = keras.Variable(0.5)
    for weight in (0.5, np.float32(0.5), keras.ops.convert_to_tensor(0.5), variable):
        for strength in (0.1, np.float64(0.1), keras.ops.convert_to_tensor(0.1)):
            assert factor(weight, strength, 0.8) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("p", [0.0, 0.8, 1.0, 2.0, 3.0])
def test_factor_with_p_as_a_tensor_equals_the_one_with_p_as_a_number(p):
    array = np.array([0.0, 1e-30, 1e-3, 0.5, 1.0, 30.0], np.float32)
    for strength in (0.0, 1e-4, 2.0):
        np.testing.assert_allclose(
            factor(array, strength, keras.ops.convert_to_tensor(p)),
            reference_factor(array, strength, p),
            atol=2e-5,
        )


def test_factor_has_no_nan_for_an_absurdly_large_p():
    array = np.array([0.0, 0.5, 1.0, 2.0], np.float32)
    np.testing.assert_array_equal(factor(array, 1.0, 1e300), [1.0, 1.0, 0.5, 0.0])


def test_extreme_numbers_give_no_nan():
    array = np.array([0.0, 0.5, 1.0, 2.0], np.float32)
    for p in (0, 0.5, 0.8, 1, 1.5, 2, 3, keras.ops.convert_to_tensor(3.0)):
        result = factor(array, 2.9e38, p)
        assert ((result >= 0) & (result <= 1)).all()
    for p in (1e-320, 1e-50, 1e-39, 1e39, 1e300):
        assert not np.isnan(float(penalty(array, 0.1, p)))


def test_factor_uses_no_power_and_only_one_log_and_one_exp(monkeypatch):
    calls = []
    for name in ("power", "log", "exp"):
        original = getattr(keras.ops, name)

        def counted(*args, original=original, name=name):
            if any(len(getattr(arg, "shape", ())) for arg in args):
                calls.append(name)
            return original(*args)

        monkeypatch.setattr(keras.ops, name, counted)
    array = np.array([0.1, 0.2], np.float32)
    for p in CHEAP:
        factor(array, 0.1, p)
    assert calls == []
    factor(array, 0.1, 0.8)
    assert sorted(calls) == ["exp", "log"]


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8, 1, 1.5, 2, 3.3])
@every_float
def test_penalty_equals_the_float64_sum(dtype, p):
    array = np.array([[0.0, -0.25], [0.5, 3.0]], FLOATS[dtype])
    result = penalty(array, 0.1, p)
    expected = 0.1 / p * np.sum(np.abs(array.astype(np.float64)) ** p)
    assert float(result) == pytest.approx(expected, rel=1e-12 if dtype == "float64" else 1e-6)
    assert keras.backend.standardize_dtype(result.dtype) == (
        "float64" if dtype == "float64" else "float32"
    )


def test_penalty_at_p_0_is_the_sum_of_logarithms():
    array = np.array([0.25, -0.5, 3.0], np.float32)
    assert float(penalty(array, 0.1, 0)) == pytest.approx(0.1 * np.sum(np.log(np.abs(array))))
    assert float(penalty(np.array([0.0, 1.0], np.float32), 0.1, 0)) == -np.inf
    assert float(penalty(np.array([0.0, 1.0], np.float32), 0.0, 0)) == 0.0


@pytest.mark.backend("tensorflow")  # in float64
@pytest.mark.parametrize("p", [0, 0.5, 0.8, 1, 1.5, 2, 2.5])
def test_step_of_the_factor_is_the_proximal_step_on_a_majorizer_of_the_penalty(p):
    # At w the majorizer has the value and the slope of the penalty and lies above it elsewhere.
    random = np.random.default_rng(0)
    w, v = random.uniform(0.05, 3, 50), random.uniform(0.05, 3, 50)
    strength = 0.3

    def r(x):
        return np.array([float(penalty(np.array([value]), strength, p)) for value in x])

    curvature = 1 / factor(w, strength, p) - 1  # strength * w**(p - 2)
    majorizer = r(w) + curvature / 2 * (v**2 - w**2)
    if p <= 2:
        assert (majorizer >= r(v) - 1e-6).all()
    slope = (r(w + 1e-6) - r(w - 1e-6)) / 2e-6
    np.testing.assert_allclose(curvature * w, slope, rtol=1e-4)


@pytest.mark.parametrize("p", [-1, -1e-9, float("nan"), float("inf"), 10**400, "1", None])
def test_p_out_of_range_is_an_error_that_names_it(p):
    for function in (decay_factor, penalty):
        with pytest.raises(ValueError, match=r"`p` must be a finite number >= 0.*Received: p="):
            function(np.ones(3), 0.1, p)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf"), 1e39, 10**400])
def test_strength_out_of_range_is_an_error_that_names_it(strength):
    with pytest.raises(ValueError, match=r"`strength` must be .*Received: strength="):
        decay_factor(np.ones(3), strength, 0.8)
    with pytest.raises(ValueError, match=r"`weight_decay` must be .*Received: weight_decay="):
        penalty(np.ones(3), strength, 0.8)


def test_factor_of_several_norms_has_the_sum_of_their_terms_in_the_denominator():
    array = np.array([0.0, 1e-3, 0.5, -2.0], np.float32)
    strengths, exponents = (0.01, 0.3, 0.02), (0.8, 2, 3)
    result = keras.ops.convert_to_numpy(decay_factor(array, strengths, exponents))
    terms = [
        1 / np.maximum(reference_factor(array, s, p), 1e-300) - 1
        for s, p in zip(strengths, exponents, strict=True)
    ]
    np.testing.assert_allclose(result, 1 / (1 + np.sum(terms, axis=0)), atol=2e-5)
    assert result[0] == 0.0


def test_norm_of_strength_zero_leaves_the_other_bitwise_alone():
    array = np.array([0.0, 1e-3, 0.5, -2.0], np.float32)
    for p in (0, 0.8, 1, 2, 3):
        both = keras.ops.convert_to_numpy(decay_factor(array, [0.0, 0.2], [p, 1.5]))
        np.testing.assert_array_equal(both, factor(array, 0.2, 1.5))


def test_penalty_of_several_norms_is_their_sum():
    array = np.array([0.25, -0.5, 3.0], np.float32)
    result = float(penalty(array, (0.1, 0.01), (1, 2)))
    assert result == pytest.approx(float(penalty(array, 0.1, 1)) + float(penalty(array, 0.01, 2)))
    assert float(penalty(np.array([0.0, 1.0], np.float32), [0.0, 1.0], [0, 1])) == 1.0


@pytest.mark.parametrize(
    ("strength", "p"), [((0.1,), 1), (0.1, (1, 2)), ((0.1, 0.2), (1, 2, 3)), ((), ())]
)
def test_norms_that_are_not_equally_many_are_an_error_that_shows_both(strength, p):
    with pytest.raises(ValueError, match=r"`strength` and `p` .*same length.*strength=.*, p="):
        decay_factor(np.ones(3), strength, p)
    with pytest.raises(ValueError, match=r"`weight_decay` and `p` .*weight_decay=.*, p="):
        penalty(np.ones(3), strength, p)
