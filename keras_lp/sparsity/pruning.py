"""One-shot pruning: the weights of least magnitude become zero.

`prune` reaches a sparsity to one weight, or applies a threshold, over the whole model or
layer by layer. Equal magnitudes are told apart by their place, so that the same weights
give the same zeros everywhere.
"""

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import keras
import numpy as np

from keras_lp.selection import Named, list_paths
from keras_lp.sparsity.dead import warn_of_dead
from keras_lp.sparsity.report import (
    SparsityReport,
    by_layer,
    check_threshold,
    sort_weights,
    sparsity_report,
)
from keras_lp.sparsity.weights import Weight, whole_array

SCOPES = ("global", "layer")


def prune(
    model: keras.Model,
    sparsity: float | None = None,
    threshold: float | None = None,
    scope: str = "global",
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> SparsityReport:
    """Sets the weights of least magnitude to zero, in place.

    Formula: with `sparsity`, the `round(sparsity * size)` entries of least `|w|` become 0,
    where `size` counts the entries of the decayed variables; with `threshold`, those with
    `|w| <= threshold`. Among equal magnitudes the earlier variable, and in it the earlier
    entry in row-major order, goes first. Zeros that are there count, and stay. Layers that
    this leaves without a weight, and those that they cut off from the inputs, are named in
    one warning; those that were so before are not.

    Args:
        model: A built Keras 3 model of any kind. Its decayed variables are those that
            `keras_lp.sparsity_report` counts.
        sparsity: Float in [0, 1], the share of zeros to reach; to one weight.
        threshold: Float >= 0, the magnitude at or below which an entry becomes zero. Give
            either `sparsity` or `threshold`.
        scope: `"global"`, one ranking over the whole model, or `"layer"`, each layer to the
            same sparsity.
        include: Regular expression, or a list of them, of variables to take although the
            default rule leaves them out, as in `keras_lp.sparsity_report`.
        exclude: Regular expression, or a list of them, of variables to leave alone, as in
            `keras_lp.sparsity_report`.

    Returns:
        The `SparsityReport` of the pruned model.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If not exactly one of `sparsity` and `threshold` is given or one is out of
            its range, `scope` is unknown, a weight is not finite, is quantized or has LoRA
            adapters, or the report refuses the model or `exclude`.

    Example:
    >>> keras_lp.prune(model, sparsity=0.9).sparsity
    0.9
    """
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            "Give one of the arguments `sparsity` (the share of zeros to reach) and `threshold` "
            "(the magnitude up to which weights become zero). "
            f"Received: sparsity={sparsity!r}, threshold={threshold!r}"
        )
    check_scope(scope)
    if threshold is not None:
        check_threshold(threshold)
    else:
        check_sparsity("sparsity", sparsity)
    decayed = _prunable(model, Named.of(include, exclude))
    before = sparsity_report(model, include=include, exclude=exclude)
    groups = [members for _, members in by_layer(model, decayed)] if scope == "layer" else [decayed]
    prune_groups([(variables, sparsity) for variables in groups], threshold)
    report = sparsity_report(model, include=include, exclude=exclude)
    lower = "threshold" if sparsity is None else "sparsity"
    by_layer_too = "" if scope == "layer" else ' or with `scope="layer"`'
    advice = f"Prune to a lower {lower}{by_layer_too}, or leave these out with `exclude`."
    warn_of_dead(report, advice, before)
    return report


def prune_groups(
    groups: Sequence[tuple[Sequence[Any], float | None]], threshold: float | None = None
) -> None:
    """Prunes each group of variables on its own, to its sparsity or at a threshold.

    Raises:
        ValueError: If a weight is not finite; then nothing is pruned.
    """
    pruned: list[tuple[Any, np.ndarray]] = []
    for variables, sparsity in groups:
        arrays = [whole_array(variable) for variable in variables]
        check_finite(variables, arrays)
        if threshold is not None:
            masks = [np.abs(array) > threshold for array in arrays]
        else:
            masks = _largest(arrays, sparsity)
        # Not `a * m`, which makes -0.0 of negative weights.
        kept = [np.where(m, a, np.zeros_like(a)) for a, m in zip(arrays, masks, strict=True)]
        pruned += zip(variables, kept, strict=True)
    for variable, array in pruned:
        variable.assign(array)


def check_scope(scope: Any) -> None:
    """Raises ValueError unless `scope` is a known one."""
    if scope not in SCOPES:
        raise ValueError(
            'Argument `scope` must be "global" (one ranking over the whole model) or "layer" '
            f"(each layer to the same sparsity). Received: scope={scope!r}"
        )


def check_finite(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    """Raises ValueError, with the paths of the variables, unless all values are finite."""
    broken = [v for v, a in zip(variables, arrays, strict=True) if not np.isfinite(a).all()]
    if broken:
        raise ValueError(
            "Argument `model` has weights that are not finite, which have no magnitude; "
            f"train it anew. Received: model with NaN or infinity in {list_paths(broken)}"
        )


def check_floats(weights: Sequence[Weight], why: str) -> None:
    """Raises ValueError, with the reason and a remedy, where weights are integers."""
    quantized = [one.variable for one in weights if one.is_quantized]
    if quantized:
        has_others = len(quantized) < len(weights)
        raise ValueError(
            f"Argument `model` is quantized, and {why}"
            f"{', or leave out what is quantized with `exclude`' if has_others else ''}. "
            f"Received: integers in {list_paths(quantized, 5)}"
        )


def check_sparsity(name: str, value: Any) -> None:
    """Raises ValueError unless `value`, the argument called `name`, is a number in [0, 1]."""
    if isinstance(value, bool) or not (isinstance(value, Real) and 0 <= float(value) <= 1):
        raise ValueError(
            f"Argument `{name}` must be a number from 0 to 1, the share of weights that are "
            f"zero; 0.9 for 90 %. Received: {name}={value!r}"
        )


def _prunable(model: keras.Model, named: Named) -> list[Any]:
    """What is counted; raises ValueError where that is not what the variables hold."""
    counted = sort_weights(model, named)[0]
    check_floats(counted, "only weights can be pruned. Prune first, then call `model.quantize`")
    adapted = [one.variable for one in counted if one.is_adapted]
    if adapted:
        raise ValueError(
            "Argument `model` has LoRA adapters, whose product is added to what would be pruned. "
            "Prune before `enable_lora`, or prune the copy that `keras_lp.strip_pruning(model)` "
            "makes, where they are merged, or leave these kernels out with `exclude`. "
            f"Received: adapters of {list_paths(adapted, 5)}"
        )
    return [one.variable for one in counted]


def _largest(arrays: Sequence[np.ndarray], sparsity: Any) -> list[np.ndarray]:
    """Masks of the entries that stay at a sparsity, ranked over all arrays together."""
    magnitudes = np.concatenate([np.abs(array, dtype="float64").ravel() for array in arrays])
    count = round(float(sparsity) * magnitudes.size)
    kept = np.ones(magnitudes.size, dtype=bool)
    if count:
        limit = np.partition(magnitudes, count - 1)[count - 1]
        kept = magnitudes > limit
        ties = np.flatnonzero(magnitudes == limit)
        # A limit of 0 means more zeros than asked for, and zeros stay zeros.
        kept[ties[count - np.count_nonzero(magnitudes < limit) :]] = True
    ends = np.cumsum([array.size for array in arrays])
    parts = np.split(kept, ends[:-1])
    return [part.reshape(a.shape) for part, a in zip(parts, arrays, strict=True)]
