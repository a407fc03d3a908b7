"""What tf_keras has to know to load models that keras-lp has made."""

from typing import Any

from keras_lp.optional import import_tfmot
from keras_lp.tfmot.activations import functions_for_tf_keras
from keras_lp.tfmot.extra_layers import extra_layers
from keras_lp.tfmot.operations import operation_class
from keras_lp.tfmot.pruning import wrapper_class


def custom_object_scope() -> Any:
    """A context in which tf_keras loads what `to_tf_keras` or `prune_low_magnitude` has made.

    In the process that made the model it is not needed.

    Raises:
        ImportError: If TF-MOT is not installed (extra `deploy`).

    Example:
    >>> with keras_lp.tfmot.custom_object_scope():
    ...     wrapped = tf_keras.models.load_model("wrapped.keras")
    """
    for register in (functions_for_tf_keras, extra_layers, operation_class, wrapper_class):
        register()
    return import_tfmot().sparsity.keras.prune_scope()
