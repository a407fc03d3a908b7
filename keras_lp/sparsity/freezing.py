"""Keeping the zero pattern: a Keras constraint under which zeros stay zero.

`freeze_zeros` works with any optimizer, since Keras applies constraints after each update.
The pattern is read from the weights, so that it can be frozen again after loading a model.
A constraint that a variable has is applied first, and comes back with `unfreeze_zeros`.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp.selection import optimizers_within
from keras_lp.sparsity.report import check_model, decayed_variables


class ZeroPattern(keras.constraints.Constraint):
    """Sets to zero what was zero when the constraint was made.

    Args:
        variable: The variable whose zeros are kept.
        constraint: A constraint to apply before, or `None`.
    """

    keeps_zeros = True  # For optimizers, which then need not warn of them.

    def __init__(self, variable: Any, constraint: Any = None) -> None:
        self.constraint = constraint
        nonzero = np.asarray(ops.convert_to_numpy(variable)) != 0
        # A variable, so that a compiled step refers to it instead of holding a copy.
        self.nonzero = keras.Variable(nonzero, dtype="bool", trainable=False, name="nonzero")

    def __call__(self, w: Any) -> Any:
        """The weights, zero where the pattern is."""
        if self.constraint is not None:
            w = self.constraint(w)
        w = ops.convert_to_tensor(w)
        return ops.where(ops.convert_to_tensor(self.nonzero), w, ops.zeros_like(w))


def freeze_zeros(model: keras.Model, *, exclude: str | Iterable[str] | None = None) -> None:
    """Keeps every zero of the decayed variables zero in further training, by any optimizer.

    Where the weights are pruned, this is what lets the others be fine-tuned. Constraints are
    not saved with a model: after loading one call this again. Calling it again freezes the
    zeros of that moment. Pass the model that you train: a training step that is compiled
    already takes no notice of what changes in a model within it. An optimizer with
    `use_ema=True` that the model is compiled with later loses the zeros, unless it is one of
    keras_lp's.

    Args:
        model: A built Keras 3 model of any kind.
        exclude: Regular expression, or a list of them, of variables to leave alone, as in
            `keras_lp.sparsity_report`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If the report refuses the model or `exclude`, or the model's optimizer puts
            an average of the weights into the model (`use_ema`) and is none of keras_lp's.

    Example:
    >>> keras_lp.prune(model, sparsity=0.9)
    >>> keras_lp.freeze_zeros(model)
    >>> model.fit(x, y, epochs=5)  # 90 % of the weights stay zero.
    """
    decayed = decayed_variables(model, exclude)
    check_averages(getattr(model, "optimizer", None))
    freeze(decayed, model)


def unfreeze_zeros(model: keras.Model) -> None:
    """Lets zeros train again; a variable's own constraint comes back.

    Args:
        model: A Keras 3 model, frozen or not.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built.
    """
    check_model(model)
    unfreeze(model.variables, model)


def freeze(variables: Iterable[Any], model: keras.Model) -> None:
    """Keeps the zeros that some variables of a model have."""
    for variable in variables:
        variable.constraint = ZeroPattern(variable, _own_constraint(variable))
    _compile_anew(model)


def unfreeze(variables: Iterable[Any], model: keras.Model) -> None:
    """Lets the zeros of some variables of a model train again."""
    for variable in variables:
        variable.constraint = _own_constraint(variable)
    _compile_anew(model)


def check_averages(optimizer: Any) -> None:
    """Raises ValueError if zeros would be lost in averages that Keras takes before constraints."""
    for each in optimizers_within(optimizer):
        if getattr(each, "use_ema", False) and not hasattr(each, "zero_averages"):
            raise ValueError(
                "Zeros cannot be frozen under an optimizer with `use_ema=True`: Keras averages the "
                "weights before it applies constraints, and puts the averages into the model. Use "
                "`keras_lp.LpDecay(optimizer, weight_decay=0)`, whose averages keep zeros, or "
                f"prune after the training. Received: optimizer={each!r}"
            )


def _own_constraint(variable: Any) -> Any:
    """The constraint of a variable without what `freeze_zeros` has put around it."""
    constraint = variable.constraint
    return constraint.constraint if isinstance(constraint, ZeroPattern) else constraint


def _compile_anew(model: keras.Model) -> None:
    """Makes a compiled training step take notice of changed constraints."""
    if model.compiled and getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
