import csv
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lp
from keras_lp.callbacks import training

BACKEND = keras.backend.backend()
SHARES = [0.25, 0.5, 0.5, 0.75]  # of zeros, by epoch


class MakeZeros(keras.callbacks.Callback):
    """Sets the zeros of each epoch, and keeps what the weights were then."""

    def __init__(self, sparsify):
        super().__init__()
        self.sparsify = sparsify
        self.kernels = []

    def on_epoch_end(self, epoch, logs=None):
        self.sparsify(self.model, SHARES[epoch])
        self.kernels.append(kernels(self.model))


class Interrupt(keras.callbacks.Callback):
    """Raises KeyboardInterrupt at the begin of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.fixture
def fit(batches):
    """A function that trains a model in batches of 4 for four epochs."""

    def train(model, *callbacks, samples=40, **arguments):
        x, y = (array[:samples] for array in batches)
        defaults = {"batch_size": 4, "epochs": len(SHARES), "shuffle": False, "verbose": 0}
        return model.fit(x, y, callbacks=[*callbacks], **defaults | arguments)

    return train


@pytest.fixture
def model(mlp):
    return compiled(mlp())


@pytest.fixture
def make_zeros(sparsify):
    return MakeZeros(sparsify)


@pytest.fixture
def read():
    """A function that reads the event files of a folder."""
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def reload(folder):
        everything = dict.fromkeys(("scalars", "histograms", "tensors"), 0)
        return module.EventAccumulator(str(folder), size_guidance=everything).Reload()

    return reload


def compiled(model, optimizer="sgd", **arguments):
    """The model, compiled with as little work as the backend lets it be."""
    jit_compile = BACKEND == "jax"
    model.compile(
        optimizer, "sparse_categorical_crossentropy", jit_compile=jit_compile, **arguments
    )
    return model


def kernels(model):
    variables = [v for v in model.trainable_variables if len(v.shape) >= 2]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def sparsity_of(arrays):
    return np.mean(np.concatenate([array.ravel() for array in arrays]) == 0, dtype="float64")


def nonzero_of(arrays):
    return sum(np.count_nonzero(array) for array in arrays)


def curve(events, tag):
    return sorted((event.step, event.value) for event in events.Scalars(tag))


def steps(folder, read):
    events = read(folder / "sparsity")
    assert {len(events.Scalars(tag)) for tag in events.Tags()["scalars"]} == {
        len(events.Histograms(tag)) for tag in events.Tags()["histograms"]
    }
    return [step for step, _ in curve(events, "sparsity")]


def test_history_has_what_numpy_counts(model, fit, make_zeros):
    history = fit(model, make_zeros, keras_lp.SparsityLogger()).history
    assert history["nonzero"] == [nonzero_of(arrays) for arrays in make_zeros.kernels]
    expected = [sparsity_of(arrays) for arrays in make_zeros.kernels]
    np.testing.assert_allclose(history["sparsity"], expected, rtol=1e-12)
    assert 0.2 < expected[0] < expected[1] < expected[3] < 0.8


@pytest.mark.parametrize("wrap", [False, True])
def test_strength_and_exponent_are_logged_as_they_are_at_the_end_of_each_epoch(mlp, fit, wrap):
    optimizer = keras_lp.LpSGD(1e-3, weight_decay=0.5, p=0.75)
    outer = keras.optimizers.LossScaleOptimizer(optimizer) if wrap else optimizer
    model = compiled(mlp(), outer)

    def halve(epoch, logs):
        optimizer.weight_decay = 0.5 ** (epoch + 2)

    halving = keras.callbacks.LambdaCallback(on_epoch_end=halve)
    history = fit(model, halving, keras_lp.SparsityLogger(), epochs=2).history
    assert history["weight_decay"] == [0.25, 0.125]
    assert history["p"] == [0.75, 0.75]


@pytest.mark.parametrize("wrap", [False, True])
def test_no_strength_is_logged_without_an_lp_optimizer(mlp, fit, wrap):
    optimizer = keras.optimizers.SGD()
    outer = keras.optimizers.LossScaleOptimizer(optimizer) if wrap else optimizer
    model = compiled(mlp(), outer)
    history = fit(model, keras_lp.SparsityLogger(), epochs=1).history
    assert history.keys() == {"loss", "sparsity", "nonzero"}


def test_model_that_its_first_batch_builds_is_logged(fit):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(3)

        def call(self, inputs):
            return self.layer(inputs)

    model = compiled(Subclassed())
    assert not model.built
    history = fit(model, keras_lp.SparsityLogger(), epochs=1).history
    assert history["nonzero"] == [8 * 3]


@pytest.mark.backend("tensorflow", "torch")
def test_model_that_trains_the_models_in_it_and_is_never_called_is_logged(gan):
    gan.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
    logger = keras_lp.SparsityLogger()
    history = gan.fit(np.ones((4, 4), "float32"), epochs=2, verbose=0, callbacks=[logger])
    assert history.history["nonzero"] == [2 * 4 + 4] * 2


def test_model_that_no_training_builds_is_refused_with_a_remedy():
    logger = keras_lp.SparsityLogger()
    logger.set_model(keras.Sequential([keras.layers.Dense(3)]))
    logger.on_train_begin()
    with pytest.raises(ValueError, match=r"must be built.*Call it on a batch of data"):
        logger.on_epoch_end(0, {})


def test_callbacks_placed_after_see_the_values(model, fit, make_zeros, tmp_path):
    stopping = keras.callbacks.EarlyStopping(monitor="sparsity", mode="max", patience=0)
    path = str(tmp_path / "{epoch}-{nonzero}.weights.h5")
    saving = keras.callbacks.ModelCheckpoint(
        path, monitor="sparsity", mode="max", save_best_only=True, save_weights_only=True
    )
    table = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    fit(model, make_zeros, keras_lp.SparsityLogger(), table, stopping, saving)
    nonzero = [nonzero_of(arrays) for arrays in make_zeros.kernels]
    assert len(nonzero) == 3  # The third epoch has no more zeros than the second.
    saved = sorted(each.name for each in tmp_path.glob("*.h5"))
    assert saved == [f"{epoch}-{nonzero[epoch - 1]}.weights.h5" for epoch in (1, 2)]
    with open(tmp_path / "log.csv") as file:
        rows = [(int(row["nonzero"]), float(row["sparsity"])) for row in csv.DictReader(file)]
    assert rows == list(zip(nonzero, map(sparsity_of, make_zeros.kernels), strict=True))


def test_callbacks_placed_before_do_not_see_the_values(model, fit):
    seen = []
    early = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.extend(logs))
    fit(model, early, keras_lp.SparsityLogger(), epochs=1)
    assert seen == ["loss"]


def test_progress_bar_shows_the_values(model, fit, capsys, make_zeros):
    fit(model, make_zeros, keras_lp.SparsityLogger(), epochs=1, verbose=2)
    (arrays,) = make_zeros.kernels
    shown = f"sparsity: {sparsity_of(arrays):.4f} - nonzero: {nonzero_of(arrays):.4f}"
    assert shown in capsys.readouterr().out


def test_what_another_callback_has_logged_stays_and_is_not_counted_again(model, fit, monkeypatch):
    reports = []
    report = training.sort_weights
    monkeypatch.setattr(
        training, "sort_weights", lambda *a, **k: reports.append(1) or report(*a, **k)
    )
    decay = keras_lp.LpDecayCallback(weight_decay=0.5, exclude="logits")
    history = fit(model, decay, keras_lp.SparsityLogger()).history
    assert history["weight_decay"] == [0.5] * 4
    assert len(reports) == 4


@pytest.mark.backend("tensorflow")
def test_tensorboard_callback_of_keras_shares_the_folder(model, fit, make_zeros, tmp_path, read):
    logger = keras_lp.SparsityLogger(tmp_path)
    fit(model, make_zeros, logger, keras.callbacks.TensorBoard(tmp_path, write_graph=False))
    assert {path.name for path in tmp_path.iterdir()} == {"sparsity", "train"}
    tensors = read(tmp_path / "train").Tensors("epoch_sparsity")
    make_ndarray = pytest.importorskip("tensorboard.util.tensor_util").make_ndarray
    keras_curve = [(event.step, make_ndarray(event.tensor_proto)) for event in tensors]
    assert keras_curve == curve(read(tmp_path / "sparsity"), "sparsity")
    assert len(keras_curve) == 4


def test_event_files_hold_what_numpy_counts(model, fit, make_zeros, tmp_path, read):
    fit(model, make_zeros, keras_lp.SparsityLogger(tmp_path))
    events = read(tmp_path / "sparsity")
    layers = ("hidden", "logits")
    assert set(events.Tags()["scalars"]) == {"sparsity", *(f"sparsity/{name}" for name in layers)}
    assert set(events.Tags()["histograms"]) == {f"log10_magnitude/{name}" for name in layers}
    for epoch, arrays in enumerate(make_zeros.kernels):
        step, value = curve(events, "sparsity")[epoch]
        assert (step, value) == (epoch, pytest.approx(sparsity_of(arrays), rel=1e-6))
        for name, array in zip(layers, arrays, strict=True):
            step, value = curve(events, f"sparsity/{name}")[epoch]
            assert (step, value) == (epoch, pytest.approx(np.mean(array == 0), rel=1e-6))
            check_histogram(events.Histograms(f"log10_magnitude/{name}")[epoch], epoch, array)


def check_histogram(event, epoch, array):
    """Compares a histogram with that of NumPy in tenths of decades."""
    logarithms = np.log10(np.abs(array[array != 0].astype("float64")))
    limits = np.arange(np.floor(logarithms.min() * 10), np.floor(logarithms.max() * 10) + 2) / 10
    histogram = event.histogram_value
    assert event.step == epoch
    assert histogram.bucket == np.histogram(logarithms, limits)[0].tolist()
    assert histogram.num == logarithms.size == sum(histogram.bucket)
    np.testing.assert_allclose(histogram.bucket_limit, limits[1:], rtol=1e-6)
    np.testing.assert_allclose(
        [histogram.min, histogram.max], [logarithms.min(), logarithms.max()], rtol=1e-6
    )


def test_files_are_on_disk_at_the_end_of_each_epoch(model, fit, tmp_path, read):
    written = []
    after = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: written.append(steps(tmp_path, read))
    )
    fit(model, keras_lp.SparsityLogger(tmp_path), after, epochs=3)
    assert written == [[0], [0, 1], [0, 1, 2]]


def test_zeros_alone_and_weights_that_are_not_finite_do_not_stop_a_training(
    model, fit, tmp_path, read
):
    kernel = np.ones((8, 16), "float32")
    kernel[0, :4] = np.nan, np.inf, -np.inf, 0
    model.layers[0].kernel.assign(kernel)
    model.layers[1].kernel.assign(np.zeros((16, 3)))
    logger = keras_lp.SparsityLogger(tmp_path)
    logger.set_model(model)
    logs = {}
    logger.on_epoch_end(0, logs)
    logger.on_train_end()
    assert logs["nonzero"] == 8 * 16 - 1
    events = read(tmp_path / "sparsity")
    assert curve(events, "sparsity/hidden") == [(0, 1 / 128)]
    assert curve(events, "sparsity/logits") == [(0, 1.0)]
    (hidden,) = events.Histograms("log10_magnitude/hidden")
    (logits,) = events.Histograms("log10_magnitude/logits")
    assert (sum(hidden.histogram_value.bucket), sum(logits.histogram_value.bucket)) == (124, 0)


def test_layers_of_the_same_path_have_curves_of_their_own(tmp_path, read):
    def inner(name):
        layers = [keras.Input((4,)), keras.layers.Dense(4, name="dense")]
        return keras.Sequential(layers, name=name)

    model = keras.Sequential([keras.Input((4,)), inner("one"), inner("two")])
    model.layers[1].layers[0].kernel.assign(np.zeros((4, 4)))
    logger = keras_lp.SparsityLogger(tmp_path)
    logger.set_model(model)
    logger.on_epoch_end(0, {})
    logger.on_train_end()
    events = read(tmp_path / "sparsity")
    layers = {tag: curve(events, tag) for tag in events.Tags()["scalars"] if "/" in tag}
    assert sorted(layers.values()) == [[(0, 0.0)], [(0, 1.0)]]
    assert len(events.Tags()["histograms"]) == 2


@pytest.mark.parametrize(
    ("steps_per_execution", "expected"),
    [
        (1, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]),
        pytest.param(
            4,  # Keras calls after batches 4, 8 and 10 of the 10 in an epoch.
            [4, 8, 10, 14, 18, 24, 28, 30],
            marks=pytest.mark.backend("tensorflow", "jax"),
        ),
    ],
)
def test_files_are_written_every_so_many_batches_over_two_fits(
    mlp, fit, tmp_path, read, steps_per_execution, expected
):
    model = compiled(mlp(), steps_per_execution=steps_per_execution)
    logger = keras_lp.SparsityLogger(tmp_path, frequency=3)
    fit(model, logger, epochs=2)
    fit(model, logger, epochs=1)
    assert steps(tmp_path, read) == expected
    assert int(model.optimizer.iterations) == 30


def test_weights_written_between_epochs_are_those_of_that_batch(model, fit, tmp_path, read):
    kernels_then = []
    taking = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: kernels_then.append(taking.model.get_weights()[0])
    )
    fit(model, keras_lp.SparsityLogger(tmp_path, frequency=5), taking, epochs=1)
    events = read(tmp_path / "sparsity").Histograms("log10_magnitude/hidden")
    largest = [np.log10(np.abs(kernels_then[number]).max()) for number in (4, 9)]
    np.testing.assert_allclose([e.histogram_value.max for e in events], largest, rtol=1e-5)


def test_steps_go_on_where_no_optimizer_counts_them(mlp, fit, tmp_path, read):
    class Model(keras.Model):
        def train_step(self, *arguments):
            return ({"loss": 0.0}, arguments[0]) if BACKEND == "jax" else {"loss": 0.0}

    body = mlp()
    model = compiled(Model(body.inputs, body.outputs))
    if BACKEND != "jax":  # It does not train without one.
        model.optimizer = None
    logger = keras_lp.SparsityLogger(tmp_path, frequency=15)
    for _ in range(2):
        fit(model, logger, epochs=2)
    assert steps(tmp_path, read) == [15, 30]


def test_resumed_training_writes_what_one_never_interrupted_writes(mlp, fit, tmp_path, read):
    def train(folder, *callbacks):
        keras.utils.set_random_seed(0)
        model = compiled(mlp(), keras_lp.LpSGD(0.1, weight_decay=0.1, p=0.5))
        each_epoch = keras_lp.SparsityLogger(folder / "epoch")
        each_fourth = keras_lp.SparsityLogger(folder / "batches", frequency=4)
        fit(model, each_epoch, each_fourth, *callbacks)

    train(tmp_path / "whole")
    backup = str(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "resumed", keras.callbacks.BackupAndRestore(backup), Interrupt(2))
    train(tmp_path / "resumed", keras.callbacks.BackupAndRestore(backup))
    for folder, expected in (("epoch", [0, 1, 2, 3]), ("batches", [*range(4, 41, 4)])):
        whole, resumed = (
            curve(read(tmp_path / name / folder / "sparsity"), "sparsity")
            for name in ("whole", "resumed")
        )
        assert [step for step, _ in whole] == expected
        assert len(set(whole)) > 2
        assert resumed == whole


@pytest.mark.parametrize("frequency", ["epoch", 1000])
def test_model_is_looked_at_once_an_epoch_however_many_batches_it_has(
    model, fit, tmp_path, monkeypatch, read, frequency
):
    class Counting(keras_lp.SparsityLogger):
        looks = 0

        @property
        def model(self):
            self.looks += 1
            return super().model

    reports = []
    report = training.sort_weights
    monkeypatch.setattr(
        training, "sort_weights", lambda *a, **k: reports.append(1) or report(*a, **k)
    )
    looks = []
    for samples in (8, 64):
        logger = Counting(tmp_path, frequency)
        fit(model, logger, samples=samples)
        looks.append(logger.looks)
    assert len(reports) == 2 * 4
    assert looks[0] == looks[1]


def test_keras_need_not_wait_for_a_logger_of_epochs(tmp_path, read):
    assert keras_lp.SparsityLogger().async_safe
    assert not keras_lp.SparsityLogger(tmp_path, frequency=10).async_safe


def test_excluded_variables_are_not_counted(model, fit, make_zeros, tmp_path, read):
    logger = keras_lp.SparsityLogger(tmp_path, exclude="logits")
    history = fit(model, make_zeros, logger).history
    assert history["nonzero"] == [np.count_nonzero(hidden) for hidden, _ in make_zeros.kernels]
    events = read(tmp_path / "sparsity")
    assert events.Tags()["histograms"] == ["log10_magnitude/hidden"]
    assert curve(events, "sparsity") == curve(events, "sparsity/hidden")


def test_pattern_without_a_match_is_refused_before_the_first_batch(model, fit):
    with pytest.raises(ValueError, match=r"`exclude`.*matches no trainable variable.*'nowhere'"):
        fit(model, keras_lp.SparsityLogger(exclude="nowhere"))
    assert int(model.optimizer.iterations) == 0


def test_missing_tensorboard_is_named_with_the_remedy_before_the_training(monkeypatch, tmp_path):
    for name in [*(name for name in sys.modules if name.startswith("tensorboard")), "tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    keras_lp.SparsityLogger()
    with pytest.raises(ImportError, match=r"`tensorboard`.*pip install 'keras-lp\[tensorboard\]'"):
        keras_lp.SparsityLogger(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"frequency": "batch"}, ValueError, r"`frequency`.*\"epoch\".*frequency='batch'"),
        ({"log_dir": "logs", "frequency": 0}, ValueError, r"`frequency`.*>= 1.*frequency=0"),
        ({"log_dir": "logs", "frequency": True}, ValueError, r"`frequency`.*frequency=True"),
        ({"frequency": 10}, ValueError, r"`frequency` is for the files in `log_dir`.*frequency=10"),
        ({"log_dir": 10}, TypeError, r"`log_dir` must be the path.*log_dir=10"),
        ({"exclude": "("}, ValueError, r"`exclude` must be a regular expression.*exclude='\('"),
    ],
)
def test_wrong_arguments_are_named_with_what_was_received(arguments, error, message):
    with pytest.raises(error, match=message):
        keras_lp.SparsityLogger(**arguments)


def test_path_may_be_a_string(model, fit, tmp_path, read):
    fit(model, keras_lp.SparsityLogger(str(tmp_path)), epochs=1)
    assert [Path(path).parent.name for path in tmp_path.glob("*/*")] == ["sparsity"]


def test_layer_with_several_kernels_has_curves_for_each(tmp_path, read):
    layer = keras.layers.SeparableConv1D(3, 2, name="separable")
    model = keras.Sequential([keras.Input((4, 2)), layer])
    layer.depthwise_kernel.assign(np.eye(4, 1).reshape(2, 2, 1))
    logger = keras_lp.SparsityLogger(tmp_path)
    logger.set_model(model)
    logger.on_epoch_end(0, {})
    events = read(tmp_path / "sparsity")
    assert events.Tags()["histograms"] == [
        "log10_magnitude/separable/depthwise_kernel",
        "log10_magnitude/separable/pointwise_kernel",
    ]
    assert curve(events, "sparsity/separable/depthwise_kernel") == [(0, 0.75)]
    assert curve(events, "sparsity") == [(0, pytest.approx(0.3))]
