"""Running a model without a trace."""

from typing import Any

import keras


def outputs_of(model: keras.Model, inputs: Any) -> Any:
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
