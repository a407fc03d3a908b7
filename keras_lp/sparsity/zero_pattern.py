"""The zeros that a variable is to keep: a Keras constraint, applied by the optimizers of Keras."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp.selection import list_paths
from keras_lp.sparsity.weights import is_here, whole_array
from keras_lp.warning import warn


class ZeroPattern(keras.constraints.Constraint):
    """Sets to zero what was zero when the constraint was made.

    Args:
        variable: The variable whose zeros are kept.
        constraint: A constraint to apply before, or `None`.
    """

    keeps_zeros = True  # For optimizers, which then need not warn of them.

    def __init__(self, variable: Any, constraint: Any = None) -> None:
        self.constraint = constraint
        self.nonzero: Any = whole_array(variable) != 0
        if is_here(variable):  # JAX compiles nothing with arrays that lie elsewhere too.
            self.nonzero = _beside(variable, self.nonzero)

    def __call__(self, w: Any) -> Any:
        """The weights, zero where the pattern is."""
        if self.constraint is not None:
            w = self.constraint(w)
        w = ops.convert_to_tensor(w)
        return ops.where(ops.convert_to_tensor(self.nonzero), w, ops.zeros_like(w))


def _beside(variable: Any, nonzero: np.ndarray) -> keras.Variable:
    """A variable, so that a compiled step refers to it instead of holding a copy.

    By its path, that of the other one, `ModelParallel` divides it alike.
    """
    scope, _, name = variable.path.rpartition("/")
    parent, _, scope = scope.rpartition("/")
    with keras.name_scope(scope, override_parent=parent):
        return keras.Variable(nonzero, dtype="bool", trainable=False, name=name)


def warn_of_lost_zeros(variables: Sequence[Any]) -> None:
    """Warns where zeros that variables are to keep are not there any more."""
    lost = [(variable, _count_lost(variable)) for variable in variables]
    lost = [(variable, count) for variable, count in lost if count]
    if lost:
        warn(
            f"{sum(count for _, count in lost):,} zeros that `freeze_zeros` was to keep are gone "
            f"from {list_paths([variable for variable, _ in lost], 5)}. Either weights were loaded "
            "or assigned: freeze their zeros with another call. Or something trained them that "
            "does not apply Keras's constraints: apply them after each of its steps, as the "
            "documentation of `keras_lp.freeze_zeros` shows."
        )


def _count_lost(variable: Any) -> int:
    pattern = variable.constraint
    if not isinstance(pattern, ZeroPattern):
        return 0
    lost = ops.logical_and(ops.logical_not(pattern.nonzero), ops.not_equal(variable, 0))
    return int(ops.sum(ops.cast(lost, "int32")))
