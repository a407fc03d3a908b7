"""Reading a parsed `.tflite` file: operations, who reads and makes a tensor, constants."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_lp.optional import require


@dataclass(frozen=True)
class Graph:
    """One of the graphs of a file.

    Attributes:
        schema: The module of the schema.
        model: The file, as objects of the schema.
        graph: The graph in it.
    """

    schema: Any
    model: Any
    graph: Any

    def name(self, operator: Any) -> str:
        """Name of an operator's operation in the schema."""
        code = code_of(self.model.operatorCodes[operator.opcodeIndex])
        names = vars(self.schema.BuiltinOperator)
        return next(name for name, value in names.items() if value == code)

    def readers(self, index: int) -> list[Any]:
        """The operators that read a tensor."""
        return [operator for operator in self.graph.operators if index in operator.inputs]

    def maker(self, index: int) -> Any:
        """The operator that makes a tensor; `None` for inputs and constants."""
        makers = (operator for operator in self.graph.operators if index in operator.outputs)
        return next(makers, None)

    def shape(self, index: int) -> list[int]:
        """Shape of a tensor, where what is open is 1."""
        shape = self.graph.tensors[index].shape
        return [] if shape is None else [int(size) for size in shape]

    def constant(self, index: int) -> np.ndarray | None:
        """The values of a tensor that the file holds dense; `None` for others."""
        tensor = self.graph.tensors[index]
        data = self.model.buffers[tensor.buffer].data
        types = self.schema.TensorType
        dtypes = {
            types.FLOAT16: np.float16,
            types.FLOAT32: np.float32,
            types.INT8: np.int8,
            types.INT32: np.int32,
        }
        if data is None or len(data) == 0 or tensor.sparsity is not None:
            return None
        if tensor.type not in dtypes:
            return None
        return np.frombuffer(bytes(data), dtypes[tensor.type]).reshape(self.shape(index))


def parse(data: bytes) -> list[Graph]:
    """The graphs of a file."""
    schema = require("ai_edge_litert.schema_py_generated", "deploy")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    return [Graph(schema, model, graph) for graph in model.subgraphs]


def code_of(operator_code: Any) -> int:
    """The number of an operation in the schema."""
    # Files for old runtimes hold the codes below 127 in the older field alone.
    return max(operator_code.builtinCode, operator_code.deprecatedBuiltinCode)
