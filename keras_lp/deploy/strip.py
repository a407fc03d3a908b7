"""Stripping: from the model as trained to a plain model with exact zeros."""

from collections.abc import Iterable, Iterator
from typing import Any

from keras import ops

from keras_lp.deploy.copying import copy_model, paired
from keras_lp.optional import import_tfmot, is_tf_keras_model
from keras_lp.selection import Named
from keras_lp.sparsity.report import check_threshold, sort_weights

THRESHOLD = 1e-13  # as in the paper


def strip_pruning(
    model: Any,
    threshold: float = THRESHOLD,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    keep_zeros: bool = False,
) -> Any:
    """Copy of a trained model in which tiny weights are exact zeros.

    Formula: `w = 0 where |w| <= threshold` in the decayed variables; all other variables
    are copied bit by bit. The copy is not compiled: the optimizer, its state and constraints
    that were put on variables after construction stay behind. The given model does not
    change.

    LoRA adapters are merged into the kernels, as Keras does where it saves a model, and the
    layers of the copy have none. The sums are not zero where the kernels were, unless
    `keep_zeros=True` makes them so; the copy then computes another function. Integers of a
    quantized model are copied as they are.

    A tf_keras model, with the wrappers of TF-MOT or without, goes through TF-MOT's own
    `strip_pruning`: the result is a tf_keras model without wrappers, which shares its layers
    and weights with the given one. The masks are applied once more before. `threshold` and
    `exclude` are for Keras 3 models; for one of tf_keras leave them out.

    Args:
        model: A built Keras 3 model: Sequential, functional or subclassed. It is copied as
            Keras saves and loads it, so a subclassed model whose constructor takes
            arguments needs a `get_config`. Functions, such as that of a `Lambda`, are in
            the copy themselves: what they read elsewhere, both models read. Or a
            Sequential or functional model of tf_keras.
        threshold: Float >= 0. Entries of at most this magnitude become zero. Defaults to
            `1e-13`, as in the paper.
        include: Regular expression, or a list of them, of variables to take although the
            default rule leaves them out, as in `keras_lp.sparsity_report`.
        exclude: Regular expression, or a list of them, searched in the paths of the
            variables, as in `sparsity_report`.
        keep_zeros: Boolean, whether what is zero in a kernel without its adapters is zero in
            the sum. Defaults to `False`. Strip before saving, which merges as well: in a
            loaded model these zeros are gone.

    Returns:
        A new `keras.Model` of the same class, shapes and dtypes; a `tf_keras.Model` of one.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If the model is not built, has no decayed variable or cannot be copied,
            the threshold is negative or not finite, a pattern is malformed or matches no
            variable, or either is given for a tf_keras model.
        OSError: If the system fails, such as where the temporary folder has no room for the
            file that the copy goes through.

    Example:
    >>> stripped = keras_lp.strip_pruning(model)
    >>> keras_lp.export_tflite(stripped, "model.tflite")
    """
    check_threshold(threshold)
    if is_tf_keras_model(model):
        if threshold != THRESHOLD or include is not None or exclude is not None:
            raise ValueError(
                "Arguments `threshold`, `include` and `exclude` are for Keras 3 models; TF-MOT "
                "strips a tf_keras model. Leave them out, or strip once more what "
                "`keras_lp.tfmot.from_tf_keras` makes of the result. "
                f"Received: threshold={threshold!r}, include={include!r}, exclude={exclude!r}"
            )
        return _strip_wrappers(model)
    named = Named.of(include, exclude)
    counted = {id(one.variable): one for one in sort_weights(model, named)[0]}
    copy = copy_model(model)
    for original, variable in paired(model, copy):
        weight = counted.get(id(original))
        if weight is not None and not weight.is_quantized:
            weights = ops.convert_to_tensor(variable)
            is_zero = ops.less_equal(ops.abs(weights), threshold)
            if keep_zeros and weight.is_adapted:
                is_zero = ops.logical_or(is_zero, ops.less_equal(ops.abs(original), threshold))
            variable.assign(ops.where(is_zero, ops.zeros_like(weights), weights))
    return copy


def _strip_wrappers(model: Any) -> Any:
    """A tf_keras model without TF-MOT's wrappers."""
    # A training that ended in the middle of an epoch has not applied its masks.
    for weight, mask in masked_weights(model):
        weight.assign(weight * mask)
    return import_tfmot().sparsity.keras.strip_pruning(model)


def masked_weights(model: Any) -> Iterator[tuple[Any, Any]]:
    """The weights that TF-MOT's wrappers in a tf_keras model mask, each with its mask."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from masked_weights(layer)
        for weight, mask, _ in getattr(layer, "pruning_vars", ()):
            yield weight, mask
