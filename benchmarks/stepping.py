"""Single optimizer steps on the weights of a model, to be timed and weighed.

A step is a function without arguments that returns when the new weights are there. Gradients
are given, and the same each time: there is no forward or backward pass.

    step = stepping.steps_of_optimizer(keras.optimizers.AdamW(), models.resnet18())
    step()
"""

import functools
import math

import keras
import numpy as np

import keras_lp

STATE = 3  # numbers for each weight that Adam reads and writes: the weight and two moments


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


def steps_of_optimizer(optimizer, model, xla=True):
    """Steps of a Keras optimizer."""
    variables = model.trainable_variables
    gradients = gradients_of(variables)
    optimizer.build(variables)
    if keras.backend.backend() == "jax":
        return _steps_in_jax(optimizer, variables, gradients)[0]
    import tensorflow as tf

    return tf.function(lambda: optimizer.apply(gradients, variables), jit_compile=xla)


def _steps_in_jax(optimizer, variables, gradients):
    """Steps under `jax.jit`, which donates buffers as Keras's trainer does.

    With them come two functions, that put their weights into the variables and take them back.
    """
    import jax

    apply = jax.jit(
        lambda weights, state, given: optimizer.stateless_apply(state, given, weights),
        donate_argnums=(0, 1),
    )
    values = [[v.value for v in one] for one in (variables, optimizer.variables)]

    def step():
        values[:] = apply(*values, gradients)
        jax.block_until_ready(values)

    def put_back():
        for variable, value in zip(variables, values[0], strict=True):
            variable.assign(value)

    def take():
        values[0] = [variable.value for variable in variables]

    return step, put_back, take


def steps_with_callback(callback, optimizer, model, xla=True):
    """Steps of a Keras optimizer, each followed by a callback as `fit` calls it."""
    model.compile(optimizer, "mse")
    variables = model.trainable_variables
    if keras.backend.backend() == "jax":
        optimizer.build(variables)
        apply, put_back, take = _steps_in_jax(optimizer, variables, gradients_of(variables))
    else:
        apply, put_back, take = steps_of_optimizer(optimizer, model, xla), _nothing, _nothing
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

    return step


def _nothing():
    """Does nothing: under TensorFlow variables hold their weights all the time."""


def _wait(variables):
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready([variable.value for variable in variables])


def steps_of_tf_keras(model):
    """Steps of tf_keras's Adam, without XLA, on the weights of a model made again in tf_keras."""
    import tensorflow as tf

    legacy = keras_lp.tfmot.to_tf_keras(model)
    return tf.function(_adam_of_tf_keras(legacy))


def _adam_of_tf_keras(legacy):
    """Compiles a model with tf_keras's Adam; returns a step of it, to be traced."""
    import tf_keras

    variables = legacy.trainable_variables
    optimizer = tf_keras.optimizers.Adam(jit_compile=False)
    optimizer.build(variables)
    legacy.compile(optimizer, "mse")
    pairs = list(zip(gradients_of(variables), variables, strict=True))
    return functools.partial(optimizer.apply_gradients, pairs)


def steps_of_tfmot(model, sparsity=0.9, frequency=100):
    """Steps of tf_keras's Adam under TF-MOT's magnitude pruning, without XLA.

    The wrappers mask the weights at each step, in the forward pass, and choose the masks anew
    every `frequency` steps; TF-MOT's callback tells them the step.
    """
    import tensorflow as tf

    from keras_lp.optional import import_tfmot

    api = import_tfmot().sparsity.keras
    schedule = api.PolynomialDecay(0.0, sparsity, 0, 10**6, frequency=frequency)
    legacy = keras_lp.tfmot.to_tf_keras(model)
    wrapped = api.prune_low_magnitude(legacy, schedule)
    wrappers = [layer for layer in wrapped.layers if hasattr(layer, "pruning_obj")]
    adam = _adam_of_tf_keras(wrapped)
    callback = api.UpdatePruningStep()
    callback.set_model(wrapped)
    callback.on_train_begin()

    @tf.function
    def apply():
        for wrapper in wrappers:
            wrapper.pruning_obj.conditional_mask_update()
            wrapper.pruning_obj.weight_mask_op()
        adam()

    batch = 0

    def step():
        nonlocal batch
        callback.on_train_batch_begin(batch)
        apply()
        batch += 1

    return step


def passes_over(count):
    """One read and one write of so many float32 numbers, compiled by XLA: the copy bandwidth."""
    if keras.backend.backend() == "jax":
        import jax

        scale = jax.jit(lambda x: x * 0.999, donate_argnums=0)
        array = keras.ops.ones(count, "float32")

        def once():
            nonlocal array
            array = jax.block_until_ready(scale(array))

        return once
    import tensorflow as tf

    variable = tf.Variable(tf.ones(count))
    return tf.function(lambda: variable.assign(variable * 0.999), jit_compile=True)


def training_steps(optimizer, model, batch_size=32):
    """Whole training steps of an image classifier: forward, backward and the optimizer."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=True)
    random = np.random.default_rng(0)
    x = random.standard_normal((batch_size, *model.input_shape[1:]), "float32")
    y = random.integers(model.output_shape[-1], size=batch_size)
    return functools.partial(model.train_on_batch, x, y)
