"""What is in a `.tflite` file: its operations, and the tensors that they work on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keras_lp.optional import require


@dataclass(frozen=True)
class ForeignOperation:
    """An operation in a file that TensorFlow has and LiteRT has not.

    Attributes:
        name: Its name in TensorFlow.
        place: Name of the tensor that it makes, which begins with the names of the layers around.
        dtypes: Names of the dtypes that it works on, in capital letters.
    """

    name: str
    place: str
    dtypes: frozenset[str]


def foreign_operations(data: bytes) -> list[ForeignOperation]:
    """The operations in a file that LiteRT's default interpreter does not have."""
    schema = _schema()
    model = schema.Model.GetRootAs(data, 0)
    dtypes = {value: name for name, value in vars(schema.TensorType).items()}
    found = []
    for graph, operator in _operators(model):
        name = model.OperatorCodes(operator.OpcodeIndex()).CustomCode() or b""
        if name.startswith(b"Flex"):
            made = [graph.Tensors(i) for i in operator.OutputsAsNumpy()]
            used = [graph.Tensors(i) for i in operator.InputsAsNumpy() if i >= 0]
            found.append(
                ForeignOperation(
                    name=name.decode().removeprefix("Flex"),
                    place=made[0].Name().decode() if made else "",
                    dtypes=frozenset(dtypes[tensor.Type()] for tensor in [*made, *used]),
                )
            )
    return found


def has_loops(data: bytes) -> bool:
    """Whether a file runs some of its operations again and again."""
    return _has(data, "WHILE")


def has_state(data: bytes) -> bool:
    """Whether a file keeps variables from one run to the next."""
    return _has(data, "ASSIGN_VARIABLE")


def has_open_loops(data: bytes) -> bool:
    """Whether a file has loops over tensors of open sizes, which LiteRT cannot run."""
    return any(each.name.startswith("TensorList") for each in foreign_operations(data))


def has_sparse_int8(data: bytes) -> bool:
    """Whether a file holds int8 weights without their zeros."""
    schema = _schema()
    model = schema.Model.GetRootAs(data, 0)
    return any(
        graph.Tensors(index).Type() == schema.TensorType.INT8
        and graph.Tensors(index).Sparsity() is not None
        for graph in map(model.Subgraphs, range(model.SubgraphsLength()))
        for index in range(graph.TensorsLength())
    )


def _has(data: bytes, operation: str) -> bool:
    """Whether a file has an operation of LiteRT's, by its name in the schema."""
    schema = _schema()
    model = schema.Model.GetRootAs(data, 0)
    codes = map(model.OperatorCodes, range(model.OperatorCodesLength()))
    wanted = getattr(schema.BuiltinOperator, operation)
    return any(code.BuiltinCode() == wanted for code in codes)


def _operators(model: Any) -> Iterator[tuple[Any, Any]]:
    """The operators of a file, each with the graph that it is in."""
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for index in range(graph.OperatorsLength()):
            yield graph, graph.Operators(index)


def _schema() -> Any:
    return require("ai_edge_litert.schema_py_generated", "deploy")
