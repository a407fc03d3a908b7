"""What a model is made of, however deep it lies."""

from collections.abc import Iterator
from typing import Any

import keras


def within(model: keras.Model, kind: type = keras.layers.Layer) -> list[Any]:
    """What there is of a kind in a model and in the attributes of its layers, each once.

    With the default these are the model and all layers in it. `model.layers` lacks those within
    layers, such as the projections of an attention or the two halves of a `Bidirectional`.
    """
    return [value for value in _values(model) if isinstance(value, kind)]


def _values(model: keras.Model) -> Iterator[Any]:
    seen: set[int] = set()
    queue: list[Any] = [model]
    while queue:
        value = queue.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, keras.layers.Layer):
            queue += vars(value).values()
        elif isinstance(value, dict):
            queue += value.values()
        elif isinstance(value, (list, tuple, set)):
            queue += value
