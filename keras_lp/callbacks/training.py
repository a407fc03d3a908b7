"""What the callbacks share about a running training."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
from keras import ops

from keras_lp.keras_internals import renew_training_state
from keras_lp.optimizers.decay_only import step_count
from keras_lp.optimizers.lp_update import LpUpdate
from keras_lp.optional import is_tf_keras_model
from keras_lp.selection import UNNAMED, Named, optimizers_of, optimizers_within
from keras_lp.sparsity.report import sort_weights
from keras_lp.sparsity.weights import layers_within


def lp_optimizers(optimizers: Iterable[Any]) -> list[LpUpdate]:
    """What decays by an Lp rule now among optimizers, the decays of `LpDecayCallback` included."""
    found = [one for optimizer in optimizers for one in optimizers_within(optimizer)]
    # The decay of a callback stays after its training, without effect.
    return [o for o in found if isinstance(o, LpUpdate) and getattr(o, "is_applied", True)]


def has_variables(model: Any) -> bool:
    """Whether a model is built: `fit` may do so in its first batch.

    Keras also calls a subclassed model built that was told an input shape and has no variable yet,
    and never one whose training step calls the models in it alone.
    """
    is_built = model.built or all(one.built for one in layers_within(model) if one is not model)
    return bool(is_built and model.trainable_variables)


@contextlib.contextmanager
def between_steps(model: Any) -> Iterator[None]:
    """In which a callback may read and assign variables after a batch."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()  # While training, the model does not hold its weights.
    yield
    renew_training_state(model)


def innermost(optimizer: Any) -> Any:
    """The optimizer that makes the steps: the one inside a `LossScaleOptimizer`."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def batches_seen(optimizer: Any) -> int:
    """How many batches an optimizer has seen; 0 for a model that trains without one."""
    if optimizer is None:
        return 0
    return int(ops.convert_to_numpy(step_count(innermost(optimizer))))


def batches_done(batch: int, params: Mapping[str, Any] | None) -> int:
    """How many batches of an epoch are done at the end of one, by its index.

    With `steps_per_execution`, Keras counts the last execution of an epoch as a full one.

    Args:
        batch: What `on_train_batch_end` was given.
        params: The `params` of the callback.
    """
    return min(batch + 1, (params or {}).get("steps") or batch + 1)


def is_in_fit(callback: keras.callbacks.Callback) -> bool:
    """Whether Keras calls a callback in its training, or a loop of the user's own."""
    history = getattr(callback.model, "history", None)
    return history is not None and history.params is callback.params


def after_the_callbacks(callback: keras.callbacks.Callback, function: Callable[[], None]) -> None:
    """Calls a function when all callbacks have had their `on_train_end`.

    In `fit` the callback `History`, which has the same `params`, comes after those of the user.

    Args:
        callback: The one that is in its `on_train_end`.
        function: Function without arguments.
    """
    if not is_in_fit(callback):
        function()
        return
    history = callback.model.history

    def on_train_end(logs: Any = None) -> None:
        del history.on_train_end
        function()

    history.on_train_end = on_train_end


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """Where variables are created that go with a model's: under its `tf.distribute` strategy."""
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def count_zeros(model: keras.Model, named: Named = UNNAMED) -> tuple[int, int]:
    """Numbers of zeros and of entries of the decayed variables."""
    if not is_tf_keras_model(model):
        counts = [one.count(0.0) for one in sort_weights(model, named)[0]]
        return sum(zeros for zeros, _, _ in counts), sum(size for _, size, _ in counts)
    decays = lp_optimizers(optimizers_of(model))
    decayed = [v for decay in decays for v in decay.decayed_variables]
    arrays = [ops.convert_to_numpy(variable) for variable in decayed]
    return sum(int((a == 0).sum()) for a in arrays), sum(a.size for a in arrays)


def add_logs(
    model: keras.Model,
    logs: dict[str, Any] | None,
    count: Callable[[], tuple[int, int]] | None = None,
) -> None:
    """Adds sparsity and decay to the logs of an epoch, unless another callback did.

    `sparsity` and `nonzero` count over the decayed variables. `weight_decay` and `p` are
    those of the model's Lp optimizer; of several norms the second has the suffix `_1`.

    Args:
        model: The model.
        logs: The logs to add to, if there are any.
        count: Gives the numbers of zeros and of entries; by default `sparsity_report` does.
    """
    if logs is None or "sparsity" in logs:
        return
    zeros, size = count() if count else count_zeros(model)
    logs |= {"sparsity": zeros / size, "nonzero": size - zeros}
    for name in ("weight_decay", "p"):
        values = [getattr(one, name) for one in lp_optimizers(optimizers_of(model))]
        norms = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
        for number, value in enumerate(norms):
            logs[f"{name}_{number}" if number else name] = float(ops.convert_to_numpy(value))
