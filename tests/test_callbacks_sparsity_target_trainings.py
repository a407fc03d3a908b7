"""Trainings with `SparsityTarget` of every kind: exactness, the path, and what follows."""

import copy
import json
import math
import pickle
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
pytestmark = pytest.mark.filterwarnings(
    "ignore:The decay had not made enough zeros", "ignore:The way to the target is too short"
)
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


def count_a_step(model):
    """Has the optimizer count a step that changes nothing."""
    model.optimizer.iterations.assign_add(1)


def pretend(model, target, epochs, steps, initial_epoch=0):
    """Calls the callback as a training would that changes nothing; the step that closes."""
    target.set_params({"epochs": epochs, "steps": steps, "verbose": 0})
    target.set_model(model)
    for epoch in range(initial_epoch, epochs):
        target.on_epoch_begin(epoch)
        for batch in range(steps or 50):
            before = sum(zeros(model).values())
            count_a_step(model)
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
@pytest.mark.every_backend
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
    count_a_step(model)
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


def test_weights_that_are_not_finite_are_an_error_at_the_end(mlp):
    model, target = compiled(mlp(), LpAdamW(3e-3)), SparsityTarget(0.8, end_step=15)
    kernel = model.layers[0].kernel
    array = numpy(kernel)
    array[0, 0] = np.nan
    kernel.assign(array)
    with pytest.raises(ValueError, match=r"not finite.*net/a/kernel"):
        pretend(model, target, 2, 10)


# Models that `fit` builds, data that ends, loops of one's own


class Later(keras.Model):
    """A model without variables before its first batch."""

    def __init__(self, trains_by_hand=False):
        super().__init__(name="later")
        self.a = keras.layers.Dense(16, activation="tanh", name="a")
        self.c = keras.layers.Dense(3, name="c")

    def call(self, x):
        return self.c(self.a(x))


class LaterByHand(Later):
    """The same with a training step of its own."""

    def train_step(self, *arguments):
        return super().train_step(*arguments)


def sequential_without_an_input():
    return keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(3)])


def marked_as_built():
    model = Later()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras says what it does there.
        model.build((None, 8))
    return model


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (sequential_without_an_input, "LpAdamW"),
        pytest.param(Later, "LpDecayCallback", marks=pytest.mark.slow),
        pytest.param(LaterByHand, "LpAdamW", marks=pytest.mark.slow),
        pytest.param(marked_as_built, "LpAdamW", marks=pytest.mark.slow),
        pytest.param(marked_as_built, "LpDecayCallback", marks=pytest.mark.slow),
    ],
)
def test_model_that_fit_builds_gets_its_target(make, name, data):
    optimizer, before = WAYS[name]()
    model = compiled(make(), optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "With p < 2")  # No weight starts at zero.
        logs = fit(model, data, [*before, SparsityTarget(0.8)], epochs=2)
    assert share_of_zeros(model.trainable_variables[::2]) == pytest.approx(0.8, abs=0.5 / 176)
    assert logs["sparsity"][-1] == pytest.approx(0.8, abs=0.5 / 176)


@pytest.mark.slow
def test_model_that_fit_builds_goes_on_in_a_second_fit(data):
    model, target = compiled(Later(), LpAdamW(3e-3)), SparsityTarget(0.8, 5, 30)
    fit(model, data, [target], epochs=1)
    assert 0 < share_of_zeros(model.trainable_variables[::2]) < 0.8
    fit(model, data, [target], epochs=2, initial_epoch=1)
    assert share_of_zeros(model.trainable_variables[::2]) == pytest.approx(0.8, abs=0.5 / 176)


def test_refusal_leaves_the_optimizer_as_it_was(data):
    model = compiled(marked_as_built(), LpAdamW(3e-3, reference="updated"))
    with pytest.raises(ValueError, match='reference="previous"'):
        SparsityTarget(0.8).set_model(model)
    assert not model.optimizer.built
    assert float(model.optimizer.weight_decay) == pytest.approx(0.004)


@pytest.mark.filterwarnings("ignore:Your input ran out of data", "ignore:`shuffle=True` was passed")
def test_target_that_is_reached_in_the_last_batch_of_a_generator_is_reached(mlp, data):
    model = compiled(mlp(), LpAdamW(3e-3))
    x, y = (array.reshape(STEPS, 16, *array.shape[1:]) for array in data)
    batches = (batch for batch in zip(x, y, strict=True))
    model.fit(batches, callbacks=[SparsityTarget(0.5, 0, STEPS)], verbose=0)
    assert sum(zeros(model).values()) == round(0.5 * SIZE)


def gradients_of(variables):
    random = np.random.default_rng(0)
    return [keras.ops.convert_to_tensor(random.normal(size=v.shape), "float32") for v in variables]


def step_by_hand(optimizer, variables):
    optimizer.apply(gradients_of(variables), variables)


@pytest.mark.parametrize("follows", [False, True])
def test_loop_of_ones_own_gets_its_target(follows, mlp):
    model = mlp()  # Never compiled.
    optimizer = keras.optimizers.Adam(3e-3) if follows else LpAdamW(3e-3)
    optimizer.build(model.trainable_variables)
    target = SparsityTarget(0.8, begin_step=4, end_step=12, optimizer=optimizer)
    callbacks = [LpDecayCallback(optimizer=optimizer)] if follows else []
    for callback in (*callbacks, target):
        callback.set_model(model)
        callback.on_train_begin()
    for epoch in range(2):
        for callback in (*callbacks, target):
            callback.on_epoch_begin(epoch)
        for batch in range(8):
            for callback in callbacks:
                callback.on_train_batch_begin(batch)
            step_by_hand(optimizer, model.trainable_variables)
            for callback in (*callbacks, target):
                callback.on_train_batch_end(batch)
    target.on_train_end()
    assert sum(zeros(model).values()) == round(0.8 * SIZE)


@pytest.mark.backend("tensorflow")
def test_loop_that_was_traced_before_keeps_the_target(mlp):
    import tensorflow as tf

    model, optimizer = mlp(), LpAdamW(3e-3)
    optimizer.build(model.trainable_variables)
    step = tf.function(lambda: step_by_hand(optimizer, model.trainable_variables), autograph=False)
    target = SparsityTarget(0.8, begin_step=1, end_step=6, optimizer=optimizer)
    target.set_model(model)
    for epoch in range(2):
        target.on_epoch_begin(epoch)
        for batch in range(9):
            step()
            target.on_train_batch_end(batch)
    assert sum(zeros(model).values()) == round(0.8 * SIZE)


@pytest.mark.parametrize("end", [6, pytest.param(400, marks=pytest.mark.slow)])
def test_loop_whose_steps_the_variables_do_not_see_is_told_of_it(end, mlp):
    optimizer, model = LpAdamW(3e-3), mlp()
    optimizer.build(model.trainable_variables)
    target = SparsityTarget(0.8, 0, end, frequency=60, optimizer=optimizer)
    target.set_model(model)
    target.on_epoch_begin(0)

    def train():
        for batch in range(min(end, 120)):  # With steps that change values elsewhere.
            target.on_train_batch_end(batch)

    with pytest.raises(RuntimeError, match=r"made no step in \d+ batches.*assign the values"):
        train()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"begin_step": 2}, "Argument `end_step` is needed"), ({}, "Argument `end_step` is needed")],
)
def test_loop_of_ones_own_is_told_what_to_pass(arguments, message, mlp):
    target = SparsityTarget(0.8, **arguments)
    target.set_model(compiled(mlp(), LpAdamW(3e-3)))
    with pytest.raises(ValueError, match=message):
        target.on_epoch_begin(0)


def test_model_without_any_optimizer_is_told_to_compile_it_or_to_pass_one(mlp):
    with pytest.raises(ValueError, match=r"there is none.* `optimizer=`"):
        SparsityTarget(0.8).set_model(mlp())
    with pytest.raises(TypeError, match=r"`optimizer` must be a Keras optimizer.*'adam'"):
        SparsityTarget(0.8, optimizer="adam")


class Adversaries(keras.Model):
    """Two models with an optimizer each, as in a GAN."""

    def __init__(self):
        super().__init__()
        self.maker, self.judge = make_mlp(), make_mlp()

    def call(self, x):
        return self.judge(x)


@pytest.mark.parametrize("is_given", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_of_several_optimizers_is_steered(is_given):
    model = Adversaries()
    model.maker_optimizer, model.judge_optimizer = LpAdamW(3e-3), keras.optimizers.Adam(3e-3)
    model.compile()  # With an optimizer of Keras's choice, which trains nothing.
    given = {"optimizer": model.maker_optimizer} if is_given else {}
    target = SparsityTarget(0.8, begin_step=2, end_step=10, **given)
    target.set_params({"epochs": 1, "steps": 12})
    target.set_model(model)
    target.on_epoch_begin(0)
    for batch in range(12):
        for part, optimizer in (
            (model.maker, model.maker_optimizer),
            (model.judge, model.judge_optimizer),
        ):
            step_by_hand(optimizer, part.trainable_variables)
        target.on_train_batch_end(batch)
    target.on_epoch_end(0)
    assert sum(zeros(model.maker).values()) == round(0.8 * SIZE)
    assert sum(zeros(model.judge).values()) == 0


def test_optimizer_that_the_first_step_builds_is_steered_too():
    model = Adversaries()
    model.maker_optimizer, model.judge_optimizer = LpAdamW(3e-3), LpAdamW(3e-3)
    model.compile()
    model.judge_optimizer.build(model.judge.trainable_variables)
    target = SparsityTarget(0.8, begin_step=2, end_step=10)
    target.set_params({"epochs": 1, "steps": 12})
    target.set_model(model)
    target.on_epoch_begin(0)
    for batch in range(12):
        step_by_hand(model.maker_optimizer, model.maker.trainable_variables)
        step_by_hand(model.judge_optimizer, model.judge.trainable_variables)
        target.on_train_batch_end(batch)
    both = [v for part in (model.maker, model.judge) for v in part.trainable_variables[::2]]
    assert share_of_zeros(both) == pytest.approx(0.8, abs=0.5 / SIZE)


def test_decay_that_follows_a_given_optimizer_is_steered():
    model = Adversaries()
    model.compile()  # With an optimizer of Keras's choice, which trains nothing.
    optimizer = keras.optimizers.Adam(3e-3)
    optimizer.build(model.maker.trainable_variables)
    follower = LpDecayCallback(optimizer=optimizer)
    target = SparsityTarget(0.8, begin_step=2, end_step=10, optimizer=optimizer)
    for callback in (follower, target):
        callback.set_params({"epochs": 1, "steps": 12})
        callback.set_model(model)
        callback.on_train_begin()
    for callback in (follower, target):
        callback.on_epoch_begin(0)
    for batch in range(12):
        follower.on_train_batch_begin(batch)
        step_by_hand(optimizer, model.maker.trainable_variables)
        for callback in (follower, target):
            callback.on_train_batch_end(batch)
    assert share_of_zeros(follower.decayed_variables) == pytest.approx(0.8, abs=0.01)


# Learning rates that jump


@pytest.mark.parametrize("is_known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_learning_rate_that_jumps_up_destroys_no_weights(is_known, mlp, data):
    def rate(epoch):
        return 1e-6 if epoch < 3 else 3e-3

    model = compiled(mlp(), LpAdamW(1e-6))
    callbacks = [SparsityTarget(0.8), keras.callbacks.LearningRateScheduler(rate)]
    logs = fit(model, data, callbacks if is_known else callbacks[::-1], epochs=10)
    assert max(logs["sparsity"]) == logs["sparsity"][-1] == pytest.approx(0.8, abs=0.5 / SIZE)
    assert logs["sparsity"][3] < 0.7  # The cubic schedule is at 0.56.


def test_learning_rate_that_is_raised_between_two_fits_destroys_no_weights(mlp):
    model, target = compiled(mlp(), LpAdamW(1e-6)), SparsityTarget(0.8, 0, 40, frequency=4)
    pretend(model, target, 1, 20)
    before, variables = kernels(model), model.trainable_variables
    signs = [np.sign(numpy(gradient)) for gradient in gradients_of(variables)[::2]]
    strength = float(model.optimizer.weight_decay)
    model.optimizer.learning_rate = 1e-2
    model.optimizer.iterations.assign(0)
    step_by_hand(model.optimizer, variables)
    for (name, w), sign in zip(before.items(), signs, strict=True):
        w = w.astype("float64")
        # The first step of Adam, and the decay that the rate of before gives.
        expected = (w - 1e-2 * sign) / (1 + 1e-6 * strength * np.abs(w) ** (0.8 - 2))
        np.testing.assert_allclose(kernels(model)[name], expected, atol=1e-5, err_msg=name)


# The best of several epochs


def logs_of(target, monitored, name="val_loss"):
    """The log that `target` adds in each epoch of ten steps."""
    found = []
    for epoch, value in enumerate(monitored):
        target.on_epoch_begin(epoch)
        for batch in range(10):
            count_a_step(target.model)
            target.on_train_batch_end(batch)
        logs = {name: value}
        target.on_epoch_end(epoch, logs)
        found.append(logs[f"target_{name}"])
    return found


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_monitored_log_is_worse_than_any_before_the_target_and_less_so_each_epoch(mlp, mode, sign):
    model, target = compiled(mlp(), LpAdamW(3e-3)), SparsityTarget(0.8, 0, 30, mode=mode)
    target.set_params({"epochs": 5, "steps": 10})
    target.set_model(model)
    found = logs_of(target, [0.1, 0.2, 0.5, 0.4, 0.3])
    assert found[2:] == [0.5, 0.4, 0.3]
    assert sign * found[0] > sign * found[1] > 1e29
    assert np.all(np.isfinite(np.float32(found)))


def test_log_that_is_not_there_is_not_made_up(mlp):
    model, target = compiled(mlp(), LpAdamW(3e-3)), SparsityTarget(0.8, 0, 30, monitor="val_auc")
    target.set_params({"epochs": 5, "steps": 10})
    target.set_model(model)
    target.on_epoch_begin(0)
    logs = {"val_loss": 0.5}
    target.on_epoch_end(0, logs)
    assert not [name for name in logs if name.startswith("target_")]


@pytest.mark.slow
def test_callbacks_of_keras_that_keep_the_best_keep_one_with_the_target(mlp, data, tmp_path):
    model = compiled(mlp(), LpAdamW(1e-2))
    path = tmp_path / "best.keras"
    by_target = {"monitor": "target_val_loss", "mode": "min"}
    callbacks = [
        SparsityTarget(0.8, 2 * STEPS, 6 * STEPS),
        keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True, **by_target),
        keras.callbacks.ModelCheckpoint(path, save_best_only=True, **by_target),
        keras.callbacks.ReduceLROnPlateau(patience=2, **by_target),
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The training reached")
        logs = fit(model, data, callbacks, epochs=30, validation_data=data)
    assert 6 < len(logs["loss"]) <= 30  # Patience did not end before the target.
    assert logs["learning_rate"][5] == pytest.approx(1e-2)
    for kept in (model, keras.models.load_model(path)):
        assert sum(zeros(kept).values()) == round(0.8 * SIZE)


def test_weights_of_an_earlier_epoch_that_a_callback_puts_back_are_told_of(mlp, data):
    class PutsBack(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.weights = self.model.get_weights()

        def on_train_end(self, logs=None):
            self.model.set_weights(self.weights)

    callbacks = [SparsityTarget(0.8, 0, 10), PutsBack()]
    with pytest.warns(
        UserWarning, match=r"reached 80\.09% zeros.*now have 0\.00%.*target_val_loss"
    ):
        fit(compiled(mlp(), LpAdamW(3e-3)), data, callbacks, epochs=1)


# What is said of trainings that harm the model


def messages_of(model, target, epochs, steps, every_batch=lambda batch: None):
    """The warnings of a training that changes nothing but what a function does after batches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        target.set_params({"epochs": epochs, "steps": steps})
        target.set_model(model)
        for epoch in range(epochs):
            target.on_epoch_begin(epoch)
            for batch in range(steps):
                every_batch(epoch * steps + batch)
                count_a_step(model)
                target.on_train_batch_end(batch)
        target.on_train_end()
    return [str(warning.message) for warning in caught]


def test_way_that_is_too_short_is_told_of_once(mlp):
    model, target = compiled(mlp(), LpAdamW(1e-3)), SparsityTarget(0.8, 0, 20)
    found = messages_of(model, target, 3, 10)
    (message,) = [text for text in found if text.startswith("The way to the target is too short")]
    assert "20 steps at a learning rate of 0.001" in message
    enough = int(message.partition("`end_step` (")[2].partition(" would do")[0])
    model, target = compiled(mlp(), LpAdamW(1e-3)), SparsityTarget(0.8, 0, enough)
    assert not [text for text in messages_of(model, target, 1, 2) if "too short" in text]


def test_learning_rate_that_falls_before_the_end_is_told_of_once(mlp):
    model, target = compiled(mlp(), LpAdamW(1e-1)), SparsityTarget(0.8, 0, 100)

    def falls(batch):
        model.optimizer.learning_rate = 1e-1 * 0.5 ** (batch // 10)

    found = [text for text in messages_of(model, target, 1, 80, falls) if "has fallen" in text]
    assert len(found) == 1
    assert "fallen from 0.1 to 0.0063 with 100% of the zeros" in found[0]


def test_strength_that_shrinks_what_is_to_stay_is_told_of(mlp):
    model, target = compiled(mlp(), LpAdamW(1e-1)), SparsityTarget(0.8, 0, 100)

    def stops(batch):
        model.optimizer.learning_rate = 1e-1 if batch < 20 else 1e-4

    found = [text for text in messages_of(model, target, 1, 80, stops) if "has to set" in text]
    assert len(found) == 1
    assert "the median of those that are to stay" in found[0]


def test_training_whose_memory_was_lost_is_told_of(mlp, data, tmp_path):
    model, target = compiled(mlp(), LpAdamW(3e-3)), SparsityTarget(0.8, 2, 40)
    pretend(model, target, 1, STEPS)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    target = SparsityTarget(0.8, 0, 20)
    found = messages_of(loaded, target, 1, 2)
    assert [text for text in found if f"The optimizer has made {STEPS} steps, of which" in text]


def test_phase_without_a_target_before_is_no_lost_memory(mlp):
    model = compiled(mlp(), LpAdamW(1e-2, 0.5, p=0))
    for _ in range(12):
        step_by_hand(model.optimizer, model.trainable_variables)
    assert sum(zeros(model).values()) > 0
    found = messages_of(model, SparsityTarget(0.9, 0, 20), 2, 2)
    assert not [text for text in found if "knows nothing" in text]


def test_second_model_of_a_callback_is_not_judged_by_the_learning_rate_of_the_first(mlp):
    target = SparsityTarget(0.8, 0, 100)
    for rate in (1e-1, 1e-3):
        found = messages_of(compiled(mlp(), LpAdamW(rate)), target, 1, 60)
        assert not [text for text in found if "has fallen" in text]


def test_layers_with_adapters_are_named_as_left_out(mlp):
    model = mlp()
    model.layers[0].enable_lora(2)
    found = messages_of(compiled(model, LpAdamW(3e-3)), SparsityTarget(0.8, 0, 20), 1, 25)
    (message,) = [text for text in found if "LoRA" in text]
    assert "net/a" in message


def test_zeros_that_are_let_go_at_the_start_are_no_floor_of_the_target(mlp, sparsify):
    model = mlp()
    sparsify(model, 0.9)
    model = compiled(model, LpAdamW(3e-3, initial_zeros="train"))
    target = SparsityTarget(0.8, 0, 20)
    target.set_params({"epochs": 1, "steps": 25})
    target.set_model(model)
    target.on_epoch_begin(0)
    for batch in range(25):
        step_by_hand(model.optimizer, model.trainable_variables)
        target.on_train_batch_end(batch)
    assert sum(zeros(model).values()) == round(0.8 * SIZE)


@pytest.mark.parametrize("is_used", [False, True])
def test_callback_can_be_pickled(is_used, mlp):
    target = SparsityTarget(0.8, 0, 20, scope="layer", overrides={"c/": 0.5}, monitor="loss")
    if is_used:
        pretend(compiled(mlp(), LpAdamW(3e-3)), target, 1, 30)
    copied = pickle.loads(pickle.dumps(target))
    model = compiled(mlp(), LpAdamW(3e-3))
    assert pretend(model, copied, 1, 30) == 20
    assert zeros(model) == {"a": round(0.8 * 128), "b": round(0.8 * 256), "c": 24}


def test_callback_warns_for_each_model_that_it_is_used_for(mlp):
    target = SparsityTarget(0.8, 0, 20)
    for _ in range(2):
        model = compiled(mlp(), LpAdamW(3e-3))
        found = messages_of(model, target, 1, 5)
        assert [text for text in found if "ended at step 5" in text]
        assert not [text for text in messages_of(model, target, 1, 5) if "ended" in text]
