"""Sparse encoding of the weights in a `.tflite` file.

`encode_zeros` stores a weight tensor as its nonzero values and their positions along the last
axis, and puts a DENSIFY before its first use, which LiteRT runs once when it loads the model.
The format has any axis, and another one is often smaller by some percent; but OpenVINO (2026.4)
takes every sparse weight as stored along the last, without an error where it is not.
TensorFlow's own EXPERIMENTAL_SPARSITY (2.21) does the same for moderately sparse tensors, but
its files give garbage for very sparse float16 matrices (1x4 blocks read as dense), for dense
layers whose input is no multiple of 4, and for transposed convolutions in float16.
"""

from typing import Any

import numpy as np

from keras_lp.deploy.graphs import Graph, code_of, parse
from keras_lp.optional import require

# Operations that take their weights from a DENSIFY, in LiteRT with and without XNNPACK; and
# those that do so behind a DEQUANTIZE of float16 weights, where CONV_3D and GATHER were seen
# to read garbage.
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
_INT8_READERS = _FLOAT16_READERS  # in LiteRT without XNNPACK alone
_OVERHEAD = 256  # bytes that one more operation and tensor take in the file, about
_SCALE_BYTES = 12  # of the quantization of a channel: its scale and its zero point
_ALIGNMENT = 16  # of the data of a tensor in the file, in bytes, as the schema demands


def encode_zeros(data: bytes) -> bytes:
    """Returns the file with all weight tensors that get smaller by it encoded as sparse.

    Float16 weights whose readers need them in float32 (an embedding, for one) become sparse
    float32 weights of the same values where that is smaller. Files with sparse int8 weights
    load in LiteRT without its default delegate only.

    Args:
        data: A `.tflite` file with float32, float16 or int8 weights, as the converter makes it.

    Returns:
        The bytes of a file that computes the same function; `data` itself if no tensor gets
        smaller.
    """
    graphs = parse(data)
    model = graphs[0].model
    uses = _uses(model)
    encoded = False
    for graph in graphs:
        for index, tensor in enumerate(list(graph.graph.tensors)):
            # A buffer that several tensors share cannot change its layout for one of them.
            weights = graph.constant(index) if uses[tensor.buffer] == 1 else None
            if weights is not None and _is_of_weights(graph, index):
                encoded |= _encode_tensor(graph, index, weights)
    packed = _pack(graphs[0].schema, model) if encoded else data
    return packed if len(packed) < len(data) else data


def _uses(model: Any) -> np.ndarray:
    """Number of tensors that refer to each buffer."""
    buffers = [tensor.buffer for graph in model.subgraphs for tensor in graph.tensors]
    return np.bincount(buffers, minlength=len(model.buffers))


def _is_of_weights(graph: Graph, index: int) -> bool:
    """Whether a tensor of constants may come from a DENSIFY."""
    tensor, types = graph.graph.tensors[index], graph.schema.TensorType
    if index in graph.graph.outputs:
        return False
    readers = _names(graph, graph.readers(index))
    if tensor.type == types.FLOAT16:
        behind = _names(graph, _readers_behind(graph, index))
        return readers == {"DEQUANTIZE"} and bool(behind) and behind.issubset(_FLOAT32_READERS)
    if tensor.type == types.INT8:
        # A DENSIFY fills in zeros, which have to mean zero.
        is_symmetric = not np.any(tensor.quantization.zeroPoint)
        return is_symmetric and bool(readers) and readers.issubset(_INT8_READERS)
    is_float32 = tensor.type == types.FLOAT32
    return is_float32 and bool(readers) and readers.issubset(_FLOAT32_READERS)


def _readers_behind(graph: Graph, index: int) -> list[Any]:
    """The readers of what the readers of a tensor put out."""
    outputs = [output for reader in graph.readers(index) for output in reader.outputs]
    return [reader for output in outputs for reader in graph.readers(output)]


def _names(graph: Graph, operators: list[Any]) -> set[str]:
    return {graph.name(operator) for operator in operators}


def _encode_tensor(graph: Graph, index: int, weights: np.ndarray) -> bool:
    """Encodes one weight tensor and has a DENSIFY read it, if that makes the file smaller.

    Returns whether it did.
    """
    tensor, types = graph.graph.tensors[index], graph.schema.TensorType
    widens = tensor.type == types.FLOAT16 and not _names(
        graph, _readers_behind(graph, index)
    ).issubset(_FLOAT16_READERS)
    array = weights.astype(np.float32) if widens else weights
    if _encoded_bytes(array) + _overhead(tensor) >= weights.nbytes:
        return False

    buffer = graph.model.buffers[tensor.buffer]
    buffer.data, tensor.sparsity = _encode(graph.schema, array)
    if widens:  # The operators that made float32 of the tensor now make it dense.
        tensor.type = types.FLOAT32
        for reader in graph.readers(index):
            _make_densify(graph, reader)
    else:
        _insert_densify(graph, index)
    return True


def _insert_densify(graph: Graph, index: int) -> None:
    """Puts a DENSIFY between a sparse tensor and its readers."""
    tensors = graph.graph.tensors
    sparse, dense = tensors[index], graph.schema.TensorT()
    dense.name, dense.shape, dense.type = sparse.name + b"/dense", sparse.shape, sparse.type
    dense.quantization = sparse.quantization
    tensors.append(dense)
    for operator in graph.readers(index):
        operator.inputs = [len(tensors) - 1 if i == index else i for i in operator.inputs]
    densify = graph.schema.OperatorT()
    densify.inputs, densify.outputs = [index], [len(tensors) - 1]
    _make_densify(graph, densify)
    graph.graph.operators.insert(0, densify)  # It needs nothing that another operation makes.


def _make_densify(graph: Graph, operator: Any) -> None:
    operator.opcodeIndex = _densify_index(graph.schema, graph.model)
    operator.builtinOptionsType = graph.schema.BuiltinOptions.DensifyOptions
    operator.builtinOptions = graph.schema.DensifyOptionsT()


def _densify_index(schema: Any, model: Any) -> int:
    """Position of DENSIFY in the file's list of operations, where it is added if missing."""
    wanted = schema.BuiltinOperator.DENSIFY
    for index, code in enumerate(model.operatorCodes):
        if code_of(code) == wanted:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = wanted
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _overhead(tensor: Any) -> int:
    """Bytes in the file of one more operation, and of a tensor with the same scales."""
    scales = 0 if tensor.quantization is None else np.size(tensor.quantization.scale)
    return _OVERHEAD + _SCALE_BYTES * scales


def _encoded_bytes(array: np.ndarray) -> int:
    """Size of the encoding: values, their positions, and the starts of rows."""
    nonzero, length = int(np.count_nonzero(array)), array.shape[-1]
    positions = nonzero * _index_type(length - 1)[1].itemsize
    starts = (array.size // length + 1) * _index_type(nonzero)[1].itemsize
    return nonzero * array.itemsize + positions + starts


def _encode(schema: Any, array: np.ndarray) -> tuple[np.ndarray, Any]:
    """Nonzero values as bytes, and where they stand: compressed rows along the last axis."""
    *leading, length = array.shape
    rows = array.reshape(-1, length)
    row, column = np.nonzero(rows)
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rows)))])
    compressed = _dimension(schema, schema.DimensionType.SPARSE_CSR, 0)
    compressed.arraySegmentsType, compressed.arraySegments = _index_vector(schema, starts)
    compressed.arrayIndicesType, compressed.arrayIndices = _index_vector(schema, column)
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = list(range(array.ndim))
    dense = [_dimension(schema, schema.DimensionType.DENSE, size) for size in leading]
    sparsity.dimMetadata = [*dense, compressed]
    return np.frombuffer(rows[row, column].tobytes(), np.uint8), sparsity


def _dimension(schema: Any, kind: int, size: int) -> Any:
    dimension = schema.DimensionMetadataT()
    dimension.format, dimension.denseSize = kind, size
    return dimension


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
