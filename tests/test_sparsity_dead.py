import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_lp
from keras_lp import prune, sparsity_report
from keras_lp.sparsity.dead import explain_dead


@pytest.fixture
def cnn():
    """A model whose first layer has by far the smallest weights, and dies first."""

    def make():
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(4, 3, name="first"),
                layers.SeparableConv2D(8, 3, name="second"),
                layers.Flatten(),
                layers.Dense(3, name="logits"),
            ]
        )
        first = model.get_layer("first").kernel
        first.assign(0.01 * first)
        return model

    return make


def conditions(model):
    return {row.name: row.condition for row in sparsity_report(model).layers}


def zero(variable, left=0):
    """Makes all entries zero but the last ones."""
    array = np.zeros(variable.shape, "float32")
    array.ravel()[array.size - left :] = 1.0
    variable.assign(array)


def test_report_marks_what_is_dead_and_what_it_cuts_off(cnn):
    model = cnn()
    zero(model.get_layer("second").depthwise_kernel)
    report = sparsity_report(model)
    assert [row.condition for row in report.layers] == [None, "dead", None, "cut off"]
    assert report.is_constant
    lines = str(report).splitlines()
    assert re.fullmatch(r"second/depthwise_kernel +36 +36 +0 +100.00%  dead", lines[3])
    assert lines[5].endswith("  cut off")
    assert lines[8:11] == [
        "Dead: no weight is left.",
        "Cut off: what goes in comes from dead layers only.",
        "The outputs no longer depend on the inputs.",
    ]
    assert len({len(line) for line in (*lines[:2], lines[2], lines[4], lines[7])}) == 1


@pytest.mark.parametrize(
    ("layer", "shape", "name", "full_rank"),
    [
        (layers.Dense(20), (10,), "kernel", 10),
        (layers.Dense(3), (10,), "kernel", 3),
        (layers.Conv2D(16, 3), (8, 8, 3), "kernel", 16),
        (layers.Conv2D(64, 3), (8, 8, 3), "kernel", 27),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 16), "kernel", 32),
        (layers.SeparableConv1D(4, 3), (8, 16), "depthwise_kernel", 16),
        (layers.EinsumDense("abc,cde->abde", (None, 4, 6)), (8, 16), "kernel", 16),
        (layers.EinsumDense("abcd,cde->abe", (None, 16)), (8, 4, 6), "kernel", 16),
        (layers.Embedding(100, 8), (4,), "embeddings", 8),
    ],
)
def test_kernel_with_fewer_weights_than_full_rank_takes_is_nearly_dead(
    layer, shape, name, full_rank
):
    model = keras.Sequential([keras.Input(shape), layer])
    zero(getattr(layer, name), left=full_rank)
    assert sparsity_report(model).layers[0].condition is None
    zero(getattr(layer, name), left=full_rank - 1)
    report = sparsity_report(model)
    assert report.layers[0].condition == "nearly dead"
    assert "Nearly dead: fewer weights are left than full rank takes." in str(report)


def test_prune_warns_once_of_all_layers_that_it_makes_dead(cnn):
    with pytest.warns(UserWarning, match="No weight is left") as caught:
        report = prune(cnn(), 0.5)
    (message,) = (str(one.message) for one in caught if one.category is UserWarning)
    assert message.startswith(
        "No weight is left in 1 of 4 kernels: first (36 weights). Cut off behind dead ones: "
        "second/depthwise_kernel, second/pointwise_kernel, logits. The outputs of the model no "
        "longer depend on its inputs. "
    )
    assert report.is_constant
    assert __file__ in {one.filename for one in caught}


@pytest.mark.parametrize(
    "advised",
    [
        {"sparsity": 0.04},
        {"sparsity": 0.5, "scope": "layer"},
        {"sparsity": 0.5, "exclude": "first"},
    ],
)
def test_what_the_warning_advises_leaves_no_layer_dead(cnn, advised):
    model = cnn()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "No weight is left")
        prune(model, **advised)
    assert explain_dead(model) == ""


def test_what_was_dead_before_is_not_warned_of_again(cnn):
    model = cnn()
    zero(model.get_layer("second").pointwise_kernel)
    assert "second/pointwise_kernel (32 weights)" in explain_dead(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "No weight is left")
        prune(model, 0.08)
    with pytest.warns(UserWarning, match=r"left in 1 of 4 kernels: first \(36 weights\). Cut off"):
        prune(model, 0.5)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"threshold": 100.0}, 'Prune to a lower threshold or with `scope="layer"`, or leave'),
        ({"sparsity": 1.0, "scope": "layer"}, "Prune to a lower sparsity, or leave these out"),
    ],
)
def test_warning_advises_what_is_left_to_do(cnn, arguments, advice):
    with pytest.warns(UserWarning, match=re.escape(advice)):
        prune(cnn(), **arguments)


def test_target_warns_of_the_layers_that_its_closing_leaves_dead(mlp):
    model = mlp()
    logits = model.get_layer("logits").kernel
    logits.assign(0.01 * logits)
    is_eager = keras.backend.backend() == "tensorflow"  # where tracing takes longer
    model.compile(keras_lp.LpAdamW(1e-4), "mse", run_eagerly=is_eager)
    target = keras_lp.SparsityTarget(0.4, begin_step=0, end_step=1)
    x, y = np.ones((4, 8)), np.zeros((4, 3))
    with pytest.warns(UserWarning, match=r"No weight is left in 1 of 2 kernels: log.*`overrides`"):
        model.fit(x, y, batch_size=2, verbose=0, callbacks=[target])
    assert sparsity_report(model).is_constant


def test_explanation_of_a_model_without_anything_to_prune_is_empty():
    assert explain_dead(keras.Sequential([keras.Input((3,)), layers.BatchNormalization()])) == ""
