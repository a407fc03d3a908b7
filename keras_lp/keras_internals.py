"""Private names of Keras, for what its public API does not reach.

Each function says why it is needed, and `tests/test_keras_internals.py` fails where Keras changes
what it relies on.
"""

from typing import Any

import keras


def renew_training_state(model: Any) -> None:
    """Makes the values that variables have now those that a training under JAX falls back to.

    Before Keras asks for the next batch it takes the values out of the variables. Where no batch
    comes (the data ends, or a read is interrupted), it puts back those of its last step: what a
    callback has assigned after the step is lost, and arrays that the callback donated are gone.

    Args:
        model: A model whose variables hold their values, as after `model.jax_state_sync()`.
    """
    if keras.backend.backend() != "jax" or not getattr(model, "_jax_state", None):
        return
    model._jax_state = {
        "trainable_variables": _values(model.trainable_variables),
        "non_trainable_variables": _values(model.non_trainable_variables),
        "optimizer_variables": _values(model.optimizer.variables),
        "metrics_variables": _values(model.metrics_variables),
    }


def layers_of_applications() -> dict[str, type]:
    """The classes of layers that `keras.applications` has for itself, by their names."""
    from keras.src.applications import convnext, inception_resnet_v2

    kinds = (convnext.LayerScale, inception_resnet_v2.CustomScaleLayer)
    return {kind.__name__: kind for kind in kinds}


def _values(variables: list[Any]) -> list[Any]:
    return [variable.value for variable in variables]
