"""tf_keras and TF-MOT, imported without what their import does to a process.

TF-MOT sets `TF_USE_LEGACY_KERAS` for good when it is imported, which turns `tf.keras` into
tf_keras wherever it is used for the first time after that.
"""

import os
from typing import Any

from keras_lp.optional import require

_SWITCH = "TF_USE_LEGACY_KERAS"


def import_tf_keras() -> Any:
    """The package tf_keras, which is Keras 2."""
    return require("tf_keras", "deploy")


def is_symbolic(value: Any) -> bool:
    """Whether `value` is a tensor of a functional model of tf_keras."""
    try:
        return import_tf_keras().backend.is_keras_tensor(value)
    except ValueError:  # It is no tensor at all.
        return False


def import_tfmot() -> Any:
    """The package tensorflow_model_optimization; `tf.keras` and the environment stay as they are.

    `tf.compat.v1.keras` and `tf.compat.v2.keras` become tf_keras, if they are used for the
    first time here: TF-MOT needs that.
    """
    tf = require("tensorflow", "tensorflow")
    _ = tf.keras.layers  # With its first use it becomes what the environment says by now.
    before = os.environ.get(_SWITCH)
    try:
        return require("tensorflow_model_optimization", "deploy")
    finally:
        if before is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before
