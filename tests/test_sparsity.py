import json

import keras
import numpy as np
import pytest

import keras_lp
from keras_lp import LpAdamW, sparsity_report


@pytest.fixture
def model(mlp):
    """60 of 128 and 0 of 48 weights are zero; 5 more are tiny."""
    model = mlp()
    kernel = np.ones(128, "float32")
    kernel[:60] = 0.0
    kernel[60:65] = -1e-6
    model.get_layer("hidden").kernel.assign(kernel.reshape(8, 16))
    model.get_layer("logits").kernel.assign(np.ones((16, 3)))
    return model


def test_report_counts_zeros_over_the_decayed_variables_alone(model):
    report = sparsity_report(model)
    assert (report.zeros, report.size) == (60, 128 + 48)
    assert report.sparsity == 60 / 176
    assert report.not_counted == 16 + 3  # biases, which are all zero
    assert [(row.name, row.zeros, row.size) for row in report.layers] == [
        ("hidden", 60, 128),
        ("logits", 0, 48),
    ]
    assert report.layers[0].sparsity == 60 / 128


def test_threshold_counts_entries_at_or_below_it_as_zero(model):
    assert sparsity_report(model, threshold=1e-7).zeros == 60
    assert sparsity_report(model, threshold=1e-6).zeros == 65


def test_layer_with_several_decayed_variables_has_a_row_for_each():
    layers = [
        keras.layers.SeparableConv1D(8, 3, name="separable"),
        keras.layers.GRU(5, name="gru"),
        keras.layers.Dense(2, name="dense"),
    ]
    model = keras.Sequential([keras.Input((6, 4)), *layers])
    layers[0].depthwise_kernel.assign(np.eye(12, 1).reshape(3, 4, 1))
    report = sparsity_report(model)
    assert [(row.name, row.zeros, row.size) for row in report.layers] == [
        ("separable/depthwise_kernel", 11, 3 * 4),
        ("separable/pointwise_kernel", 0, 4 * 8),
        ("gru/gru_cell/kernel", 0, 8 * 15),
        ("gru/gru_cell/recurrent_kernel", 0, 5 * 15),
        ("dense", 0, 10),
    ]
    assert report.not_counted == 8 + 2 * 15 + 2


def test_to_dict_is_json_and_holds_everything(model):
    values = json.loads(json.dumps(sparsity_report(model, threshold=1e-6).to_dict()))
    assert values == {
        "sparsity": 65 / 176,
        "zeros": 65,
        "size": 176,
        "threshold": 1e-6,
        "not_counted": 19,
        "frozen": 0,
        "frozen_zeros": 0,
        "is_constant": False,
        "layers": [
            {
                "name": "hidden",
                "zeros": 65,
                "size": 128,
                "sparsity": 65 / 128,
                "condition": None,
            },
            {"name": "logits", "zeros": 0, "size": 48, "sparsity": 0.0, "condition": None},
        ],
    }


def test_report_prints_as_an_aligned_table(model):
    assert str(sparsity_report(model, threshold=1e-6)).splitlines() == [
        "layer   weights  zeros  nonzero  sparsity",
        "-----------------------------------------",
        "hidden      128     65       63    50.78%",
        "logits       48      0       48     0.00%",
        "-----------------------------------------",
        "total       176     65      111    36.93%",
        "Counted as zero: |w| <= 1e-06.",
        "Not counted (biases, scales, excluded, frozen): 19.",
    ]


def test_frozen_kernels_are_told_of_and_counted_as_the_report_says(model):
    model.get_layer("hidden").trainable = False
    report = sparsity_report(model)
    assert (report.zeros, report.size, report.not_counted) == (0, 48, 128 + 19)
    assert (report.frozen, report.frozen_zeros) == (128, 60)
    assert "128 weights that could be decayed, 60 of them zero." in str(report)
    assert "(on all: `model.trainable = False`,\nthen `model.trainable = True`)" in str(report)

    model.trainable = False
    model.trainable = True
    model.compile(LpAdamW(), keras.losses.SparseCategoricalCrossentropy(True))
    model.optimizer.build(model.trainable_variables)
    report = sparsity_report(model)
    assert (report.zeros, report.size, report.frozen) == (60, 176, 0)
    assert "rozen among" not in str(report)


def test_frozen_kernels_are_found_at_any_depth_and_without_what_never_trains(mlp):
    inner = mlp()
    inner.get_layer("hidden").kernel.trainable = False
    layers = [inner, keras.layers.Dense(2), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((8,)), *layers])
    assert (sparsity_report(model).size, sparsity_report(model).frozen) == (48 + 6, 128)
    inner.trainable = False
    assert (sparsity_report(model).size, sparsity_report(model).frozen) == (6, 128 + 48)
    # A pattern has to match what trains, and then leaves out what is frozen as well.
    assert sparsity_report(model, exclude="hidden|bias").frozen == 48


@pytest.mark.backend("tensorflow")
def test_keras_sets_nothing_where_a_model_is_trainable_already(model):
    # Why the report advises to set `trainable = False` before; with other backends Keras does.
    model.get_layer("hidden").trainable = False
    model.trainable = True
    assert not model.get_layer("hidden").trainable


def test_layers_frozen_by_a_config_are_told_of(model):
    model.get_layer("hidden").trainable = False
    loaded = keras.Sequential.from_config(model.get_config())
    assert (sparsity_report(loaded).size, sparsity_report(loaded).frozen) == (48, 128)


def test_table_of_a_model_with_long_names_fits_100_columns():
    report = keras_lp.SparsityReport(
        tuple(
            keras_lp.LayerSparsity(f"encoder/{'very_' * 40}long_{index}", 10**10, 10**11)
            for index in range(3)
        ),
        threshold=0.0,
        not_counted=0,
    )
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2].startswith("encoder/very_")
    assert "_long_0 " in lines[2]
    assert len({len(line) for line in lines[:-1]}) == 1


def test_excluded_variables_are_not_counted(model):
    report = sparsity_report(model, exclude="logits")
    assert (report.zeros, report.size, report.not_counted) == (60, 128, 48 + 19)


def test_report_of_a_model_in_training_counts_what_its_optimizer_decays(model, batches):
    model.compile(LpAdamW(exclude="hidden"), keras.losses.SparseCategoricalCrossentropy(True))
    assert sparsity_report(model).size == 176  # not built yet, so the default rule
    model.fit(*batches, verbose=0)
    assert sparsity_report(model).size == 48
    assert sparsity_report(model, exclude=[]).size == 176


def test_report_sees_the_optimizer_inside_a_loss_scale_optimizer(model, batches):
    optimizer = keras.optimizers.LossScaleOptimizer(LpAdamW(exclude="hidden"))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(*batches, verbose=0)
    assert sparsity_report(model).size == 48


def test_optimizer_that_serves_another_model_is_not_asked(model, mlp, batches):
    other = mlp()
    other.compile(LpAdamW(exclude="hidden"), keras.losses.SparseCategoricalCrossentropy(True))
    other.fit(*batches, verbose=0)
    model.compile(other.optimizer, "mse")
    report = sparsity_report(model)
    assert (report.zeros, report.size, report.not_counted) == (60, 176, 19)


def test_layers_of_inner_models_with_equal_paths_get_a_row_each():
    def inner(name):
        x = keras.Input((4,))
        return keras.Model(x, keras.layers.Dense(4, name="dense")(x), name=name)

    x = keras.Input((4,))
    report = sparsity_report(keras.Model(x, inner("second")(inner("first")(x))))
    assert [row.size for row in report.layers] == [16, 16]


def test_models_of_other_optimizers_are_counted_by_the_default_rule(model, batches):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(*batches, verbose=0)
    assert sparsity_report(model).size == 176


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_all_float_dtypes_are_counted(dtype):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype=dtype)])
    model.layers[0].kernel.assign([[0, 1], [-0.0, 1], [1, 1], [1, 1]])
    assert sparsity_report(model).zeros == 2


def test_nan_is_not_a_zero():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.layers[0].kernel.assign([[float("nan"), 0.0]])
    assert sparsity_report(model).zeros == 1


def test_counting_does_not_change_the_model(model):
    before = [v.numpy().copy() for v in model.weights]
    sparsity_report(model, 1e-3)
    for old, now in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, now.numpy())


def test_unbuilt_model_is_an_error_that_says_how_to_build_it():
    model = keras.Sequential([keras.layers.Dense(2)], name="unbuilt")
    with pytest.raises(ValueError, match=r"must be built.*`model\(x\)`.*Received: .*'unbuilt'"):
        sparsity_report(model)
    model(np.ones((1, 3)))
    assert sparsity_report(model).size == 6


def test_model_that_was_built_without_its_variables_is_an_error_that_says_to_call_it():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="subclassed")
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model.build((None, 4))  # Keras marks it built, but builds nothing in it.
    for refuse in (sparsity_report, keras_lp.freeze_zeros, keras_lp.strip_pruning):
        with pytest.raises(ValueError, match=r"must be built.*`model\(x\)`.*'subclassed'"):
            refuse(model)
    with pytest.raises(ValueError, match=r"must be built.*`model\(x\)`.*'subclassed'"):
        keras_lp.prune(model, 0.5)
    model(np.ones((1, 4)))
    assert keras_lp.prune(model, 0.5).zeros == 4


def test_model_that_is_never_called_is_taken_with_the_variables_of_the_models_in_it(gan):
    assert not gan.built
    assert sparsity_report(gan).size == 2 * 4 + 4
    assert keras_lp.prune(gan, 0.5).zeros == 6
    keras_lp.freeze_zeros(gan)
    assert gan.discriminator.layers[0].kernel.constraint is not None
    keras_lp.unfreeze_zeros(gan)
    assert gan.discriminator.layers[0].kernel.constraint is None


@pytest.mark.parametrize("thing", ["model.keras", None, keras.layers.Dense(2)])
def test_what_is_no_model_is_an_error_that_names_its_type(thing):
    with pytest.raises(TypeError, match=r"`model` must be a Keras 3 model.*Received: .*type "):
        sparsity_report(thing)


def test_model_of_tf_keras_is_an_error():
    tf_keras = pytest.importorskip("tf_keras")
    with pytest.raises(TypeError, match=r"Keras 3 model.*tf_keras"):
        sparsity_report(tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))]))


def test_model_without_a_decayed_variable_is_an_error():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match=r"no variable to decay.*Unfreeze.*gamma"):
        sparsity_report(model)


def test_frozen_model_is_an_error_that_says_to_unfreeze_it(model):
    model.trainable = False
    with pytest.raises(ValueError, match=r"`trainable = True`.*Received: model='mlp'"):
        sparsity_report(model)


@pytest.mark.parametrize("threshold", [-1, float("nan"), float("inf"), "0", None])
def test_bad_threshold_is_an_error_that_names_it(model, threshold):
    with pytest.raises(ValueError, match=r"`threshold` must be .*Received: threshold="):
        sparsity_report(model, threshold)


def test_exclusion_that_matches_nothing_is_an_error(model):
    with pytest.raises(ValueError, match=r"`exclude`.*'embed'.*mlp/hidden/kernel"):
        sparsity_report(model, exclude="embed")


class Mixes(keras.layers.Layer):
    """A layer with a matrix that is a scale by name."""

    def build(self, input_shape):
        self.mix = self.add_weight((input_shape[-1], 4), initializer="ones", name="scale_mat")

    def call(self, x):
        return keras.ops.matmul(x, self.mix)


def test_included_variables_are_counted_pruned_and_frozen_with_the_others():
    layers = [keras.Input((4,)), Mixes(name="mixes"), keras.layers.Dense(2, name="logits")]
    model = keras.Sequential(layers)
    assert keras_lp.sparsity_report(model).size == 8
    asked = {"include": "scale_mat"}
    assert keras_lp.sparsity_report(model, **asked).size == 16 + 8
    assert keras_lp.prune(model, 0.5, scope="layer", **asked).zeros == 12
    mix = np.array(keras.ops.convert_to_numpy(model.layers[0].mix))
    assert np.count_nonzero(mix) == 8
    keras_lp.freeze_zeros(model, **asked)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
    trained = keras.ops.convert_to_numpy(model.layers[0].mix)
    np.testing.assert_array_equal(trained == 0, mix == 0)
    with pytest.raises(ValueError, match=r"`include` has a pattern that matches no.*'nothing'"):
        keras_lp.sparsity_report(model, include="nothing")
