"""What XNNPACK would make of a file, told from the file.

Which networks are right and which are wrong was seen in LiteRT 2.3 where XNNPACK was made to take
its sparse convolutions, by `benchmarks/sparse_convolutions.py`.
"""

import importlib.util

import numpy as np
import pytest
from keras import layers
from scripts import ROOT

from keras_lp import encode_tflite, export_tflite
from keras_lp.deploy.converting import convert
from keras_lp.deploy.graphs import parse
from keras_lp.deploy.sparse_convolutions import BROKEN, CLEAN, NONE, find_sparse_convolutions
from keras_lp.deploy.sparse_encoding import encode_zeros

pytestmark = pytest.mark.backend("tensorflow")


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


networks = load("sparse_networks")

FAST = ("a MobileNet", "max pooling", "the usual padding")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in networks.NETWORKS
    ],
)
def test_file_tells_what_xnnpack_makes_of_it(name):
    network, expected = networks.NETWORKS[name]
    for quantization in (None,) if name in FAST else (None, "float16"):
        (data,) = convert(networks.model_of(network), [quantization])
        found = find_sparse_convolutions(data)
        if expected in (NONE, CLEAN):
            assert (found.kind, found.misfit) == (expected, "")
        else:
            assert found.kind == BROKEN
            assert found.misfit.startswith((expected, f"an {expected}"))
            assert find_sparse_convolutions(encode_zeros(data)) == found


MAX_POOLING = networks.NETWORKS["max pooling"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sparsity", "channels", "quantization"),
    [(0.5, 3, None), (0.9, 1, None), (0.9, 3, "int8")],
    ids=["few zeros", "grey images", "int8"],
)
def test_network_that_xnnpack_computes_dense_everywhere_is_none(sparsity, channels, quantization):
    model = networks.model_of(MAX_POOLING, sparsity, channels)
    samples = [{model.inputs[0].name: np.ones((1, 16, 16, channels), "float32")}]
    (data,) = convert(model, [quantization], samples if quantization else ())
    assert find_sparse_convolutions(data).kind == NONE


def has_densify(path):
    return any(
        graph.name(operator) == "DENSIFY"
        for graph in parse(path.read_bytes())
        for operator in graph.graph.operators
    )


@pytest.fixture(scope="module")
def broken():
    """A network that XNNPACK's sparse convolutions compute wrongly."""
    return networks.model_of(MAX_POOLING)


def test_file_that_would_be_wrong_elsewhere_has_dense_weights_and_says_why(broken, tmp_path):
    result = export_tflite(broken, tmp_path / "m.tflite")
    assert not has_densify(result.path)
    (note,) = result.notes
    assert "MAX_POOL_2D (" in note
    assert note in str(result)


def test_file_of_another_converter_that_would_be_wrong_elsewhere_stays_dense(broken, tmp_path):
    (dense,) = convert(broken)
    source = tmp_path / "dense.tflite"
    source.write_bytes(dense)
    result = encode_tflite(source, tmp_path / "m.tflite")
    assert result.path.read_bytes() == dense
    assert result.notes[0] in str(result)
    asked_for = encode_tflite(source, tmp_path / "m.tflite", runtime="no_delegate")
    assert has_densify(asked_for.path)
    assert asked_for.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "notes"), [("x86", 1), ("no_delegate", 0)])
def test_runtime_that_computes_it_rightly_can_be_asked_for(broken, runtime, notes, tmp_path):
    result = export_tflite(broken, tmp_path / "m.tflite", runtime=runtime)
    assert has_densify(result.path)
    assert len(result.notes) == notes
    assert result.bytes < 0.6 * result.dense_bytes


@pytest.mark.slow
def test_first_layer_with_the_usual_padding_gets_sparse_weights_everywhere(tmp_path):
    def network(x):
        x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
        return networks.end(networks.point(layers.MaxPooling2D()(networks.point(x))))

    result = export_tflite(networks.model_of(network), tmp_path / "m.tflite")
    assert has_densify(result.path)
    assert result.notes == ()
