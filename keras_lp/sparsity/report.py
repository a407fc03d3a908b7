"""Counting the zeros of a model.

`sparsity_report` counts over the decayed variables, never over all variables, so that
one number means the same for every model: the share of the weights the decay acts on
that are zero. What is left out (biases, scales, exclusions, frozen layers) is reported beside
it. Kernels under LoRA and quantized ones count too, as their layers compute with them.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import keras

from keras_lp import selection
from keras_lp.selection import UNNAMED, Named
from keras_lp.sparsity.reach import find_cut_off
from keras_lp.sparsity.weights import Weight, layers_within, weights_of
from keras_lp.sparsity.zero_pattern import warn_of_lost_zeros

# What a row can be marked with, and what is said of it below.
DEAD, CUT_OFF, NEARLY_DEAD = "dead", "cut off", "nearly dead"
_MEANINGS = {
    DEAD: "no weight is left.",
    CUT_OFF: "what goes in comes from dead layers only.",
    NEARLY_DEAD: "fewer weights are left than full rank takes.",
}
_WIDTH = 100  # of a printed report, in columns


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros in a layer, or in one variable of a layer that has several decayed ones.

    Attributes:
        name: Path of the layer, or of the variable in it.
        zeros: Number of entries at or below the threshold.
        size: Number of entries.
        condition: `"dead"` if all are zero; `"cut off"` if all that goes into the layer comes
            from dead layers; `"nearly dead"` if fewer are not zero than the variable takes, as
            a matrix from inputs to outputs, to have full rank; otherwise `None`.
    """

    name: str
    zeros: int
    size: int
    condition: str | None = None

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
            "condition": self.condition,
        }


@dataclass(frozen=True)
class SparsityReport:
    """Zeros among the decayed variables of a model; prints as a table.

    Attributes:
        layers: One `LayerSparsity` for each layer with a decayed variable or, where a layer
            has several, for each of these, in the order of the model.
        threshold: Magnitude at or below which an entry counted as zero.
        not_counted: Number of entries in all other variables of the model.
        frozen: Number of those that would count if their layers were trained.
        frozen_zeros: Number of zeros among these.
        is_constant: Whether the outputs of the model are known not to depend on its inputs,
            because of dead layers.
    """

    layers: tuple[LayerSparsity, ...]
    threshold: float
    not_counted: int
    frozen: int = 0
    frozen_zeros: int = 0
    is_constant: bool = False

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
            "frozen": self.frozen,
            "frozen_zeros": self.frozen_zeros,
            "is_constant": self.is_constant,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def __str__(self) -> str:
        header = ("layer", "weights", "zeros", "nonzero", "sparsity")
        rows = [_cells(layer.name, layer) for layer in self.layers]
        total = _cells("total", self)
        widths = [max(map(len, column)) for column in zip(header, *rows, total, strict=True)]
        marks = [f"  {layer.condition}" if layer.condition else "" for layer in self.layers]
        room = _WIDTH - max(map(len, marks), default=0)
        widths[0] = min(widths[0], room - sum(widths[1:]) - 2 * (len(widths) - 1))
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [_line(row, widths) + mark for row, mark in zip(rows, marks, strict=True)]
        lines = [_line(header, widths), rule, *lines, rule, _line(total, widths)]
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> Iterator[str]:
        """What is said below the table."""
        conditions = {layer.condition for layer in self.layers}
        for condition, meaning in _MEANINGS.items():
            if condition in conditions:
                yield f"{condition.capitalize()}: {meaning}"
        if self.is_constant:
            yield "The outputs no longer depend on the inputs."
        if self.threshold > 0:
            yield f"Counted as zero: |w| <= {self.threshold:g}."
        yield f"Not counted (biases, scales, excluded, frozen): {self.not_counted:,}."
        if self.frozen:
            yield (
                f"Frozen among these: {self.frozen:,} weights that could be decayed, "
                f"{self.frozen_zeros:,} of them zero.\nTo count them, set `trainable = True` on "
                "their layers (on all: `model.trainable = False`,\nthen `model.trainable = True`) "
                "before `compile`."
            )


def sparsity_report(
    model: keras.Model,
    threshold: float = 0.0,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> SparsityReport:
    """Counts the zeros of a model, per layer and in total.

    Formula: `sparsity = zeros / size` over the decayed variables. Those are the variables
    that the optimizer decays if the model is compiled with one of keras_lp's and built;
    otherwise all trainable variables of at least two dimensions that are no bias or scale by
    name and that `exclude` leaves in.

    Of a layer with LoRA adapters the kernel that it computes with is counted, the sum, and
    not the adapters; of a layer quantized by `model.quantize`, the integers that mean 0.

    Layers that are dead, nearly dead or cut off are marked. What dead layers cut off is known
    in Sequential and functional models, as far as their layers are Keras's own.

    Args:
        model: A built Keras 3 model of any kind.
        threshold: Float >= 0, the magnitude at or below which an entry counts as zero. Of
            integers 0 alone counts.
        include: Regular expression, or a list of them, searched in the paths of the
            variables, as in the optimizers: those to count although the default rule leaves
            them out.
        exclude: The same of those not to count. If either is given, the optimizer is not
            asked. For a model without its optimizer, such as a stripped one, pass the
            `include` and `exclude` of the optimizer to count the same variables.

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
    counted, frozen, others = sort_weights(model, Named.of(include, exclude))
    warn_of_lost_zeros(model.variables)
    kernels = [*counted, *frozen, *(one for one in others if one.is_kernel)]
    counts = {id(one.variable): one.count(threshold) for one in kernels}
    is_dead = {key: zeros == size > 0 for key, (zeros, size, _) in counts.items()}
    cut_off, is_constant = find_cut_off(model, is_dead) if any(is_dead.values()) else ((), False)
    layers = [
        _judged(name, *counts[id(variable)], is_cut_off=id(variable) in cut_off)
        for name, variable in by_variable(model, [one.variable for one in counted])
    ]
    frozen_zeros, frozen_size = (sum(counts[id(one.variable)][i] for one in frozen) for i in (0, 1))
    return SparsityReport(
        tuple(layers),
        float(threshold),
        not_counted=frozen_size + sum(math.prod(one.variable.shape) for one in others),
        frozen=frozen_size,
        frozen_zeros=frozen_zeros,
        is_constant=is_constant,
    )


def _judged(name: str, zeros: int, size: int, full_rank: int, is_cut_off: bool) -> LayerSparsity:
    """A row of a report, marked where it has to be."""
    if zeros == size > 0:
        condition: str | None = DEAD
    elif is_cut_off:
        condition = CUT_OFF
    else:
        condition = NEARLY_DEAD if size - zeros < full_rank else None
    return LayerSparsity(name, zeros, size, condition)


def decayed_variables(model: keras.Model, named: Named = UNNAMED) -> Sequence[Any]:
    """The decayed variables of a model: its optimizer's, or those of the default rule.

    Of what is counted these are without the kernels under LoRA and the quantized ones.
    """
    counted = sort_weights(model, named)[0]
    return [one.variable for one in counted if not one.is_replaced]


def sort_weights(
    model: keras.Model, named: Named = UNNAMED
) -> tuple[list[Weight], list[Weight], list[Weight]]:
    """The weights of a model that are counted, those that are frozen instead, and the rest.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built, has nothing to count, or a pattern is malformed or
            matches no variable.
    """
    check_model(model)
    weights = weights_of(model)
    decayed, excluded = _decayed(model, weights, named)
    counted, frozen, others = [], [], []
    for one in weights:
        is_left_in = one.is_kernel and not any(
            selection.matches(pattern, one.variable) for pattern in excluded
        )
        if id(one.variable) in decayed or (is_left_in and one.is_replaced and not one.is_frozen):
            counted.append(one)
        elif is_left_in and one.is_frozen:
            frozen.append(one)
        else:
            others.append(one)
    return counted, frozen, others


def by_variable(model: keras.Model, variables: Sequence[Any]) -> list[tuple[str, Any]]:
    """The variables with their names in a report: that of the layer, unless it has several."""
    return [
        (name if len(members) == 1 else f"{name}/{_last(variable)}", variable)
        for name, members in by_layer(model, variables)
        for variable in members
    ]


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


def _decayed(
    model: keras.Model, weights: Sequence[Weight], named: Named
) -> tuple[set[int], Sequence[str]]:
    """The ids of the decayed variables, and the patterns of those that are excluded."""
    optimizers = [
        one
        for optimizer in selection.optimizers_of(model)
        for one in selection.optimizers_within(optimizer)
    ]
    by_optimizer = {
        id(variable)
        for one in optimizers
        for variable in getattr(one, "decayed_variables", None) or ()
    }
    if not named.is_given and any(id(one.variable) in by_optimizer for one in weights):
        return by_optimizer, [
            pattern for one in optimizers for pattern in getattr(one, "exclude", ())
        ]
    trained = set(map(id, model.trainable_variables))
    candidates = [
        one.variable
        for one in weights
        if id(one.variable) in trained or (one.is_replaced and one.is_kernel and not one.is_frozen)
    ]
    if not candidates:
        raise ValueError(
            "Argument `model` has no trainable variable, hence no decayed one. Set "
            f"`trainable = True` on the layers to look at. Received: model={model.name!r}"
        )
    decayed = selection.decayed_variables(candidates, named.exclude, include=named.include)
    return set(map(id, decayed)), named.exclude


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
    """Raises TypeError unless `model` is a Keras 3 model, ValueError unless it has its variables.

    A model whose training step trains the models in it, as of a GAN, need never be called itself.
    """
    check_is_model(model)
    if not (model.weights or all(one.built for one in layers_within(model))):
        raise ValueError(
            "Argument `model` must be built: its variables do not exist yet. Call it on a batch "
            f"of data: `model(x)`. Received: model={model.name!r} (without variables)"
        )


def check_is_built(model: Any) -> None:
    """Raises as `check_model` does, and ValueError where a model has never been called."""
    check_model(model)
    if not model.built:
        raise ValueError(
            "Argument `model` must be built: nothing tells what it computes yet. Call it on a "
            "batch of data, `model(x)`, or pass one of the models in it if it cannot be called. "
            f"Received: model={model.name!r} (never called)"
        )


def check_threshold(threshold: Any) -> None:
    """Raises ValueError unless `threshold` is a finite number >= 0."""
    if not (isinstance(threshold, Real) and 0 <= float(threshold) < math.inf):
        raise ValueError(
            "Argument `threshold` must be a finite number >= 0, the magnitude at or below "
            f"which an entry counts as zero. Received: threshold={threshold!r}"
        )


def _last(variable: Any) -> str:
    return selection.variable_path(variable).rpartition("/")[2]


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
