"""Activation functions of Keras 3 and of tf_keras, by name.

Most have one name and one meaning in both. `hard_sigmoid` is another function in each, and
tf_keras lacks some of Keras 3's: those are functions here, known to the library they are for.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_lp.optional import import_tf_keras

_PACKAGE = "keras_lp"  # under which the libraries find the functions again
_PREFIX = "keras_3_"  # of their names, which tf_keras may have for other functions
_IN_BOTH = {
    *("elu", "exponential", "gelu", "linear", "mish", "relu", "selu"),
    *("sigmoid", "softmax", "softplus", "softsign", "tanh"),
}
_RENAMED = {"silu": "swish"}  # from Keras 3 to tf_keras
_OF_TENSORFLOW = {"leaky_relu", "log_softmax", "relu6"}  # that tf_keras knows as `tf.nn` has them


def activation_for_tf_keras(name: str) -> Any:
    """What tf_keras takes for an activation of Keras 3, or None if there is nothing like it."""
    if name in _IN_BOTH:
        return name
    return _RENAMED.get(name) or functions_for_tf_keras().get(name)


def activation_for_keras(name: str) -> Any:
    """What Keras 3 takes for an activation of tf_keras, or None if there is nothing like it."""
    if name in _IN_BOTH | _OF_TENSORFLOW:
        return name
    names = {theirs: ours for ours, theirs in _RENAMED.items()}
    names |= {f"{_PACKAGE}>{_PREFIX}{ours}": ours for ours in functions_for_tf_keras()}
    return names.get(name) or {"hard_sigmoid": hard_sigmoid_of_tf_keras}.get(name)


@keras.saving.register_keras_serializable(_PACKAGE)
def hard_sigmoid_of_tf_keras(x: Any) -> Any:
    """`max(0, min(1, 0.2 * x + 0.5))`; that of Keras 3 has the slope 1/6."""
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@functools.cache
def functions_for_tf_keras() -> dict[str, Callable[[Any], Any]]:
    """Those that tf_keras lacks, by their names in Keras 3; it can load them from now on."""
    import tensorflow as tf

    functions = {
        "celu": lambda x: tf.nn.relu(x) + tf.math.expm1(tf.minimum(x, 0.0)),
        "hard_sigmoid": lambda x: tf.nn.relu6(x + 3.0) / 6.0,
        "hard_silu": lambda x: x * tf.nn.relu6(x + 3.0) / 6.0,
        "hard_tanh": lambda x: tf.clip_by_value(x, -1.0, 1.0),
        "leaky_relu": lambda x: tf.nn.leaky_relu(x, alpha=0.2),
        "log_sigmoid": tf.math.log_sigmoid,
        "log_softmax": tf.nn.log_softmax,
        "relu6": tf.nn.relu6,
        "squareplus": lambda x: (x + tf.sqrt(tf.square(x) + 4.0)) / 2.0,
        "tanh_shrink": lambda x: x - tf.tanh(x),
    }
    register = import_tf_keras().saving.register_keras_serializable
    names = {name: f"{_PREFIX}{name}" for name in functions}
    return {
        name: register(_PACKAGE, names[name])(_named(names[name], function))
        for name, function in functions.items()
    }


def _named(name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of its own, with a name by which tf_keras can save it."""

    def activation(x: Any) -> Any:
        return function(x)

    activation.__name__ = activation.__qualname__ = name
    return activation
