"""Pictures of sparsity, drawn with matplotlib (extra `plot`), readable in black and white.

Each function draws into the given Axes, or into a new pyplot figure, and returns the Axes.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_lp.optional import require
from keras_lp.selection import Named
from keras_lp.sparsity.pruning import check_finite, check_floats, check_sparsity
from keras_lp.sparsity.report import SparsityReport, shorten, sort_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_NAME = 48  # longest name of a layer, in characters
_ROW, _BARS, _CHARACTER = 0.26, 3.5, 0.085  # sizes in the picture of layers, in inches
# Models laid over each other, in the order in which they are drawn.
_STYLES: tuple[dict[str, Any], ...] = (
    {"facecolor": "0.85", "linestyle": "-"},
    {"facecolor": "none", "linestyle": "--", "hatch": "//"},
    {"facecolor": "none", "linestyle": "-"},
    {"facecolor": "none", "linestyle": ":"},
    {"facecolor": "none", "linestyle": "-.", "hatch": "xx"},
    {"facecolor": "none", "linestyle": "--", "hatch": ".."},
)
_MARKERS = ".sx^+"  # Curves of sparsity in one picture.


def plot_sparsity(
    history: keras.callbacks.History | Mapping[str, Sequence[float]],
    *,
    metric: str | None = None,
    target: float | None = None,
    label: str = "sparsity",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the sparsity of a model over the epochs of its training.

    Draw several histories into one Axes, each with its `label`, to compare them.

    Args:
        history: What `model.fit` returned, or its `history.history`, with the key
            `"sparsity"` that keras_lp's callbacks write.
        metric: Key of a second curve in `history`, such as `"val_accuracy"`, drawn dashed
            against an axis of its own on the right.
        target: Float in [0, 1], a sparsity to mark by a dotted line.
        label: Name of the curve in a legend, which is there if there are several lines.
        ax: A matplotlib Axes to draw into; if None, a new pyplot figure is made.

    Returns:
        The Axes of the sparsity, in percent.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `history` is neither a `keras.callbacks.History` nor a dict, or `ax` is
            no Axes.
        ValueError: If `history` lacks `"sparsity"` or `metric`, or a curve does not have one
            finite value or more, one for each epoch, or `target` is out of its range.

    Example:
    >>> history = model.fit(x, y, epochs=60, callbacks=[keras_lp.SparsityLogger()])
    >>> ax = keras_lp.plotting.plot_sparsity(history, metric="accuracy", target=0.9)
    >>> ax.figure.savefig("sparsity.png")
    """
    epochs, curves = _curves(history)
    sparsity = _curve(
        curves,
        "sparsity",
        epochs,
        'Argument `history` must have the key "sparsity": train with `keras_lp.SparsityLogger()`, '
        "an `LpDecayCallback` or a `SparsityTarget` among the `callbacks` of `fit`",
    )
    second = None
    if metric is not None:
        requirement = "Argument `metric` must be a key of `history`"
        second = metric, _curve(curves, metric, epochs, requirement)
    if target is not None:
        check_sparsity("target", target)

    ax = _axes(ax)
    axes = [ax]
    number = len(ax.lines)
    ax.plot(
        epochs,
        100 * sparsity,
        color=f"C{number}",
        marker=_MARKERS[number % len(_MARKERS)],
        markevery=1 if number == 0 else 1 + len(epochs) // 15,
        label=label,
    )
    ax.set(xlabel="epoch", ylabel="sparsity (%)", ylim=(-3, 103))
    ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    if target is not None:
        text = f"target {100 * target:g} %"
        ax.axhline(100 * target, color="0.2", linestyle=":", linewidth=1, label=text)
    lines = list(ax.lines)
    if second is not None:
        axes.append(ax.twinx())
        lines += _plot_metric(axes[1], epochs, *second)
        ax.set_zorder(1)  # above the twin, so that the legend covers both curves
        ax.patch.set_visible(False)
    if len(lines) > 1:
        ax.legend(handles=lines, loc=_freest_place(axes))
    return ax


def plot_weights(
    model: keras.Model,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    bins: int = 10,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a histogram of the magnitudes of a model's weights that are not zero.

    It shows `log10(|w|)` of the decayed variables, with counts on a log scale. Zeros have no
    place there; the legend states their share. Draw several models into one Axes to compare
    them: the bins are the same for all.

    Args:
        model: A built Keras 3 model of any kind. Its decayed variables are those that
            `keras_lp.sparsity_report` counts.
        include: Regular expression, or a list of them, of variables to take although the
            default rule leaves them out, as in `keras_lp.sparsity_report`.
        exclude: Regular expression, or a list of them, of variables to leave out, as in
            `keras_lp.sparsity_report`.
        bins: Number of bins in each decade.
        label: Name of the model in the legend; if None, `model.name`.
        ax: A matplotlib Axes to draw into; if None, a new pyplot figure is made.

    Returns:
        The Axes.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `model` is no Keras 3 model.
        ValueError: If a weight is not finite or quantized, `bins` is no positive integer, or
            `keras_lp.sparsity_report` would refuse the model or `exclude`.

    Example:
    >>> ax = keras_lp.plotting.plot_weights(dense, label="AdamW")
    >>> keras_lp.plotting.plot_weights(sparse, label="LpAdamW", ax=ax)
    """
    if not (isinstance(bins, Integral) and bins >= 1):
        raise ValueError(
            f"Argument `bins` must be a positive integer, the bins per decade. Received: {bins=}"
        )
    counted = sort_weights(model, Named.of(include, exclude))[0]
    check_floats(counted, "its integers are no magnitudes. Draw it before `model.quantize`")
    arrays = [np.asarray(keras.ops.convert_to_numpy(one.values())) for one in counted]
    check_finite([one.variable for one in counted], arrays)
    magnitudes = np.concatenate([np.abs(array, dtype="float64").ravel() for array in arrays])
    counts, edges = _histogram(np.log10(magnitudes[magnitudes > 0]), bins)

    ax = _axes(ax)
    index = len(ax.get_legend_handles_labels()[0])
    zeros = 100 * np.mean(magnitudes == 0)
    ax.stairs(
        counts,
        edges,
        fill=True,
        edgecolor=f"C{index}",
        linewidth=1.5,
        label=f"{label or model.name} ({zeros:.2f} % exact zeros)",
        **_STYLES[min(index, len(_STYLES) - 1)],
    )
    ax.set(xlabel="log10 |w|", ylabel="weights", ylim=_count_limits(ax, index + 1), yscale="log")
    ax.legend(loc="upper left")
    return ax


def plot_layers(report: SparsityReport, *, ax: "Axes | None" = None) -> "Axes":
    """Draws the sparsity of each layer as a bar, with the number of weights left beside it.

    A layer with several decayed variables has a bar for each, as in the report.

    Args:
        report: What `keras_lp.sparsity_report` returned.
        ax: A matplotlib Axes to draw into; if None, a new pyplot figure is made, as high as
            the layers need. The names and numbers stand outside of the bars' frame: give an
            Axes of a figure made with `layout="constrained"`.

    Returns:
        The Axes, with the layers from top to bottom in the order of the model.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `report` is no `SparsityReport`.

    Example:
    >>> keras_lp.plotting.plot_layers(keras_lp.sparsity_report(model))
    """
    if not isinstance(report, SparsityReport):
        raise TypeError(
            "Argument `report` must be a `SparsityReport`; make one of a model with "
            f"`keras_lp.sparsity_report(model)`. Received: report={report!r} "
            f"(type {type(report).__name__})"
        )
    rows = range(len(report.layers))
    names = [shorten(layer.name, _NAME) for layer in report.layers]
    left = [
        f"{layer.size - layer.zeros:,} of {layer.size:,} left"
        + (f", {layer.condition}" if layer.condition else "")
        for layer in report.layers
    ]
    if ax is None:
        characters = max(map(len, names), default=0) + max(map(len, left), default=0)
        ax = _new_axes(_BARS + _CHARACTER * characters, 1 + _ROW * len(rows))
    ax = _axes(ax)
    ax.barh(rows, [100 * layer.sparsity for layer in report.layers], height=0.7)
    ax.grid(axis="x", color="0.85")
    ax.set_axisbelow(True)
    for row, text in zip(rows, left, strict=True):
        ax.annotate(
            text,
            (1, row),
            xycoords=ax.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            verticalalignment="center_baseline",
        )
    ax.set_yticks(rows, names)
    ax.set(xlabel="sparsity (%)", ylabel="layer", xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
    return ax


def _new_axes(width: float = 6.4, height: float = 4.0) -> "Axes":
    pyplot = require("matplotlib.pyplot", "plot")
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def _axes(ax: Any) -> "Axes":
    """The Axes to draw into; raises TypeError unless it is one."""
    if ax is None:
        return _new_axes()
    if not hasattr(ax, "get_xaxis_transform"):
        raise TypeError(
            "Argument `ax` must be one matplotlib Axes; of those that `plt.subplots` returns "
            f"together pass one, such as `axes[0]`. Received: ax={ax!r}"
        )
    return ax


def _curves(history: Any) -> tuple[Sequence[int], Mapping[str, Sequence[float]]]:
    """The epochs, counted from 1, and the curves of a History or of its dict."""
    if isinstance(history, keras.callbacks.History):
        return [epoch + 1 for epoch in getattr(history, "epoch", ())], history.history
    if isinstance(history, Mapping):
        return range(1, np.size(history.get("sparsity", ())) + 1), history
    raise TypeError(
        "Argument `history` must be what `model.fit` returns (`keras.callbacks.History`), or "
        f"its dict `history.history`. Received: history={history!r} "
        f"(type {type(history).__name__})"
    )


def _curve(
    curves: Mapping[str, Sequence[float]], key: str, epochs: Sequence[int], requirement: str
) -> np.ndarray:
    """One curve; raises ValueError, saying what is required, unless it is there and whole."""
    if not (isinstance(key, str) and key in curves):
        raise ValueError(
            f"{requirement}. Received: no {key!r} among the keys {', '.join(curves) or '(none)'}"
        )
    values = np.atleast_1d(np.asarray(curves[key], "float64"))
    if len(values) != len(epochs):
        raise ValueError(
            f"Argument `history` must have a value of {key!r} for each epoch (`validation_freq=1` "
            f"in `fit`). Received: {len(values)} values, {len(epochs)} epochs"
        )
    if not np.isfinite(values).any():
        raise ValueError(
            f"Argument `history` must have a finite value of {key!r}. Received: {values.tolist()}"
        )
    return values


def _histogram(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts, and edges at multiples of `1 / bins`, so that they are the same for all models."""
    if not values.size:
        return np.zeros(bins), np.arange(-bins, 1) / bins
    numbers = np.floor(values * bins).astype(int)
    first = numbers.min()
    counts = np.bincount(numbers - first)
    return counts, (first + np.arange(len(counts) + 1)) / bins


def _count_limits(ax: "Axes", entries: int) -> tuple[float, float]:
    """Limits of a log scale of counts, with room above them for the entries of a legend."""
    low, high = 0.6, max(10, ax.dataLim.ymax)
    inches = ax.bbox.height / ax.figure.dpi
    room = min(0.6, (0.1 + 0.22 * entries) / inches)
    return low, high * (high / low) ** (room / (1 - room))


def _plot_metric(
    ax: "Axes", epochs: Sequence[int], metric: str, values: np.ndarray
) -> list["Line2D"]:
    """The curve of a metric, with 15 markers or a few more at most."""
    ax.patch.set_visible(True)
    ax.set_ylabel(metric)
    return ax.plot(
        epochs,
        values,
        color="C1",
        linestyle="--",
        marker="o",
        markerfacecolor="white",
        markersize=5,
        markevery=1 + len(epochs) // 15,
        label=metric,
    )


def _freest_place(axes: Sequence["Axes"]) -> Any:
    """Where a legend covers least of the lines; matplotlib's "best" ignores those of a twin."""
    paths = []
    for ax in axes:
        ax.autoscale_view()
        for line in ax.lines:
            path = line.get_path().interpolated(20)
            paths.append((line.get_transform() - ax.transAxes).transform_path(path).vertices)
    points = np.concatenate(paths)
    places = {
        f"{row} {column}": (x, y)
        for column, x in (("right", 0.78), ("left", 0.22))
        for row, y in (("lower", 0.15), ("center", 0.5), ("upper", 0.85))
    }
    covered = [
        np.sum(np.all(np.abs(points - middle) < (0.22, 0.15), axis=1)) for middle in places.values()
    ]
    return list(places)[np.argmin(covered)]
