"""How far the inputs of a model reach through layers whose kernels are all zeros.

What comes out of such a layer is its bias, whatever goes in. The layers behind it that get
nothing else are cut off. They are found as far as a model is a graph of Keras's own layers:
a layer of one's own may lead past its kernels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_lp.sparsity.weights import layers_within

_Key = tuple[str, int]  # of a call: the name of the operation and the number of the call


def find_cut_off(model: keras.Model, is_dead: Mapping[int, bool]) -> tuple[set[int], bool]:
    """What lies behind dead kernels.

    Args:
        model: A built model.
        is_dead: For the id of the variable of each kernel, whether all of it is zero.

    Returns:
        The ids of the variables whose layers get nothing that depends on the inputs of the
        model, and whether its outputs are known not to depend on them.
    """
    walk = _Walk(is_dead)
    outputs = walk.through(model, [False])
    cut_off = (layer for layer, calls in walk.calls.values() if all(calls))
    return {id(variable) for layer in cut_off for variable in layer.weights}, all(outputs)


class _Walk:
    """A walk along the calls of a model, with a flag for each tensor: whether it is constant.

    Attributes:
        is_dead: As in `find_cut_off`.
        calls: For the id of each layer that was met the layer, and for each of its calls
            whether all that goes in is constant.
    """

    def __init__(self, is_dead: Mapping[int, bool]) -> None:
        self.is_dead = is_dead
        self.calls: dict[int, tuple[Any, list[bool]]] = {}

    def through(self, model: keras.Model, inputs: Sequence[bool]) -> Sequence[bool]:
        """The flags of the outputs of a model, by those of its inputs."""
        if isinstance(model, keras.Sequential):
            for layer in model.layers:
                inputs = self._call(layer, inputs)
            return inputs
        graph = _Graph.of(model)
        if graph is None:
            return [False]
        if len(inputs) != len(graph.inputs):
            inputs = [all(inputs)] * len(graph.inputs)
        flags: dict[_Key, Sequence[bool]] = {
            key: [flag] for (key, _), flag in zip(graph.inputs, inputs, strict=True)
        }
        waiting = graph.calls
        while ready := [call for call in waiting if all(key in flags for key, _ in call.sources)]:
            for call in ready:
                flags[call.key] = self._call(call.operation, _taken(flags, call.sources))
            waiting = [call for call in waiting if call.key not in flags]
        return _taken(flags, graph.outputs)

    def _call(self, operation: Any, inputs: Sequence[bool]) -> Sequence[bool]:
        """The flags of the outputs of one call; one for all outputs, unless of a model."""
        is_cut_off = bool(inputs) and all(inputs)
        if not isinstance(operation, keras.Layer):
            return [is_cut_off]
        self.calls.setdefault(id(operation), (operation, []))[1].append(is_cut_off)
        if is_cut_off:
            return [True]
        if isinstance(operation, keras.Model):
            return self.through(operation, inputs)
        return [self._blocks(operation, len(inputs))]

    def _blocks(self, layer: keras.Layer, inputs: int) -> bool:
        """Whether dead kernels in a layer keep all of its inputs from its outputs."""
        kernels = [variable for variable in layer.weights if id(variable) in self.is_dead]
        is_known = all(type(one).__module__.startswith("keras.") for one in layers_within(layer))
        if not (kernels and is_known):
            return False
        dead = [self.is_dead[id(variable)] for variable in kernels]
        if isinstance(layer, (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)):
            return any(dead)  # One comes after the other.
        # A recurrent kernel passes on what the other one let in, or what a second input is.
        return all(
            is_dead or (inputs == 1 and "recurrent" in variable.name)
            for variable, is_dead in zip(kernels, dead, strict=True)
        )


@dataclass(frozen=True)
class _Call:
    key: _Key
    operation: Any
    sources: Sequence[tuple[_Key, int]]


@dataclass(frozen=True)
class _Graph:
    """The calls in a functional model. A tensor is the key of a call and the index of an output."""

    inputs: Sequence[tuple[_Key, int]]
    calls: Sequence[_Call]
    outputs: Sequence[tuple[_Key, int]]

    @classmethod
    def of(cls, model: keras.Model) -> "_Graph | None":
        """The graph as Keras saves it; `None` of a subclassed model, or where Keras cannot."""
        if not hasattr(model, "operations"):
            return None
        try:
            config = model.get_config()
        except Exception:  # Of any layer: one without a config of its own, for instance.
            return None
        operations = {operation.name: operation for operation in model.operations}
        calls = [
            _Call((one["name"], number), operations[one["name"]], list(_tensors(node)))
            for one in config["layers"]
            for number, node in enumerate(one["inbound_nodes"])
        ]
        # Among the ends the first call of a functional model is number 1, and 0 elsewhere.
        first = {name: int(hasattr(one, "operations")) for name, one in operations.items()}
        ends = (
            [((name, node - first[name]), index) for name, node, index in _ends(config[key])]
            for key in ("input_layers", "output_layers")
        )
        return cls(inputs=next(ends), calls=calls, outputs=next(ends))


def _taken(flags: Mapping[_Key, Sequence[bool]], tensors: Any) -> list[bool]:
    """The flags of tensors; where a call has one for all of its outputs, that."""
    return [flags[key][min(index, len(flags[key]) - 1)] for key, index in tensors]


def _tensors(value: Any) -> Iterator[tuple[_Key, int]]:
    """The tensors among the arguments of a call, in its config."""
    if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        name, node, index = value["config"]["keras_history"]
        yield (name, node), index
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _tensors(value[key])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _ends(value: Any) -> Iterator[Any]:
    """Inputs or outputs in a config: `[name, node, index]` each, in a structure."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield from _ends(value[key])
    elif len(value) == 3 and isinstance(value[0], str):
        yield value
    else:
        for one in value:
            yield from _ends(one)
