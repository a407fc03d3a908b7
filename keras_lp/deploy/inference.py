"""Running a model without a trace."""

import functools
from collections.abc import Callable
from typing import Any

import keras


def outputs_of(model: Callable[..., Any], inputs: Any) -> Any:
    """Outputs of a model at inference, as NumPy arrays; the model's variables do not change.

    A plain call would advance counters and the seeds of random layers.

    Args:
        model: A built model.
        inputs: Inputs as the model takes them.

    Returns:
        The outputs in the structure that the model gives them.
    """
    with keras.StatelessScope():
        outputs = model(inputs, training=False)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


def in_graph(model: keras.Model) -> Callable[[Any], Any]:
    """`outputs_of` a model; where the backend is TensorFlow in a graph, as `predict` runs it.

    Some layers of Keras compute otherwise there: those for pipelines cast what goes in.
    """
    if keras.backend.backend() != "tensorflow":
        return functools.partial(outputs_of, model)
    import tensorflow as tf

    return functools.partial(outputs_of, tf.function(model, autograph=False))
