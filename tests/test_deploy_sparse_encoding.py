import keras
import numpy as np
import pytest
from keras import layers

from keras_lp.deploy.converting import convert
from keras_lp.deploy.sparse_encoding import encode_zeros

pytestmark = pytest.mark.backend("tensorflow")

# Layers and the shape of one input.
KINDS = {
    "dense": (lambda: [layers.Dense(128), layers.Dense(16)], (64,)),
    "dense of odd sizes": (lambda: [layers.Dense(127), layers.Dense(5)], (63,)),
    "dense over time": (lambda: [layers.Dense(128)], (6, 64)),
    "convolution": (lambda: [layers.Conv2D(32, 3), layers.Conv2D(64, 1)], (12, 12, 3)),
    "grouped convolution": (lambda: [layers.Conv2D(64, 3, groups=4)], (9, 9, 16)),
    "separable convolution": (lambda: [layers.SeparableConv2D(128, 3)], (9, 9, 32)),
    "transposed convolution": (lambda: [layers.Conv2DTranspose(32, 3)], (8, 8, 8)),
    "convolution in 1-D": (lambda: [layers.Conv1D(64, 3)], (32, 8)),
    "convolution in 3-D": (lambda: [layers.Conv3D(32, 3)], (6, 6, 6, 2)),
    "recurrent": (lambda: [layers.LSTM(32, unroll=True)], (4, 16)),
    "einsum": (lambda: [layers.EinsumDense("abc,cd->abd", (None, 64))], (4, 32)),
}
# Those that TFLite computes by the operator of another.
RELATED = ("dense over time", "separable convolution", "convolution in 1-D", "einsum")


def make(kind, sparsity):
    """A model of the kind in which every vector is random and matrices are sparse."""
    make_layers, shape = KINDS[kind]
    model = keras.Sequential([keras.Input(shape), *make_layers()])
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        array = random.normal(size=variable.shape)
        if array.ndim > 1:
            array[random.random(array.shape) < sparsity] = 0
        variable.assign(array)
    return model


def run(data, x, delegate):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=resolver)
    runner = interpreter.get_signature_runner()
    (name,) = runner.get_input_details()
    (output,) = runner(**{name: x}).values()
    return output


def schema():
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def assert_stored_along_the_last_axis(data):
    """OpenVINO 2026.4 takes any sparse weight as stored so, without a word where it is not."""
    model = schema().ModelT.InitFromObj(schema().Model.GetRootAs(data, 0))
    sparse = [t for graph in model.subgraphs for t in graph.tensors if t.sparsity is not None]
    assert sparse
    for tensor in sparse:
        last = len(tensor.shape) - 1
        assert list(tensor.sparsity.traversalOrder) == [*range(last + 1)]
        formats = [dimension.format for dimension in tensor.sparsity.dimMetadata]
        kinds = schema().DimensionType
        assert formats == [kinds.DENSE] * last + [kinds.SPARSE_CSR]


@pytest.mark.parametrize("quantization", [None, pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in RELATED else ()) for kind in KINDS],
)
def test_encoded_file_computes_what_the_dense_file_computes(kind, quantization):
    for sparsity in (0.5, 0.985):
        (dense,) = convert(make(kind, sparsity), [quantization])
        sparse = encode_zeros(dense)
        x = np.random.default_rng(1).normal(size=(3, *KINDS[kind][1])).astype("float32")
        for delegate in (True, False):
            expected = run(dense, x, delegate)
            assert np.abs(expected).max() > 0.1
            np.testing.assert_allclose(run(sparse, x, delegate), expected, rtol=1e-5, atol=1e-5)
        if sparsity > 0.9:
            assert len(sparse) < 0.7 * len(dense)
            assert_stored_along_the_last_axis(sparse)


@pytest.mark.parametrize("quantization", [None, "float16"])
def test_embedding_is_encoded_too(quantization):
    model = keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(200, 64), layers.Dense(64)]
    )
    random = np.random.default_rng(0)
    for variable in (model.layers[0].embeddings, model.layers[1].kernel):
        variable.assign(np.where(random.random(variable.shape) < 0.9, 0, 1))
    (dense,) = convert(model, [quantization])
    sparse = encode_zeros(dense)
    x = random.integers(0, 200, size=(4, 5)).astype("int32")
    for delegate in (True, False):
        np.testing.assert_allclose(
            run(sparse, x, delegate), run(dense, x, delegate), rtol=1e-5, atol=1e-5
        )
    assert len(sparse) < 0.5 * len(dense)


@pytest.mark.parametrize("shape", [(70_000, 8), (8, 70_000)])
@pytest.mark.parametrize("quantization", [None, pytest.param("float16", marks=pytest.mark.slow)])
def test_positions_beyond_16_bits_are_right(shape, quantization):
    model = keras.Sequential([keras.Input(shape[:1]), layers.Dense(shape[1])])
    random = np.random.default_rng(0)
    kernel = np.where(random.random(shape) < 0.85, 0, random.normal(size=shape))
    model.layers[0].kernel.assign(kernel)
    assert np.count_nonzero(kernel) > 2**16
    (dense,) = convert(model, [quantization])
    sparse = encode_zeros(dense)
    assert len(sparse) < 0.6 * len(dense)
    x = random.normal(size=(2, shape[0])).astype("float32")
    np.testing.assert_allclose(run(sparse, x, True), run(dense, x, True), rtol=1e-4, atol=1e-3)


def test_file_of_a_model_without_zeros_stays_as_it_is():
    (dense,) = convert(make("dense", 0), [None])
    assert encode_zeros(dense) is dense


def test_model_of_all_zeros_runs():
    (dense,) = convert(make("convolution", 1), [None])
    sparse = encode_zeros(dense)
    x = np.ones((2, 12, 12, 3), "float32")
    np.testing.assert_array_equal(run(sparse, x, True), run(dense, x, True))


def test_data_of_tensors_stay_aligned_to_16_bytes():
    (dense,) = convert(make("dense of odd sizes", 0.9), ["float16"])
    sparse = encode_zeros(dense)
    assert sparse is not dense
    model = schema().Model.GetRootAs(sparse, 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    # In a flatbuffer the field `data` of a buffer is the first, at offset 4 of its table.
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert starts
    assert all(start % 16 == 0 for start in starts)


def test_buffer_that_several_tensors_share_is_left_alone():
    (dense,) = convert(make("dense", 0.9), [None])
    model = schema().ModelT.InitFromObj(schema().Model.GetRootAs(dense, 0))
    (graph,) = model.subgraphs
    weights = [t for t in graph.tensors if t.shape is not None and list(t.shape) == [128, 64]]
    (index,) = {t.buffer for t in weights if model.buffers[t.buffer].data is not None}
    twin = schema().TensorT()
    twin.name, twin.shape, twin.type, twin.buffer = b"twin", [64, 128], weights[0].type, index
    graph.tensors.append(twin)
    import flatbuffers

    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    shared = bytes(builder.Output())
    x = np.random.default_rng(1).normal(size=(3, 64)).astype("float32")
    sparse = encode_zeros(shared)
    np.testing.assert_allclose(run(sparse, x, False), run(dense, x, False), rtol=1e-5, atol=1e-5)
    after = schema().ModelT.InitFromObj(schema().Model.GetRootAs(sparse, 0))
    assert len(after.buffers[index].data) == 128 * 64 * 4
    assert len(sparse) < len(dense)  # the other layer is encoded
