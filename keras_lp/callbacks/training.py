"""What the callbacks share about a running training."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from keras_lp.optimizers.decay_only import step_count
from keras_lp.optimizers.lp_update import LpUpdate
from keras_lp.optional import is_tf_keras_model
from keras_lp.selection import optimizers_within
from keras_lp.sparsity import sparsity_report


def lp_optimizers(model: keras.Model) -> list[LpUpdate]:
    """What decays a model by an Lp rule now, the decay of a `LpDecayCallback` included."""
    found = optimizers_within(getattr(model, "optimizer", None))
    # The decay of a callback stays after its training, without effect.
    return [o for o in found if isinstance(o, LpUpdate) and getattr(o, "is_applied", True)]


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


def strategy_scope(model: keras.Model) -> contextlib.AbstractContextManager:
    """Where variables are created that go with a model's: under its `tf.distribute` strategy."""
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()


def count_zeros(model: keras.Model, exclude: Any = None) -> tuple[int, int]:
    """Numbers of zeros and of entries of the decayed variables."""
    if not is_tf_keras_model(model):
        report = sparsity_report(model, exclude=exclude)
        return report.zeros, report.size
    decayed = [v for decay in lp_optimizers(model) for v in decay.decayed_variables]
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
        values = [getattr(optimizer, name) for optimizer in lp_optimizers(model)]
        norms = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
        for number, value in enumerate(norms):
            logs[f"{name}_{number}" if number else name] = float(ops.convert_to_numpy(value))
