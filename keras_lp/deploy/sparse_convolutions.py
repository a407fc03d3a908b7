"""Whether a file turns XNNPACK to its sparse convolutions, and whether they compute it rightly.

Where weights come from a DENSIFY, XNNPACK computes a part of a graph with sparse convolutions, on
channels first: on ARM, in browsers, on RISC-V, and on x86 without AVX, never on x86 with AVX. It
does so from a convolution of 3x3 with stride 2 on 3 channels, under a padding of 1 on all
sides, and back on channels last after the mean over the space. Where anything else stands
between, it mixes the two up, and the outputs are wrong. Read in XNNPACK 75db3c0
(`xnn_check_nchw_compatibility` and `xnn_subgraph_rewrite_for_nchw` of `src/subgraph.c`) and LiteRT
f674577 (`xnnpack_delegate.cc`), tried in LiteRT 2.3.0.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_lp.deploy.graphs import Graph, parse

NONE, CLEAN, BROKEN = "none", "clean", "broken"

# Computed on channels first, each tried. Others that the source lets pass count as misfits.
_UNARY = (
    "ABS",
    "ELU",
    "EXP",
    "FLOOR",
    "GELU",
    "HARD_SWISH",
    "LEAKY_RELU",
    "LOGISTIC",
    "NEG",
    "RELU",
    "RELU6",
    "SIN",
    "SQUARE",
    "TANH",
)
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_BINARY = ("ADD", "MUL")
_REDUCTIONS = ("MEAN", "SUM")
_ENDS = (*_REDUCTIONS, "DEPTH_TO_SPACE")  # Without one in the graph, XNNPACK stays dense.
_LEAST_ZEROS = 2 / 3  # of the weights of the convolutions of 1x1
_SPACE = {1, 2}  # axes


@dataclass(frozen=True)
class Finding:
    """What `find_sparse_convolutions` found.

    Attributes:
        kind: `NONE` if XNNPACK computes the file dense everywhere, `CLEAN` if its sparse
            convolutions are right, and `BROKEN` if they are wrong.
        misfit: The first operation that does not fit, of a broken one.
    """

    kind: str
    misfit: str = ""


def find_sparse_convolutions(data: bytes) -> Finding:
    """What XNNPACK would make of a file whose weights came from a DENSIFY.

    Args:
        data: A `.tflite` file, with dense or sparse weights.
    """
    found = Finding(NONE)
    for graph in parse(data):
        starts = [operator for operator in graph.graph.operators if _is_start(graph, operator)]
        if starts and _has_an_end(graph) and _has_zeros(graph):
            misfits = [misfit for start in starts if (misfit := _misfit(graph, start))]
            if misfits:
                return Finding(BROKEN, misfits[0])
            found = Finding(CLEAN)
    return found


def _is_start(graph: Graph, operator: Any) -> bool:
    if graph.name(operator) != "CONV_2D" or not _is_of_floats(graph, operator):
        return False
    maker = graph.maker(operator.inputs[0])
    options = operator.builtinOptions
    return (
        graph.shape(operator.inputs[1])[1:] == [3, 3, 3]
        and _strides(options) == (2, 2)
        and _dilations(options) == (1, 1)
        and _is_valid(graph, options)
        and _padding(graph, maker) == 1
    )


def _misfit(graph: Graph, start: Any) -> str:
    """The first operation behind a start that does not fit; empty if all do."""
    reached, rest, joins = set(start.outputs), list(start.outputs), []
    while rest:
        index = rest.pop(0)
        if index in graph.graph.outputs:
            return f"an output of the file ({_tensor_name(graph, index)})"
        for operator in graph.readers(index):
            if _ends(graph, operator):
                continue
            if not _fits(graph, operator):
                return _described(graph, operator)
            if graph.name(operator) in _BINARY:
                joins.append(operator)
            rest += [output for output in operator.outputs if output not in reached]
            reached.update(operator.outputs)
    # Both sides of a sum or product have to come from the start; constants do not fit either.
    strangers = (each for each in joins if not reached.issuperset(each.inputs))
    return next((_described(graph, each) for each in strangers), "")


def _ends(graph: Graph, operator: Any) -> bool:
    """Whether XNNPACK is back on channels last behind an operation."""
    name = graph.name(operator)
    if name in _REDUCTIONS:
        return _is_over_space(graph, operator) and not operator.builtinOptions.keepDims
    return name == "DEPTH_TO_SPACE"


def _fits(graph: Graph, operator: Any) -> bool:
    """Whether XNNPACK computes an operation on channels first."""
    name = graph.name(operator)
    if not _is_of_floats(graph, operator):
        return False
    if name == "PAD":
        # It becomes a part of the one convolution that reads it.
        return _names_of_readers(graph, operator) == ["DEPTHWISE_CONV_2D"]
    if name == "CONV_2D":
        return _is_pointwise(graph, operator)
    if name == "DEPTHWISE_CONV_2D":
        return _is_plain_depthwise(graph, operator)
    if name in _REDUCTIONS:  # Squeeze and excite, whose axes are kept; else it is wrong.
        goes_on = set(_names_of_readers(graph, operator)) == {"CONV_2D"}
        return _is_over_space(graph, operator) and goes_on
    is_image = len(graph.shape(operator.outputs[0])) == 4
    return is_image and name in (*_UNARY, *_BINARY, "RESIZE_BILINEAR")


def _names_of_readers(graph: Graph, operator: Any) -> list[str]:
    return [graph.name(reader) for reader in graph.readers(operator.outputs[0])]


def _is_pointwise(graph: Graph, operator: Any) -> bool:
    """A convolution of 1x1 and stride 1 without padding or groups."""
    options = operator.builtinOptions
    _, *sizes, channels = graph.shape(operator.inputs[1])
    is_padded = _padding(graph, graph.maker(operator.inputs[0])) is not None
    return (
        sizes == [1, 1]
        and channels == graph.shape(operator.inputs[0])[-1]
        and _strides(options) == (1, 1)
        and not is_padded
    )


def _is_plain_depthwise(graph: Graph, operator: Any) -> bool:
    """A depthwise convolution of 3x3 or 5x5, padded by 1 or 2 on all sides."""
    options = operator.builtinOptions
    _, *sizes, _ = graph.shape(operator.inputs[1])
    if _dilations(options) != (1, 1) or options.depthMultiplier != 1:
        return False
    if sizes not in ([3, 3], [5, 5]):
        return False
    padding = _padding(graph, graph.maker(operator.inputs[0]))
    if _is_valid(graph, options):
        return _strides(options) in ((1, 1), (2, 2)) and padding == sizes[0] // 2
    return _strides(options) == (1, 1) and padding is None


def _padding(graph: Graph, operator: Any) -> int | None:
    """How much a PAD adds on each side of the space.

    `None` for another operation, -1 for one that adds unequally or elsewhere.
    """
    if operator is None or graph.name(operator) != "PAD":
        return None
    amounts = graph.constant(operator.inputs[1])
    if amounts is None or amounts.shape != (4, 2):
        return -1
    added = set(amounts[1:3].ravel().tolist())
    return added.pop() if len(added) == 1 and not amounts[[0, 3]].any() else -1


def _has_an_end(graph: Graph) -> bool:
    return any(
        graph.name(operator) in _ENDS and len(graph.shape(operator.inputs[0])) == 4
        for operator in graph.graph.operators
    )


def _has_zeros(graph: Graph) -> bool:
    """Whether any weights are sparse enough for XNNPACK to compute what is around them sparse."""
    return any(
        (weights := _weights(graph, operator)) is None  # Already behind a DENSIFY.
        or np.count_nonzero(weights) < (1 - _LEAST_ZEROS) * weights.size
        for operator in graph.graph.operators
        if graph.name(operator) in ("CONV_2D", "FULLY_CONNECTED")
    )


def _weights(graph: Graph, operator: Any) -> np.ndarray | None:
    """The dense weights of an operation, of which float16 ones stand behind a DEQUANTIZE."""
    index = operator.inputs[1]
    maker = graph.maker(index)
    if maker is not None and graph.name(maker) == "DEQUANTIZE":
        index = maker.inputs[0]
    return graph.constant(index)


def _is_of_floats(graph: Graph, operator: Any) -> bool:
    types = graph.schema.TensorType
    weights = [operator.inputs[1]] if graph.name(operator) in _CONVOLUTIONS else []
    indices = (operator.inputs[0], *weights, operator.outputs[0])
    return all(graph.graph.tensors[i].type in (types.FLOAT32, types.FLOAT16) for i in indices)


def _is_over_space(graph: Graph, operator: Any) -> bool:
    axes = graph.constant(operator.inputs[1])
    rank = len(graph.shape(operator.inputs[0]))
    return axes is not None and rank == 4 and {int(axis) % 4 for axis in axes.ravel()} == _SPACE


def _is_valid(graph: Graph, options: Any) -> bool:
    return bool(options.padding == graph.schema.Padding.VALID)


def _strides(options: Any) -> tuple[int, int]:
    return options.strideH, options.strideW


def _dilations(options: Any) -> tuple[int, int]:
    return options.dilationHFactor, options.dilationWFactor


def _described(graph: Graph, operator: Any) -> str:
    return f"{graph.name(operator)} ({_tensor_name(graph, operator.outputs[0])})"


def _tensor_name(graph: Graph, index: int) -> str:
    """Name of a tensor, which begins with those of the layers; the first of joined ones."""
    name: bytes = graph.graph.tensors[index].name or b""
    return name.decode().split(";")[0]
