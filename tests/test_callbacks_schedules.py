import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_lp import ConstantSparsity, PolynomialSparsity, SparsityTarget
from keras_lp.callbacks.control import Course
from keras_lp.callbacks.schedules import as_schedule

WORKER = Path(__file__).parent / "workers" / "tfmot_schedules.py"


class Described:
    """An object that says of itself what TF-MOT's schedules say."""

    def __init__(self, name, **config):
        self.config = {"class_name": name, "config": config}

    def get_config(self):
        return self.config


def sparsity(schedule, step, initial, final):
    """What is scheduled at a step, on the way from one sparsity to another."""
    return Course(schedule, *schedule.span(None), initial, final).sparsity(step)


@pytest.mark.parametrize("power", [1, 2, 3, 0.5])
def test_polynomial_is_the_formula(power):
    schedule = PolynomialSparsity(0.1, 0.9, begin_step=20, end_step=220, power=power)
    for step in (20, 21, 70, 120, 219, 220):
        expected = 0.9 + (0.1 - 0.9) * (1 - np.float64(step - 20) / 200) ** power
        assert sparsity(schedule, step, 0.1, 0.9) == pytest.approx(expected, rel=1e-12)


@given(st.integers(-50, 500), st.integers(-50, 500), st.sampled_from([1, 3, 0.3, math.inf]))
def test_polynomial_grows_from_begin_to_end_and_no_further(one, other, power):
    schedule = PolynomialSparsity(None, 0.9, 10, 300, power)
    low, high = (sparsity(schedule, step, 0.2, 0.9) for step in sorted((one, other)))
    assert 0.2 <= low <= high <= 0.9
    if power != math.inf:
        assert sparsity(schedule, 10, 0.2, 0.9) == pytest.approx(0.2)
    assert sparsity(schedule, 300, 0.2, 0.9) == 0.9


def test_constant_is_at_its_end_at_once():
    schedule = ConstantSparsity(0.7, begin_step=5, end_step=50, frequency=4).as_polynomial()
    assert sparsity(schedule, 5, 0.0, 0.7) == 0.7
    assert (schedule.span(1000), schedule.every(45)) == ((5, 50), 4)
    assert ConstantSparsity(0.7).as_polynomial().span(1000) == (100, 800)


def test_begin_is_a_tenth_and_end_four_fifths_of_a_training():
    assert PolynomialSparsity(None, 0.9).span(1000) == (100, 800)
    assert PolynomialSparsity(None, 0.9, begin_step=200).span(1000) == (200, 800)
    assert PolynomialSparsity(None, 0.9, end_step=80).span(1000) == (10, 80)
    assert PolynomialSparsity(None, 0.9, end_step=80).span(None) == (10, 80)


def test_end_that_cannot_be_known_is_an_error():
    with pytest.raises(ValueError, match=r"`end_step` is needed.*Received: end_step=None"):
        PolynomialSparsity(None, 0.9).span(None)


@pytest.mark.parametrize("begin", [800, 999, 5000])
def test_begin_that_leaves_no_steps_is_an_error(begin):
    with pytest.raises(ValueError, match=f"`begin_step` must be before.*begin_step={begin}"):
        PolynomialSparsity(None, 0.9, begin_step=begin).span(1000)


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 1), (99, 1), (250, 5), (2500, 50), (5000, 100), (10**6, 100)]
)
def test_looks_are_fifty_or_every_hundred_steps(length, expected):
    assert PolynomialSparsity(None, 0.9, 7, 7 + length).every(length) == expected


@pytest.mark.parametrize(
    ("length", "frequency", "expected"),
    [(10_000, 3, 3), (10_000, 1000, 1000), (250, 100, 25), (9, 100, 1), (1, 1, 1)],
)
def test_frequency_is_that_of_the_looks_as_far_as_it_allows_ten_of_them(
    length, frequency, expected
):
    assert PolynomialSparsity(None, 0.9, frequency=frequency).every(length) == expected


def test_training_that_is_too_short_for_a_schedule_is_an_error():
    with pytest.raises(ValueError, match=r"too short.*a training of 1 steps"):
        PolynomialSparsity(None, 0.9).span(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_sparsity": -0.1}, r"`initial_sparsity` must be a number from 0 to 1"),
        ({"final_sparsity": 1.1}, r"`final_sparsity` must be a number from 0 to 1"),
        ({"final_sparsity": math.nan}, r"`final_sparsity`.*nan"),
        ({"final_sparsity": "90 %"}, r"`final_sparsity`.*'90 %'"),
        ({"begin_step": -1}, r"`begin_step` must be an integer >= 0"),
        ({"begin_step": 1.5}, r"`begin_step`.*batches. Received: begin_step=1.5"),
        ({"begin_step": True}, r"`begin_step`.*True"),
        ({"end_step": 10}, r"`end_step` must be after `begin_step`.*begin_step=10, end_step=10"),
        ({"end_step": 0}, r"`end_step` must be an integer >= 1"),
        ({"initial_sparsity": 0.95}, r"`initial_sparsity` must not be over.*0\.95, final_.*=0\.9"),
        ({"final_sparsity": True}, r"`final_sparsity`.*True"),
        ({"end_step": -1}, r"`end_step`.*-1"),
        ({"frequency": 0}, r"`frequency` must be an integer >= 1"),
        ({"power": 0}, r"`power` must be a number > 0"),
        ({"power": "cubic"}, r"`power`.*'cubic'"),
        ({"power": math.nan}, r"`power`.*nan"),
    ],
)
def test_argument_out_of_its_range_is_an_error(arguments, message):
    given = {"initial_sparsity": 0.0, "final_sparsity": 0.9, "begin_step": 10, **arguments}
    with pytest.raises(ValueError, match=message):
        PolynomialSparsity(**given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_sparsity": 2}, r"`target_sparsity` must be a number from 0 to 1"),
        ({"begin_step": -1}, r"`begin_step`"),
        ({"begin_step": 5, "end_step": 5}, r"`end_step` must be after `begin_step`"),
        ({"frequency": -1}, r"`frequency`"),
    ],
)
def test_argument_of_constant_out_of_its_range_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConstantSparsity(**{"target_sparsity": 0.9, **arguments})


def test_numbers_of_numpy_are_taken():
    schedule = PolynomialSparsity(np.float32(0), np.float32(0.5), np.int64(1), np.int32(9))
    assert schedule.span(None) == (1, 9)


# Of TF-MOT


def test_what_describes_itself_as_tfmot_does_is_understood():
    config = {"begin_step": 2, "end_step": 90, "frequency": 7}
    described = Described(
        "PolynomialDecay", initial_sparsity=0.1, final_sparsity=0.6, power=2, **config
    )
    expected = PolynomialSparsity(0.1, 0.6, 2, 90, 2, 7)
    assert as_schedule(described) == expected
    described = Described("ConstantSparsity", target_sparsity=0.6, **config)
    assert as_schedule(described) == ConstantSparsity(0.6, **config).as_polynomial()


def test_arguments_are_in_the_order_of_tfmot():
    assert PolynomialSparsity(0.1, 0.6, 2, 90, 2, 7) == PolynomialSparsity(
        initial_sparsity=0.1, final_sparsity=0.6, begin_step=2, end_step=90, power=2, frequency=7
    )
    assert ConstantSparsity(0.6, 2, 90, 7) == ConstantSparsity(
        target_sparsity=0.6, begin_step=2, end_step=90, frequency=7
    )


@pytest.mark.parametrize(
    "schedule", ["quartic", 3, None, object(), PolynomialSparsity, Described("CosineDecay")]
)
def test_what_is_no_schedule_is_an_error(schedule):
    with pytest.raises((ValueError, TypeError), match=r"Argument `schedule` must be one of"):
        SparsityTarget(0.9, schedule=schedule)


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_schedules_of_tfmot_mean_the_same(run_worker, tmp_path):
    """In a process of its own, as TF-MOT sets an environment variable that concerns Keras."""
    pytest.importorskip("tf_keras")
    process = run_worker("tfmot_schedules.py", tmp_path / "found.json")
    assert process.returncode == 0, process.stdout + process.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["constant"] == found["constant of TF-MOT"]
    np.testing.assert_allclose(found["polynomial"], found["polynomial of TF-MOT"], atol=1e-6)
    assert len(found["polynomial"]) > 20
    assert found["zeros"] == {"polynomial": 76, "constant": 61}  # of 152
