"""How an output of a file is judged, on arrays."""

import numpy as np
import pytest

from keras_lp.deploy.judging import check_output

TOLERANCE = 0.2


def draws(shape, low, high, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape)


def rounded(array, step):
    return np.round(array / step) * step


def detections(scale=300.0):
    """Four coordinates beside three scores, of eight examples with five boxes."""
    return np.concatenate([draws((8, 5, 4), 0, scale), draws((8, 5, 3), 0, 1, 1)], axis=-1)


def judge(output, expected, tolerance=TOLERANCE):
    return check_output("boxes", output, expected, tolerance)


@pytest.mark.parametrize(
    "expected",
    [
        detections(),
        np.stack([draws(8, -100, 100), draws(8, -0.5, 0.5, 1)], axis=-1),
        np.concatenate([draws((8, 10), -200, 200), draws((8, 1), 0, 0.5, 1)], axis=-1),
        np.stack([draws(8, 0, 300), draws(8, 0, 40, 1), draws(8, 0, 6, 2), draws(8, 0, 1, 3)], -1),
    ],
    ids=["boxes and scores", "two units", "logits and a confidence", "four units"],
)
def test_channel_that_is_lost_beside_larger_ones_is_an_error(expected):
    step = np.ptp(expected) / 255
    message = r"in channel \d+.* of output 'boxes'.*spans .*allowed .*output of their own"
    with pytest.raises(RuntimeError, match=message):
        judge(rounded(expected, step), expected)
    # It is the channel, not the output as a whole.
    assert np.abs(rounded(expected, step) - expected).max() < 0.01 * np.abs(expected).max()
    assert judge(expected, expected) == 0


@pytest.mark.parametrize(
    "axes",
    [(0, 2, 1), (0, 1, 2)],
    ids=["boxes last, as of YOLO", "channels last"],
)
def test_channels_may_lie_along_another_axis_that_is_the_shortest(axes):
    boxes, scores = draws((8, 20, 4), 0, 300), draws((8, 20, 1), 0, 1, 1)
    expected = np.concatenate([boxes, scores], axis=-1).transpose(axes)
    along = "" if axes == (0, 1, 2) else " along axis 1"
    with pytest.raises(RuntimeError, match=rf"in channel 4{along} of output 'boxes' in LiteRT"):
        judge(rounded(expected, 300 / 255), expected)
    judge(rounded(expected, 0.1), expected)


@pytest.mark.parametrize("shape", [(8, 12, 50), (8, 4, 6, 64), (8, 6, 6, 3), (8, 20, 1)])
def test_positions_of_one_scale_are_no_error(shape):
    # From the middle to the borders of an image, or over the steps of a series.
    slope = np.linspace(0.1, 1.0, shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
    expected = draws(shape, -3, 3) * slope
    judge(rounded(expected, np.ptp(expected) / 255), expected)


def test_channels_are_named_with_the_worst_first():
    expected = detections()
    output = expected.copy()
    output[..., 5] = 0.5
    output[..., 6] = 2.0
    with pytest.raises(RuntimeError, match=r"in channel 6 and 1 more of output.*spans 0\.8"):
        judge(output, expected)


@pytest.mark.parametrize(
    "expected",
    [
        # Classes that do not occur in eight examples.
        np.concatenate([draws((8, 3), 0, 1), draws((8, 3), 0, 0.004, 1)], axis=-1),
        # Channels of features, from strong to nearly dead.
        draws((8, 64), 0, 1) * np.geomspace(1e-4, 6, 64),
        # Constant, nearly so, and with the last digits of float32.
        np.stack([draws(8, 0, 9), np.full(8, 5.0), 290 + draws(8, 0, 1), np.zeros(8)], axis=-1),
        np.stack([draws(8, 0, 9), draws(8, -1e-5, 1e-5)], axis=-1),
        draws((8,), 0, 1),
        np.ones((1, 4)),
    ],
    ids=["rare classes", "features", "constants", "no weight left", "no channels", "one example"],
)
def test_channel_that_an_int8_file_cannot_hold_better_is_no_error(expected):
    step = np.ptp(expected) / 255 or 1.0
    judge(rounded(expected, step), expected)


def test_logits_that_happen_to_lie_between_0_and_1_are_no_scale_of_their_own():
    # A network that has hardly been trained, in float16.
    expected = draws((100, 6), 0, 9e-6) + np.array([5, -5, 2, -2, 3, -3]) * 1e-4
    judge(expected + 4e-7, expected, tolerance=0.02)
    with pytest.raises(RuntimeError, match=r"disagrees with the model in output 'boxes'"):
        judge(expected + 2e-5, expected, tolerance=0.02)


def test_tolerance_holds_for_channels_too():
    expected = detections()
    output = rounded(expected, 1.2)
    assert judge(output, expected, tolerance=1.0) == np.abs(output - expected).max()
    with pytest.raises(RuntimeError, match=r"in channel"):
        judge(expected + 0.01, expected, tolerance=1e-3)


def test_output_that_int8_loses_as_a_whole_is_told_to_be_split():
    expected = draws((8, 3), 0, 1)
    message = r"at a largest output of .*In int8 all channels .*an output of their own\. Pass `inp"
    with pytest.raises(RuntimeError, match=message):
        check_output("boxes", rounded(expected, 4), expected, TOLERANCE, is_int8=True)
    with pytest.raises(RuntimeError, match=r"allowed 0\.\d+\. Pass `inputs`"):
        judge(rounded(expected, 4), expected)


def test_integers_are_judged_as_a_whole():
    expected = np.stack([np.arange(8) * 100, np.arange(8) % 2], axis=-1)
    assert judge(np.add(expected, [0, 1]), expected) == 1


@pytest.mark.parametrize(
    ("output", "expected", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"of shape \(2, 3\).*Keras: \(2, 4\)"),
        (np.zeros((2, 3)), np.full((2, 3), np.nan), r"own output 'boxes' is NaN or infinite"),
        (np.full((2, 3), np.nan), np.ones((2, 3)), r"disagrees with the model in output 'boxes'"),
        (np.ones((2, 3)), np.zeros((2, 3)), r"Largest error 1 at a largest output of 0, allowed"),
    ],
)
def test_output_that_cannot_be_right_is_an_error(output, expected, message):
    with pytest.raises(RuntimeError, match=rf"nothing was written.*{message}"):
        judge(output, expected)
