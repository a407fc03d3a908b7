import inspect
import json
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_lp
from keras_lp import LpAdamW, LpDecay, LpLion, LpMuon, LpSGD

PADAM = np.load(Path(__file__).parent / "data" / "padam_trajectories.npz")
CASES = sorted({key.split("/")[0] for key in PADAM})

COMPILED = [
    pytest.param({"jit_compile": True}, id="jit"),
    pytest.param({"jit_compile": False}, id="graph", marks=pytest.mark.slow),
]


def eager(*marks):
    return pytest.param({"run_eagerly": True}, id="eager", marks=marks)


ways_to_run = pytest.mark.parametrize("compiling", [*COMPILED, eager()])


def weights_of(model):
    return [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]


def train(model, optimizer, batches, epochs=3, **compiling):
    x, y = batches
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, **compiling)
    model.fit(x, y, batch_size=16, epochs=epochs, verbose=0, shuffle=False)
    return model


def zero_kernel(mlp):
    model = mlp()
    model.get_layer("logits").kernel.assign(np.zeros((16, 3), "float32"))
    return model


def apply(optimizer, variables, gradients):
    optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], variables)


def adam_reference(w, gradients, lr, wd, p, reference):
    """The rule in NumPy float64, with Adam as in Kingma and Ba and epsilon 1e-7 as in Keras."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        at = w if reference == "previous" else w - step
        with np.errstate(over="ignore", divide="ignore"):
            w = (w - step) / (1 + lr * wd * np.abs(at) ** (p - 2))
    return w


@pytest.mark.parametrize("case", CASES)
def test_lp_adamw_follows_the_authors_trajectories(case):
    def value(key):
        return PADAM[f"{case}/{key}"]

    variable = keras.Variable(value("w0"), name="kernel")
    optimizer = LpAdamW(
        float(value("learning_rate")),
        float(value("weight_decay")),
        p=float(value("p")),
        reference="updated" if "late" in case else "previous",
        epsilon=1e-8,
    )
    for gradient, expected in zip(value("grads"), value("weights"), strict=True):
        apply(optimizer, [variable], [gradient])
        result = keras.ops.convert_to_numpy(variable)
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(np.abs(result) <= 1e-13, np.abs(expected) <= 1e-13)


@pytest.mark.parametrize("reference", ["previous", "updated"])
@pytest.mark.parametrize("p", [0, 0.5, 0.8, 1, 1.5, 2, 3])
def test_lp_adamw_follows_the_formula_in_float64(p, reference):
    random = np.random.default_rng(1)
    w = random.normal(size=(6, 5))
    gradients = random.normal(size=(30, 6, 5))
    variable = keras.Variable(w, dtype="float32", name="kernel")
    optimizer = LpAdamW(1e-2, 0.05, p=p, reference=reference)
    for gradient in gradients:
        apply(optimizer, [variable], [gradient.astype("float32")])
    expected = adam_reference(w, gradients, 1e-2, 0.05, p, reference)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, atol=2e-5)


@ways_to_run
@pytest.mark.parametrize("p", [0.5, *(pytest.param(p, marks=pytest.mark.slow) for p in (0.8, 2))])
def test_weight_decay_of_zero_gives_bitwise_the_weights_of_adam(mlp, batches, p, compiling):
    model, twin = mlp(), mlp()
    twin.set_weights(model.get_weights())
    train(model, LpAdamW(1e-2, 0.0, p=p), batches, **compiling)
    train(twin, keras.optimizers.Adam(1e-2), batches, **compiling)
    for ours, theirs in zip(weights_of(model), weights_of(twin), strict=True):
        if keras.backend.backend() == "torch":  # Keras takes a fused variant of its own Adam.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
        else:
            np.testing.assert_array_equal(ours.view("uint32"), theirs.view("uint32"))


@pytest.mark.parametrize("compiling", [*COMPILED, eager(pytest.mark.slow)])
def test_training_makes_exact_zeros_and_keeps_them(mlp, batches, compiling):
    model = mlp()
    start = weights_of(model)[0].copy()
    start[::2] = 0.0
    model.get_layer("hidden").kernel.assign(start)
    train(model, LpAdamW(1e-2, 0.3, p=0.5), batches, epochs=30, **compiling)
    report = keras_lp.sparsity_report(model)
    assert report.sparsity > 0.5
    assert not weights_of(model)[0][::2].any()
    assert weights_of(model)[3].all()  # biases are left alone


def test_updated_reference_lets_zeros_grow_again(mlp, batches):
    model = zero_kernel(mlp)
    train(model, LpAdamW(1e-2, 1e-4, p=0.5, reference="updated"), batches)
    assert np.count_nonzero(weights_of(model)[2]) > 40


def test_biases_and_excluded_variables_get_adams_step_alone():
    random = np.random.default_rng(0)
    start, gradient = random.normal(size=(2, 4, 3)).astype("float32")
    results = []
    for optimizer in (LpAdamW(0.1, 1.0, p=1.0, exclude="head"), keras.optimizers.Adam(0.1)):
        variables = [
            keras.Variable(start, name="kernel"),
            keras.Variable(start, name="head"),
            keras.Variable(start, name="bias"),
            keras.Variable(start[0], name="vector"),
        ]
        apply(optimizer, variables, [gradient, gradient, gradient, gradient[0]])
        results.append([keras.ops.convert_to_numpy(v) for v in variables])
    ours, theirs = results
    assert not np.allclose(ours[0], theirs[0])
    for left, right in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", pytest.param("float64", marks=pytest.mark.backend("tensorflow"))],
)
def test_half_and_double_precision_variables_follow_the_formula(dtype):
    random = np.random.default_rng(2)
    w = random.normal(size=(6, 5))
    gradients = random.normal(size=(5, 6, 5))
    variable = keras.Variable(w, dtype=dtype, name="kernel")
    # Adam's own epsilon of 1e-7 is 0 in float16, which is no matter for these gradients.
    optimizer = LpAdamW(1e-2, 0.5, p=0.8)
    for gradient in gradients:
        apply(optimizer, [variable], [gradient])
    expected = adam_reference(w, gradients, 1e-2, 0.5, 0.8, "previous")
    result = keras.ops.convert_to_numpy(variable).astype("float64")
    tolerance = {"float16": 0.02, "bfloat16": 0.1, "float64": 1e-6}[dtype]
    np.testing.assert_allclose(result, expected, atol=tolerance)


def test_factor_of_a_half_precision_variable_is_computed_in_float32():
    # |w|**-2 of this weight overflows float16, and the factor rounds to one there.
    variable = keras.Variable(np.full((1, 1), 2e-3), dtype="float16", name="kernel")
    optimizer = LpAdamW(1e-3, 1e-3, p=0.0)
    apply(optimizer, [variable], [np.zeros((1, 1))])
    assert float(variable.numpy()[0, 0]) == pytest.approx(2e-3 / 1.25, rel=1e-3)


@pytest.mark.parametrize("scheduled", [False, True])
def test_weight_decay_changes_during_training_without_a_retrace(mlp, batches, scheduled):
    traces = []

    class Counted(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    model = keras.Sequential([*mlp().layers, Counted()])
    p = keras.optimizers.schedules.PolynomialDecay(2.0, 8, 0.8) if scheduled else 0.8
    train(model, LpAdamW(1e-2, 0.0, p=p), batches, epochs=1)
    count = len(traces)
    before = weights_of(model)[0]
    model.optimizer.weight_decay = 1e3
    x, y = batches
    model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    assert float(model.optimizer.weight_decay) == 1e3
    if keras.backend.backend() != "torch":  # which traces nothing
        assert len(traces) == count
    # The new strength is in force: it takes nearly all of the weights within a few steps.
    assert np.abs(weights_of(model)[0]).sum() < 0.1 * np.abs(before).sum()


def test_schedules_of_weight_decay_and_p_are_evaluated_at_each_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay
    w, gradients = np.full((2, 2), 0.7), np.random.default_rng(0).normal(size=(4, 2, 2))
    variable = keras.Variable(w, dtype="float32", name="kernel")
    optimizer = LpAdamW(1e-2, schedule([1], [0.0, 2.0]), p=schedule([1], [2.0, 0.8]))
    for gradient in gradients:
        apply(optimizer, [variable], [gradient.astype("float32")])
    assert float(optimizer.weight_decay) == 2.0
    assert float(optimizer.p) == pytest.approx(0.8)

    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        wd, p = (0.0, 2.0) if t <= 2 else (2.0, 0.8)  # steps are counted from 0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = 1e-2 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        w = (w - step) / (1 + 1e-2 * wd * np.abs(w) ** (p - 2))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), w, atol=1e-5)


def test_p_can_be_set_until_the_optimizer_is_built_and_not_after(mlp, batches):
    optimizer = LpAdamW(p=0.8)
    optimizer.p = 0.5
    assert optimizer.p == 0.5
    train(mlp(), optimizer, batches, epochs=1)
    with pytest.raises(ValueError, match=r"LearningRateSchedule.*Received: p=1"):
        optimizer.p = 1
    assert optimizer.p == 0.5


def test_weight_decay_from_a_schedule_cannot_be_set():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    optimizer = LpAdamW(weight_decay=schedule)
    with pytest.raises(TypeError, match=r"schedule.*Received: weight_decay=0.1"):
        optimizer.weight_decay = 0.1


NAMED = {
    LpAdamW: keras.optimizers.Adam,
    LpSGD: keras.optimizers.SGD,
    LpLion: keras.optimizers.Lion,
    LpMuon: keras.optimizers.Muon,
}


@pytest.mark.parametrize("kind", NAMED)
def test_named_optimizer_takes_the_arguments_of_keras_with_the_same_defaults(kind):
    theirs = inspect.signature(NAMED[kind].__init__).parameters
    ours = inspect.signature(kind.__init__).parameters
    for name in set(ours) & set(theirs) - {"weight_decay"}:
        assert ours[name].default == theirs[name].default, name
    rest = {
        name: parameter.default
        for name, parameter in theirs.items()
        if name not in ours and name not in ("self", "kwargs", "name", "adam_weight_decay")
    }
    assert {"clipnorm", "use_ema", "gradient_accumulation_steps"} <= set(rest)
    config = kind(**rest).get_config()
    assert {name: config.get(name) for name in rest} == {
        name: NAMED[kind]().get_config().get(name) for name in rest
    }


@pytest.mark.parametrize("kind", NAMED)
def test_named_optimizer_is_the_decay_in_its_keras_optimizer(kind):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=(4, 3)), random.normal(size=(5, 4, 3))
    results = []
    for optimizer in (
        kind(1e-2, weight_decay=0.2, p=0.5, reference="updated"),
        LpDecay(NAMED[kind](1e-2), 0.2, p=0.5, reference="updated"),
    ):
        variable = keras.Variable(start, dtype="float32", name="kernel")
        for gradient in gradients:
            apply(optimizer, [variable], [gradient.astype("float32")])
        results.append(keras.ops.convert_to_numpy(variable))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("kind", NAMED)
def test_named_optimizer_survives_a_round_trip_through_its_config(kind):
    optimizer = kind(0.5, weight_decay=(0.1, 0.2), p=(0.8, 2.0), overrides={"a": {"p": [1.0, 2.0]}})
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is kind
    assert again.get_config() == optimizer.get_config()


def test_second_decay_of_muon_is_an_error_with_the_remedy():
    with pytest.raises(ValueError, match=r"overrides=.*Received: adam_weight_decay=0.1"):
        LpMuon(adam_weight_decay=0.1)


def test_arguments_beyond_the_first_two_cannot_be_confused_by_position():
    with pytest.raises(TypeError):
        LpAdamW(1e-3, 0.004, 0.9)


def everything():
    return LpAdamW(
        learning_rate=keras.optimizers.schedules.CosineDecay(0.01, 100),
        weight_decay=0.3,
        p=1.3,
        reference="updated",
        exclude=["logits/kernel"],
        beta_1=0.8,
        amsgrad=True,
        clipnorm=1.0,
        use_ema=True,
        name="optimizer",
    )


def test_config_survives_a_round_trip():
    optimizer = everything()
    optimizer.exclude_from_weight_decay(var_names=["hidden_7"])
    config = optimizer.get_config()
    assert config["weight_decay"] == 0.3
    assert config["p"] == 1.3
    twin = LpAdamW.from_config(config)
    assert twin.get_config() == config
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, LpAdamW)
    assert again.get_config() == config


def test_config_of_schedules_survives_a_round_trip():
    schedule = keras.optimizers.schedules.PolynomialDecay
    optimizer = LpAdamW(weight_decay=schedule(0.0, 10, 0.5), p=schedule(2.0, 20, 0.8))
    twin = LpAdamW.from_config(optimizer.get_config())
    assert twin.get_config() == optimizer.get_config()
    assert float(twin.p) == 2.0


def test_config_holds_the_weight_decay_that_was_set_last():
    optimizer = LpAdamW(weight_decay=0.1)
    optimizer.weight_decay = 0.004
    assert optimizer.get_config()["weight_decay"] == 0.004


def exclude_by_argument(model):
    # The path of a loaded Sequential lacks the first part.
    return LpAdamW(1e-2, 0.5, p=0.5, exclude="^mlp/logits")


def exclude_by_variable(model):
    optimizer = LpAdamW(1e-2, 0.5, p=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("logits").kernel])
    return optimizer


def exclude_by_name(model):
    optimizer = LpAdamW(1e-2, 0.5, p=0.5)
    # Names that are found nowhere are the rule in lists that serve many models.
    optimizer.exclude_from_weight_decay(var_names=["logits", "LayerNorm"])
    return optimizer


@pytest.mark.parametrize("excluding", [exclude_by_argument, exclude_by_variable, exclude_by_name])
def test_training_goes_on_bitwise_after_save_and_load(mlp, batches, tmp_path, excluding):
    model = mlp()
    train(model, excluding(model), batches, epochs=2)
    model.optimizer.weight_decay = 0.25
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, LpAdamW)
    assert float(loaded.optimizer.weight_decay) == 0.25
    assert loaded.optimizer.decayed_variables == [loaded.get_layer("hidden").kernel]
    x, y = batches
    for each in (model, loaded):
        each.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False)
    for left, right in zip(weights_of(model), weights_of(loaded), strict=True):
        np.testing.assert_array_equal(left, right)
    assert keras_lp.sparsity_report(loaded).sparsity > 0
    assert np.count_nonzero(weights_of(loaded)[2]) == weights_of(loaded)[2].size


def test_exclusions_survive_in_a_subclassed_model_with_automatic_names(batches, tmp_path):
    class Net(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = keras.layers.Dense(5, activation="relu")
            self.head = keras.layers.Dense(3)

        def call(self, x):
            return self.head(self.hidden(x))

    model = Net()
    model(batches[0])
    optimizer = LpAdamW(exclude=model.head.kernel.path)
    optimizer.exclude_from_weight_decay(var_list=[model.hidden.kernel])
    with pytest.raises(ValueError, match="no variable to decay"):
        optimizer.build(model.trainable_variables)
    train(model, LpAdamW(exclude=model.head.kernel.path), batches)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Net": Net})
    assert loaded.head.kernel.path != model.head.kernel.path
    assert loaded.optimizer.decayed_variables == [loaded.hidden.kernel]
    loaded.fit(*batches, verbose=0)


def test_config_with_other_exclusions_selects_anew(mlp):
    variables = mlp().trainable_variables
    optimizer = LpAdamW(exclude="logits")
    optimizer.build(variables)
    twin = LpAdamW.from_config({**optimizer.get_config(), "exclude": ["hidden"]})
    twin.build(variables)
    assert twin.decayed_variables == [variables[2]]


def test_clone_of_a_model_takes_a_clone_of_the_optimizer(mlp, batches):
    model = train(mlp(), exclude_by_argument(None), batches, epochs=1)
    clone = keras.models.clone_model(model)
    clone.compile_from_config(model.get_compile_config())
    assert isinstance(clone.optimizer, LpAdamW)
    assert clone.optimizer is not model.optimizer
    assert clone.optimizer.get_config() == model.optimizer.get_config()


def test_nothing_is_decayed_before_the_optimizer_is_built(mlp):
    optimizer = LpAdamW()
    assert optimizer.decayed_variables == []
    optimizer.build(mlp().trainable_variables)
    again = LpAdamW.from_config(optimizer.get_config())
    assert again.decayed_variables == []


def test_saved_selection_is_not_used_for_variables_of_other_shapes():
    def variables(prefix, size):
        made = []
        for name in ("hidden", "logits"):
            with keras.name_scope(prefix), keras.name_scope(name):
                made.append(keras.Variable(np.ones((size, size)), name="kernel"))
        return made

    optimizer = LpAdamW(exclude="^net/logits")
    optimizer.build(variables("net", 4))
    same = variables("other", 4)
    twin = LpAdamW.from_config(optimizer.get_config())
    twin.build(same)
    assert twin.decayed_variables == same[:1]
    twin = LpAdamW.from_config(optimizer.get_config())
    with pytest.warns(UserWarning, match=r"nothing will be decayed.*'\^net/logits'"):
        twin.build(variables("other", 5))
    assert twin.decayed_variables == []


def test_model_whose_layers_were_frozen_after_training_loads(mlp, batches, tmp_path):
    model = train(mlp(), LpAdamW(exclude="^mlp/logits"), batches, epochs=1)
    model.get_layer("hidden").trainable = False
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="nothing will be decayed"):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    for left, right in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_override_patterns_of_another_config_select_anew(mlp):
    variables = mlp().trainable_variables
    optimizer = LpAdamW(overrides={"hidden": {"p": 1.0}, "logits": {"p": 2.0}})
    optimizer.build(variables)
    config = optimizer.get_config()
    config["overrides"] = dict(reversed(config["overrides"].items()))
    twin = LpAdamW.from_config(config)
    twin.build(variables)
    assert twin.get_config()["selection"]["decayed"] == ["", "2", "0"]


def test_each_variable_of_the_state_has_its_own_path(mlp, batches):
    optimizer = LpAdamW(
        weight_decay=(0.1, 0.2), p=(1, 2), overrides={"hidden": {"weight_decay": (0.3, 0.4)}}
    )
    model = train(mlp(), optimizer, batches, epochs=1)
    paths = [variable.path for variable in optimizer.variables]
    assert len(set(paths)) == len(paths)
    model.get_state_tree()


@pytest.mark.parametrize("value", ["hidden", ["hidden"], keras.Variable([[1.0]])])
def test_what_is_no_list_of_variables_to_exclude_is_an_error(value):
    with pytest.raises(ValueError, match=r"`var_list` must be a list of variables.*Received: var"):
        LpAdamW().exclude_from_weight_decay(var_list=value)


@pytest.mark.backend("tensorflow", "jax")
@ways_to_run
def test_moving_average_without_a_decay_is_bitwise_that_of_keras(compiling):
    random = np.random.default_rng(0)
    data = random.normal(size=(64, 64)).astype("float32"), random.normal(size=(64, 128))
    results = []
    for optimizer in (LpAdamW(1e-2, 0.0, use_ema=True), keras.optimizers.Adam(1e-2, use_ema=True)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(128)])
        model.compile(optimizer, "mse", **compiling)
        model.fit(*data, epochs=3, verbose=0, shuffle=False)
        results.append(weights_of(model))
    for left, right in zip(*results, strict=True):
        np.testing.assert_array_equal(left.view("uint32"), right.view("uint32"))


def test_exclusions_replace_each_other_as_in_keras(mlp):
    model = mlp()
    hidden, logits = (model.get_layer(name).kernel for name in ("hidden", "logits"))
    optimizer = LpAdamW()
    optimizer.exclude_from_weight_decay(var_list=[logits])
    optimizer.exclude_from_weight_decay(var_names=["hidden"])
    optimizer.build(model.trainable_variables)
    assert optimizer.decayed_variables == [logits]
    with pytest.raises(ValueError, match="before the optimizer is"):
        optimizer.exclude_from_weight_decay(var_list=[hidden])


def test_exclusions_of_variables_and_names_that_the_model_lacks_are_ignored_as_in_keras(mlp):
    optimizer = LpAdamW()
    optimizer.exclude_from_weight_decay(
        var_list=[keras.Variable([[1.0]], name="other")], var_names=["LayerNorm"]
    )
    variables = mlp().trainable_variables
    optimizer.build(variables)
    assert optimizer.decayed_variables == [variables[0], variables[2]]


def test_exclusion_of_one_of_two_variables_of_the_same_path_leaves_the_other_in(mlp):
    variables = [*mlp().trainable_variables, *mlp().trainable_variables]
    assert variables[0].path == variables[4].path
    optimizer = LpAdamW()
    optimizer.exclude_from_weight_decay(var_list=[variables[4]])
    optimizer.build(variables)
    decayed = optimizer.decayed_variables
    assert [any(v is d for d in decayed) for v in variables[::2]] == [True, True, False, True]


def test_exclusions_of_an_optimizer_that_was_never_built_survive(mlp):
    variables = mlp().trainable_variables
    optimizer = LpAdamW()
    optimizer.exclude_from_weight_decay(var_list=[variables[2]])
    twin = LpAdamW.from_config(optimizer.get_config())
    twin.build(variables)
    assert twin.decayed_variables == [variables[0]]


def test_saved_selection_is_not_used_for_another_model_of_the_same_shapes():
    def variables(*names):
        made = []
        for name in names:
            with keras.name_scope(name):
                made.append(keras.Variable(np.ones((8, 8)), name="kernel"))
        return made

    optimizer = LpAdamW()
    optimizer.build([*variables("a", "b"), keras.Variable([1.0], name="bias")])
    others = [keras.Variable([1.0], name="bias"), *variables("a", "b")]
    twin = LpAdamW.from_config(optimizer.get_config())
    twin.build(others)
    assert twin.decayed_variables == others[1:]

    for kept, excluded, pattern in [("body", "head", "head"), ("dense_2", "dense_1", "dense_1/")]:
        optimizer = LpAdamW(exclude=pattern)
        optimizer.build(variables(kept, excluded))
        swapped = variables(excluded, kept)
        twin = LpAdamW.from_config(optimizer.get_config())
        twin.build(swapped)
        assert twin.decayed_variables == [swapped[1]]
        twin = LpAdamW.from_config(optimizer.get_config())
        with pytest.warns(UserWarning, match=f"nothing will be decayed.*'{pattern}'"):
            twin.build(variables("q", "r"))


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [None, 7])
def test_moving_average_keeps_the_zeros(mlp, batches, overwrite):
    model = mlp()
    average = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": overwrite}
    train(model, LpAdamW(1e-2, 0.3, p=0.5, **average), batches, epochs=30)
    sparsity = keras_lp.sparsity_report(model).sparsity
    twin = mlp()
    train(twin, LpAdamW(1e-2, 0.3, p=0.5), batches, epochs=30)
    assert sparsity == pytest.approx(keras_lp.sparsity_report(twin).sparsity, abs=0.15)
    assert sparsity > 0.4


def test_moving_average_is_that_of_the_decayed_weights():
    random = np.random.default_rng(0)
    variable = keras.Variable(random.normal(size=(4, 3)), dtype="float32", name="kernel")
    optimizer = LpAdamW(1e-2, 0.1, p=0.8, use_ema=True, ema_momentum=0.9)
    average = None
    for gradient in random.normal(size=(20, 4, 3)):
        apply(optimizer, [variable], [gradient.astype("float32")])
        w = keras.ops.convert_to_numpy(variable).astype("float64")
        average = w if average is None else 0.9 * average + 0.1 * w
    optimizer.finalize_variable_values([variable])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), average, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0.0},
        {"weight_decay": (0.0, 1e-9), "p": (0.8, 2.0)},
        {"p": 2.0},
        {"reference": "updated"},
    ],
)
def test_moving_average_of_a_weight_that_can_leave_zero_is_that_of_keras(arguments):
    averages = []
    for optimizer in (
        LpSGD(0.1, use_ema=True, **{"weight_decay": 1e-9, **arguments}),
        keras.optimizers.SGD(0.1, use_ema=True),
    ):
        variable = keras.Variable(np.full((2, 2), 0.7, "float32"), name="kernel")
        apply(optimizer, [variable], [np.ones((2, 2), "float32")])
        variable.assign(np.zeros((2, 2)))  # as pruning by hand would
        apply(optimizer, [variable], [np.zeros((2, 2), "float32")])
        assert not keras.ops.convert_to_numpy(variable).any()
        variable.assign(np.ones((2, 2)))
        optimizer.finalize_variable_values([variable])
        averages.append(keras.ops.convert_to_numpy(variable))
    assert np.all((averages[1] != 0) & (averages[1] != 1))
    np.testing.assert_allclose(*averages, rtol=1e-5)


def test_keras_own_decay_is_not_applied_on_top():
    variable = keras.Variable(np.full((2, 2), 3.0), name="kernel")
    optimizer = LpAdamW(0.1, 0.5, p=0.0)
    apply(optimizer, [variable], [np.zeros((2, 2), "float32")])
    expected = 3.0 / (1 + 0.1 * 0.5 / 9.0)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, rtol=1e-6)


def test_optimizer_keeps_no_array_of_the_weights_size_beyond_adams(mlp):
    variables = mlp().trainable_variables
    ours, theirs = LpAdamW(), keras.optimizers.Adam()
    ours.build(variables)
    theirs.build(variables)
    shapes = [tuple(v.shape) for v in ours.variables]
    # The strength, how it is scaled for each of the two decayed variables, and up to which rate.
    own = [(), (2, 1), ()]
    assert sorted(shapes) == sorted([*(tuple(v.shape) for v in theirs.variables), *own])


def test_names_of_keras_that_are_not_public_are_there_and_do_what_we_rely_on(mlp, monkeypatch):
    # Fails clearly should Keras rename what `keras_lp.optimizers.lp_update` builds on.
    for name in (
        "_apply_weight_decay",
        "_get_variable_index",
        "_update_model_variables_moving_average",
    ):
        assert callable(getattr(keras.optimizers.Optimizer, name, None)), name
    optimizer = keras.optimizers.Adam(use_ema=True)
    variables = mlp().trainable_variables
    optimizer.build(variables)
    assert [optimizer._get_variable_index(v) for v in variables] == [0, 1, 2, 3]
    averages = optimizer._model_variables_moving_average
    assert [tuple(v.shape) for v in averages] == [tuple(v.shape) for v in variables]
    assert optimizer._trainable_variables == variables
    assert int(optimizer._iterations) == 0
    called = []
    monkeypatch.setattr(LpAdamW, "_apply_weight_decay", lambda self, v: called.append(v))
    apply(LpAdamW(), variables, [np.zeros(v.shape, "float32") for v in variables])
    assert len(called) == 1


def test_variable_of_all_zeros_is_named_in_one_warning(mlp, batches):
    model = zero_kernel(mlp)
    with pytest.warns(UserWarning, match=r"mlp/logits/kernel \(100\.0%\)\. .*'keep'") as caught:
        train(model, LpAdamW(p=0.8), batches)
    messages = [str(warning.message) for warning in caught]
    (message,) = [message for message in messages if message.startswith("With p < 2")]
    assert "hidden" not in message


@pytest.mark.parametrize(("zeros", "is_warned_of"), [(1, False), (30, True)])
def test_variable_with_many_zeros_is_warned_of_and_one_with_a_few_is_not(zeros, is_warned_of):
    rows = np.ones((100, 4), "float32")
    rows[:zeros] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LpAdamW().build([keras.Variable(rows, name="embeddings")])
    found = [str(w.message) for w in caught if str(w.message).startswith("With p < 2")]
    assert len(found) == is_warned_of
    assert all("embeddings (30.0%)" in message for message in found)


@pytest.mark.parametrize("arguments", [{"initial_zeros": "keep"}, {"initial_zeros": "train"}, None])
def test_zeros_that_are_meant_are_not_warned_of(mlp, arguments):
    model = mlp()
    keras_lp.prune(model, sparsity=0.5)
    if arguments is None:
        keras_lp.freeze_zeros(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "With p < 2")
        LpAdamW(**(arguments or {})).build(model.trainable_variables)


@pytest.mark.parametrize("p", [0.5, 0.8, 1.0])
def test_zeros_of_the_start_are_let_go_while_a_weight_of_two_hundredths_would_last(p):
    random = np.random.default_rng(1)
    w = random.normal(size=(8, 8)) * (random.random((8, 8)) < 0.5)
    gradients = random.normal(size=(12, 8, 8))
    late = 6  # Before this step half of the weights have no gradient.
    gradients[:late, 4:] = 0
    lr, strength = 1e-3, 0.26 / (1e-3 * 0.02 ** (p - 2))  # Four steps.
    variable = keras.Variable(w, dtype="float32", name="kernel")
    optimizer = LpAdamW(lr, strength, p=p, initial_zeros="train")
    found = []
    for gradient in gradients.astype("float32"):
        apply(optimizer, [variable], [gradient])
        found.append(np.array(keras.ops.convert_to_numpy(variable)))
    expected, m, v = w, np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        with np.errstate(divide="ignore", over="ignore"):
            divisor = 1 + lr * strength * np.abs(expected) ** (p - 2)
        is_free = (expected == 0) & ((t - 1) * 0.26 < 1)
        expected = (expected - step) / np.where(is_free, 1.0, divisor)
    np.testing.assert_allclose(found[-1], expected, rtol=0, atol=2e-6)
    zeros = w == 0
    assert np.all(found[0][:4][zeros[:4]] != 0)
    assert np.all(found[-1][4:][zeros[4:]] == 0)


@pytest.mark.parametrize("what", ["learning_rate", "weight_decay", "schedule"])
def test_zeros_are_not_let_go_again_where_rate_or_strength_falls(what):
    kernel = np.where(np.arange(16).reshape(4, 4) % 2, 0.5, 0.0).astype("float32")
    variable = keras.Variable(kernel, name="kernel")
    strength = 0.4 / (1e-3 * 0.02**-1.2)  # Let go for three steps.
    rate = 1e-3
    if what == "schedule":
        rate = keras.optimizers.schedules.PiecewiseConstantDecay([5], [1e-3, 1e-8])
    optimizer = LpSGD(rate, weight_decay=strength, p=0.8, initial_zeros="train")
    for step in range(12):
        if step == 6 and what != "schedule":
            setattr(optimizer, what, 1e-8)
        # The zeros have no gradient in the steps in which they could go.
        gradient = np.ones((4, 4)) if step > 3 else (kernel != 0)
        apply(optimizer, [variable], [gradient.astype("float32")])
    found = keras.ops.convert_to_numpy(variable)
    np.testing.assert_array_equal(found == 0, kernel == 0)


def test_strengths_that_are_steered_hold_up_to_the_learning_rate_that_they_are_meant_for():
    w = np.random.default_rng(0).normal(size=(4, 4))
    variable = keras.Variable(w, dtype="float32", name="kernel")
    optimizer = LpSGD(0.1, p=1.0)
    optimizer.build([variable])
    optimizer.steer([0.5], largest_rate=0.01)
    apply(optimizer, [variable], [np.zeros((4, 4), "float32")])
    w = w / (1 + 0.01 * 0.5 / np.abs(w))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), w, rtol=1e-5)
    optimizer.weight_decay = 0.5  # Set by hand it goes by any rate again.
    apply(optimizer, [variable], [np.zeros((4, 4), "float32")])
    w = w / (1 + 0.1 * 0.5 / np.abs(w))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), w, rtol=1e-5)


def test_config_stays_short_for_models_of_many_variables():
    variables = []
    for block in range(100):
        with keras.name_scope(f"block_{block}"):
            for name in ("kernel", "bias", "gamma"):
                variables.append(keras.Variable(keras.ops.ones((2, 2)), name=name))
    optimizer = LpAdamW(overrides={"block_5": {"p": 0.5}})
    optimizer.build(variables)
    described = optimizer.get_config()["selection"]
    assert len(json.dumps(described)) < 600
    twin = LpAdamW.from_config(json.loads(json.dumps(optimizer.get_config())))
    twin.build(variables)
    assert twin.decayed_variables == optimizer.decayed_variables == variables[::3]
    assert twin.steered_exponents() == optimizer.steered_exponents()


def test_included_variables_are_decayed_whatever_their_name():
    alpha = keras.Variable(keras.ops.ones((2, 2)), name="W_alpha")
    kernel = keras.Variable(keras.ops.ones((2, 2)), name="kernel")
    optimizer = LpSGD(0.1, include="alpha", overrides={"alpha": {"p": 1.0}})
    optimizer.build([alpha, kernel])
    assert optimizer.decayed_variables == [alpha, kernel]
    assert LpSGD.from_config(optimizer.get_config()).include == ("alpha",)


@pytest.mark.parametrize(
    "arguments", [{"p": 2.0}, {"reference": "updated"}, {"exclude": "logits"}, {"weight_decay": 0}]
)
def test_zeros_that_can_train_are_not_warned_of(mlp, batches, arguments):
    model = zero_kernel(mlp)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "With p < 2")
        train(model, LpAdamW(**arguments), batches)
    assert np.count_nonzero(weights_of(model)[2]) > 0


def test_loading_a_model_does_not_warn_of_zeros_that_its_weights_will_replace(batches, tmp_path):
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(3, kernel_initializer="zeros")], name="net"
    )
    model.layers[0].kernel.assign(np.ones((8, 3)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "With p < 2")
        train(model, LpAdamW(), batches)
        model.save(tmp_path / "model.keras")
        keras.models.load_model(tmp_path / "model.keras")


@pytest.mark.backend("tensorflow")
def test_optimizer_built_inside_a_traced_function_works_and_warns(mlp, batches):
    import tensorflow as tf

    model = zero_kernel(mlp)
    optimizer = LpAdamW(1e-2, 0.1, p=0.8)
    x, y = batches

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - tf.one_hot(y, 3)) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    model.get_layer("logits").bias.assign([1.0, 2.0, 3.0])
    with pytest.warns(UserWarning, match="logits/kernel"):
        step()
    assert int(optimizer.iterations) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": -1}, r"`p` must be a finite number >= 0.*Received: p=-1"),
        ({"p": float("nan")}, r"`p` must be .*Received: p=nan"),
        ({"p": float("inf")}, r"`p` must be .*Received: p=inf"),
        ({"p": "0.8"}, r"`p` must be .*Received: p='0.8'"),
        ({"p": lambda: 0.8}, r"`p` must be a number .*LearningRateSchedule.*Received: p=<function"),
        ({"weight_decay": -0.1}, r"`weight_decay` must be .*Received: weight_decay=-0.1"),
        ({"weight_decay": float("nan")}, r"`weight_decay` must be .*Received: weight_decay=nan"),
        ({"weight_decay": 1e39}, r"`weight_decay` must be .*Received: weight_decay=1e\+39"),
        ({"weight_decay": None}, r"`weight_decay` must be .*0 turns the decay off.*=None"),
        ({"reference": "next"}, r"`reference` must be \"previous\".*Received: reference='next'"),
        (
            {"initial_zeros": True},
            r"`initial_zeros` must be .*Received: initial_zeros=True",
        ),
        ({"include": 3}, r"`include` must be a regular expression.*Received: include=3"),
        ({"exclude": "("}, r"`exclude` must be a regular expression.*Received: exclude='\('"),
    ],
)
def test_bad_argument_is_an_error_that_names_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        LpAdamW(**arguments)


def test_bad_value_set_during_training_is_an_error_and_leaves_the_old_one():
    optimizer = LpAdamW(weight_decay=0.5)
    for value in (-1, float("nan"), None):
        with pytest.raises(ValueError, match="Received: weight_decay="):
            optimizer.weight_decay = value
    with pytest.raises(ValueError, match="Received: p=-1"):
        optimizer.p = -1
    assert float(optimizer.weight_decay) == 0.5
    assert optimizer.p == 0.8


def test_exclusion_that_matches_nothing_is_an_error_before_the_first_step(mlp, batches):
    model = mlp()
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"`exclude`.*'embed'.*mlp/hidden/kernel"):
        train(model, LpAdamW(exclude="embed"), batches)
    for left, right in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(left, right)


def test_model_without_a_decayed_variable_is_an_error(batches):
    model = keras.Sequential([keras.Input((8,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match="no variable to decay"):
        train(model, LpAdamW(), batches)
