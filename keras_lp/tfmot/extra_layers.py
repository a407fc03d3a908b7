"""Layers of keras.applications that tf_keras does not export, as layers of tf_keras."""

import functools
from typing import Any

from keras_lp.optional import import_tf_keras


@functools.cache
def extra_layers() -> dict[str, Any]:
    """The classes by the names that they have in Keras 3."""
    tf_keras = import_tf_keras()
    layer: Any = tf_keras.layers.Layer
    register = tf_keras.saving.register_keras_serializable("keras_lp")

    @register
    class LayerScale(layer):
        """Multiplies the channels by trained factors; of ConvNeXt.

        Args:
            init_values: Factor to begin with.
            projection_dim: Number of channels.
        """

        def __init__(self, init_values: float, projection_dim: int, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.init_values = init_values
            self.projection_dim = projection_dim

        def build(self, input_shape: Any) -> None:
            constant = tf_keras.initializers.Constant(self.init_values)
            self.gamma = self.add_weight("gamma", (self.projection_dim,), initializer=constant)
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.gamma

        def get_prunable_weights(self) -> list[Any]:
            """None; by this method TF-MOT lets the layer be."""
            return []

        def get_config(self) -> dict[str, Any]:
            arguments = {"init_values": self.init_values, "projection_dim": self.projection_dim}
            return {**super().get_config(), **arguments}

    @register
    class CustomScaleLayer(layer):
        """`inputs[0] + scale * inputs[1]`; of InceptionResNetV2.

        Args:
            scale: Factor of the second input.
        """

        def __init__(self, scale: float, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.scale = scale

        def call(self, inputs: Any) -> Any:
            return inputs[0] + self.scale * inputs[1]

        def get_prunable_weights(self) -> list[Any]:
            """None; by this method TF-MOT lets the layer be."""
            return []

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "scale": self.scale}

    return {"LayerScale": LayerScale, "CustomScaleLayer": CustomScaleLayer}
