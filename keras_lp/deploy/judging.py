"""Whether an output of a `.tflite` file is that of the model."""

from collections.abc import Iterator

import numpy as np

_SLACK = 1e-6  # where all outputs are zero
# Channels, such as boxes and scores. Measured on int8 files of networks with
# random and trained weights: right ones stay within these bounds, and those in which scores are
# lost beside boxes do not.
_GAP = 4  # from the spread of a channel to the next larger one, where another scale begins
_PROBABILITY = 1 / 8  # a channel of probabilities may span less, where examples are alike
_NEARLY_CONSTANT = 1e-2  # spread of a channel, as a share of its largest magnitude
_LEAST_ROWS = 8  # in which a channel shows its spread
_NEGLIGIBLE = 1e-5  # error, as a share of the largest magnitude in the whole output

_SHARED_STEP = (
    "In int8 all channels of an output share one step: give those of another scale an output of "
    "their own. "
)


def check_output(
    name: str,
    output: np.ndarray,
    expected: np.ndarray,
    tolerance: float,
    is_int8: bool = False,
) -> float:
    """The largest absolute error of an output; raises RuntimeError if it is too large.

    The output as a whole may be off by `tolerance` of its largest magnitude. Channels of a
    smaller scale than others may be off by `tolerance` of the largest spread among them.

    Args:
        name: Name of the output in the file.
        output: What the file gives.
        expected: What the model gives.
        tolerance: A share of the largest magnitude or spread.
        is_int8: Whether the file computes in int8.
    """
    if output.shape != expected.shape:
        raise RuntimeError(
            refusal(f"has output {name!r} of shape {output.shape}", f"Keras: {expected.shape}")
        )
    if expected.dtype.kind == "f" and not np.isfinite(expected).all():
        raise RuntimeError(
            refusal(
                "cannot be compared with the model",
                f"The model's own output {name!r} is NaN or infinite at some of the inputs. Look "
                "for weights that are, or pass `inputs` of the range the model was trained on",
            )
        )
    axes = _axes_of_channels(expected)
    expected = expected.astype("float64")
    errors = np.abs(output - expected)
    error = float(np.max(errors, initial=0.0))
    scale = float(np.max(np.abs(expected), initial=0.0))
    if not error <= (tolerance * scale if scale > 0 else _SLACK):
        shared = _SHARED_STEP if is_int8 else ""
        raise RuntimeError(
            refusal(
                f"disagrees with the model in output {name!r}",
                f"Largest error {error:.3g} at a largest output of {scale:.3g}, allowed "
                f"{tolerance * scale:.3g}. {shared}Pass `inputs` of the range the model was "
                "trained on, or a larger `tolerance` if this error is acceptable",
            )
        )
    for axis in axes:
        _check_channels(name, axis, errors, expected, tolerance)
    return error


def refusal(what: str, why: str) -> str:
    """The message of an export that fails because of what its file does in LiteRT."""
    return f"The export failed, and nothing was written: the file {what} in LiteRT. {why}"


def _axes_of_channels(expected: np.ndarray) -> list[int]:
    """The axes along which there may be channels: the last one, and one shorter than all others.

    None where no channel has the examples to show its spread.
    """
    if expected.dtype.kind != "f" or expected.ndim < 2:
        return []
    last = expected.ndim - 1
    shortest, *others = sorted(range(1, expected.ndim), key=lambda axis: expected.shape[axis])
    is_alone = all(expected.shape[shortest] < expected.shape[axis] for axis in others)
    axes = [last, shortest] if is_alone and shortest < last else [last]
    return [axis for axis in axes if expected.size >= _LEAST_ROWS * expected.shape[axis]]


def _check_channels(
    name: str, axis: int, errors: np.ndarray, expected: np.ndarray, tolerance: float
) -> None:
    """Raises RuntimeError if channels of a smaller scale than others are lost beside these."""
    last, count = expected.ndim - 1, expected.shape[axis]
    errors = np.moveaxis(errors, axis, -1).reshape(-1, count).max(axis=0)
    expected = np.moveaxis(expected, axis, -1).reshape(-1, count)
    spreads = _spreads(expected)
    # Not spreads of their own: logits of a fresh network may all lie between 0 and 1 by chance.
    least = np.where(((expected >= 0) & (expected <= 1)).all(axis=0), _PROBABILITY, 0.0)
    negligible = _NEGLIGIBLE * np.abs(expected).max()
    lost = [
        (errors[channel] / scale, channel, scale)
        for channels in _of_smaller_scales(spreads)
        for channel in channels
        for scale in [max(spreads[channels].max(), least[channel])]
        if errors[channel] > max(tolerance * scale, negligible)
    ]
    if lost:
        _, channel, scale = max(lost)
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        along = f" along axis {axis}" if axis < last else ""
        raise RuntimeError(
            refusal(
                f"disagrees with the model in channel {channel}{others}{along} of output {name!r}",
                f"It spans {spreads[channel]:.3g} there, where others span up to "
                f"{spreads.max():.3g}, and is off by {errors[channel]:.3g}, allowed "
                f"{tolerance * scale:.3g}. {_SHARED_STEP}Or pass a larger `tolerance` if this "
                "error is acceptable",
            )
        )


def _spreads(expected: np.ndarray) -> np.ndarray:
    """From the least to the largest value of each channel; 0 where that is next to nothing."""
    spreads = np.ptp(expected, axis=0)
    varies = spreads > _NEARLY_CONSTANT * np.abs(expected).max(axis=0)
    return np.where(varies, spreads, 0.0)


def _of_smaller_scales(spreads: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of channels whose spreads are next to each other, without that of the largest."""
    order = np.argsort(spreads, kind="stable")
    order = order[spreads[order] > 0]
    gaps = np.flatnonzero(spreads[order[1:]] > _GAP * spreads[order[:-1]])
    yield from np.split(order, gaps + 1)[:-1]
