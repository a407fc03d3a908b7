"""Layers of Keras 3 that tf_keras lacks, or has in a form that fails, as layers of tf_keras."""

import functools
from typing import Any

from keras_lp.optional import import_tf_keras
from keras_lp.tfmot.operations import rms_normalization


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

    @register
    class RMSNormalization(layer):
        """`scale * x / sqrt(mean(x**2) + epsilon)`, the mean over some axes.

        Args:
            axis: An axis, or a list of them.
            epsilon: Added under the root.
        """

        def __init__(self, axis: Any = -1, epsilon: float = 1e-6, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.axis = axis
            self.epsilon = epsilon

        def build(self, input_shape: Any) -> None:
            axes = self.axis if isinstance(self.axis, (list, tuple)) else [self.axis]
            shape = [input_shape[axis] for axis in axes]
            self.scale = self.add_weight("scale", shape, initializer="ones")
            super().build(input_shape)

        def call(self, inputs: Any) -> Any:
            return rms_normalization(inputs, self.scale, axis=self.axis, epsilon=self.epsilon)

        def get_prunable_weights(self) -> list[Any]:
            """None; by this method TF-MOT lets the layer be."""
            return []

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "axis": self.axis, "epsilon": self.epsilon}

    @register
    class SpectralNormalization(tf_keras.layers.SpectralNormalization):  # type: ignore[name-defined]
        """That of tf_keras, which fails where `tf.keras` is Keras 3 (tf-keras 2.21).

        Its `build` makes an `InputSpec` of `tf.keras`, and refuses it as one of Keras 3.
        """

        def build(self, input_shape: Any) -> None:
            tf_keras.layers.Wrapper.build(self, input_shape)
            has_kernel = hasattr(self.layer, "kernel")
            self.kernel = self.layer.kernel if has_kernel else self.layer.embeddings
            self.kernel_shape = self.kernel.shape.as_list()
            self.vector_u = self.add_weight(
                shape=(1, self.kernel_shape[-1]),
                initializer=tf_keras.initializers.TruncatedNormal(stddev=0.02),
                trainable=False,
                name="vector_u",
                dtype=self.kernel.dtype,
            )

    return {
        "CustomScaleLayer": CustomScaleLayer,
        "LayerScale": LayerScale,
        "RMSNormalization": RMSNormalization,
        "SpectralNormalization": SpectralNormalization,
    }
