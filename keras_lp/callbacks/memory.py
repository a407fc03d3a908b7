"""What a `SparsityTarget` has to know to go on, in a form that Keras saves."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

# What is not known yet. Not NaN: where several processes share a variable, JAX compares the values
# that each of them gives it.
_UNKNOWN = -1e30


@keras.saving.register_keras_serializable("keras_lp", "SparsityTargetMemory")
class TargetMemory(keras.layers.Layer):
    """The state of a way to a sparsity; a layer, since Keras saves layers.

    Args:
        groups: Number of groups.

    Attributes:
        start: Batches that the optimizer had seen at the start, -1 before it.
        span: The steps of the begin and the end, counted from the start.
        is_closed: 1 once the end was reached.
    """

    def __init__(self, groups: int, **arguments: Any) -> None:
        super().__init__(**{"name": "sparsity_target", **arguments})
        self.groups = groups
        self.start = self._add("start", (), "int32", -1)
        self.span = self._add("span", (2,), "int32", 0)
        self.is_closed = self._add("is_closed", (), "int32", 0)
        # For each group its sparsity at the begin, and the logarithm of its speed.
        self._initial = self._add("initial", (groups,), "float32", _UNKNOWN)
        self._log_speed = self._add("log_speed", (groups,), "float32", _UNKNOWN)
        self.built = True

    @property
    def initial(self) -> list[float]:
        """The sparsity of each group at the begin; NaN before it."""
        return _known(self._initial)

    @initial.setter
    def initial(self, values: Sequence[float]) -> None:
        self._initial.assign(values)

    @property
    def log_speed(self) -> list[float]:
        """The logarithm of the speed of each group; NaN where it is not known."""
        return _known(self._log_speed)

    @log_speed.setter
    def log_speed(self, values: Sequence[float]) -> None:
        self._log_speed.assign(np.nan_to_num(values, nan=_UNKNOWN))

    def load_own_variables(self, store: Any) -> None:
        """Loads what was saved; nothing from a file that has none of it."""
        if len(store.keys()) > 0:
            super().load_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "groups": self.groups}

    def _add(self, name: str, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        initializer = keras.initializers.Constant(value)
        return self.add_weight(
            shape=shape, initializer=initializer, dtype=dtype, trainable=False, name=name
        )


def _known(variable: Any) -> list[float]:
    values = ops.convert_to_numpy(variable)
    return np.where(values == np.float32(_UNKNOWN), math.nan, values).tolist()
