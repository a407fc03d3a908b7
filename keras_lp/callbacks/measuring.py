"""How many zeros groups of variables have, and how large their other weights are.

Zeros are counted exactly, magnitudes are taken of a fixed random sample: both in one
compiled call, whose cost is that of reading the weights once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp.callbacks.compiling import compiled

_SAMPLE = 2**14  # entries, over all groups
_LEAST = 2**10  # in a group, as far as it has them


@dataclass(frozen=True)
class Magnitudes:
    """What was found in a group of variables.

    Attributes:
        zeros: Number of zeros, exact.
        size: Number of entries.
        nonzero: Magnitudes of a sample of the entries that are not zero.
    """

    zeros: int
    size: int
    nonzero: np.ndarray

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size

    def quantile(self, sparsity: float) -> float:
        """The magnitude under which all has to become zero for a sparsity; 0 if it has."""
        share = (sparsity - self.sparsity) / max(1.0 - self.sparsity, 1e-12)
        if share <= 0 or self.nonzero.size == 0:
            return 0.0
        return float(np.quantile(self.nonzero, min(share, 1.0)))


def measure(groups: Sequence[Sequence[Any]], model: keras.Model) -> Callable[[], list[Magnitudes]]:
    """A function that looks at the groups of a model's variables, as they are then."""
    random = np.random.default_rng(0)
    room = max(_SAMPLE // len(groups), _LEAST)
    samples = []
    for variables in groups:
        sizes = np.array([np.prod(variable.shape) for variable in variables], dtype="int64")
        shares = np.ceil(room * sizes / sizes.sum()).astype("int64")
        samples.append(
            [
                np.arange(size) if share >= size else np.sort(random.integers(size, size=share))
                for size, share in zip(sizes, shares, strict=True)
            ]
        )

    def look() -> Any:
        found = []
        for variables, positions in zip(groups, samples, strict=True):
            zeros = sum(ops.sum(ops.cast(ops.equal(v, 0), "int32")) for v in variables)
            taken = [
                ops.take(ops.reshape(v, (-1,)), p)
                for v, p in zip(variables, positions, strict=True)
            ]
            found.append((zeros, ops.abs(ops.concatenate([ops.cast(t, "float32") for t in taken]))))
        return found

    totals = [sum(int(np.prod(v.shape)) for v in variables) for variables in groups]
    everything = [variable for variables in groups for variable in variables]
    call = compiled(look, [], everything, model)

    def looked() -> list[Magnitudes]:
        result = []
        for (zeros, magnitudes), size in zip(call(), totals, strict=True):
            magnitudes = ops.convert_to_numpy(magnitudes)
            zeros = int(ops.convert_to_numpy(zeros))
            result.append(Magnitudes(zeros, size, magnitudes[magnitudes > 0]))
        return result

    return looked
