import keras
import numpy as np
import pytest

import keras_lp
from keras_lp import LpAdamW, prune


def numpy(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def kernels(model):
    return [numpy(v) for v in model.trainable_variables if v.name == "kernel"]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.903, 1.0])
def test_sparsity_is_reached_to_one_weight_by_the_least_magnitudes(mlp, sparsity):
    model = mlp()
    before = kernels(model)
    report = prune(model, sparsity)
    size = sum(w.size for w in before)
    assert report.zeros == round(sparsity * size)
    assert report.to_dict() == keras_lp.sparsity_report(model).to_dict()
    order = np.argsort(np.abs(np.concatenate([w.ravel() for w in before])), kind="stable")
    expected = np.concatenate([w.ravel() for w in before])
    expected[order[: round(sparsity * size)]] = 0
    np.testing.assert_array_equal(np.concatenate([w.ravel() for w in kernels(model)]), expected)


def test_ties_fall_in_the_order_of_the_variables_and_of_their_entries(mlp):
    model = mlp()
    signs = np.where(np.arange(8 * 16).reshape(8, 16) % 2, 0.5, -0.5)
    model.get_layer("hidden").kernel.assign(signs)
    model.get_layer("logits").kernel.assign(np.full((16, 3), 0.5))
    assert prune(model, sparsity=130 / 176).zeros == 130
    hidden, logits = kernels(model)
    assert not hidden.any()
    np.testing.assert_array_equal(np.flatnonzero(logits == 0), [0, 1])


def test_zeros_have_no_sign(mlp):
    # The sparse encoding and compression of a file see bits.
    model = mlp()
    prune(model, sparsity=0.9)
    assert not any(np.signbit(w[w == 0]).any() for w in kernels(model))


def test_scope_layer_prunes_each_layer_to_the_same_sparsity(mlp):
    model = mlp()
    large = np.full((16, 3), 100.0)
    model.get_layer("logits").kernel.assign(large)
    by_layer = prune(model, 0.75, scope="layer")
    assert [layer.zeros for layer in by_layer.layers] == [96, 36]
    other = mlp()
    other.get_layer("logits").kernel.assign(large)
    assert [layer.zeros for layer in prune(other, 0.5).layers] == [88, 0]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_threshold_zeroes_what_is_at_or_below_it(mlp, scope):
    model = mlp()
    before = kernels(model)
    limit = float(np.median(np.abs(before[0])))
    prune(model, threshold=limit, scope=scope)
    for old, new in zip(before, kernels(model), strict=True):
        np.testing.assert_array_equal(new, np.where(np.abs(old) <= limit, 0, old))


def test_zeros_that_are_there_count_and_stay(mlp, sparsify):
    model = sparsify(mlp(), share=0.8)
    zeros = keras_lp.sparsity_report(model).zeros
    before = kernels(model)
    assert prune(model, 0.1).zeros == zeros
    for old, new in zip(before, kernels(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert prune(model, 0.9).zeros == round(0.9 * 176)


def test_only_decayed_variables_are_pruned(mlp, batches):
    model = mlp()
    model.compile(LpAdamW(exclude="logits"), "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    logits = kernels(model)[1]
    assert prune(model, 1.0).size == 128
    np.testing.assert_array_equal(kernels(model)[1], logits)
    model = mlp()
    assert prune(model, 1.0, exclude="hidden").size == 48


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_pruned_exactly(dtype):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, dtype=dtype)])
    assert prune(model, 0.5).zeros == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"one of the arguments `sparsity` .*`threshold`.*Received: sparsity=None, thresh"),
        ({"sparsity": 0.5, "threshold": 0.1}, r"one of the arguments.*sparsity=0.5, threshold=0.1"),
        ({"sparsity": 90}, r"`sparsity` must be a number from 0 to 1.*Received: sparsity=90"),
        ({"sparsity": -0.1}, r"`sparsity` must be.*Received: sparsity=-0.1"),
        ({"sparsity": float("nan")}, r"`sparsity` must be.*Received: sparsity=nan"),
        ({"sparsity": "0.9"}, r"`sparsity` must be.*Received: sparsity='0.9'"),
        ({"threshold": -1}, r"`threshold` must be.*Received: threshold=-1"),
        ({"sparsity": 0.5, "scope": "row"}, r"`scope` must be \"global\".*Received: scope='row'"),
        ({"sparsity": 0.5, "exclude": "x"}, r"`exclude`.*'x'.*mlp/hidden/kernel"),
    ],
)
def test_bad_argument_is_an_error_that_leaves_the_model_alone(mlp, arguments, message):
    model = mlp()
    before = kernels(model)
    with pytest.raises(ValueError, match=message):
        prune(model, **arguments)
    for old, new in zip(before, kernels(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_weights_that_are_not_finite_are_an_error_that_names_them(mlp):
    model = mlp()
    model.get_layer("logits").kernel.assign(np.full((16, 3), np.nan))
    with pytest.raises(ValueError, match=r"not finite.*NaN or infinity in mlp/logits/kernel"):
        prune(model, 0.5)
    with pytest.raises(TypeError, match=r"`model` must be a Keras 3 model"):
        prune("model.keras", 0.5)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_model_is_refused_with_remedies_that_work(mlp, mode):
    model = mlp()
    model.quantize(mode, filters="hidden")
    logits = numpy(model.get_layer("logits").kernel)
    with pytest.raises(
        ValueError, match=r"Prune first, then.*`exclude`.*Received: .*hidden/kernel"
    ):
        prune(model, 0.5)
    np.testing.assert_array_equal(numpy(model.get_layer("logits").kernel), logits)
    assert prune(model, 0.5, exclude="hidden").zeros == 24
    model = mlp()
    prune(model, 0.5, scope="layer")
    model.quantize(mode)
    assert keras_lp.sparsity_report(model).sparsity >= 0.5
    with pytest.raises(ValueError, match=r"Prune first, then call `model.quantize`\. Received"):
        prune(model, 0.5)  # There is nothing else to prune.
    with pytest.raises(ValueError, match=r"quantized layers are integers.*prune first, then call"):
        prune(model, 0.5, exclude=["hidden", "logits/kernel"])


def test_model_with_adapters_is_refused_with_remedies_that_work(mlp):
    model = mlp()
    model.get_layer("hidden").enable_lora(2)
    with pytest.raises(
        ValueError, match=r"LoRA adapters.*`enable_lora`.*adapters of .*hidden/kern"
    ):
        prune(model, 0.5)
    assert prune(model, 0.5, exclude="hidden").zeros == 24
    assert prune(keras_lp.strip_pruning(model), 0.5).zeros == 88
    model = mlp()
    prune(model, 0.5)
    model.get_layer("hidden").enable_lora(2)
    assert keras_lp.sparsity_report(model).zeros == 88
