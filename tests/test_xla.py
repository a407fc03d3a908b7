"""What XLA makes of the update: the platforms it lowers to and the memory it moves."""

import math
import re
import warnings

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

from keras_lp import LpAdamW

pytestmark = pytest.mark.backend("jax")

PLATFORMS = ("cpu", "cuda", "tpu")
SHAPES = ((300, 7), (7,), (3, 3, 8, 40), (40,), (4, 5, 60))
MATRICES = [shape for shape in SHAPES if len(shape) >= 2]
FULL_SIZE = min(map(math.prod, MATRICES))

both_references = pytest.mark.parametrize("reference", ["previous", "updated"])
exponents = pytest.mark.parametrize("p", [0, 0.5, 0.8, 1, 1.3, 1.5, 2])


def variables_of(shapes, dtype="float32"):
    """Variables of the given shapes, kernels and biases by their rank."""
    random = np.random.default_rng(0)
    names = ["kernel" if len(shape) >= 2 else "bias" for shape in shapes]
    return [
        keras.Variable(random.normal(size=shape), dtype=dtype, name=name)
        for shape, name in zip(shapes, names, strict=True)
    ]


def values(variables):
    return [variable.value for variable in variables]


def step_of(optimizer):
    """The step as a function whose state goes in and comes out in the same order.

    XLA pairs the donated inputs with the outputs in their order. `stateless_apply` takes
    the optimizer's variables first and returns them last, so that donated as it stands it
    copies momenta into the places of weights, with plain Adam too.
    """

    def step(trainable, state, gradients):
        return optimizer.stateless_apply(state, gradients, trainable)

    return step


def compiled(optimizer, dtype="float32"):
    """The step of `optimizer` as XLA compiled it for this machine, its state donated."""
    import jax

    variables = variables_of(SHAPES, dtype)
    optimizer.build(variables)
    step = jax.jit(step_of(optimizer), donate_argnums=(0, 1))
    weights = values(variables)
    return step.lower(weights, values(optimizer.variables), weights).compile()


def adam_step(state, gradient, t, lr, wd=0.0, p=2.0, reference="previous"):
    """One step of the rule in NumPy float64: weights, first and second moment."""
    w, m, v = state
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    step = lr * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
    at = w if reference == "previous" else w - step
    with np.errstate(over="ignore", divide="ignore"):
        return (w - step) / (1 + lr * wd * np.abs(at) ** (p - 2)), m, v


def start(weights):
    """Weights in float64 with Adam's moments before the first step."""
    return np.float64(weights), np.zeros(weights.shape), np.zeros(weights.shape)


def exported(optimizer):
    """The step of `optimizer` for kernel and bias, exported for all platforms."""
    import jax
    import jax.export

    variables = variables_of([(6, 5), (5,)])
    optimizer.build(variables)
    export = jax.export.export(jax.jit(step_of(optimizer)), platforms=PLATFORMS)
    weights = values(variables)
    return export(weights, values(optimizer.variables), weights)


def check_follows_the_formula(export, optimizer, lr, wd, p, reference="previous"):
    """Runs the exported step on this machine; `lr`, `wd` and `p` are functions of the step."""
    import jax

    assert export.platforms == PLATFORMS
    step = jax.jit(export.call)
    trainable, state = values(variables_of([(6, 5), (5,)])), values(optimizer.variables)
    kernel, bias = (start(np.asarray(w)) for w in trainable)
    random = np.random.default_rng(1)
    for index in range(10):
        gradients = [random.normal(size=w.shape) for w in trainable]
        trainable, state = step(trainable, state, [np.float32(g) for g in gradients])
        t, rate = index + 1, lr(index)
        kernel = adam_step(kernel, gradients[0], t, rate, wd(index), p(index), reference)
        bias = adam_step(bias, gradients[1], t, rate)
    for result, (expected, _, _) in zip(trainable, (kernel, bias), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


@both_references
@exponents
def test_step_exported_for_cpu_cuda_and_tpu_follows_the_formula(p, reference):
    optimizer = LpAdamW(1e-2, 0.5, p=p, reference=reference)
    check_follows_the_formula(
        exported(optimizer), optimizer, lambda _: 1e-2, lambda _: 0.5, lambda _: p, reference
    )


def schedule_and_line(first, last):
    """A schedule, and what it should give, over five steps."""
    return PolynomialDecay(first, 5, last), lambda t: first + (last - first) * min(t / 5, 1.0)


@both_references
def test_schedules_exported_for_cpu_cuda_and_tpu_follow_the_formula(reference):
    pairs = [schedule_and_line(*ends) for ends in [(1e-2, 2e-3), (0.0, 0.8), (2.0, 0.5)]]
    (lr, wd, p), lines = zip(*pairs, strict=True)
    optimizer = LpAdamW(lr, wd, p=p, reference=reference)
    check_follows_the_formula(exported(optimizer), optimizer, *lines, reference)


def test_exported_step_survives_serialization():
    pytest.importorskip("flatbuffers", reason="JAX serializes exports with it")
    import jax.export

    p, line = schedule_and_line(2.0, 0.5)
    optimizer = LpAdamW(1e-2, 0.5, p=p)
    again = jax.export.deserialize(exported(optimizer).serialize())
    check_follows_the_formula(again, optimizer, lambda _: 1e-2, lambda _: 0.5, line)


def computations_of(hlo):
    """The computations of an HLO text and the name of the entry.

    Each is a list of instructions `(name, opcode, sizes of the results, operands, called)`.
    """
    found, entry, instructions = {}, None, None
    for line in hlo.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if header:
            instructions = found[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            instructions = None
        elif instructions is not None:
            head = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(", line)
            end = closing_parenthesis(line, head.end())
            attributes = re.sub(r'"[^"]*"|control-predecessors=\{[^}]*\}', "", line[end:])
            instructions.append(
                (
                    head[1],
                    head[3],
                    array_sizes(head[2]),
                    re.findall(r"%([\w.-]+)", line[head.end() : end]),
                    re.findall(r"%([\w.-]+)", attributes),
                )
            )
    return found, entry


def closing_parenthesis(line, position):
    """Where the parenthesis closes that was opened just before `position`."""
    depth = 1
    while depth:
        depth += {"(": 1, ")": -1}.get(line[position], 0)
        position += 1
    return position - 1


def array_sizes(hlo_type):
    """Number of entries of each array in an HLO type, `f32[3,4]{1,0}` or a tuple of such."""
    dimensions = re.findall(r"\b[a-z]\w*\[([\d,]*)\]", hlo_type)
    return [math.prod(int(n) for n in each.split(",") if n) for each in dimensions]


# Instructions that give names to memory and do not go through it, and those whose traffic is
# that of the computations they run.
NAMING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
RUNNING = {"call", "while", "conditional"}


def full_size_passes(hlo, full_size=FULL_SIZE):
    """How often arrays of at least `full_size` entries are read or written by a program.

    A fusion goes through each of its operands and results once, whatever it computes; so
    does an instruction that is not fused.
    """
    computations, entry = computations_of(hlo)

    def passes(name):
        sizes, total = {}, 0
        for instruction, opcode, results, operands, called in computations[name]:
            sizes[instruction] = results
            if opcode in RUNNING:
                total += sum(map(passes, called))
            elif opcode not in NAMING:
                arrays = [*results, *(size for operand in operands for size in sizes[operand])]
                total += sum(size >= full_size for size in arrays)
        return total

    return passes(entry)


def bytes_accessed(program):
    """What XLA itself estimates that the program moves."""
    analysis = program.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["bytes accessed"]


def check_moves_no_more_memory(ours, adam):
    # Fewer bytes than any array of full size has, and more than all scalars of the decay.
    tolerance = FULL_SIZE
    assert full_size_passes(ours.as_text()) <= full_size_passes(adam.as_text()), ours.as_text()
    assert bytes_accessed(ours) < bytes_accessed(adam) + tolerance
    memory, adams = ours.memory_analysis(), adam.memory_analysis()
    assert memory.temp_size_in_bytes < adams.temp_size_in_bytes + tolerance
    # What is updated in place.
    assert memory.alias_size_in_bytes > adams.alias_size_in_bytes - tolerance


@pytest.fixture(scope="module")
def adam():
    """Adam's step, which the others are compared with."""
    return compiled(keras.optimizers.Adam())


@both_references
@exponents
def test_decay_adds_no_pass_over_memory_to_adams(adam, p, reference):
    check_moves_no_more_memory(compiled(LpAdamW(p=p, reference=reference)), adam)


@both_references
def test_decay_by_schedules_adds_no_pass_over_memory_to_adams(adam, reference):
    schedules = [PolynomialDecay(first, 10, last) for first, last in [(1e-3, 1e-4), (0.0, 0.1)]]
    optimizer = LpAdamW(*schedules, p=PolynomialDecay(2.0, 10, 0.8), reference=reference)
    check_moves_no_more_memory(compiled(optimizer), adam)


@both_references
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_factor_of_half_precision_variables_is_not_written_to_memory(dtype, reference):
    check_moves_no_more_memory(
        compiled(LpAdamW(reference=reference), dtype), compiled(keras.optimizers.Adam(), dtype)
    )


@both_references
def test_zeros_of_the_moving_average_cost_no_pass_over_memory(reference):
    check_moves_no_more_memory(
        compiled(LpAdamW(reference=reference, use_ema=True)),
        compiled(keras.optimizers.Adam(use_ema=True)),
    )


class DecayedByTheLargest(keras.optimizers.Adam):
    """Adam with a decay that goes through the weights once more for their maximum."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        largest = ops.max(ops.abs(variable))
        self.assign(variable, ops.multiply(variable, 1 - learning_rate * largest))


class DecayedInABranch(keras.optimizers.Adam):
    """Adam with a decay under a condition, which XLA does not fuse with Adam's step."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        weights = ops.convert_to_tensor(variable)
        decayed = ops.cond(
            learning_rate > 0, lambda: weights * (1 - learning_rate), lambda: weights
        )
        self.assign(variable, decayed)


def test_adams_own_passes_are_at_least_those_over_weights_moments_and_gradients(adam):
    # Four arrays are read, three are written.
    assert full_size_passes(adam.as_text()) >= 7 * len(MATRICES)


@pytest.mark.parametrize("worse", [DecayedByTheLargest, DecayedInABranch])
def test_pass_over_memory_that_a_decay_adds_is_counted(adam, worse):
    ours = compiled(worse())
    added = full_size_passes(ours.as_text()) - full_size_passes(adam.as_text())
    assert added >= len(MATRICES)
    assert bytes_accessed(ours) >= bytes_accessed(adam) + 4 * sum(map(math.prod, MATRICES))


@both_references
def test_training_loop_by_hand_with_donated_buffers_follows_the_formula(batches, reference):
    import jax

    lr, wd, p = 1e-2, 0.2, 0.8
    x, labels = batches
    y = np.eye(3, dtype="float32")[labels]
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    optimizer = LpAdamW(lr, wd, p=p, reference=reference)
    optimizer.build(model.trainable_variables)

    def loss_of(trainable, fixed, x, y):
        predicted, fixed = model.stateless_call(trainable, fixed, x, training=True)
        return ops.mean(ops.square(predicted - y)), fixed

    def train_step(state, x, y):
        trainable, fixed, slots = state
        (loss, fixed), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, fixed, x, y)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return loss, (trainable, fixed, slots)

    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    state = tuple(map(values, groups))
    kernel, bias = (start(np.asarray(w)) for w in state[0])
    step = jax.jit(train_step, donate_argnums=0)
    for t in range(1, 21):
        donated = jax.tree.leaves(state)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Some donated buffers were not usable")
            _, state = step(state, x, y)
        assert all(buffer.is_deleted() for buffer in donated)
        error = 2 / y.size * (np.float64(x) @ kernel[0] + bias[0] - y)
        kernel = adam_step(kernel, x.T @ error, t, lr, wd, p, reference)
        bias = adam_step(bias, error.sum(axis=0), t, lr)
    for group, arrays in zip(groups, state, strict=True):
        for variable, array in zip(group, arrays, strict=True):
            variable.assign(array)
    assert int(optimizer.iterations) == 20
    for result, (expected, _, _) in zip(model.get_weights(), (kernel, bias), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
