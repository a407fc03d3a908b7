"""TF-MOT's magnitude pruning from the zeros that a decay has made."""

import re
import subprocess
import sys
from collections import Counter

import keras
import numpy as np
import pytest
from keras import layers

import keras_lp
from keras_lp.optional import import_tfmot
from keras_lp.tfmot import from_tf_keras, prune_low_magnitude, to_tf_keras

tf_keras = pytest.importorskip("tf_keras")
tfmot = import_tfmot()


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(96, 8, 8, 3)).astype("float32")
    return x, random.integers(0, 4, 96)


@pytest.fixture
def sparse():
    """A Keras 3 model with 70 % zeros, some of them in layers that TF-MOT does not prune."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, activation="relu6", name="conv"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.BatchNormalization(),
            layers.Reshape((16, 8)),
            layers.EinsumDense("abc,cd->abd", (None, 8), name="einsum"),
            layers.Bidirectional(layers.GRU(6), name="recurrent"),
            layers.Dense(16, "silu", name="dense"),
            layers.Dense(4, name="logits"),
        ],
        name="net",
    )
    keras_lp.prune(model, 0.7, scope="layer")
    return model


def compiled(model, rate=1e-2):
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss)
    return model


def fit(model, data, epochs=3, callbacks=()):
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep(), *callbacks]
    return model.fit(*data, batch_size=16, epochs=epochs, verbose=0, callbacks=callbacks).history


def kernels(model):
    """The weights that are decayed, as arrays; of either library."""
    names = ("kernel", "depthwise_kernel", "recurrent_kernel")
    weights = model.trainable_weights
    ends = [w.name.split("/")[-1].split(":")[0] for w in weights]
    arrays = [np.asarray(w) for w in weights]
    return [a for a, end in zip(arrays, ends, strict=True) if end in names]


def masks(model):
    return [
        np.asarray(m) for layer in model.layers for _, m, _ in getattr(layer, "pruning_vars", [])
    ]


def test_masks_are_the_zero_pattern(sparse):
    wrapped = prune_low_magnitude(sparse)
    assert len(masks(wrapped)) == len(kernels(sparse))
    for mask, kernel in zip(masks(wrapped), kernels(wrapped), strict=True):
        np.testing.assert_array_equal(mask, kernel != 0)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(wrapped(x), sparse(x), atol=1e-5)


@pytest.mark.slow
def test_every_zero_stays_while_the_rest_trains(sparse, data):
    wrapped = compiled(prune_low_magnitude(sparse))
    fit(wrapped, data)
    for before, after in zip(kernels(sparse), kernels(wrapped), strict=True):
        np.testing.assert_array_equal(after == 0, before == 0)
        assert np.mean((before != after)[before != 0]) > 0.5  # Some units are dead.


@pytest.mark.slow
def test_schedule_adds_zeros_to_those_that_are_there(sparse, data):
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.9, 0, 12, frequency=2)
    wrapped = compiled(prune_low_magnitude(sparse, schedule))
    fit(wrapped, data)
    back = from_tf_keras(keras_lp.strip_pruning(wrapped))
    assert keras_lp.sparsity_report(back).sparsity == pytest.approx(0.9, abs=0.01)
    for before, after in zip(kernels(sparse), kernels(back), strict=True):
        assert np.all(after[before == 0] == 0)


@pytest.mark.slow
def test_layer_that_is_sparser_than_the_schedule_keeps_all_its_zeros(sparse, data):
    keras_lp.prune(sparse, 0.95, scope="layer")
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    wrapped = compiled(prune_low_magnitude(sparse, schedule))
    fit(wrapped, data)
    for before, after in zip(kernels(sparse), kernels(wrapped), strict=True):
        assert np.all(after[before == 0] == 0)
        assert np.sum(after == 0) <= np.sum(before == 0) + 2


def tiny_weights():
    """A layer whose 30 % nonzero weights are smaller than one step of the optimizer."""
    model = keras.Sequential([keras.Input((192,)), layers.Dense(16)])
    keras_lp.prune(model, 0.7)
    kernel = model.layers[0].kernel
    kernel.assign(kernel * 1e-4)
    return model


@pytest.mark.slow
def test_no_zero_takes_the_place_of_a_weight_that_is_smaller_than_a_step(data):
    model = tiny_weights()
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.8, 0, frequency=1)
    wrapped = compiled(prune_low_magnitude(model, schedule))
    fit(wrapped, (data[0].reshape(-1, 192), data[1]))
    (before,), (after,) = kernels(model), kernels(wrapped)
    assert np.all(after[before == 0] == 0)
    assert np.mean(after == 0) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("units", [1, 4])
def test_blocks_as_wide_as_a_weight_are_an_error_before_the_training(units):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(units, name="narrow")])
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0)
    message = rf"`block_size`.*pruning_policy.*Received.*\(1, 4\).*\(8, {units}\).*'narrow'"
    with pytest.raises(ValueError, match=message):
        prune_low_magnitude(model, schedule, block_size=(1, 4))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{"block_size": (4, 1)}, {"sparsity_m_by_n": (2, 4)}])
def test_zeros_stay_where_the_schedule_prunes_in_blocks(arguments, data):
    model = tiny_weights()
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    wrapped = compiled(prune_low_magnitude(model, schedule, **arguments))
    fit(wrapped, (data[0].reshape(-1, 192), data[1]))
    (before,), (after,) = kernels(model), kernels(wrapped)
    assert np.all(after[before == 0] == 0)
    assert np.sum(after == 0) > np.sum(before == 0)


@pytest.mark.slow
def test_kernels_of_one_layer_keep_a_sparsity_of_their_own(data):
    model = keras.Sequential([keras.Input((16, 12)), layers.GRU(6), layers.Dense(4)])
    kernel = model.layers[0].cell.kernel
    kernel.assign(np.where(np.arange(18) < 14, 0, kernel))
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    wrapped = compiled(prune_low_magnitude(model, schedule))
    fit(wrapped, (data[0].reshape(-1, 16, 12), data[1]), 1)
    shares = [np.mean(kernel == 0) for kernel in kernels(wrapped)]
    assert shares == pytest.approx([14 / 18, 0.5, 0.5], abs=0.01)


@pytest.mark.slow
def test_policy_says_what_the_schedule_prunes_and_other_zeros_stay(sparse, data):
    class OnlyDense(tfmot.sparsity.keras.PruningPolicy):
        def allow_pruning(self, layer):
            return layer.name == "dense"

        def ensure_model_supports_pruning(self, model):
            assert isinstance(model, tf_keras.Model)

    schedule = tfmot.sparsity.keras.ConstantSparsity(0.95, 0, frequency=1)
    wrapped = compiled(prune_low_magnitude(sparse, schedule, pruning_policy=OnlyDense()))
    fit(wrapped, data)
    report = keras_lp.sparsity_report(from_tf_keras(keras_lp.strip_pruning(wrapped)))
    zeros, sizes = Counter(), Counter()
    for row in report.layers:  # A cell has a row for each of its kernels.
        layer = re.sub("/(recurrent_)?kernel$", "", row.name)
        zeros[layer] += row.zeros
        sizes[layer] += row.size
    assert len(sizes) == 7
    for layer, size in sizes.items():
        expected = 0.95 if layer == "dense" else 0.7
        assert zeros[layer] / size == pytest.approx(expected, abs=0.02), layer


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_decay_goes_on_under_the_wrappers(sparse, data):
    wrapped = compiled(prune_low_magnitude(sparse))
    logs = fit(wrapped, data, 6, [keras_lp.LpDecayCallback(1.0)])
    assert logs["sparsity"][0] >= 0.69
    assert logs["sparsity"][-1] > 0.75
    for before, after in zip(kernels(sparse), kernels(wrapped), strict=True):
        assert np.all(after[before == 0] == 0)


@pytest.mark.slow
def test_strip_pruning_gives_the_model_without_wrappers(sparse, data):
    wrapped = compiled(prune_low_magnitude(sparse))
    fit(wrapped, data, 1)
    stripped = keras_lp.strip_pruning(wrapped)
    assert isinstance(stripped, tf_keras.Model)
    assert [layer.name for layer in stripped.layers] == [layer.name for layer in sparse.layers]
    x = data[0][:4]
    np.testing.assert_allclose(stripped(x), wrapped(x), atol=1e-6)


@pytest.mark.slow
def test_wrapped_model_is_saved_and_loaded(data, tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(16, "relu"), layers.Dense(4)])
    keras_lp.prune(model, 0.7)
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.9, 0, 12, frequency=2)
    wrapped = prune_low_magnitude(model, schedule)
    wrapped.save(tmp_path / "model.h5")
    with tfmot.sparsity.keras.prune_scope():
        loaded = tf_keras.models.load_model(tmp_path / "model.h5")
    for one, two in zip(masks(loaded), masks(wrapped), strict=True):
        np.testing.assert_array_equal(one, two)
    x, y = data[0].reshape(-1, 6)[:96], data[1]
    fit(compiled(loaded), (x, y))
    report = keras_lp.sparsity_report(from_tf_keras(keras_lp.strip_pruning(loaded)))
    assert report.sparsity == pytest.approx(0.9, abs=0.02)


@pytest.mark.slow
def test_wrapped_model_is_loaded_in_another_process(sparse, tmp_path):
    wrapped = prune_low_magnitude(sparse)
    wrapped.save(tmp_path / "model.keras")
    script = (
        "import sys, numpy, keras_lp, tf_keras\n"
        "with keras_lp.tfmot.custom_object_scope():\n"
        "    wrapped = tf_keras.models.load_model(sys.argv[1])\n"
        "for layer in wrapped.layers:\n"
        "    for _, mask, _ in getattr(layer, 'pruning_vars', []):\n"
        "        print(int(numpy.sum(mask == 0)))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model.keras"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert list(map(int, process.stdout.split())) == [np.sum(m == 0) for m in masks(wrapped)]


def test_wrapped_model_is_refused_with_the_remedy(sparse):
    wrapped = prune_low_magnitude(sparse)
    for function in (from_tf_keras, prune_low_magnitude):
        message = r"strip_pruning.*Received: model='net' with prune_low_mag"
        with pytest.raises(ValueError, match=message):
            function(wrapped)


def test_layers_in_half_precision_are_refused_before_the_training():
    half = layers.Dense(4, dtype="mixed_float16", name="half")
    model = keras.Sequential([keras.Input((6,)), half])
    with pytest.raises(ValueError, match=r"layer 'half', which computes in float16.*dtype policy"):
        prune_low_magnitude(model)


def test_stripping_wrappers_refuses_what_it_would_not_do(sparse):
    wrapped = prune_low_magnitude(sparse)
    for arguments in ({"threshold": 0.1}, {"exclude": "dense"}):
        message = r"`threshold`, `include` and `exclude` are for Keras 3.*Received: thr"
        with pytest.raises(ValueError, match=message):
            keras_lp.strip_pruning(wrapped, **arguments)


def test_model_of_tf_keras_is_taken_as_it_is(sparse):
    legacy = to_tf_keras(sparse)
    wrapped = prune_low_magnitude(legacy)
    assert len(masks(wrapped)) == len(kernels(sparse))


@pytest.mark.slow
def test_model_without_zeros_is_pruned_as_tfmot_does(data):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(4)])
    schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    wrapped = compiled(prune_low_magnitude(model, schedule))
    fit(wrapped, data)
    assert np.mean(kernels(wrapped)[0] == 0) == 0.5


@pytest.mark.parametrize("model", [None, "model.keras"])
def test_what_is_no_model_is_an_error(model):
    with pytest.raises(TypeError, match=r"Argument `model` must be a Keras 3 model"):
        prune_low_magnitude(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruning_schedule": 0.5}, r"`pruning_schedule`.*Received: pruning_schedule=0.5"),
        ({"pruning_schedule": tfmot.sparsity.keras.PolynomialDecay}, "must be an instance"),
        ({"pruning_policy": "dense"}, r"`pruning_policy`.*Received: pruning_policy='dense'"),
        ({"blok_size": (1, 4)}, r"`blok_size`.*block_size.*Received: blok_size=\(1, 4\)"),
    ],
)
def test_wrong_arguments_are_errors(arguments, message, sparse):
    with pytest.raises(TypeError, match=message):
        prune_low_magnitude(sparse, **arguments)
