"""Import of packages that an extra brings, at the place where they are needed."""

import importlib
import os
from typing import Any

_SWITCH = "TF_USE_LEGACY_KERAS"


def require(module: str, extra: str) -> Any:
    """Imports an optional package.

    Args:
        module: Full name of the module.
        extra: The extra of keras-lp that brings it.

    Returns:
        The module.

    Raises:
        ImportError: If it cannot be imported, naming the package and the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs the package `{module.split('.')[0]}`, which the extra `{extra}` brings: "
            f"pip install 'keras-lp[{extra}]'. ({error})"
        ) from error


def import_tf_keras() -> Any:
    """The package tf_keras, which is Keras 2."""
    return require("tf_keras", "deploy")


def import_tfmot() -> Any:
    """The package tensorflow_model_optimization; `tf.keras` and the environment stay as they are.

    When it is imported, TF-MOT sets `TF_USE_LEGACY_KERAS` for good, which makes `tf.keras` mean
    tf_keras wherever it is used for the first time after that. `tf.compat.v1.keras` and
    `tf.compat.v2.keras` do become tf_keras here: TF-MOT needs that.
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


def is_tf_keras_model(model: Any) -> bool:
    """Whether `model` is one of tf_keras, which is not imported for this."""
    return any(
        kind.__module__.startswith("tf_keras.") and kind.__name__ == "Model"
        for kind in type(model).__mro__
    )


def check_tf_keras_is_built(model: Any) -> None:
    """Raises ValueError unless a model of tf_keras is built."""
    if not model.built:
        raise ValueError(
            "Argument `model` must be built, so that it has weights. Give it an input shape or "
            f"call it on data first. Received: model={model.name!r}, which is not built"
        )
