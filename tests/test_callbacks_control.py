"""The law of `SparsityTarget` and what it looks at, without training a model."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_lp.callbacks.control import Course, strength
from keras_lp.callbacks.measuring import Magnitudes, measure
from keras_lp.callbacks.schedules import PolynomialSparsity

steps = st.integers(1, 10_000)
exponents = st.floats(0, 3)
rates = st.floats(1e-12, 1e3)
magnitudes = st.floats(1e-45, 1e30)
weights = st.lists(st.floats(-10, 10, width=32) | st.just(0.0), min_size=1, max_size=200)


def course(final=0.8, begin=0, end=1000, initial=0.0, power=3):
    schedule = PolynomialSparsity(None, final, begin, end, power)
    return Course(schedule, begin, end, initial, final)


def look_at(values):
    """What a look at an array finds, counted by NumPy."""
    values = np.abs(np.ravel(values))
    return Magnitudes(int(np.sum(values == 0)), values.size, values[values > 0])


def normal(size=1000, seed=0):
    return np.random.default_rng(seed).normal(size=size)


def log_speed_of(way, step, found, before, every, rate):
    """The logarithm of the speed, at the magnitude that has to fall by then."""
    magnitude = way.magnitude_to_fall(step, found)
    return way.log_speed(step, found.sparsity, magnitude, before, every, rate)


# What has to fall


@pytest.mark.parametrize("zeros", [0, 300])
def test_magnitude_to_fall_is_that_of_the_sparsity_a_tenth_of_the_way_ahead(zeros):
    values = normal()
    values[:zeros] = 0
    for step in (0, 200, 500):
        q = course().magnitude_to_fall(step, look_at(values))
        ahead = 0.8 * (1 - (1 - (step + 100) / 1000) ** 3)
        assert np.sum(np.abs(values) <= q) == pytest.approx(max(ahead * 1000, zeros), abs=2)


def test_magnitude_to_fall_leaves_a_margin_below_the_final_sparsity():
    values = normal(10_000)
    q = course().magnitude_to_fall(1000, look_at(values))
    assert np.sum(np.abs(values) < q) == pytest.approx(7980, abs=1.5)
    q = course(0.999).magnitude_to_fall(1000, look_at(values))
    assert np.sum(np.abs(values) < q) == pytest.approx(9989, abs=1.5)


@pytest.mark.parametrize("size", range(1, 60))
def test_margin_is_a_weight_at_least_so_that_small_layers_do_not_overshoot(size):
    values = np.arange(1.0, size + 1)
    while q := course().magnitude_to_fall(1000, look_at(values)):
        values[np.argmax(values > 0)] = 0  # the smallest falls, whatever it is
        assert q > 0
    assert np.sum(values == 0) in (round(0.8 * size) - 1, round(0.8 * size))


def test_nothing_has_to_fall_where_there_are_zeros_enough():
    values = normal()
    values[:800] = 0
    assert course().magnitude_to_fall(1000, look_at(values)) == 0
    assert course().magnitude_to_fall(1000, look_at(np.zeros(10))) == 0


@given(weights, st.floats(0, 1), st.floats(0, 1))
def test_quantile_grows_with_the_sparsity(values, one, other):
    found = look_at(np.array(values, dtype="float32"))
    low, high = sorted((one, other))
    assert 0 <= found.quantile(low) <= found.quantile(high)
    assert found.quantile(high) <= np.max(np.abs(values))


# How fast


def test_first_speed_makes_up_for_the_lead():
    found = look_at(normal())
    for step, before in ((0, math.nan), (50, 3.0), (500, math.nan)):
        log_speed = log_speed_of(course(), step, found, before, 10, 1e-3)
        fall = 1e-3 * math.exp(log_speed) * 100  # in a tenth of the way
        assert fall == pytest.approx(course().magnitude_to_fall(step, found))


def test_speed_is_kept_where_it_cannot_be_known():
    for found, rate in ((look_at(np.zeros(10)), 1e-3), (look_at(normal()), 0.0)):
        assert log_speed_of(course(), 0, found, 1.5, 10, rate) == 1.5
        assert math.isnan(log_speed_of(course(), 0, found, math.nan, 10, rate))


@pytest.mark.parametrize(
    ("excess", "change"), [(-0.5, 0.1), (-0.02, 0.1), (-0.01, 0.05), (0, 0), (0.01, -0.05)]
)
def test_speed_changes_by_the_error_of_the_zeros_within_a_limit(excess, change):
    share = 0.8 * (1 - 0.5**3) + excess
    found = Magnitudes(round(share * 10_000), 10_000, np.ones(10))
    log_speed = log_speed_of(course(), 500, found, 2.0, 10, 1e-3)
    assert log_speed - 2.0 == pytest.approx(change, abs=1e-3)


@given(weights, st.floats(0, 1), st.integers(0, 100), steps, steps, rates | st.just(0.0))
def test_speed_is_a_number_or_not_known(values, final, begin, length, every, rate):
    way = course(final, begin, begin + length)
    found = look_at(np.array(values, dtype="float32"))
    before = math.nan
    for step in (begin, begin + length // 2, begin + length):
        before = log_speed_of(way, step, found, before, every, rate)
        assert math.isnan(before) or math.isfinite(before)


# How strong


@pytest.mark.parametrize("p", [0, 0.3, 0.8, 1])
def test_strength_is_that_under_which_a_weight_falls_at_the_speed(p):
    rate, magnitude, speed = 1e-3, 0.05, 0.7
    found = strength(math.log(speed), magnitude, p, 10, rate)
    fall = magnitude - magnitude / (1 + rate * found * magnitude ** (p - 2))
    assert fall == pytest.approx(rate * speed, rel=0.02)


@given(st.floats(0, 20), st.floats(1e-4, 1), st.floats(0, 1), st.integers(1, 100))
def test_strength_leaves_a_weight_of_twice_the_magnitude_above_it_until_the_next_look(
    log_speed, magnitude, p, every
):
    rate = 1e-2
    found = strength(log_speed, magnitude, p, every, rate)
    weight = 2 * magnitude
    for _ in range(every):
        weight /= 1 + rate * found * weight ** (p - 2)
    assert weight > 0.99 * magnitude


@given(
    st.floats(-1e6, 1e6) | st.just(math.nan),
    magnitudes | st.just(0.0),
    exponents,
    steps,
    rates | st.just(0.0),
)
def test_strength_is_positive_and_finite(log_speed, magnitude, p, every, rate):
    found = strength(log_speed, magnitude, p, every, rate)
    assert 0 < found <= 1.001e30
    assert np.float32(found) > 0


def test_strength_only_keeps_zeros_where_nothing_has_to_fall():
    for log_speed, magnitude, rate in ((1.0, 0.0, 1e-3), (1.0, 0.1, 0.0), (math.nan, 0.1, 1e-3)):
        found = strength(log_speed, magnitude, 0.8, 10, rate)
        assert 0 < found < 1e-6


@pytest.mark.parametrize("p", [0, 0.5, 0.8])
@pytest.mark.parametrize("final", [0.5, 0.95])
def test_law_follows_the_schedule_in_a_simulation_by_numpy(p, final):
    random, rate, every, end = np.random.default_rng(0), 2e-3, 10, 1000
    w = random.normal(size=2000) * 0.2
    pull = random.normal(size=2000) * 0.2  # where the loss wants each weight to be
    way, log_speed, now, path = course(final, end=end), math.nan, 0.0, []
    for step in range(end):
        if step % every == 0:
            found = look_at(w)
            log_speed = log_speed_of(way, step, found, log_speed, every, rate)
            now = strength(log_speed, way.magnitude_to_fall(step, found), p, every, rate)
            path.append((found.sparsity, final * (1 - (1 - step / end) ** 3)))
        gradient = np.tanh(w - pull + 0.3 * random.normal(size=2000))
        with np.errstate(divide="ignore", over="ignore"):
            divisor = 1 + rate * now * np.abs(w) ** (p - 2)
        w = (w - rate * gradient) / divisor
        w[np.abs(w) < 1e-38] = 0
    errors = np.array(path) @ [1, -1]
    assert errors.min() > -0.15  # Zeros lag at first.
    assert np.abs(errors[60:]).max() < 0.05
    assert final - 0.03 <= look_at(w).sparsity <= final


# What is found


@pytest.fixture
def look(mlp):
    """A function that makes variables of arrays in groups, and looks at them."""

    def make(groups, dtype="float32"):
        variables = [
            [keras.Variable(a, dtype=dtype, name="v") for a in arrays] for arrays in groups
        ]
        arrays = [np.concatenate([np.ravel(numpy(v)) for v in members]) for members in variables]
        return measure(variables, mlp())(), arrays

    return make


def numpy(variable):
    value = keras.ops.cast(keras.ops.convert_to_tensor(variable), "float32")
    return np.array(keras.ops.convert_to_numpy(value))


@pytest.mark.parametrize(("dtype", "number"), [("float32", 5), ("float16", 1), ("bfloat16", 2)])
def test_look_counts_zeros_and_takes_magnitudes_as_numpy_does(look, dtype, number):
    random = np.random.default_rng(0)
    groups = [
        [
            random.normal(size=shape) * (random.random(shape) < 0.1 + 0.15 * group)
            for shape in ((7, 5), (3, 3, 2, 4), (11, 1))
        ]
        for group in range(number)
    ]
    groups[0][0][0, 0], groups[0][0][0, 1] = -0.0, 1e-5
    found, arrays = look(groups, dtype)
    assert len(found) == number
    for one, array in zip(found, arrays, strict=True):
        assert (one.zeros, one.size) == (np.sum(array == 0), array.size)
        assert one.sparsity == np.mean(array == 0)
        expected = np.sort(np.abs(array[array != 0]))
        np.testing.assert_array_equal(np.sort(one.nonzero), expected)


def test_look_at_much_counts_all_and_samples_magnitudes(look):
    random = np.random.default_rng(0)
    large = random.normal(size=(700, 300)) * (random.random((700, 300)) < 0.5)
    found, arrays = look([[large, np.full((2, 3), 9.0)], [np.ones((4, 4))]])
    for one, array in zip(found, arrays, strict=True):
        assert one.zeros == np.sum(array == 0)
        assert np.isin(one.nonzero, np.abs(array)).all()
    one = found[0]
    assert 2000 < one.nonzero.size < 20_000
    exact = np.quantile(np.abs(arrays[0]), 0.7)
    assert one.quantile(0.7) == pytest.approx(exact, rel=0.05)


def test_look_sees_the_variables_of_that_moment(mlp):
    model = mlp()
    call = measure([[layer.kernel] for layer in model.layers], model)
    assert [one.zeros for one in call()] == [0, 0]
    kernel = model.layers[1].kernel
    kernel.assign(np.zeros(kernel.shape))
    assert [one.zeros for one in call()] == [0, math.prod(kernel.shape)]
