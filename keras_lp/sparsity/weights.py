"""The weights of a model, each with its layer: which are kernels, and what is computed with.

A kernel is what the decay may act on: two dimensions or more, no bias or scale. Most layers
compute with the variable as it is. Under LoRA they take the sum of a variable that does not
train and the product of two adapters that do; quantized, they take integers, which int4 packs
in pairs. Such kernels are counted as the layer computes with them.
"""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp import selection

# What Keras's layers call the kernels that they can quantize and, but for the last, adapt.
_KERNELS = ("kernel", "embeddings", "reverse_embeddings")


@dataclass(frozen=True)
class Weight:
    """A variable of a model.

    Attributes:
        variable: The Keras variable.
        layer: The layer whose own it is.
        is_to_train: Whether it trains unless it is frozen; a moving average does not.
    """

    variable: Any
    layer: Any
    is_to_train: bool

    @property
    def has_adapters(self) -> bool:
        """Whether its layer has adapters (LoRA), which are in `layer.kernel` and its like."""
        return getattr(self.layer, "lora_enabled", False)

    @property
    def is_adapter(self) -> bool:
        """Whether it is one of a pair that trains in place of a kernel."""
        return self.has_adapters and self.variable.name.startswith("lora_")

    @property
    def is_adapted(self) -> bool:
        """Whether it is a kernel to which the product of adapters is added."""
        return self.has_adapters and self.variable.name in _KERNELS[:2]

    @property
    def is_quantized(self) -> bool:
        """Whether it is a kernel of integers. Float8 keeps kernels of floats, which train."""
        if self.variable.name not in _KERNELS or not keras.backend.is_int_dtype(
            self.variable.dtype
        ):
            return False
        # Before GPTQ and AWQ are calibrated a layer computes with floats.
        mode = self.layer.quantization_mode
        return mode in ("int8", "int4") or getattr(self.layer, f"is_{mode}_calibrated", False)

    @property
    def is_replaced(self) -> bool:
        """Whether the layer computes with more than the variable, which does not train."""
        return self.is_adapted or self.is_quantized

    @property
    def is_kernel(self) -> bool:
        """Whether it is a kernel, trained or not."""
        is_one = self.is_to_train or self.is_replaced
        return is_one and selection.is_decayed_by_default(self.variable)

    @property
    def is_frozen(self) -> bool:
        """Whether someone keeps it from training."""
        if self.is_replaced:
            return not self.layer.trainable
        return self.is_to_train and not self.variable.trainable

    @property
    def is_depthwise(self) -> bool:
        """Whether it has a filter for each channel and mixes none."""
        kinds = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
        return self.variable.name == "depthwise_kernel" or isinstance(self.layer, kinds)

    def values(self) -> Any:
        """What the layer computes with; of integers their distance from the one that means 0."""
        if not self.is_replaced:
            return ops.convert_to_tensor(self.variable)
        name, layer = self.variable.name, self.layer
        if name != _KERNELS[2]:
            values = getattr(layer, name)
        elif layer.quantization_mode == "int4":
            values = keras.quantizers.unpack_int4(self.variable, layer.output_dim, axis=0)
        else:
            values = self.variable
        zeros = getattr(layer, f"{name}_zero", None)
        if zeros is None or not self.is_quantized:
            return ops.convert_to_tensor(values)
        # Integers that mean 0, one for each group of inputs; Keras's own way is not public.
        groups = ops.cast(layer.g_idx, "int32")
        is_first = layer.quantization_mode == "int4" and name != "embeddings"
        zeros = ops.take(ops.cast(zeros, "float32"), groups, axis=0 if is_first else 1)
        shape = ops.shape(values)
        values = ops.reshape(ops.cast(values, "float32"), ops.shape(zeros))
        return ops.reshape(values - zeros, shape)

    def count(self, threshold: float = 0.0) -> tuple[int, int, int]:
        """Numbers of zeros and of entries, and how many of these are nonzero at full rank.

        The threshold is not for integers. A kernel is a matrix from its inputs to its outputs,
        wherever its axes part: of all ways to part them, the one with the most even sides. Its
        rank is at most the shorter side, and at most the number of its nonzero entries. A
        depthwise kernel, a small filter for each channel, is a matrix of one filter a column.
        """
        values = self.values()
        limit = 0 if self.is_quantized else threshold
        zeros = int(ops.sum(ops.cast(ops.less_equal(ops.abs(values), limit), "int32")))
        shape = tuple(values.shape)
        sides = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
        if self.is_depthwise:
            sides = [(math.prod(shape), math.prod(shape[-2:]))]
        return zeros, math.prod(shape), max(map(min, sides), default=1)


def weights_of(model: keras.Model) -> list[Weight]:
    """The weights of a model, in the order of `model.weights`."""
    found: dict[int, Weight] = {}
    for layer in layers_within(model):
        # Keras has no public way to a variable's layer, nor to whether one that is frozen trains.
        own = {True: layer._trainable_variables, False: layer._non_trainable_variables}
        for is_to_train, variables in own.items():
            for variable in variables:
                found.setdefault(id(variable), Weight(variable, layer, is_to_train))
    return [found[id(variable)] for variable in model.weights]


def whole_array(variable: Any) -> np.ndarray:
    """A variable as a NumPy array, also where other processes hold parts of it."""
    if is_here(variable):
        return np.asarray(ops.convert_to_numpy(variable))
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(variable.value, tiled=True)


def is_here(variable: Any) -> bool:
    """Whether this process holds all of a variable, as it does with other backends than JAX."""
    return getattr(ops.convert_to_tensor(variable), "is_fully_addressable", True)


def layers_within(layer: Any) -> list[Any]:
    """A layer or model and all those in it, at any depth."""
    return layer._flatten_layers()  # Keras has no public name for it.
