"""Compiled calls that read and assign variables, on each backend.

A callback runs outside the compiled training step, where every operation would be a pass
over memory of its own. `compiled` makes one call of them: XLA under TensorFlow, `jax.jit`
under JAX. Under torch the operations run one by one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras


def compiled(
    function: Callable[[], Any],
    written: Sequence[Any],
    read: Sequence[Any],
    model: keras.Model,
) -> Callable[[], Any]:
    """`function`, compiled.

    Args:
        function: Function without arguments that returns tensors.
        written: The Keras variables that it assigns.
        read: Those that it only reads.
        model: The model whose strategy or distribution the variables are under.

    Returns:
        Function that does the same, also in the middle of a training.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _for_tensorflow(function, model)
    if backend == "jax":
        return _for_jax(function, [*written], [*read], model)
    return _for_torch(function)


def _for_tensorflow(function: Callable[[], Any], model: keras.Model) -> Callable[[], Any]:
    import tensorflow as tf

    strategy = model.distribute_strategy
    # XLA compiles for one device. What is computed has no control flow for AutoGraph to rewrite.
    is_one = strategy.num_replicas_in_sync == 1
    compiled_function = tf.function(function, jit_compile=is_one, autograph=False)

    def call() -> Any:
        with strategy.scope():
            return compiled_function()

    return call


def _for_jax(
    function: Callable[[], Any], written: list[Any], read: list[Any], model: keras.Model
) -> Callable[[], Any]:
    import jax

    @functools.partial(jax.jit, donate_argnums=0)
    def stateless(new: list[Any], fixed: list[Any]) -> Any:
        values = zip([*written, *read], [*new, *fixed], strict=True)
        with keras.StatelessScope(state_mapping=values) as scope:
            outputs = function()
        return outputs, [scope.get_current_value(variable) for variable in written]

    def call() -> Any:
        model.jax_state_sync()  # While training, the model does not hold its weights.
        outputs, values = stateless([v.value for v in written], [v.value for v in read])
        for variable, value in zip(written, values, strict=True):
            variable.assign(value)
        return outputs

    return call


def _for_torch(function: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    return torch.no_grad()(function)
