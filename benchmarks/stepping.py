"""Optimizer steps on the weights of a model, to be timed and weighed.

Gradients are given, and the same each time: there is no forward or backward pass.

    steps = stepping.steps_of_optimizer(keras.optimizers.AdamW(), models.resnet18())
    steps.run()
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

import keras_lp

STATE = 3  # numbers for each weight that Adam reads and writes: the weight and two moments
# In one call of an accelerator, which is done with a step before Python has begun the next.
STEPS_IN_A_CALL = 20


@dataclass(frozen=True)
class Steps:
    """Steps to be timed.

    Attributes:
        run: Makes them, and returns when the new weights are there.
        count: How many they are.
        held: Bytes of weights, state and gradients that are there between two steps.
    """

    run: Callable[[], None]
    count: int = 1
    held: int = 0


def weights_in(model):
    """How many weights an optimizer's step changes."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def gradients_of(variables):
    """Random gradients, as tensors of the backend."""
    random = np.random.default_rng(0)
    return [
        keras.ops.convert_to_tensor(1e-2 * random.standard_normal(variable.shape, "float32"))
        for variable in variables
    ]


def bytes_of(*arrays):
    """How many bytes lists of variables or tensors take."""
    return sum(
        math.prod(one.shape) * np.dtype(keras.backend.standardize_dtype(one.dtype)).itemsize
        for some in arrays
        for one in some
    )


def steps_of_optimizer(optimizer, model, xla=True, one_a_call=False):
    """Steps of a Keras optimizer, where told one in a call on accelerators too."""
    variables = model.trainable_variables
    gradients = gradients_of(variables)
    optimizer.build(variables)
    held = bytes_of(model.variables, optimizer.variables, gradients)
    if keras.backend.backend() == "jax":
        count = 1 if one_a_call else _steps_in_a_call()
        step, _, _ = _steps_in_jax(optimizer, variables, gradients, count)
        return Steps(step, count, held)
    return Steps(_steps_in_tensorflow(optimizer, variables, gradients, xla), held=held)


def _steps_in_tensorflow(optimizer, variables, gradients, xla):
    import tensorflow as tf

    return tf.function(lambda: optimizer.apply(gradients, variables), jit_compile=xla)


def _steps_in_jax(optimizer, variables, gradients, count=1):
    """Steps under `jax.jit`, which donates buffers as Keras's trainer does.

    With them come two functions, that put what they have into the variables, and take it back.
    """
    import jax

    def apply(weights, state, given):
        return optimizer.stateless_apply(state, given, weights)

    several = jax.jit(_repeated(apply, count), donate_argnums=(0, 1))
    held = variables, optimizer.variables

    def take():
        values[:] = [[variable.value for variable in one] for one in held]

    def put_back():
        for one, new in zip(held, values, strict=True):
            for variable, value in zip(one, new, strict=True):
                variable.assign(value)

    def step():
        values[:] = several(*values, gradients)
        jax.block_until_ready(values)

    values = []
    take()
    return step, put_back, take


def _steps_in_a_call():
    """How many steps JAX makes in one call."""
    import jax

    return 1 if jax.default_backend() == "cpu" else STEPS_IN_A_CALL


def _repeated(step, count):
    """A step of JAX that is made several times; a function of weights, state and the rest."""
    import jax

    def several(weights, state, *rest):
        return jax.lax.fori_loop(0, count, lambda _, now: step(*now, *rest), (weights, state))

    return step if count == 1 else several


def steps_with_callback(callback, optimizer, model, xla=True):
    """Steps of a Keras optimizer, each followed by a callback as `fit` calls it.

    The callback compiles what it does by itself, under XLA in any case.
    """
    model.compile(optimizer, "mse")
    variables = model.trainable_variables
    gradients = gradients_of(variables)
    optimizer.build(variables)
    if keras.backend.backend() == "jax":
        apply, put_back, take = _steps_in_jax(optimizer, variables, gradients)
    else:
        apply = _steps_in_tensorflow(optimizer, variables, gradients, xla)
        put_back = take = _nothing
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    batch = 0

    def step():
        nonlocal batch
        callback.on_train_batch_begin(batch)
        apply()
        put_back()
        callback.on_train_batch_end(batch)
        take()
        _wait(variables)
        batch += 1

    return Steps(step, held=bytes_of(model.variables, optimizer.variables, gradients))


def _nothing():
    """Does nothing: under TensorFlow variables hold their weights all the time."""


def _wait(variables):
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready([variable.value for variable in variables])


def steps_of_tf_keras(model, xla=True):
    """Steps of tf_keras's Adam on the weights of a model made again in tf_keras."""
    import tensorflow as tf

    apply, held = _adam_of_tf_keras(keras_lp.tfmot.to_tf_keras(model))
    return Steps(tf.function(apply, jit_compile=xla), held=held)


def _adam_of_tf_keras(legacy):
    """Compiles a model with tf_keras's Adam; a step of it, to be traced, and what it holds."""
    import tf_keras

    variables = legacy.trainable_variables
    optimizer = tf_keras.optimizers.Adam(jit_compile=False)  # The whole step is compiled or not.
    optimizer.build(variables)
    legacy.compile(optimizer, "mse")
    gradients = gradients_of(variables)
    pairs = list(zip(gradients, variables, strict=True))
    held = bytes_of(legacy.variables, optimizer.variables, gradients)
    return functools.partial(optimizer.apply_gradients, pairs), held


def steps_of_tfmot(model, frequency, sparsity=0.9, xla=True):
    """Steps of tf_keras's Adam under TF-MOT's magnitude pruning.

    At each step the wrappers of the layers count it and multiply the weights by their masks, as
    they do in the forward pass. Every `frequency` steps they choose the masks anew.
    """
    import tensorflow as tf

    from keras_lp.optional import import_tfmot

    api = import_tfmot().sparsity.keras
    schedule = api.PolynomialDecay(0.0, sparsity, 0, 10**6, frequency=frequency)
    legacy = keras_lp.tfmot.to_tf_keras(model)
    wrapped = api.prune_low_magnitude(legacy, schedule)
    wrappers = [layer for layer in wrapped.layers if hasattr(layer, "pruning_obj")]
    adam, held = _adam_of_tf_keras(wrapped)
    callback = api.UpdatePruningStep()
    callback.set_model(wrapped)
    callback.on_train_begin()

    def step():
        for wrapper in wrappers:
            wrapper.pruning_step.assign_add(1)
            wrapper.pruning_obj.conditional_mask_update()
            wrapper.pruning_obj.weight_mask_op()
        adam()

    return Steps(tf.function(step, jit_compile=xla), held=held)


def passes_over(count):
    """One read and one write of so many float32 numbers, compiled by XLA: the copy bandwidth."""
    if keras.backend.backend() == "jax":
        import jax

        passes = _steps_in_a_call()
        scale = jax.jit(
            _repeated(lambda x, state: (x * 0.999, state), passes), donate_argnums=(0, 1)
        )
        values = [keras.ops.ones(count, "float32"), ()]

        def once():
            values[:] = scale(*values)
            jax.block_until_ready(values)

        return Steps(once, passes)
    import tensorflow as tf

    variable = tf.Variable(tf.ones(count))

    @tf.function(jit_compile=True)
    def once():
        variable.assign(variable * 0.999)  # Not returned, which would take another copy.

    return Steps(once)


def training_steps(optimizer, model, batch_size=32):
    """Whole training steps of an image classifier: forward, backward and the optimizer."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=True)
    random = np.random.default_rng(0)
    x = random.standard_normal((batch_size, *model.input_shape[1:]), "float32")
    y = random.integers(model.output_shape[-1], size=batch_size)
    return Steps(functools.partial(model.train_on_batch, x, y))
