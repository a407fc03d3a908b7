"""A model that was trained in another precision, computing in float32 for a while.

LiteRT computes in float32, and in int8 where it is quantized. Mixed precision keeps the variables
in float32 and computes in half of it, so the float32 model of the same variables is the better one.
"""

import contextlib
from collections.abc import Iterator

import keras

from keras_lp.deploy.sublayers import within

_OTHER_PRECISIONS = ("float16", "bfloat16", "float64")


class _InFloat32(keras.DTypePolicy):
    """Computes in float32, with variables of any dtype, which are cast."""

    def __init__(self, variable_dtype: str):
        super().__init__("float32")
        self._dtype_of_variables = variable_dtype

    @property
    def variable_dtype(self) -> str:
        return self._dtype_of_variables


def policies_of_other_precisions(model: keras.Model) -> list[str]:
    """Names of the dtype policies in a model that do not compute in float32."""
    return sorted({layer.dtype_policy.name for layer in _of_other_precisions(model)})


@contextlib.contextmanager
def in_float32(model: keras.Model) -> Iterator[None]:
    """Has all layers of a model compute in float32 while the context lasts.

    Variables do not change, and the policies of the layers are theirs again after it. Layers that
    Keras has quantized are left alone.
    """
    layers = _of_other_precisions(model)
    before = [
        (layer, layer.autocast, layer.dtype_policy, _entries(layer.dtype_policy))
        for layer in layers
    ]
    try:
        for layer in layers:
            layer.dtype_policy = _InFloat32(layer.variable_dtype)
            # An embedding looks its rows up before it casts, and LiteRT does so in float32 alone.
            layer.autocast = True
        yield
    finally:
        for layer, autocast, policy, entries in before:
            layer.autocast = autocast
            if entries is None:
                layer.dtype_policy = policy
            else:  # What is set on a layer with a map of policies is put into the map.
                policy.clear()
                policy.update(entries)


def _entries(policy: keras.DTypePolicy) -> dict[str, keras.DTypePolicy] | None:
    is_map = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    return dict(policy.items()) if is_map else None


def _of_other_precisions(model: keras.Model) -> list[keras.layers.Layer]:
    return [
        layer
        for layer in within(model)
        if layer.compute_dtype in _OTHER_PRECISIONS and layer.quantization_mode is None
    ]
