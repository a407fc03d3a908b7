"""Counting the zeros of a model.

`sparsity_report` counts over the decayed variables, never over all variables, so that
one number means the same for every model: the share of the weights the decay acts on
that are zero. What is left out (biases, scales, exclusions) is reported beside it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import keras
from keras import ops

from keras_lp import selection

_WIDTH = 100  # of a printed report, in columns


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros among the decayed variables of one layer.

    Attributes:
        name: Path of the layer.
        zeros: Number of entries at or below the threshold.
        size: Number of entries.
    """

    name: str
    zeros: int
    size: int

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.size if self.size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        return {
            "name": self.name,
            "zeros": self.zeros,
            "size": self.size,
            "sparsity": self.sparsity,
        }


@dataclass(frozen=True)
class SparsityReport:
    """Zeros among the decayed variables of a model; prints as a table.

    Attributes:
        layers: One `LayerSparsity` for each layer with a decayed variable, in the order of
            the model.
        threshold: Magnitude at or below which an entry counted as zero.
        not_counted: Number of entries in all other variables of the model.
    """

    layers: tuple[LayerSparsity, ...]
    threshold: float
    not_counted: int

    @property
    def zeros(self) -> int:
        """Number of zeros."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def size(self) -> int:
        """Number of entries of the decayed variables."""
        return sum(layer.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.size if self.size else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {
            "sparsity": self.sparsity,
            "zeros": self.zeros,
            "size": self.size,
            "threshold": self.threshold,
            "not_counted": self.not_counted,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def __str__(self) -> str:
        header = ("layer", "weights", "zeros", "nonzero", "sparsity")
        rows = [_cells(layer.name, layer) for layer in self.layers]
        total = _cells("total", self)
        widths = [max(map(len, column)) for column in zip(header, *rows, total, strict=True)]
        widths[0] = min(widths[0], _WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1))
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [_line(header, widths), rule, *(_line(row, widths) for row in rows)]
        lines += [rule, _line(total, widths)]
        if self.threshold > 0:
            lines.append(f"Counted as zero: |w| <= {self.threshold:g}.")
        lines.append(f"Not counted (biases, scales, excluded, frozen): {self.not_counted:,}.")
        return "\n".join(lines)


def sparsity_report(
    model: keras.Model, threshold: float = 0.0, *, exclude: str | Iterable[str] | None = None
) -> SparsityReport:
    """Counts the zeros of a model, per layer and in total.

    Formula: `sparsity = zeros / size` over the decayed variables. Those are the variables
    that the optimizer decays if the model is compiled with one of keras_lp's and built;
    otherwise all trainable variables of at least two dimensions that are no bias or scale by
    name and that `exclude` leaves in.

    Args:
        model: A built Keras 3 model of any kind.
        threshold: Float >= 0, the magnitude at or below which an entry counts as zero.
        exclude: Regular expression, or a list of them, searched in the paths of the
            variables, as in the optimizers. If given, the optimizer is not asked. For a
            model without its optimizer, such as a stripped one, pass the optimizer's
            `exclude` to count the same variables.

    Returns:
        A `SparsityReport` with `sparsity`, `zeros`, `size`, `layers` and `to_dict()`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If the model is not built or has no decayed variable, the threshold is
            negative or not finite, or a pattern is malformed or matches no variable.

    Example:
    >>> report = keras_lp.sparsity_report(model)
    >>> print(report)
    >>> report.sparsity
    0.971
    """
    check_threshold(threshold)
    decayed = decayed_variables(model, exclude)
    layers = tuple(
        LayerSparsity(
            name, sum(_count_zeros(v, threshold) for v in variables), sum(map(_size, variables))
        )
        for name, variables in by_layer(model, decayed)
    )
    everything = sum(_size(variable) for variable in model.weights)
    return SparsityReport(
        layers, float(threshold), not_counted=everything - sum(map(_size, decayed))
    )


def decayed_variables(
    model: keras.Model, exclude: str | Iterable[str] | None = None
) -> Sequence[Any]:
    """The decayed variables of a model: its optimizer's, or those of the default rule."""
    check_model(model)
    if exclude is None:
        own = {id(variable) for variable in model.weights}
        decayed = _decayed_by(getattr(model, "optimizer", None))
        decayed = [variable for variable in decayed if id(variable) in own]
        if decayed:
            return decayed
    patterns = selection.check_patterns("exclude", exclude)
    decayed = selection.decayed_variables(model.trainable_variables, patterns)
    if not decayed:
        raise ValueError(
            "Argument `model` has no trainable variable, hence no decayed one. Set "
            f"`trainable = True` on the layers to look at. Received: model={model.name!r}"
        )
    return decayed


def by_layer(model: keras.Model, variables: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """The path of each layer with those of its variables that are among `variables`."""
    layers: dict[tuple[str, int], list[Any]] = {}
    seen: Counter[str] = Counter()
    for variable in variables:
        # Whether paths begin with the model's name depends on how it was made.
        path = selection.variable_path(variable).removeprefix(f"{model.name}/")
        name = path.rpartition("/")[0] or model.name
        # Layers of two inner models may have the same path: a path seen before is another's.
        layers.setdefault((name, seen[path]), []).append(variable)
        seen[path] += 1
    return [(name, members) for (name, _), members in layers.items()]


def _decayed_by(optimizer: Any) -> list[Any]:
    """What an optimizer decays, those in it, and a decay beside it."""
    found = selection.optimizers_within(optimizer)
    decayed = [getattr(each, "decayed_variables", None) or [] for each in found]
    return [variable for variables in decayed for variable in variables]


def shorten(name: str, width: int) -> str:
    """The name, cut in the middle if it has more than `width` characters."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def check_is_model(model: Any) -> None:
    """Raises TypeError unless `model` is a Keras 3 model."""
    if not isinstance(model, keras.Model):
        kind = type(model)
        raise TypeError(
            "Argument `model` must be a Keras 3 model (`keras.Model`). A file is loaded with "
            "`keras.models.load_model`. "
            f"Received: model={model!r} (type {kind.__module__}.{kind.__qualname__})"
        )


def check_model(model: Any) -> None:
    """Raises TypeError unless `model` is a Keras 3 model, ValueError unless it is built."""
    check_is_model(model)
    if not model.built:
        raise ValueError(
            "Argument `model` must be built: its variables do not exist yet. Call it on a "
            "batch of data or call `model.build(input_shape)`. "
            f"Received: model={model.name!r} (not built)"
        )


def check_threshold(threshold: Any) -> None:
    """Raises ValueError unless `threshold` is a finite number >= 0."""
    if not (isinstance(threshold, Real) and 0 <= float(threshold) < math.inf):
        raise ValueError(
            "Argument `threshold` must be a finite number >= 0, the magnitude at or below "
            f"which an entry counts as zero. Received: threshold={threshold!r}"
        )


def _count_zeros(variable: Any, threshold: float) -> int:
    return int(ops.count_nonzero(ops.less_equal(ops.abs(variable), threshold)))


def _size(variable: Any) -> int:
    return math.prod(variable.shape)


def _cells(name: str, counted: LayerSparsity | SparsityReport) -> tuple[str, ...]:
    return (
        name,
        f"{counted.size:,}",
        f"{counted.zeros:,}",
        f"{counted.size - counted.zeros:,}",
        f"{counted.sparsity:.2%}",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One row: the name to the left, cut in the middle if too long, numbers to the right."""
    numbers = (cell.rjust(size) for cell, size in zip(cells[1:], widths[1:], strict=True))
    return "  ".join((shorten(cells[0], widths[0]).ljust(widths[0]), *numbers)).rstrip()
