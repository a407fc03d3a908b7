import warnings

import keras
import numpy as np
import pytest

import keras_lp
from keras_lp import ConstantSparsity, LpAdamW, LpDecayCallback, PolynomialSparsity, SparsityTarget
from keras_lp.callbacks import sparsity_target

# Ways that are too short on purpose, as some here are for the sake of time.
pytestmark = [
    pytest.mark.every_backend,
    pytest.mark.filterwarnings(
        "ignore:The decay had not made enough zeros", "ignore:The way to the target is too short"
    ),
]
STEPS = 30  # in an epoch of `data`


@pytest.fixture(scope="module")
def data():
    """A problem that can be learned, in 30 batches of 16."""
    random = np.random.default_rng(0)
    x = random.normal(size=(16 * STEPS, 8)).astype("float32")
    return x, np.argmax(x @ random.normal(size=(8, 3)), axis=1)


def make(optimizer, **options):
    """A compiled classifier with 2 decayed variables; tanh, so that no unit dies."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(40, activation="tanh", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ],
        name="net",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    return model


def fit(model, data, callbacks, epochs=8, **options):
    return model.fit(
        *data, batch_size=16, epochs=epochs, callbacks=callbacks, verbose=0, **options
    ).history


def zeros(variable):
    return np.count_nonzero(keras.ops.convert_to_numpy(variable) == 0)


def kernels(model):
    return [layer.kernel for layer in model.layers]


def spy_on_closing(monkeypatch, model):
    """Sparsity at each closing by magnitude, before it."""
    found = []
    prune_groups = sparsity_target.prune_groups

    def spy(groups):
        found.append(keras_lp.sparsity_report(model).sparsity)
        prune_groups(groups)

    monkeypatch.setattr(sparsity_target, "prune_groups", spy)
    return found


def adam_and_callback(**arguments):
    return keras.optimizers.Adam(2e-3), [LpDecayCallback(**arguments)]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(lambda: (LpAdamW(2e-3), []), id="LpAdamW"),
        pytest.param(lambda: (LpAdamW(2e-3, p=1.0), []), id="p=1", marks=pytest.mark.slow),
        pytest.param(lambda: (LpAdamW(2e-3, p=0.0), []), id="p=0", marks=pytest.mark.slow),
        pytest.param(
            lambda: (LpAdamW(2e-3, (0.1, 1e-3), p=(0.5, 2.0)), []),
            id="two norms",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: (LpAdamW(2e-3, use_ema=True), []), id="use_ema", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: (LpAdamW(2e-3, gradient_accumulation_steps=2), []),
            id="accumulation",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: (keras_lp.LpSGD(0.1, momentum=0.9), []), id="LpSGD", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda: (keras_lp.LpDecay(keras.optimizers.RMSprop(2e-3)), []),
            id="LpDecay",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: (keras.optimizers.LossScaleOptimizer(LpAdamW(2e-3)), []),
            id="loss scale",
            marks=pytest.mark.slow,
        ),
        pytest.param(adam_and_callback, id="LpDecayCallback"),
        pytest.param(
            lambda: (
                LpAdamW(
                    keras.optimizers.schedules.CosineDecay(
                        0.0, 240, warmup_target=4e-3, warmup_steps=24
                    )
                ),
                [],
            ),
            id="warm-up from zero",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sparsity_is_the_target_to_one_weight_and_zeros_stay(case, data, monkeypatch):
    optimizer, callbacks = case()
    model = make(optimizer)
    before_closing = spy_on_closing(monkeypatch, model)
    history = fit(model, data, [*callbacks, SparsityTarget(0.8)])
    size = sum(np.prod(kernel.shape) for kernel in kernels(model))
    assert sum(map(zeros, kernels(model))) == round(0.8 * size)
    assert 0.1 < before_closing[0] <= 0.8  # The decay did it, not the closing alone.
    assert np.all(np.diff(history["sparsity"]) >= 0)
    assert history["sparsity"][-1] == round(0.8 * size) / size
    assert history["weight_decay"][-1] == 0
    assert history["weight_decay"][4] > 0


@pytest.mark.backend("tensorflow", "jax")
def test_steps_are_counted_where_several_are_one_execution(data):
    model = make(LpAdamW(2e-3), steps_per_execution=8)
    target = SparsityTarget(0.8)
    fit(model, data, [target])
    assert target._step == 8 * STEPS
    assert sum(map(zeros, kernels(model))) == round(0.8 * 440)


@pytest.mark.slow
@pytest.mark.parametrize("final", [0.6, 0.9])
def test_decay_leaves_less_than_three_percent_to_the_closing(final, data, monkeypatch):
    model = make(LpAdamW(2e-3))
    before_closing = spy_on_closing(monkeypatch, model)
    history = fit(model, data, [SparsityTarget(final)], epochs=25)
    assert final - 0.03 <= before_closing[0] <= final
    begin, end = 75, 600  # A tenth and four fifths of 750 steps.
    for epoch, sparsity in enumerate(history["sparsity"], start=1):
        done = np.clip((epoch * STEPS - begin) / (end - begin), 0, 1)
        assert abs(sparsity - final * (1 - (1 - done) ** 3)) < 0.15


def test_nothing_is_decayed_before_the_begin(data):
    weights = []
    for optimizer, callbacks in (
        (LpAdamW(2e-3, 0.5), [SparsityTarget(0.8, begin_step=2 * STEPS, end_step=4 * STEPS)]),
        (LpAdamW(2e-3, 0.0), []),
    ):
        keras.utils.set_random_seed(0)
        model = make(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It ends before the target is reached.
            fit(model, data, callbacks, epochs=2, shuffle=False)
        weights.append(keras.ops.convert_to_numpy(kernels(model)[0]))
    np.testing.assert_array_equal(*weights)


def test_pattern_is_frozen_while_the_rest_trains_on(data):
    model = make(LpAdamW(2e-3))
    target = SparsityTarget(0.7, begin_step=0, end_step=5 * STEPS)
    fit(model, data, [target], epochs=5)
    first = [keras.ops.convert_to_numpy(kernel) for kernel in kernels(model)]
    fit(model, data, [target], epochs=2)
    for before, kernel in zip(first, kernels(model), strict=True):
        after = keras.ops.convert_to_numpy(kernel)
        np.testing.assert_array_equal(before == 0, after == 0)
        # All but weights of a unit that has no way out any more.
        assert np.mean((before != after)[before != 0]) > 0.8


def test_each_layer_gets_the_target_where_the_scope_is_the_layer(data):
    model = make(LpAdamW(2e-3))
    fit(model, data, [SparsityTarget(0.8, scope="layer")])
    assert list(map(zeros, kernels(model))) == [round(0.8 * 320), round(0.8 * 120)]


@pytest.mark.parametrize(
    ("scope", "callback"),
    [
        pytest.param("global", False, marks=pytest.mark.slow),
        ("global", True),
        pytest.param("layer", False, marks=pytest.mark.slow),
        pytest.param("layer", True, marks=pytest.mark.slow),
    ],
)
def test_override_gives_some_variables_a_target_of_their_own(scope, callback, data):
    optimizer, callbacks = adam_and_callback() if callback else (LpAdamW(2e-3), [])
    model = make(optimizer)
    target = SparsityTarget(0.8, scope=scope, overrides={"logits/kernel": 0.3})
    fit(model, data, [*callbacks, target])
    assert list(map(zeros, kernels(model))) == [round(0.8 * 320), round(0.3 * 120)]


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param("linear", marks=pytest.mark.slow),
        pytest.param("constant", marks=pytest.mark.slow),
        PolynomialSparsity(0.2, 0.8, begin_step=10, end_step=150, power=2, frequency=5),
        pytest.param(
            ConstantSparsity(0.8, begin_step=10, end_step=150, frequency=5), marks=pytest.mark.slow
        ),
        pytest.param(ConstantSparsity(0.8), marks=pytest.mark.slow),
    ],
)
def test_every_schedule_ends_at_its_target(schedule, data):
    model = make(LpAdamW(2e-3))
    final = (0.8,) if isinstance(schedule, str) else ()
    fit(model, data, [SparsityTarget(*final, schedule=schedule)])
    assert sum(map(zeros, kernels(model))) == round(0.8 * 440)


def test_target_is_reached_where_fit_is_called_for_each_epoch(data):
    model = make(LpAdamW(2e-3))
    target = SparsityTarget(0.8, begin_step=0, end_step=6 * STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(8):
            fit(model, data, [target], epochs=1)
    assert sum("before `end_step=180`" in str(warning.message) for warning in caught) == 1
    assert sum(map(zeros, kernels(model))) == round(0.8 * 440)


@pytest.mark.slow
def test_new_target_counts_its_steps_from_its_own_start(data):
    model = make(LpAdamW(2e-3, 0.0))
    fit(model, data, [], epochs=4)
    history = fit(model, data, [SparsityTarget(0.8, begin_step=0, end_step=5 * STEPS)], epochs=8)
    assert history["sparsity"][0] < 0.6
    assert sum(map(zeros, kernels(model))) == round(0.8 * 440)


def test_length_of_an_epoch_that_is_unknown_asks_for_the_end(data):
    def batches():
        for start in range(0, len(data[0]), 16):
            yield data[0][start : start + 16], data[1][start : start + 16]

    model = make(LpAdamW(2e-3))
    with pytest.raises(ValueError, match="`end_step` is needed"):
        model.fit(batches(), epochs=1, verbose=0, callbacks=[SparsityTarget(0.8)])
    target = SparsityTarget(0.8, end_step=STEPS - 5)
    model.fit(batches(), epochs=1, verbose=0, callbacks=[target])
    assert sum(map(zeros, kernels(model))) == round(0.8 * 440)


def test_strengths_of_single_layers_are_saved_with_the_optimizer(data, tmp_path):
    model = make(LpAdamW(2e-3))
    target = SparsityTarget(0.8, 0, 900, scope="layer", overrides={"logits": 0.2})
    with warnings.catch_warnings(action="ignore"):  # It ends before the target is reached.
        fit(model, data, [target], epochs=3)
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for ours, expected in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(expected)
        )
    scales = keras.ops.convert_to_numpy(loaded.optimizer._scales)
    assert scales.max() == 1
    assert scales.min() < 1


@pytest.mark.slow
def test_finished_model_is_saved_loaded_and_stripped(data, tmp_path):
    model = make(LpAdamW(2e-3))
    fit(model, data, [SparsityTarget(0.8)])
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert keras_lp.sparsity_report(loaded).zeros == round(0.8 * 440)
    assert keras_lp.sparsity_report(keras_lp.strip_pruning(model)).zeros == round(0.8 * 440)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`final_sparsity` is needed"),
        ({"final_sparsity": 1.5}, "Received: final_sparsity=1.5"),
        ({"final_sparsity": 0.9, "begin_step": -1}, "Received: begin_step=-1"),
        ({"final_sparsity": 0.9, "begin_step": 5, "end_step": 5}, "begin_step=5, end_step=5"),
        ({"final_sparsity": 0.9, "frequency": 0}, "Received: frequency=0"),
        ({"final_sparsity": 0.9, "schedule": "square"}, "Received: schedule='square'"),
        ({"final_sparsity": 0.9, "scope": "model"}, "Received: scope='model'"),
        ({"final_sparsity": 0.9, "schedule": ConstantSparsity(0.9)}, "leave out `final_sparsity`"),
        ({"final_sparsity": 0.9, "overrides": {"(": 0.5}}, "regular expression"),
        ({"final_sparsity": 0.9, "overrides": {"a": -1}}, "Received: overrides\\['a'\\]=-1"),
        ({"final_sparsity": 0.9, "overrides": 0.5}, "Received: overrides=0.5"),
        ({"schedule": PolynomialSparsity(0.0, 0.9), "end_step": 7}, "leave out `final_sparsity`"),
    ],
)
def test_bad_argument_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        SparsityTarget(**arguments)


@pytest.mark.parametrize(
    ("optimizer", "callbacks", "message"),
    [
        (lambda: "adam", lambda: [SparsityTarget(0.8)], "there is none"),
        (
            lambda: "adam",
            lambda: [SparsityTarget(0.8), LpDecayCallback()],
            "before this callback",
        ),
        (
            lambda: LpAdamW(weight_decay=keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.01)),
            lambda: [SparsityTarget(0.8)],
            "Pass a number as `weight_decay`",
        ),
        (
            lambda: LpAdamW(overrides={"hidden": {"weight_decay": 0.1}}),
            lambda: [SparsityTarget(0.8)],
            "Leave out `weight_decay` there",
        ),
        (lambda: LpAdamW(p=1.5), lambda: [SparsityTarget(0.8)], "p=1.5"),
        (
            lambda: LpAdamW(),
            lambda: [SparsityTarget(0.8, overrides={"nowhere": 0.5})],
            "matches no decayed variable",
        ),
        (
            lambda: LpAdamW(),
            lambda: [SparsityTarget(0.8, begin_step=10_000)],
            "Received: begin_step=10000",
        ),
    ],
)
def test_training_that_cannot_be_steered_is_refused_before_it_begins(
    optimizer, callbacks, message, data
):
    model = make(optimizer())
    before = [keras.ops.convert_to_numpy(kernel) for kernel in kernels(model)]
    with pytest.raises(ValueError, match=message):
        fit(model, data, callbacks())
    for array, kernel in zip(before, kernels(model), strict=True):
        np.testing.assert_array_equal(array, keras.ops.convert_to_numpy(kernel))


def test_more_zeros_than_the_target_are_refused_before_training(data):
    model = make(LpAdamW(2e-3))
    keras_lp.prune(model, sparsity=0.9)
    with pytest.raises(ValueError, match=r"final sparsity of 80.00% .* 90.00% zeros"):
        fit(model, data, [SparsityTarget(0.8)])
    assert int(model.optimizer.iterations) == 0


def test_decay_of_a_callback_of_an_earlier_training_is_not_steered(data):
    model = make(keras.optimizers.Adam(2e-3))
    fit(model, data, [LpDecayCallback()], epochs=1)
    with pytest.raises(ValueError, match="there is none"):
        fit(model, data, [SparsityTarget(0.8)], epochs=1)


def test_zeros_cannot_be_frozen_under_an_average_that_loses_them(data):
    model = make(keras.optimizers.Adam(2e-3, use_ema=True))
    with pytest.raises(ValueError, match="use_ema=True"):
        keras_lp.freeze_zeros(model)
    model.compile(keras_lp.LpDecay(keras.optimizers.Adam(2e-3, use_ema=True), 0.0), "mse")
    keras_lp.prune(model, sparsity=0.5)
    keras_lp.freeze_zeros(model)
    model.fit(data[0], np.zeros((len(data[0]), 3)), batch_size=16, verbose=0)
    assert sum(map(zeros, kernels(model))) == 220
