"""The calls that a functional model is made of, and the same calls made again.

Those of a Keras 3 model are read from its config, as Keras saves it; those of a tf_keras
model from the nodes of its layers.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_lp.optional import import_tf_keras


@dataclass(frozen=True)
class Tensor:
    """Stands for a tensor of the model, by a key."""

    key: Any


@dataclass(frozen=True)
class Call:
    """One call of a layer or operation in a model.

    Attributes:
        operation: The layer or operation.
        args: What it was called with; a `Tensor` stands for each tensor.
        kwargs: The same, by name.
        key: From the position of an output to the key of its tensor.
    """

    operation: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    key: Callable[[int], Any]


def repeat_calls(
    calls: Sequence[Call],
    tensors: dict[Any, Any],
    apply: Callable[[Any, Sequence[Any], Mapping[str, Any]], Any],
) -> None:
    """Makes calls again, each as soon as there are the tensors that it takes.

    Args:
        calls: In any order. Those whose tensors are never there are left out: a layer may
            have been called in other models too.
        tensors: Tensors by their keys, at first those of the inputs; the others are added.
        apply: Called with operation, args and kwargs; returns the outputs.
    """
    waiting = list(calls)
    while waiting:
        ready = [call for call in waiting if _keys_in((call.args, call.kwargs)) <= tensors.keys()]
        if not ready:
            return
        for call in ready:
            args, kwargs = with_tensors((list(call.args), dict(call.kwargs)), tensors)
            outputs = keras.tree.flatten(apply(call.operation, args, kwargs))
            tensors |= {call.key(index): output for index, output in enumerate(outputs)}
        done = set(map(id, ready))  # Calls are not compared, as constants in them may be arrays.
        waiting = [call for call in waiting if id(call) not in done]


def with_tensors(value: Any, tensors: Mapping[Any, Any]) -> Any:
    """A structure with the tensors that stand for others."""
    return keras.tree.map_structure(
        lambda one: tensors[one.key] if isinstance(one, Tensor) else one, value
    )


def calls_in_keras(model: keras.Model) -> Iterator[Call]:
    """The calls in a functional model of Keras 3."""
    operations = {operation.name: operation for operation in model.operations}
    for described in model.get_config()["layers"]:
        name = described["name"]
        # An input has no node there, and is called with nothing.
        nodes = described["inbound_nodes"] or [{"args": [], "kwargs": {}}]
        for number, node in enumerate(nodes):
            yield Call(
                operations[name],
                _revived(node["args"]),
                _revived(node["kwargs"]),
                functools.partial(_key, name, number),
            )


def ends_in_keras(model: keras.Model) -> tuple[Any, Any]:
    """Inputs and outputs of a functional model of Keras 3, in the structure that it takes."""
    config = model.get_config()
    # The first call of a functional model is number 1 among the ends, and 0 elsewhere.
    first = {one.name: int(hasattr(one, "operations")) for one in model.operations}
    return _ends(config["input_layers"], first), _ends(config["output_layers"], first)


def calls_in_tf_keras(model: Any) -> Iterator[Call]:
    """The calls in a functional model of tf_keras."""
    for layer in model.layers:
        for node in layer.inbound_nodes:
            ids = [id(tensor) for tensor in keras.tree.flatten(node.outputs)]
            args, kwargs = _stand_ins((list(node.call_args), dict(node.call_kwargs)))
            yield Call(layer, args, kwargs, ids.__getitem__)


def ends_in_tf_keras(model: Any) -> tuple[Any, Any]:
    """Inputs and outputs of a functional model of tf_keras, in the structure that it takes."""
    return _stand_ins((model.input, model.output))


def is_symbolic(value: Any) -> bool:
    """Whether `value` is a tensor of a functional model of tf_keras."""
    try:
        return import_tf_keras().backend.is_keras_tensor(value)
    except ValueError:  # It is no tensor at all.
        return False


def _key(name: str, node: int, index: int) -> tuple[str, int, int]:
    return name, node, index


def _keys_in(value: Any) -> set[Any]:
    return {one.key for one in keras.tree.flatten(value) if isinstance(one, Tensor)}


def _revived(value: Any) -> Any:
    """What stands in the config of a Keras 3 model for an argument."""
    if isinstance(value, (list, tuple)):
        return [_revived(one) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("class_name")
    if kind == "__keras_tensor__":
        return Tensor(tuple(value["config"]["keras_history"]))
    if kind is not None and "config" in value:
        return keras.saving.deserialize_keras_object(value)
    return {key: _revived(one) for key, one in value.items()}


def _ends(value: Any, first: Mapping[str, int]) -> Any:
    """Structure of inputs or outputs out of a config, where a tensor is `[name, node, index]`."""
    if isinstance(value, dict):
        return {key: _ends(one, first) for key, one in value.items()}
    if len(value) == 3 and isinstance(value[0], str):
        name, node, index = value
        return Tensor((name, node - first[name], index))
    return [_ends(one, first) for one in value]


def _stand_ins(value: Any) -> Any:
    """A structure in which `Tensor` stands for the tensors of tf_keras."""
    return keras.tree.map_structure(lambda one: Tensor(id(one)) if is_symbolic(one) else one, value)
