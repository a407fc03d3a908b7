"""Every optimizer of Keras with the decay, in every way that makes a cell of the docs' table.

The reference is the optimizer itself without the decay: at each step its own update from the
same state, divided in NumPy float64 by what the formula says.
"""

import json

import keras
import numpy as np
import pytest
from keras import optimizers

from keras_lp import LpDecay

LR, STRENGTH, P = 0.05, 0.3, 0.8


@keras.saving.register_keras_serializable(package="tests")
class SignedMomentum(keras.optimizers.Optimizer):
    """An optimizer as a user would write it, with a decay of its own inside the step."""

    def __init__(self, learning_rate=0.01, rate=0.9, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.rate = rate

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        momentum = self.momentums[self._get_variable_index(variable)]
        self.assign(momentum, self.rate * momentum + (1 - self.rate) * gradient)
        step = keras.ops.sign(momentum) + variable * (self.weight_decay or 0.0)
        self.assign_sub(variable, learning_rate * step)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


KINDS = {
    "SGD": optimizers.SGD,
    "SGD, momentum": lambda **kwargs: optimizers.SGD(momentum=0.9, **kwargs),
    "SGD, Nesterov": lambda **kwargs: optimizers.SGD(momentum=0.9, nesterov=True, **kwargs),
    "RMSprop": optimizers.RMSprop,
    "Adam": optimizers.Adam,
    "AdamW": lambda **kwargs: optimizers.AdamW(weight_decay=0.0, **kwargs),
    "Adadelta": optimizers.Adadelta,
    "Adagrad": optimizers.Adagrad,
    "Adamax": optimizers.Adamax,
    "Adafactor": optimizers.Adafactor,
    "Nadam": optimizers.Nadam,
    "Ftrl": lambda **kwargs: optimizers.Ftrl(l1_regularization_strength=0.01, **kwargs),
    "Lion": optimizers.Lion,
    "Lamb": optimizers.Lamb,
    "Muon": lambda **kwargs: optimizers.Muon(weight_decay=0.0, adam_weight_decay=0.0, **kwargs),
    "a user's own": SignedMomentum,
}
REFUSED = {
    "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(optimizers.SGD()),
    "MultiOptimizer": lambda: optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD())),
    "ScheduleFreeAdamW": lambda: optimizers.ScheduleFreeAdamW(),
}
# The oldest Keras lacks some of them.
REFUSED = {kind: make for kind, make in REFUSED.items() if hasattr(optimizers, kind)}
WAYS = ("jit", "accumulation", "EMA", "loss scale", "save/load")

every_optimizer = pytest.mark.parametrize("kind", KINDS)


def make_variables():
    """A kernel, with a zero in it, and a bias."""
    random = np.random.default_rng(3)
    kernel = random.normal(scale=0.3, size=(6, 4)).astype("float32")
    kernel[0, 0] = 0.0
    bias = random.normal(size=(4,)).astype("float32")
    return [
        keras.Variable(kernel, name="kernel"),
        keras.Variable(bias, name="bias"),
    ]


def make_gradients(steps):
    random = np.random.default_rng(4)
    return [
        [random.normal(size=shape).astype("float32") for shape in ((6, 4), (4,))]
        for _ in range(steps)
    ]


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def tensors(arrays):
    return [keras.ops.convert_to_tensor(array) for array in arrays]


def apply(optimizer, variables, gradients):
    """Applies gradients one after another, not compiled."""
    for gradient in gradients:
        optimizer.apply(tensors(gradient), variables)


def apply_compiled(optimizer, variables, gradients):
    """Applies gradients one after another by a compiled step."""
    backend = keras.backend.backend()
    if not optimizer.built:
        optimizer.build(variables)
    if backend == "jax":
        import jax

        step = jax.jit(optimizer.stateless_apply)
        weights, state = ([v.value for v in each] for each in (variables, optimizer.variables))
        for gradient in gradients:
            weights, state = step(state, tensors(gradient), weights)
        changed = zip([*variables, *optimizer.variables], [*weights, *state], strict=True)
        for variable, value in changed:
            variable.assign(value)
    elif backend == "tensorflow":
        import tensorflow as tf

        step = tf.function(lambda grads: optimizer.apply(grads, variables), jit_compile=True)
        for gradient in gradients:
            step(tensors(gradient))
    else:
        import torch

        # The graph that `jit_compile=True` compiles, without the compiler for its kernels.
        torch.compiler.reset()
        step = torch.compile(optimizer.apply, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            for gradient in gradients:
                step(tensors(gradient))


def expected(kind, gradients, strength=STRENGTH, p=P, after_step=None, **arguments):
    """Weights after the optimizer's own steps, each divided in float64 by the formula."""
    variables, optimizer = make_variables(), KINDS[kind](learning_rate=LR, **arguments)
    kernel = variables[0]
    for gradient in gradients:
        before = values([kernel])[0].astype("float64")
        optimizer.apply(tensors(gradient), variables)
        after = values([kernel])[0].astype("float64")
        with np.errstate(divide="ignore"):
            divisor = 1 + LR * strength * np.abs(before) ** (p - 2) if strength else 1.0
        kernel.assign((after / divisor).astype("float32"))
        if kind == "Ftrl":  # It computes weights from these sums, which have to shrink along.
            linear = optimizer._linears[0]
            value = values([linear])[0].astype("float64")
            clipped = np.clip(value, -0.01, 0.01)
            linear.assign((clipped + (value - clipped) / divisor).astype("float32"))
        if after_step:
            after_step(variables)
    return values(variables)


def assert_close(actual, desired, atol=2e-6):
    for left, right in zip(actual, desired, strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=atol)


def assert_same(actual, desired):
    for left, right in zip(actual, desired, strict=True):
        np.testing.assert_array_equal(left.view("uint32"), right.view("uint32"))


@pytest.fixture
def cell(record_property):
    """Records a cell of the table in the docs."""

    def record(kind, way, reason=None):
        position = [*KINDS, *REFUSED].index(kind), WAYS.index(way)
        record_property("cell", json.dumps([position, kind, way, reason]))

    return record


@every_optimizer
def test_decay_divides_the_optimizers_own_step(kind):
    variables, gradients = make_variables(), make_gradients(6)
    apply(LpDecay(KINDS[kind](learning_rate=LR), STRENGTH, p=P), variables, gradients)
    result = values(variables)
    assert_close(result, expected(kind, gradients))
    assert result[0][0, 0] == 0.0
    undecayed = expected(kind, gradients, strength=0.0)
    assert np.abs(result[0]).sum() < 0.9 * np.abs(undecayed[0]).sum()


@every_optimizer
def test_compiled_step_is_the_same(kind, cell):
    cell(kind, "jit")
    variables, gradients = make_variables(), make_gradients(6)
    apply_compiled(LpDecay(KINDS[kind](learning_rate=LR), STRENGTH, p=P), variables, gradients)
    assert_close(values(variables), expected(kind, gradients))


@every_optimizer
def test_p_of_2_divides_by_one_plus_learning_rate_times_weight_decay(kind):
    variables, gradients = make_variables(), make_gradients(1)
    apply(LpDecay(KINDS[kind](learning_rate=LR), STRENGTH, p=2), variables, gradients)
    (stepped, bias) = expected(kind, gradients, strength=0.0)
    result = values(variables)
    # On torch the step itself comes from Keras's fused variant.
    tolerance = {"rtol": 0, "atol": 1e-6 if keras.backend.backend() == "torch" else 1e-7}
    np.testing.assert_allclose(result[0], stepped / (1 + LR * STRENGTH), **tolerance)
    np.testing.assert_allclose(result[1], bias, **tolerance)


@every_optimizer
@pytest.mark.parametrize("p", [0.8, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", [apply_compiled, pytest.param(apply, marks=pytest.mark.slow)])
def test_weight_decay_of_zero_is_bitwise_the_optimizer(kind, p, run):
    results = []
    for wrap in (lambda optimizer: LpDecay(optimizer, 0.0, p=p), lambda optimizer: optimizer):
        variables = make_variables()
        run(wrap(KINDS[kind](learning_rate=LR)), variables, make_gradients(4))
        results.append(values(variables))
    if keras.backend.backend() == "torch":  # Keras takes fused variants of its own classes.
        assert_close(*results, atol=1e-6)
    else:
        assert_same(*results)


@every_optimizer
def test_accumulated_gradients_are_one_large_batch_and_decay_once(kind, cell):
    cell(kind, "accumulation")
    variables, gradients = make_variables(), make_gradients(6)
    base = KINDS[kind](learning_rate=LR, gradient_accumulation_steps=2)
    optimizer = LpDecay(base, STRENGTH, p=P)
    before = values(variables)
    apply(optimizer, variables, gradients[:1])
    assert_same(values(variables), before)
    apply(optimizer, variables, gradients[1:])
    means = [
        [(a + b) / 2 for a, b in zip(*pair, strict=True)]
        for pair in zip(gradients[::2], gradients[1::2], strict=True)
    ]
    assert_close(values(variables), expected(kind, means))


@every_optimizer
def test_moving_average_sees_decayed_weights_and_overwrites_them_in_turn(kind, cell):
    cell(kind, "EMA")
    variables, gradients = make_variables(), make_gradients(7)
    average = {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3}
    optimizer = LpDecay(KINDS[kind](learning_rate=LR, **average), STRENGTH, p=P)
    apply(optimizer, variables, gradients)
    averages = []

    def average_and_overwrite(twins):
        new = values(twins)
        old = averages[-1] if averages else new
        averages.append([0.8 * a + 0.2 * w for a, w in zip(old, new, strict=True)])
        if len(averages) % 3 == 0:
            for twin, value in zip(twins, averages[-1], strict=True):
                twin.assign(value)

    desired = expected(kind, gradients, after_step=average_and_overwrite)
    assert_close(values(variables), desired)
    optimizer.finalize_variable_values(variables)
    assert_close(values(variables), averages[-1])
    assert values(variables)[0][0, 0] == 0.0


def loses_state_under_loss_scale(kind):
    """Whether Keras's own optimizer takes another second step inside a LossScaleOptimizer."""
    results = []
    for wrap in (lambda each: each, lambda each: optimizers.LossScaleOptimizer(each, 1.0)):
        variables = make_variables()
        run_with_loss_scale(wrap(KINDS[kind](learning_rate=LR)), variables, make_gradients(2))
        results.append(values(variables)[0])
    return not np.allclose(*results, atol=1e-6)


def run_with_loss_scale(*arguments):
    """Applies gradients; on JAX, Keras's LossScaleOptimizer works without state alone."""
    run = apply_compiled if keras.backend.backend() == "jax" else apply
    run(*arguments)


@every_optimizer
def test_loss_scale_is_taken_out_and_a_step_with_infinite_gradients_changes_nothing(kind, cell):
    if kind == "Nadam" and keras.backend.backend() == "jax":
        assert loses_state_under_loss_scale(kind)  # Else this cell can be tested as the others.
        cell(kind, "loss scale", "Keras's Nadam itself loses a part of its state there.")
        return
    cell(kind, "loss scale")
    variables, gradients = make_variables(), make_gradients(4)
    base = LpDecay(KINDS[kind](learning_rate=LR), STRENGTH, p=P)
    optimizer = optimizers.LossScaleOptimizer(base, initial_scale=1024.0)
    scaled = [[gradient * 1024 for gradient in pair] for pair in gradients]
    run_with_loss_scale(optimizer, variables, scaled[:3])
    before, iterations = values(variables), int(base.iterations)
    infinite = [np.full((6, 4), np.inf, "float32"), scaled[0][1]]
    run_with_loss_scale(optimizer, variables, [infinite])
    assert_same(values(variables), before)
    assert int(base.iterations) == iterations
    halved = [gradient / 2 for gradient in scaled[3]]  # as the scale now is
    run_with_loss_scale(optimizer, variables, [halved])
    assert_close(values(variables), expected(kind, gradients))


@every_optimizer
def test_training_goes_on_bitwise_after_save_and_load(kind, cell, tmp_path):
    cell(kind, "save/load")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    optimizer = LpDecay(
        KINDS[kind](learning_rate=LR),
        keras.optimizers.schedules.PolynomialDecay(STRENGTH, 10, 0.1),
        p=P,
        overrides={"kernel$": {"p": 0.5}},
    )
    model.compile(optimizer, loss="mse")
    gradients = make_gradients(6)
    apply(optimizer, model.trainable_variables, gradients[:3])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(optimizer)
    for each in (model, loaded):
        apply(each.optimizer, each.trainable_variables, gradients[3:])
    assert_same(values(loaded.trainable_variables), values(model.trainable_variables))
    assert int(loaded.optimizer.iterations) == 6


@every_optimizer
def test_state_has_no_array_of_the_weights_size_beyond_the_optimizers_own(kind):
    variables = make_variables()
    ours, theirs = LpDecay(KINDS[kind]()), KINDS[kind]()
    ours.build(variables)
    theirs.build(variables)
    shapes = [[tuple(v.shape) for v in each.variables] for each in (ours, theirs)]
    # Strength and largest rate, and a number for each decayed variable that scales the strength.
    assert sorted(shapes[0]) == sorted([*shapes[1], (), (), (len(ours.decayed_variables), 1)])


@pytest.mark.parametrize("kind", REFUSED)
def test_optimizer_in_which_the_rule_cannot_hold_is_refused_with_the_remedy(kind, cell):
    optimizer = REFUSED[kind]()
    with pytest.raises(ValueError, match=rf"`optimizer` is a `{kind}`\. .*Received: ") as error:
        LpDecay(optimizer)
    remedy = str(error.value).partition("`. ")[2].partition(" Received: ")[0]
    for way in WAYS:
        cell(kind, way, remedy)
    assert type(optimizer) is type(REFUSED[kind]())


def test_every_optimizer_that_keras_exports_is_here():
    known = {type(make()).__name__ for make in (*KINDS.values(), *REFUSED.values())}
    exported = {
        name
        for name, value in vars(optimizers).items()
        if isinstance(value, type) and issubclass(value, optimizers.Optimizer)
    }
    assert exported - {"Optimizer"} <= known
