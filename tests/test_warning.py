import warnings

import keras
import pytest

import keras_lp
from keras_lp.warning import warn


def test_warning_points_at_the_line_that_called_this_package():
    kernel = keras.Variable(keras.ops.zeros((2, 2)), name="kernel")
    with pytest.warns(UserWarning, match="kernel") as caught:
        keras_lp.LpSGD().build([kernel])
    assert [warning.filename for warning in caught] == [__file__]


def test_warning_of_code_outside_points_at_itself():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("a word")
    assert [(w.filename, str(w.message)) for w in caught] == [(__file__, "a word")]
