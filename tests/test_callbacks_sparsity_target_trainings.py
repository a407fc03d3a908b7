"""Trainings with `SparsityTarget` of every kind: exactness, the path, and what follows."""

import copy
import json
import math
import warnings

import keras
import numpy as np
import pytest
from keras.optimizers import schedules

from keras_lp import (
    LpAdamW,
    LpDecay,
    LpDecayCallback,
    LpLion,
    LpSGD,
    SparsityTarget,
    sparsity_report,
)
from keras_lp.callbacks import sparsity_target

# Ways that are too short on purpose, as most here are for the sake of time.
pytestmark = pytest.mark.filterwarnings("ignore:The decay had not made enough zeros")
STEPS = 20  # in an epoch
SIZES = {"a": 8 * 16, "b": 16 * 16, "c": 16 * 3}
SIZE = sum(SIZES.values())
needs_multi_optimizer = pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer"
)
# torch has no `steps_per_execution`.
compiled_backends = pytest.mark.backend("tensorflow", "jax")


def make_mlp():
    """A classifier without units that die, of `SIZES` weights."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="tanh", name="a"),
            keras.layers.Dense(16, activation="tanh", name="b"),
            keras.layers.Dense(3, name="c"),
        ],
        name="net",
    )


@pytest.fixture
def mlp():
    """The function that makes the classifier."""
    return make_mlp


@pytest.fixture(scope="module")
def data():
    """Inputs and labels of an epoch of `STEPS` batches, in three classes that can be learned."""
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * 16, 8)).astype("float32")
    return x, np.argmax(x @ random.normal(size=(8, 3)), axis=1)


def repeated(data, times):
    """An epoch of so many times the batches."""
    return tuple(np.concatenate([array] * times) for array in data)


def record_closings(patch):
    """The share of zeros in each group at the moments of closing, and what it is to be."""
    found = []

    def record(groups):
        found.append([(share_of_zeros(variables), final) for variables, final in groups])
        prune_groups(groups)

    prune_groups = sparsity_target.prune_groups
    patch.setattr(sparsity_target, "prune_groups", record)
    return found


@pytest.fixture
def found_at_closing(monkeypatch):
    """What `record_closings` finds in the test."""
    return record_closings(monkeypatch)


def numpy(value):
    return np.array(keras.ops.convert_to_numpy(value))


def share_of_zeros(variables):
    return np.mean(np.concatenate([numpy(v).ravel() for v in variables]) == 0)


def values(model):
    return [numpy(v) for v in model.trainable_variables]


def kernels(model):
    return {layer.name: numpy(layer.kernel) for layer in model.layers}


def zeros(model):
    """The number of zeros in each kernel, counted by NumPy."""
    return {name: int(np.sum(kernel == 0)) for name, kernel in kernels(model).items()}


def compiled(model, optimizer, **arguments):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, **arguments)
    return model


def fit(model, data, callbacks, epochs=4, **arguments):
    arguments = {"batch_size": 16, "verbose": 0, "shuffle": False, **arguments}
    return model.fit(*data, epochs=epochs, callbacks=callbacks, **arguments).history


class Every(keras.callbacks.Callback):
    """Keeps what a function of the model gives after each epoch, or each batch."""

    def __init__(self, function, batches=False):
        super().__init__()
        self.function, self.batches, self.found = function, batches, []

    def on_train_batch_end(self, batch, logs=None):
        if self.batches:
            self.found.append(self.function(self.model))

    def on_epoch_end(self, epoch, logs=None):
        if not self.batches:
            self.found.append(self.function(self.model))


def pretend(model, target, epochs, steps, initial_epoch=0):
    """Calls the callback as a training would that changes nothing; the step that closes."""
    target.set_params({"epochs": epochs, "steps": steps, "verbose": 0})
    target.set_model(model)
    for epoch in range(initial_epoch, epochs):
        target.on_epoch_begin(epoch)
        for batch in range(steps or 50):
            before = sum(zeros(model).values())
            target.on_train_batch_end(batch)
            if sum(zeros(model).values()) > before:
                return (epoch - initial_epoch) * (steps or 50) + batch + 1
    return None


def two_optimizers():
    """Two Lp optimizers, of different learning rates, for one model."""
    others = keras.optimizers.OptimizerMap(LpAdamW(3e-3), {"net/a/.*": LpAdamW(1e-3, p=0.5)})
    return keras.optimizers.MultiOptimizer(others)


def warming_up():
    """A learning rate that begins at 0."""
    return schedules.CosineDecay(0.0, 8 * STEPS, warmup_target=3e-3, warmup_steps=STEPS)


# Each makes an optimizer, and the callbacks to go before `SparsityTarget`.
WAYS = {
    "LpAdamW": lambda: (LpAdamW(3e-3), []),
    "LpSGD": lambda: (LpSGD(0.1, momentum=0.9), []),
    "LpLion": lambda: (LpLion(3e-4), []),
    "LpDecay(RMSprop)": lambda: (LpDecay(keras.optimizers.RMSprop(1e-3)), []),
    "LossScaleOptimizer": lambda: (keras.optimizers.LossScaleOptimizer(LpAdamW(3e-3)), []),
    "MultiOptimizer": lambda: (two_optimizers(), []),
    "LpDecayCallback": lambda: (keras.optimizers.Adam(3e-3), [LpDecayCallback()]),
    "p=0": lambda: (LpAdamW(3e-3, p=0), []),
    "p=0.5": lambda: (LpAdamW(3e-3, p=0.5), []),
    "p=1": lambda: (LpAdamW(3e-3, p=1), []),
    "p of a schedule": lambda: (LpAdamW(3e-3, p=schedules.PolynomialDecay(2.0, 60, 0.5)), []),
    "p of an override": lambda: (LpAdamW(3e-3, overrides={"b/": {"p": 0.3}}), []),
    "two norms": lambda: (LpAdamW(3e-3, (0.1, 1e-3), p=(0.8, 2.0)), []),
    "accumulation": lambda: (LpAdamW(3e-3, gradient_accumulation_steps=3), []),
    "accumulation under the callback": lambda: (
        keras.optimizers.Adam(3e-3, gradient_accumulation_steps=3),
        [LpDecayCallback()],
    ),
    "warming up": lambda: (LpAdamW(warming_up()), []),
    "warming up under the callback": lambda: (
        keras.optimizers.Adam(warming_up()),
        [LpDecayCallback()],
    ),
    "average": lambda: (LpAdamW(3e-3, use_ema=True, ema_momentum=0.9), []),
    "average put in": lambda: (LpAdamW(3e-3, use_ema=True, ema_overwrite_frequency=7), []),
}


def way(name):
    marks = [needs_multi_optimizer] if name == "MultiOptimizer" else []
    return pytest.param(name, marks=marks, id=name)


# One training in the usual way, looked at from all sides


@pytest.fixture(scope="module")
def usual(data):
    """What 640 steps with the default settings gave."""
    model = compiled(make_mlp(), LpAdamW(3e-3), metrics=["accuracy"])
    every = Every(kernels)
    with pytest.MonkeyPatch.context() as patch:
        found = record_closings(patch)
        logs = fit(model, data, [SparsityTarget(0.8), every], epochs=32)
    before = [share for ((share, _),) in found]
    return {"model": model, "logs": logs, "before": before, "kernels": every.found}


@pytest.mark.slow
def test_final_sparsity_is_exact(usual):
    assert sum(zeros(usual["model"]).values()) == round(0.8 * SIZE)


@pytest.mark.slow
def test_decay_makes_the_zeros_and_leaves_little_to_be_closed(usual):
    (before,) = usual["before"]
    assert 0.77 < before <= 0.8


@pytest.mark.slow
def test_sparsity_follows_the_schedule(usual):
    logged = np.array(usual["logs"]["sparsity"])
    done = np.clip((np.arange(1, 33) * STEPS - 64) / (512 - 64), 0, 1)
    scheduled = 0.8 * (1 - (1 - done) ** 3)
    errors = logged - scheduled
    assert errors.min() > -0.2  # Zeros lag at first.
    assert np.abs(errors[8:]).max() < 0.08
    assert logged.max() <= round(0.8 * SIZE) / SIZE


@pytest.mark.slow
def test_zeros_stay_zero_on_the_way(usual):
    for one, next_one in zip(usual["kernels"], usual["kernels"][1:], strict=False):
        assert all(np.all(next_one[name][one[name] == 0] == 0) for name in SIZES)


@pytest.mark.slow
def test_pattern_stays_after_the_end_and_the_rest_trains(usual):
    end, last = usual["kernels"][25], usual["kernels"][31]
    for name in SIZES:
        np.testing.assert_array_equal(end[name] == 0, last[name] == 0)
    changed = np.concatenate([(end[name] != last[name])[last[name] != 0] for name in SIZES])
    assert np.mean(changed) > 0.8  # A unit may have lost its way out.


@pytest.mark.slow
def test_model_learns_nonetheless(usual):
    assert usual["logs"]["accuracy"][-1] > 0.85


# Exact, whatever the training is


@pytest.mark.slow
@pytest.mark.parametrize("name", [*map(way, WAYS)])
def test_sparsity_is_exact_with_every_optimizer(name, mlp, data):
    check_that_it_is_exact(name, 0.8, mlp(), data, epochs=8)


def check_that_it_is_exact(name, target, model, data, epochs):
    optimizer, callbacks = WAYS[name]()
    compiled(model, optimizer)
    every = Every(lambda model: {name: k == 0 for name, k in kernels(model).items()})
    logs = fit(model, data, [*callbacks, SparsityTarget(target), every], epochs=epochs)
    assert sum(zeros(model).values()) == round(target * SIZE)
    end = math.ceil(0.8 * epochs) - 1
    assert logs["sparsity"][end:] == [round(target * SIZE) / SIZE] * (epochs - end)
    assert logs["weight_decay"][end:] == [0.0] * (epochs - end)
    for pattern in every.found[end:]:
        for layer, kernel in kernels(model).items():
            np.testing.assert_array_equal(pattern[layer], kernel == 0)
    assert np.all(np.diff(logs["sparsity"]) >= 0)


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(
    "name",
    [
        *("LpAdamW", "LpSGD", "LpLion", "LpDecay(RMSprop)", "LossScaleOptimizer"),
        *("LpDecayCallback", way("MultiOptimizer"), "p=0", "p=0.5"),
    ],
)
def test_sparsity_is_exact_and_little_was_left_to_be_closed(
    name, target, mlp, data, found_at_closing
):
    optimizer, callbacks = WAYS[name]()
    model = compiled(mlp(), optimizer)
    fit(model, data, [*callbacks, SparsityTarget(target)], epochs=32)
    assert sum(zeros(model).values()) == round(target * SIZE)
    (((before, final),),) = found_at_closing
    assert target == final
    assert final - 0.03 < before <= round(final * SIZE) / SIZE


@pytest.mark.slow
@compiled_backends
@pytest.mark.parametrize("end", [None, 50, 64, 80])
def test_sparsity_is_exact_with_several_steps_per_execution(mlp, data, end):
    model = compiled(mlp(), LpAdamW(3e-3), steps_per_execution=8)
    logs = fit(model, data, [SparsityTarget(0.8, end_step=end)])
    assert sum(zeros(model).values()) == round(0.8 * SIZE)
    assert logs["weight_decay"][-1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LpAdamW", "LpDecayCallback"])
def test_sparsity_is_exact_with_mixed_precision(name, mlp, data):
    optimizer, callbacks = WAYS[name]()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(mlp(), optimizer)
        fit(model, data, [*callbacks, SparsityTarget(0.8)], epochs=8)
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert sum(zeros(model).values()) == round(0.8 * SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("average", [{}, {"use_ema": True, "ema_momentum": 0.9}])
def test_end_may_be_the_last_step(average, mlp, data):
    model = compiled(mlp(), LpAdamW(3e-3, **average))
    fit(model, data, [SparsityTarget(0.8, end_step=4 * STEPS)])
    assert sum(zeros(model).values()) == round(0.8 * SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_targets_of_none_and_of_all_are_met(target, mlp, data):
    model = compiled(mlp(), LpAdamW(3e-3))
    fit(model, data, [SparsityTarget(target)], epochs=2)
    assert sum(zeros(model).values()) == target * SIZE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "devices"),
    [
        pytest.param("mirrored", 2, marks=pytest.mark.backend("tensorflow")),
        pytest.param("data_parallel", 4, marks=pytest.mark.backend("jax")),
        pytest.param("model_parallel", 2, marks=pytest.mark.backend("jax")),
    ],
)
def test_sparsity_is_exact_on_several_devices(setting, devices, run_worker, tmp_path):
    """In a process of its own, as the number of devices is fixed at the start."""
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    process = run_worker("distributed_target.py", setting, tmp_path / "found.json", **environment)
    assert process.returncode == 0, process.stdout + process.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["devices"] == devices
    for name, run in found["runs"].items():
        assert run["zeros"] == [round(0.8 * 128), round(0.8 * 64)], name
        assert run["before"] > 0.7, name
        assert run["sparsity"][-2:] == [(102 + 51) / 192] * 2, name


# Groups


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LpAdamW", "LpDecayCallback", way("MultiOptimizer")])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_groups_are_exact_with_either_scope(scope, name, mlp, data, found_at_closing):
    optimizer, callbacks = WAYS[name]()
    model = compiled(mlp(), optimizer)
    target = SparsityTarget(0.8, scope=scope, overrides={"a|c": 0.5, "c": 0.9})
    fit(model, data, [*callbacks, target], epochs=16)
    found = zeros(model)
    if scope == "layer":
        assert found == {"a": 64, "b": 205, "c": 24}
    assert (found["a"] + found["c"], found["b"]) == (88, 205)
    for before, final in found_at_closing[0]:
        assert final - 0.1 < before <= final + 0.002


def test_norm_that_is_not_steered_keeps_its_strength(mlp):
    model = compiled(mlp(), LpSGD(0.5, weight_decay=(0.1, 0.2), p=(0.5, 2.0)))
    model.optimizer.build(model.trainable_variables)
    before = {name: kernel.astype("float64") for name, kernel in kernels(model).items()}
    strengths = [0.04, 0.004, 0.0]
    model.optimizer.steer(strengths)
    model.optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
    for strength, (name, kernel) in zip(strengths, kernels(model).items(), strict=True):
        w = before[name]
        expected = w / (1 + 0.5 * (strength * np.abs(w) ** -1.5 + 0.2))
        np.testing.assert_allclose(kernel, expected, rtol=1e-5)


@pytest.mark.slow
@needs_multi_optimizer
def test_layers_of_optimizers_with_other_learning_rates_follow_alike(mlp, data, found_at_closing):
    slow = keras.optimizers.OptimizerMap(LpAdamW(1e-2), {"net/a/.*": LpAdamW(1e-4)})
    model = compiled(mlp(), keras.optimizers.MultiOptimizer(slow))
    fit(model, data, [SparsityTarget(0.8, scope="layer")], epochs=16)
    assert all(final - 0.1 < before <= final + 0.002 for before, final in found_at_closing[0])


@needs_multi_optimizer
def test_optimizer_that_decays_nothing_is_left_aside(mlp, data):
    saved = LpAdamW(1e-2, exclude="other")
    saved.build([keras.Variable(np.ones((2, 2)), name=name) for name in ("kernel", "other")])
    idle = LpAdamW.from_config(saved.get_config())
    parts = keras.optimizers.OptimizerMap(LpAdamW(1e-2), {"net/a/.*": idle})
    model = compiled(mlp(), keras.optimizers.MultiOptimizer(parts))
    with pytest.warns(UserWarning, match="nothing will be decayed"):
        fit(model, data, [SparsityTarget(0.8)], epochs=2)
    assert idle.decayed_variables == []
    found = zeros(model)
    assert found["b"] + found["c"] == round(0.8 * (SIZES["b"] + SIZES["c"]))


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("name", ["LpAdamW", "p=0", "LpSGD"])
def test_small_layers_do_not_overshoot(name, target, mlp, data):
    # A warning of it is an error here.
    model = compiled(mlp(), WAYS[name]()[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="More weights became zero")
        fit(model, data, [SparsityTarget(target, scope="layer")], epochs=12)
    assert zeros(model) == {name: round(target * size) for name, size in SIZES.items()}


@pytest.mark.slow
def test_convolutions_and_embeddings_are_steered(found_at_closing):
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            keras.layers.Embedding(40, 8),
            keras.layers.Conv1D(8, 3, activation="tanh"),
            keras.layers.LSTM(8),
            keras.layers.Dense(2),
        ]
    )
    compiled(model, LpAdamW(1e-2))
    x = random.integers(40, size=(320, 12))
    target = SparsityTarget(0.7, overrides={"embedding": 0.5})
    fit(model, (x, (x[:, 0] > 20).astype("int32")), [target], epochs=8)
    layers = sparsity_report(model).layers
    assert sum(layer.zeros for layer in layers if "embedding" in layer.name) == 160
    rest = [layer for layer in layers if "embedding" not in layer.name]
    assert sum(layer.zeros for layer in rest) == round(0.7 * sum(layer.size for layer in rest))


# Begin and end


@pytest.mark.slow
def test_nothing_at_all_is_decayed_before_the_begin(mlp, data):
    base = mlp()
    compiled(base, LpAdamW(3e-3, 0.0))
    recorded = Every(values, batches=True)
    fit(base, data, [recorded], epochs=2)
    for begin in (20, 27):
        for optimizer, callbacks in WAYS["LpAdamW"](), WAYS["LpDecayCallback"]():
            model, every = compiled(mlp(), optimizer), Every(values, batches=True)
            target = SparsityTarget(0.8, begin_step=begin, end_step=39)
            fit(model, data, [*callbacks, target, every], epochs=2)
            is_bitwise = not callbacks and keras.backend.backend() != "torch"
            for step in range(begin):
                for one, other in zip(every.found[step], recorded.found[step], strict=True):
                    np.testing.assert_allclose(one, other, atol=0 if is_bitwise else 1e-6)
            assert not np.allclose(every.found[begin][0], recorded.found[begin][0], atol=1e-5)
            assert sum(zeros(model).values()) == round(0.8 * SIZE)


@pytest.mark.parametrize(
    ("arguments", "epochs", "initial_epoch", "expected"),
    [
        ({}, 4, 0, 32),
        ({}, 8, 4, 32),
        ({"begin_step": 20}, 4, 0, 32),
        ({"end_step": 17}, 4, 0, 17),
        ({"end_step": 17, "frequency": 100}, 4, 0, 17),
        ({"schedule": "constant"}, 4, 0, 32),
        ({"schedule": "linear", "begin_step": 3}, 1, 0, 8),
    ],
)
def test_end_is_at_its_step(mlp, arguments, epochs, initial_epoch, expected):
    model = compiled(mlp(), LpAdamW(3e-3))
    arguments = {"final_sparsity": 0.8, **arguments}
    assert pretend(model, SparsityTarget(**arguments), epochs, 10, initial_epoch) == expected
    assert sum(zeros(model).values()) == round(0.8 * SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LpAdamW", "LpDecayCallback"])
def test_way_within_one_epoch_is_made_by_the_decay(name, mlp, data, found_at_closing):
    optimizer, callbacks = WAYS[name]()
    model = compiled(mlp(), optimizer)
    fit(model, repeated(data, 20), [*callbacks, SparsityTarget(0.8)], epochs=1)
    (((before, final),),) = found_at_closing
    assert final - 0.03 < before <= final


@pytest.mark.slow
@pytest.mark.parametrize("begin", [None, 0])
@pytest.mark.parametrize("name", ["LpAdamW", "LpDecayCallback"])
def test_learning_rate_that_warms_up_from_next_to_nothing_destroys_no_weights(
    name, begin, mlp, data
):
    # The strength that is right for a rate of 1e-6 is a thousand times too strong 40 steps later.
    rate = schedules.CosineDecay(1e-6, 300, warmup_target=1e-2, warmup_steps=60)
    optimizers = {
        "LpAdamW": (LpAdamW(rate), []),
        "LpDecayCallback": (keras.optimizers.Adam(rate), [LpDecayCallback()]),
    }
    optimizer, callbacks = optimizers[name]
    model = compiled(mlp(), optimizer)
    every = Every(lambda model: [np.median(np.abs(k)) for k in kernels(model).values()], True)
    target = SparsityTarget(0.3, begin, 399)
    fit(model, repeated(data, 20), [*callbacks, target, every], epochs=1)
    assert np.min(every.found) > 0.05


@compiled_backends
def test_looks_are_at_most_as_often_as_keras_calls(mlp, data):
    model = compiled(mlp(), LpAdamW(1e-2), steps_per_execution=32)
    fit(model, repeated(data, 32), [SparsityTarget(0.9)], epochs=1)
    assert sum(zeros(model).values()) == round(0.9 * SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LpAdamW", "LpDecayCallback"])
def test_zeros_that_are_there_stay_before_the_begin(name, mlp, data, sparsify):
    optimizer, callbacks = WAYS[name]()
    model = compiled(sparsify(mlp(), 0.7), optimizer)
    pattern = {layer: kernel == 0 for layer, kernel in kernels(model).items()}
    logs = fit(model, data, [*callbacks, SparsityTarget(0.8, 30, 70)])
    assert logs["sparsity"][0] == sum(map(np.sum, pattern.values())) / SIZE
    for layer, kernel in kernels(model).items():
        assert np.all(kernel[pattern[layer]] == 0)
    assert sum(zeros(model).values()) == round(0.8 * SIZE)


@pytest.mark.slow
def test_loaded_model_goes_on_from_the_zeros_it_has(mlp, data, tmp_path):
    model = compiled(mlp(), LpAdamW(3e-3))
    fit(model, data, [SparsityTarget(0.8)], epochs=4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    logs = fit(loaded, data, [SparsityTarget(0.8)], epochs=2)
    assert logs["sparsity"] == [round(0.8 * SIZE) / SIZE] * 2


def test_large_closing_is_told_of(mlp, data):
    model = compiled(mlp(), LpAdamW(3e-3))
    message = r"not made enough zeros at `end_step`.*: \d+\.\d\d% of net/a/kernel.*more steps"
    with pytest.warns(UserWarning, match=message):
        fit(model, data, [SparsityTarget(0.8, 0, 5)], epochs=1)


def test_strength_that_is_set_by_hand_afterwards_is_that_of_every_layer(mlp):
    model = compiled(mlp(), LpSGD(0.5, p=0.5))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.steer([0.04, 0.004, 0.0])
    model.optimizer.weight_decay = 0.1
    before = {name: kernel.astype("float64") for name, kernel in kernels(model).items()}
    model.optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables])
    for name, kernel in kernels(model).items():
        expected = before[name] / (1 + 0.05 * np.abs(before[name]) ** -1.5)
        np.testing.assert_allclose(kernel, expected, rtol=1e-5)


# One training after another


@pytest.mark.slow
def test_fits_of_one_epoch_each_go_on_as_one_fit_does(mlp, data):
    one, many = compiled(mlp(), LpAdamW(3e-3)), compiled(mlp(), LpAdamW(3e-3))
    expected = fit(one, data, [SparsityTarget(0.8, end_step=50)], epochs=3)["sparsity"]
    target = SparsityTarget(0.8, end_step=50)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The training ended")
        found = [fit(many, data, [target], epochs=1)["sparsity"][0] for _ in range(3)]
    assert found == expected
    for a, b in zip(values(one), values(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LpAdamW", "LpDecayCallback"])
def test_second_fit_after_the_end_keeps_the_pattern(name, mlp, data):
    optimizer, _ = WAYS[name]()
    model, target = compiled(mlp(), optimizer), SparsityTarget(0.8)
    fit(model, data, [*WAYS[name]()[1], target], epochs=2)
    before = kernels(model)
    logs = fit(model, data, [*WAYS[name]()[1], target], epochs=2)
    assert logs["weight_decay"] == [0.0, 0.0]
    for name, kernel in kernels(model).items():
        np.testing.assert_array_equal(kernel == 0, before[name] == 0)
        assert np.mean((kernel != before[name])[kernel != 0]) > 0.8


def test_callback_that_trained_one_model_begins_anew_with_another(mlp):
    target = SparsityTarget(0.8)
    assert pretend(compiled(mlp(), LpAdamW(3e-3)), target, 4, 10) == 32
    assert pretend(compiled(mlp(), LpAdamW(3e-3)), target, 2, 10) == 16


def test_model_compiled_anew_begins_anew(mlp):
    model, target = mlp(), SparsityTarget(0.5)
    assert pretend(compiled(model, LpAdamW(3e-3)), target, 4, 10) == 32
    model.set_weights(mlp().get_weights())
    assert pretend(compiled(model, LpAdamW(3e-3)), target, 2, 10) == 16


@pytest.mark.slow
def test_training_that_was_interrupted_goes_on_in_the_same_process(mlp, data, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        is_done = False

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch, self.is_done) == (2, 12, False):
                self.is_done = True
                raise KeyboardInterrupt

    target = SparsityTarget(0.8, end_step=2 * STEPS + 10)  # over when it is interrupted
    unbroken = compiled(mlp(), LpAdamW(3e-3))
    expected = fit(unbroken, data, [SparsityTarget(0.8, end_step=2 * STEPS + 10)])["sparsity"][2:]
    model = compiled(mlp(), LpAdamW(3e-3))
    callbacks = [keras.callbacks.BackupAndRestore(tmp_path / "backup"), target, Interrupt()]
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, callbacks)
    assert fit(model, data, callbacks)["sparsity"] == expected
    for one, other in zip(values(model), values(unbroken), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_training_that_ends_too_early_warns_and_says_what_to_do(mlp):
    model, target = compiled(mlp(), LpAdamW(3e-3)), SparsityTarget(0.8, end_step=100)
    assert pretend(model, target, 2, 10) is None
    with pytest.warns(UserWarning, match=r"step 20, before `end_step=100`.*keras_lp\.prune"):
        target.on_train_end()


@pytest.mark.slow
def test_training_that_goes_on_after_its_last_epoch_has_nothing_to_warn_of(mlp, data, tmp_path):
    def train(target):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        model = compiled(mlp(), LpAdamW(3e-3))
        logs = fit(model, data, [target, backup], epochs=2)
        return zeros(model), logs

    before, _ = train(SparsityTarget(0.8))
    with warnings.catch_warnings(action="error", category=UserWarning):
        after, logs = train(SparsityTarget(0.8))
    assert not logs
    assert after == before


def test_more_zeros_than_asked_for_are_told_of(mlp, sparsify):
    model, target = compiled(mlp(), LpAdamW(3e-3)), SparsityTarget(0.5, end_step=10)
    target.set_params({"epochs": 1, "steps": 20})
    target.set_model(model)
    target.on_epoch_begin(0)
    sparsify(model, 0.9)
    with pytest.warns(UserWarning, match=r"in place of 50\.00% of net/a/kernel.*more steps"):
        target.on_train_batch_end(9)
    assert sum(zeros(model).values()) > 0.8 * SIZE


@pytest.mark.parametrize("is_used", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_callbacks_can_be_copied(is_used, mlp, data):
    callbacks = [LpDecayCallback(0.1, p=0.5), SparsityTarget(0.8)]
    if is_used:
        fit(compiled(mlp(), "adam"), data, callbacks, epochs=1, steps_per_epoch=15)
    model = compiled(mlp(), "adam")
    logs = fit(model, data, copy.deepcopy(callbacks), epochs=1, steps_per_epoch=15)
    assert logs["p"] == [0.5]
    assert sum(zeros(model).values()) == round(0.8 * SIZE)


# Refusals


def test_two_targets_are_refused(mlp, data):
    model = compiled(mlp(), LpAdamW(1e-3))
    with pytest.raises(ValueError, match="Two `SparsityTarget`"):
        fit(model, data, [SparsityTarget(0.8), SparsityTarget(0.5)])


@pytest.mark.parametrize("name", ["LpAdamW", "LpDecayCallback"])
def test_reference_updated_under_which_no_zero_lasts_is_refused(name, mlp, data):
    optimizers = {
        "LpAdamW": (LpAdamW(1e-3, reference="updated"), []),
        "LpDecayCallback": ("adam", [LpDecayCallback(reference="updated")]),
    }
    optimizer, callbacks = optimizers[name]
    with pytest.raises(ValueError, match=r"reference=\"previous\".*reference='updated'"):
        fit(compiled(mlp(), optimizer), data, [*callbacks, SparsityTarget(0.8)])


@needs_multi_optimizer
def test_average_that_loses_zeros_is_refused_before_the_training(mlp, data):
    average = keras.optimizers.Adam(use_ema=True)
    parts = keras.optimizers.OptimizerMap(LpAdamW(), {"bias": average})
    model = compiled(mlp(), keras.optimizers.MultiOptimizer(parts))
    with pytest.raises(ValueError, match="use_ema"):
        SparsityTarget(0.8).set_model(model)


class Stop(keras.callbacks.Callback):
    """Breaks a training off."""

    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def break_off(model, data):
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, [LpDecayCallback(), Stop()])


def only_evaluate(model, data):
    model.evaluate(*data, callbacks=[LpDecayCallback()], verbose=0)


@pytest.mark.parametrize("before", [break_off, only_evaluate])
def test_decay_callback_that_is_not_in_this_training_cannot_be_steered(before, mlp, data):
    model = compiled(mlp(), "adam")
    before(model, data)
    with pytest.raises(ValueError, match="there is none"):
        fit(model, data, [SparsityTarget(0.8)])


def test_decay_callback_that_comes_later_is_too_late(mlp, data):
    model = compiled(mlp(), "adam")
    with pytest.raises(ValueError, match=r"before this callback"):
        fit(model, data, [SparsityTarget(0.8), LpDecayCallback()])


def test_sparsity_below_that_of_the_beginning_is_refused(mlp, data, sparsify):
    model = compiled(sparsify(mlp(), 0.9), LpAdamW(1e-3))
    before = values(model)
    message = r"must not be below.*sparsity of 30\.00% for.*\(net/b/kernel\)"
    with pytest.raises(ValueError, match=message):
        fit(model, data, [SparsityTarget(0.95, overrides={"b/": 0.3})])
    for one, other in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("where", ["optimizer", "override"])
def test_second_norm_that_makes_zeros_is_refused(mlp, where):
    p = {"optimizer": (0.5, 1.0), "override": (0.5, 2.0)}[where]
    optimizer = LpAdamW(1e-3, (0.1, 0.1), p=p, overrides={"c/": {"p": (0.3, 0.9)}})
    with pytest.raises(ValueError, match=r"one norm.*Keep one.*p=\(0\.[35], "):
        SparsityTarget(0.8).set_model(compiled(mlp(), optimizer))


def test_model_that_is_not_built_is_refused():
    model = compiled(keras.Sequential([keras.layers.Dense(3)]), LpAdamW(1e-3))
    with pytest.raises(ValueError, match="must be built"):
        SparsityTarget(0.8).set_model(model)


def test_weights_that_are_not_finite_are_an_error_at_the_end(mlp):
    model, target = compiled(mlp(), LpAdamW(3e-3)), SparsityTarget(0.8, end_step=15)
    kernel = model.layers[0].kernel
    array = numpy(kernel)
    array[0, 0] = np.nan
    kernel.assign(array)
    with pytest.raises(ValueError, match=r"not finite.*net/a/kernel"):
        pretend(model, target, 2, 10)
