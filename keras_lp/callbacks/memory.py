"""What a `SparsityTarget` has to know to go on, in a form that Keras saves."""

import math
from typing import Any

import keras


@keras.saving.register_keras_serializable("keras_lp", "SparsityTargetMemory")
class TargetMemory(keras.layers.Layer):
    """The state of a way to a sparsity; a layer, since Keras saves layers.

    Args:
        groups: Number of groups.

    Attributes:
        start: Batches that the optimizer had seen at the start, -1 before it.
        span: The steps of the begin and the end, counted from the start.
        is_closed: 1 once the end was reached.
        initial: For each group, its sparsity at the begin.
        log_speed: For each group, the logarithm of its speed.
    """

    def __init__(self, groups: int, **arguments: Any) -> None:
        super().__init__(**{"name": "sparsity_target", **arguments})
        self.groups = groups
        self.start = self._add("start", (), "int32", -1)
        self.span = self._add("span", (2,), "int32", 0)
        self.is_closed = self._add("is_closed", (), "int32", 0)
        self.initial = self._add("initial", (groups,), "float32", math.nan)
        self.log_speed = self._add("log_speed", (groups,), "float32", math.nan)
        self.built = True

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
