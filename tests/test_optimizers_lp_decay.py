"""What `LpDecay` does with the optimizer that it is given."""

import pickle

import keras
import numpy as np
import pytest
from keras import optimizers

import keras_lp
from keras_lp import LpAdamW, LpDecay, LpSGD


def apply(optimizer, variable, gradient, steps=1):
    for _ in range(steps):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    return keras.ops.convert_to_numpy(variable)


def kernel(value=1.0, shape=(2, 3)):
    return keras.Variable(np.full(shape, value), dtype="float32", name="kernel")


class Plain(keras.optimizers.Optimizer):
    """An optimizer from a notebook: an argument of its own, no config, not registered."""

    def __init__(self, sharpness, learning_rate=0.1):
        super().__init__(learning_rate=learning_rate)
        self.sharpness = sharpness

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * self.sharpness * gradient)


class DecaysItself(keras.optimizers.Optimizer):
    """An optimizer that applies its weight decay in its step, not where Keras does."""

    def __init__(self, learning_rate=0.1, weight_decay=0.3, **kwargs):
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        step = gradient + self.weight_decay * variable
        self.assign_sub(variable, learning_rate * step)


def test_optimizer_stays_an_instance_of_its_class_with_all_it_holds():
    calls = []

    def rate():
        calls.append(1)
        return 0.25

    base = optimizers.SGD(rate, momentum=0.5, name="mine")
    optimizer = LpDecay(base, 0.5, p=1)
    assert isinstance(optimizer, LpDecay)
    assert isinstance(optimizer, optimizers.SGD)
    assert optimizer.name == "mine"
    assert optimizer.momentum == 0.5
    result = apply(optimizer, kernel(), np.zeros((2, 3), "float32"))
    np.testing.assert_allclose(result, 1 / (1 + 0.25 * 0.5), rtol=1e-6)
    assert calls


def test_class_of_a_user_without_a_config_works():
    optimizer = LpDecay(Plain(sharpness=2.0), 0.5, p=2)
    assert type(optimizer).__qualname__ == "LpDecay[Plain]"
    result = apply(optimizer, kernel(), np.ones((2, 3), "float32"))
    np.testing.assert_allclose(result, (1 - 0.1 * 2.0) / (1 + 0.1 * 0.5), rtol=1e-6)


def test_class_of_a_user_is_loaded_by_custom_objects(mlp, tmp_path):
    model = mlp()
    model.compile(LpDecay(DecaysItself(name="mine"), 0.5, p=1), loss="mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"DecaysItself": DecaysItself}
    )
    assert isinstance(loaded.optimizer, DecaysItself)
    assert isinstance(loaded.optimizer, LpDecay)
    assert loaded.optimizer.name == "mine"
    assert float(loaded.optimizer.weight_decay) == 0.5
    assert loaded.optimizer.p == 1


def test_decay_that_an_optimizer_applies_in_its_own_step_is_off():
    result = apply(LpDecay(DecaysItself(), 0.5, p=1), kernel(), np.zeros((2, 3), "float32"))
    np.testing.assert_allclose(result, 1 / (1 + 0.1 * 0.5), rtol=1e-6)


class DecaysInApply(optimizers.SGD):
    """An optimizer that applies its weight decay before the step."""

    def apply(self, grads, trainable_variables=None):
        for variable in trainable_variables:
            if self.weight_decay:
                variable.assign(variable - variable * self.learning_rate * self.weight_decay)
        super().apply(grads, trainable_variables)


def test_decay_that_an_optimizer_applies_before_its_step_is_off():
    result = apply(LpDecay(DecaysInApply(0.1), 0.5, p=1), kernel(), np.zeros((2, 3), "float32"))
    np.testing.assert_allclose(result, 1 / (1 + 0.1 * 0.5), rtol=1e-6)


class Fused(optimizers.SGD):
    """An optimizer that updates all variables in one go, past `update_step`."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            variable.assign(variable - learning_rate * gradient)


def test_optimizer_that_goes_past_its_step_is_an_error_instead_of_no_decay():
    optimizer = LpDecay(Fused(0.1), 0.5)
    with pytest.raises(ValueError, match=r"without `update_step`.*Received: gradients of kernel"):
        apply(optimizer, kernel(), np.ones((2, 3), "float32"))


class HasItsOwnP(Plain):
    def __init__(self):
        super().__init__(1.0)
        self.p = 3.0


def test_optimizer_with_attributes_of_the_same_names_is_refused():
    with pytest.raises(ValueError, match=r"attributes of the names \['p'\].*Rename"):
        LpDecay(HasItsOwnP())


def test_subclass_with_a_constructor_that_would_have_no_effect_is_refused():
    with pytest.raises(TypeError, match=r"overrides `__new__`.*Received: Mine"):

        class Mine(LpDecay):
            def __init__(self, optimizer):
                super().__init__(optimizer, weight_decay=5.0)


def test_optimizer_can_be_pickled_as_keras_optimizers_can():
    optimizer = pickle.loads(pickle.dumps(LpDecay(optimizers.Adam(0.5), 0.25, p=1)))
    assert isinstance(optimizer, LpDecay)
    assert isinstance(optimizer, optimizers.Adam)
    assert float(optimizer.weight_decay) == 0.25


def test_sums_of_ftrl_are_bitwise_its_own_without_a_decay():
    gradients = 0.02 * np.random.default_rng(0).normal(size=(4, 30, 100)).astype("float32")
    results = []
    for wrap in (lambda base: LpDecay(base, 0.0), lambda base: base):
        optimizer = wrap(optimizers.Ftrl(0.1, l1_regularization_strength=0.01))
        variable = kernel(shape=(30, 100))
        for gradient in gradients:
            result = apply(optimizer, variable, gradient)
        results.append(np.array(result).view("uint32"))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("base", [optimizers.AdamW, optimizers.Muon])
def test_default_decay_of_an_optimizer_is_replaced(base):
    zeros = np.zeros((2, 3), "float32")
    optimizer = LpDecay(base(0.1), 0.0)
    np.testing.assert_array_equal(apply(optimizer, kernel(), zeros, steps=3), np.ones((2, 3)))
    assert optimizer.get_config()["optimizer"]["config"]["weight_decay"] == 0.0


def test_two_decays_at_once_are_two_norms():
    zeros = np.zeros((2, 3), "float32")
    result = apply(LpDecay(optimizers.SGD(0.1), (0.5, 0.2), p=(1, 2)), kernel(2.0), zeros)
    np.testing.assert_allclose(result, 2 / (1 + 0.1 * (0.5 / 2 + 0.2)), rtol=1e-6)


def test_decay_of_ftrl_lasts():
    # Without a gradient the weight is all that the decays have left of it.
    optimizer = LpDecay(optimizers.Ftrl(0.1), 0.5, p=2)
    variable = kernel(0.0)
    start = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
    optimizer.weight_decay = 0.0
    first = apply(optimizer, variable, start).copy()
    optimizer.weight_decay = 0.5
    last = apply(optimizer, variable, np.zeros((2, 3), "float32"), steps=10)
    np.testing.assert_allclose(last, first / 1.05**10, rtol=1e-5)


class WithoutStep(keras.optimizers.Optimizer):
    """A wrapper that hands everything on."""

    def __init__(self, inner):
        super().__init__(learning_rate=0.1)
        self.inner = inner

    def apply(self, grads, trainable_variables=None):
        self.inner.apply(grads, trainable_variables)


def built():
    optimizer = optimizers.SGD()
    optimizer.build([kernel()])
    return optimizer


def with_exclusions():
    optimizer = optimizers.SGD()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (LpAdamW, r"has the decay for any p-norm already.*lists"),
        (lambda: LpDecay(optimizers.SGD()), r"has the decay for any p-norm already"),
        (
            lambda: WithoutStep(optimizers.SGD()),
            r"`update_step`.*`Wrapper\(LpDecay\(optimizer\)\)`",
        ),
        (built, r"is built for a model already.*Pass a new optimizer\."),
        (with_exclusions, r"`exclude_from_weight_decay\(\)` was called.*`exclude=`"),
        (lambda: optimizers.SGD(weight_decay=0.1), r"weight_decay=0.1, .*\(0.004, 0.1\)"),
        (lambda: optimizers.AdamW(weight_decay=0.1), r"weight_decay=0.1, which `LpDecay` replaces"),
        (lambda: optimizers.Muon(adam_weight_decay=0.1), r"adam_weight_decay=0.1"),
        (lambda: DecaysItself(weight_decay=0.1), r"weight_decay=0.1"),
    ],
)
def test_optimizer_that_cannot_be_used_is_an_error_with_the_remedy_and_stays_as_it_is(
    make, message
):
    optimizer = make()
    kind = type(optimizer)
    with pytest.raises(ValueError, match=rf"(?s){message}.*Received: optimizer=<"):
        LpDecay(optimizer)
    assert type(optimizer) is kind


@pytest.mark.parametrize("value", ["adam", None, optimizers.SGD, 0.1])
def test_what_is_no_optimizer_is_an_error_with_an_example(value):
    with pytest.raises(TypeError, match=r"must be an instance .*Nadam\(1e-3\).*Received: optimi"):
        LpDecay(value)


@pytest.mark.parametrize("arguments", [{"p": -1}, {"weight_decay": -1}, {"overrides": {"a": 1}}])
def test_bad_argument_leaves_the_optimizer_as_it_is(arguments):
    base = optimizers.SGD()
    kind = type(base)
    with pytest.raises(ValueError, match="Received: "):
        LpDecay(base, **arguments)
    assert type(base) is kind
    assert LpDecay(base).p == 0.8


def test_subclass_of_the_decay_is_saved_as_itself():
    @keras.saving.register_keras_serializable(package="tests")
    class Mine(LpDecay):
        pass

    optimizer = Mine(optimizers.SGD(0.1), 0.5, p=1)
    config = keras.optimizers.serialize(optimizer)
    assert config["registered_name"] == "tests>Mine"
    again = keras.optimizers.deserialize(config)
    assert isinstance(again, Mine)
    assert isinstance(again, optimizers.SGD)
    assert type(optimizer).from_config(optimizer.get_config()).get_config() == again.get_config()


def test_config_names_the_optimizer_as_keras_does_on_every_backend():
    config = keras.optimizers.serialize(LpDecay(optimizers.Adam(0.1)))
    assert config["registered_name"] == "keras_lp>LpDecay"
    base = config["config"]["optimizer"]
    assert (base["module"], base["class_name"]) == ("keras.optimizers", "Adam")
    assert base["registered_name"] is None


@pytest.mark.skipif(not hasattr(optimizers, "MultiOptimizer"), reason="newer than this Keras")
def test_multi_optimizer_holds_lp_optimizers_each_with_its_own_decay(mlp):
    model = mlp()
    hidden, logits = LpSGD(0.1, weight_decay=0.5, p=1), LpDecay(optimizers.SGD(0.1), 0.5, p=2)
    optimizer = optimizers.MultiOptimizer(optimizers.OptimizerMap(logits, {".*hidden.*": hidden}))
    model.compile(optimizer, loss="mse")
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    optimizer.apply([keras.ops.zeros(v.shape) for v in before], model.trainable_variables)
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    w = before[0].astype("float64")
    np.testing.assert_allclose(after[0], w / (1 + 0.05 / np.abs(w)), rtol=1e-5)
    np.testing.assert_allclose(after[2], before[2] / 1.05, rtol=1e-6)
    report = keras_lp.sparsity_report(model)
    assert [layer.name for layer in report.layers] == ["hidden", "logits"]


@pytest.mark.skipif(not hasattr(optimizers, "MultiOptimizer"), reason="newer than this Keras")
def test_report_counts_what_the_optimizers_in_a_multi_optimizer_decay(mlp):
    model = mlp()
    plain, hidden = optimizers.SGD(0.1), LpSGD(0.1, weight_decay=0.5, p=1)
    optimizer = optimizers.MultiOptimizer(optimizers.OptimizerMap(plain, {".*hidden.*": hidden}))
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    assert [layer.name for layer in keras_lp.sparsity_report(model).layers] == ["hidden"]


def test_optimizer_whose_step_fails_has_its_decay_afterwards():
    class Fails(Plain):
        def update_step(self, gradient, variable, learning_rate):
            raise RuntimeError("no step")

    optimizer = LpDecay(Fails(2.0), 0.5)
    with pytest.raises(RuntimeError, match="no step"):
        optimizer.apply([keras.ops.zeros((2, 3))], [kernel()])
    assert float(optimizer.weight_decay) == 0.5


def test_private_names_of_keras_that_this_builds_on_are_there():
    # Fails clearly should Keras rename what `keras_lp.optimizers.lp_decay` builds on.
    optimizer = optimizers.SGD()
    optimizer.exclude_from_weight_decay(var_list=[kernel()], var_names=["bias"])
    assert optimizer._exclude_from_weight_decay
    assert optimizer._exclude_from_weight_decay_pattern
    ftrl = optimizers.Ftrl()
    ftrl.build([kernel()])
    assert tuple(ftrl._linears[0].shape) == (2, 3)
    if keras.backend.backend() == "torch":
        assert type(optimizer).__module__.startswith("keras.src.backend.")
