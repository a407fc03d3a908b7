import numpy as np
import pytest

from keras_lp.callbacks import advice
from keras_lp.callbacks.measuring import Magnitudes


def found(zeros, size):
    return Magnitudes(zeros, size, np.ones(size - zeros))


def test_way_on_which_weights_cannot_move_far_enough_is_told_of_with_the_steps_it_takes():
    message = advice.of_haste(0.2, 230, 1e-3)
    assert "230 steps at a learning rate of 0.001 move a weight by at most 0.23" in message
    assert "weights up to 0.2" in message
    assert "(500 would do)" in message
    assert advice.of_haste(0.2, 500, 1e-3) is None  # As it says.


@pytest.mark.parametrize(("magnitude", "rate"), [(0.0, 1e-3), (0.05, 0.0), (0.05, 1.0)])
def test_way_of_which_nothing_is_to_be_said_is_not_told_of(magnitude, rate):
    assert advice.of_haste(magnitude, 100, rate) is None


def test_strength_that_shrinks_the_weights_that_stay_is_told_of():
    message = advice.of_force(2.0, 0.1, 0.8)
    assert "weight_decay=2," in message
    assert "from 0.63 on also weights of magnitude 0.1 shrink" in message
    assert advice.of_force(1.8, 0.1, 0.8) is None  # 1.8 * 0.1**-0.2 is 2.85.
    assert advice.of_force(100.0, 0.0, 0.8) is None


def test_learning_rate_that_falls_too_early_is_told_of():
    message = advice.of_falling_rate(1e-3, 0.9e-4, 0.2)
    assert "from 0.001 to 9e-05 with 20% of the zeros still to be made" in message
    assert advice.of_falling_rate(1e-3, 1.1e-4, 0.2) is None
    assert advice.of_falling_rate(1e-3, 0.0, 0.04) is None


def test_groups_with_too_many_or_too_few_zeros_are_named():
    groups = [found(90, 100), found(50, 100), found(79, 100)], [0.8, 0.8, 0.8], ["a", "b", "c"]
    assert "90.00% in place of 80.00% of a. Leave" in advice.of_excess(*groups)
    assert "alone: 30.00% of b. Leave" in advice.of_closing(*groups)
    assert not advice.of_excess([found(80, 100)], [0.8], ["a"])
    assert not advice.of_closing([found(79, 100)], [0.8], ["a"])


def test_zeros_that_are_gone_are_told_of_and_one_less_is_enough():
    assert advice.of_lost_zeros([found(80, 100)], [0.8]) is None
    message = advice.of_lost_zeros([found(79, 100), found(100, 100)], [0.8, 1.0])
    assert "reached 90.00% zeros" in message
    assert "now have 89.50%" in message
