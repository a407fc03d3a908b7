"""Sparse encoding of the weights in a `.tflite` file.

`encode_zeros` stores a weight tensor as its nonzero values and their positions along one
axis, and puts a DENSIFY before its first use, which LiteRT runs once when it loads the model.
TensorFlow's own EXPERIMENTAL_SPARSITY (2.21) does the same for moderately sparse tensors, but
its files give garbage for very sparse float16 matrices (1x4 blocks read as dense), for dense
layers whose input is no multiple of 4, and for transposed convolutions in float16.
"""

from typing import Any

import numpy as np

from keras_lp.deploy.optional import require

# Operations that take their weights from a DENSIFY, in LiteRT with and without XNNPACK; and
# those that do so behind the DEQUANTIZE of float16 weights, where the others read garbage.
_FLOAT32_READERS = (
    "BATCH_MATMUL",
    "CONV_2D",
    "CONV_3D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "GATHER",
    "TRANSPOSE_CONV",
)
_FLOAT16_READERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_OVERHEAD = 256  # bytes that one more operation and tensor take in the file, about
_ALIGNMENT = 16  # of the data of a tensor in the file, in bytes, as the schema demands


def encode_zeros(data: bytes) -> bytes:
    """Returns the file with all weight tensors that get smaller by it encoded as sparse.

    Args:
        data: A `.tflite` file with float32 or float16 weights, as the converter makes it.

    Returns:
        The bytes of a file that computes the same function.
    """
    schema = require("ai_edge_litert.schema_py_generated", "deploy")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    uses = _uses(model)
    encoded = False
    for graph in model.subgraphs:
        for index, tensor in enumerate(list(graph.tensors)):
            # A buffer that several tensors share cannot change its layout for one of them.
            if uses[tensor.buffer] == 1 and _is_weight(schema, model, graph, index):
                encoded |= _encode_tensor(schema, model, graph, index)
    return _pack(schema, model) if encoded else data


def _uses(model: Any) -> np.ndarray:
    """Number of tensors that refer to each buffer."""
    buffers = [tensor.buffer for graph in model.subgraphs for tensor in graph.tensors]
    return np.bincount(buffers, minlength=len(model.buffers))


def _is_weight(schema: Any, model: Any, graph: Any, index: int) -> bool:
    """Whether a tensor holds float constants that may come from a DENSIFY."""
    tensor = graph.tensors[index]
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0 or tensor.sparsity is not None:
        return False
    readers = {_operation(schema, model, reader) for reader in _readers(graph, index)}
    if tensor.type == schema.TensorType.FLOAT32:
        return bool(readers) and readers.issubset(_FLOAT32_READERS)
    if tensor.type == schema.TensorType.FLOAT16 and readers == {"DEQUANTIZE"}:
        outputs = [reader.outputs[0] for reader in _readers(graph, index)]
        behind = [reader for output in outputs for reader in _readers(graph, output)]
        return all(_operation(schema, model, reader) in _FLOAT16_READERS for reader in behind)
    return False


def _readers(graph: Any, index: int) -> list[Any]:
    return [operator for operator in graph.operators if index in operator.inputs]


def _operation(schema: Any, model: Any, operator: Any) -> str:
    """Name of an operator's operation in the schema."""
    code = _code(model.operatorCodes[operator.opcodeIndex])
    names = vars(schema.BuiltinOperator)
    return next(name for name, value in names.items() if value == code)


def _code(operator_code: Any) -> int:
    # Files for old runtimes hold the codes below 127 in the older field alone.
    return max(operator_code.builtinCode, operator_code.deprecatedBuiltinCode)


def _encode_tensor(schema: Any, model: Any, graph: Any, index: int) -> bool:
    """Encodes one weight tensor and inserts its DENSIFY if that makes the file smaller.

    Returns whether it did.
    """
    sparse = graph.tensors[index]
    dtype = np.float32 if sparse.type == schema.TensorType.FLOAT32 else np.float16
    buffer = model.buffers[sparse.buffer]
    array = np.frombuffer(bytes(buffer.data), dtype).reshape(sparse.shape)
    axis = min(range(array.ndim), key=lambda axis: _encoded_bytes(array, axis))
    if _encoded_bytes(array, axis) + _OVERHEAD >= array.nbytes:
        return False

    dense = schema.TensorT()
    dense.name, dense.shape, dense.type = sparse.name + b"/dense", sparse.shape, sparse.type
    graph.tensors.append(dense)
    for operator in _readers(graph, index):
        operator.inputs = [len(graph.tensors) - 1 if i == index else i for i in operator.inputs]
    buffer.data, sparse.sparsity = _encode(schema, array, axis)
    densify = schema.OperatorT()
    densify.opcodeIndex = _densify_index(schema, model)
    densify.inputs, densify.outputs = [index], [len(graph.tensors) - 1]
    densify.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    densify.builtinOptions = schema.DensifyOptionsT()
    graph.operators.insert(0, densify)  # It needs nothing that another operation makes.
    return True


def _densify_index(schema: Any, model: Any) -> int:
    """Position of DENSIFY in the file's list of operations, where it is added if missing."""
    wanted = schema.BuiltinOperator.DENSIFY
    for index, code in enumerate(model.operatorCodes):
        if _code(code) == wanted:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = wanted
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _encoded_bytes(array: np.ndarray, axis: int) -> int:
    """Size of the encoding along `axis`: values, their positions, and the starts of rows."""
    nonzero, length = int(np.count_nonzero(array)), array.shape[axis]
    positions = nonzero * _index_type(length - 1)[1].itemsize
    starts = (array.size // length + 1) * _index_type(nonzero)[1].itemsize
    return nonzero * array.itemsize + positions + starts


def _encode(schema: Any, array: np.ndarray, axis: int) -> tuple[np.ndarray, Any]:
    """Nonzero values as bytes, and where they stand: compressed rows along `axis`."""
    order = [other for other in range(array.ndim) if other != axis] + [axis]
    rows = array.transpose(order).reshape(-1, array.shape[axis])
    row, column = np.nonzero(rows)
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rows)))])
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = order
    sparsity.dimMetadata = []
    for dimension in order:
        metadata = schema.DimensionMetadataT()
        metadata.format = schema.DimensionType.DENSE
        metadata.denseSize = array.shape[dimension]
        sparsity.dimMetadata.append(metadata)
    metadata.format, metadata.denseSize = schema.DimensionType.SPARSE_CSR, 0
    metadata.arraySegmentsType, metadata.arraySegments = _index_vector(schema, starts)
    metadata.arrayIndicesType, metadata.arrayIndices = _index_vector(schema, column)
    return np.frombuffer(rows[row, column].tobytes(), np.uint8), sparsity


def _index_vector(schema: Any, values: np.ndarray) -> tuple[int, Any]:
    name, dtype = _index_type(int(values.max(initial=0)))
    vector = getattr(schema, f"{name}T")()
    vector.values = values.astype(dtype)
    return getattr(schema.SparseIndexVector, name), vector


def _index_type(largest: int) -> tuple[str, np.dtype]:
    """The narrowest type that the schema has for an index, with its name there."""
    if largest < 2**8:
        return "Uint8Vector", np.dtype(np.uint8)
    if largest < 2**16:
        return "Uint16Vector", np.dtype(np.uint16)
    return "Int32Vector", np.dtype(np.int32)


def _pack(schema: Any, model: Any) -> bytes:
    flatbuffers = require("flatbuffers", "deploy")

    class AlignedBufferT(schema.BufferT):
        """A buffer that keeps the alignment which generated Python code does not know of."""

        def Pack(self, builder: Any) -> Any:  # noqa: N802
            builder.Prep(_ALIGNMENT, 0 if self.data is None else len(self.data))
            return super().Pack(builder)

    for buffer in model.buffers:
        buffer.__class__ = AlignedBufferT
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
