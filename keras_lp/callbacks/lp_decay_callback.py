"""The decay after each batch, for a model compiled with any optimizer.

`LpDecayCallback` is for optimizers that cannot be an Lp optimizer and for training steps of
the user's own. What it knows and changes lives in a `DecayOnly` that it puts beside the
model's optimizer, so that `BackupAndRestore` keeps it with the weights.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_lp.callbacks.compiling import compiled
from keras_lp.callbacks.training import (
    add_logs,
    batches_seen,
    between_steps,
    has_variables,
    innermost,
    lp_optimizers,
    strategy_scope,
)
from keras_lp.optimizers.arguments import DecayArguments
from keras_lp.optimizers.decay_only import DecayOnly
from keras_lp.optimizers.lp_update import document
from keras_lp.optional import is_tf_keras_model
from keras_lp.selection import list_paths, optimizers_of
from keras_lp.sparsity.report import check_is_model
from keras_lp.warning import warn


@document
class LpDecayCallback(keras.callbacks.Callback):
    """Applies the decoupled decay for any p-norm after each step of any optimizer.

    Formula: `w_new = w / (1 + learning_rate * weight_decay * |r|**(p - 2))`, where `w` is the
    weight after the optimizer's step, `r` the one before it (`reference="previous"`) or `w`
    itself (`"updated"`), and `learning_rate` that of the step. The weights are those that the
    matching Lp optimizer gives. `keras_lp.LpAdamW`, its like and `keras_lp.LpDecay` are
    faster and keep no second copy of the weights; use them where you can, and where a
    `train_step` of your own makes several steps in a batch: this decays once.

    Adds to the logs of each epoch: `sparsity` (share of zeros in the decayed variables),
    `nonzero` (the number of other entries), `weight_decay` and `p`. Place it before the
    callbacks that are to see them, and before those that change the learning rate after a
    batch: the decay goes by the rate of the step that was made. Before callbacks that change
    weights after a batch, such as a clipping, it decays what the step made, as an Lp optimizer
    does; after them, what they made of it.

    A model that `fit` builds in its first batch, as TensorFlow does with one that has no input
    shape, is decayed from the second batch on.

    Args:
        {{lp_arguments}}
        optimizer: The optimizer whose steps are followed. Defaults to the model's; for a
            model with several pass one of them, and leave the variables of the others out
            with `exclude`.

    Raises:
        {{raises}} At the beginning of the training, if the rule cannot hold: the model's
            optimizer or a second callback decays by an Lp rule already, it averages weights
            (`use_ema`) or is a `MultiOptimizer`, `Ftrl` or `ScheduleFreeAdamW`, or
            `steps_per_execution` is not 1.

    Example:
    >>> model.compile(optimizer="adam", loss="mse")
    >>> model.fit(x, y, callbacks=[keras_lp.LpDecayCallback(weight_decay=0.1, p=0.8)])

    Reference:

    - [Outmezguine and Levi, 2024](https://arxiv.org/abs/2404.10824)
    """

    def __init__(
        self,
        weight_decay: Any = 0.004,
        p: Any = 0.8,
        reference: str = "previous",
        exclude: str | Iterable[str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        include: str | Iterable[str] | None = None,
        initial_zeros: str | None = None,
        optimizer: keras.optimizers.Optimizer | None = None,
    ) -> None:
        super().__init__()
        arguments = DecayArguments.of(
            weight_decay, p, reference, initial_zeros, include, exclude, overrides
        )
        self._arguments = {**vars(arguments), "overrides": dict(arguments.overrides)}
        self._optimizer = optimizer
        self._forget()

    def _forget(self) -> None:
        """Is as it was created: knows of no model."""
        self._last_model: Any = None
        self._decay = DecayOnly(**self._arguments)
        self._variables: list[Any] = []  # Those that the decay is built for.
        self._leader: Any = None
        self._counts_all = False  # Inside a LossScaleOptimizer it leaves out what overflows.
        self._take: Any = None  # Compiled: takes the weights before a step,
        self._apply: Any = None  # and decays after it.
        self._is_following = False  # Whether the decay knows the weights before the next step.
        self._batches = self._batches_before = 0  # that the optimizer has seen
        self._has_warned = False

    def __getstate__(self) -> dict[str, Any]:
        """What pickle keeps: what it was created with, and nothing of a training."""
        return {"arguments": self._arguments, "optimizer": self._optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Is created from what pickle kept."""
        LpDecayCallback.__init__(self)
        self._arguments, self._optimizer = state["arguments"], state["optimizer"]
        self._forget()

    @property
    def weight_decay(self) -> Any:
        """Current strength, as in an Lp optimizer; can be set, also during training."""
        return self._decay.weight_decay

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self._decay.weight_decay = value
        self._arguments["weight_decay"] = value
        if self._decay.is_applied and self._variables and not self._is_following:
            self._follow_from_now()

    @property
    def p(self) -> Any:
        """Current exponent of the norm."""
        return self._decay.p

    @property
    def decayed_variables(self) -> list[Any]:
        """The variables that the decay acts on; empty before the training."""
        return self._decay.decayed_variables

    def set_model(self, model: keras.Model) -> None:
        """Puts the decay beside the optimizer of a model."""
        super().set_model(model)
        if model is not self._last_model:
            self._last_model, self._has_warned = model, False
        self._is_legacy = is_tf_keras_model(model)
        if self._is_legacy:
            _check_backend()
        else:
            check_is_model(model)
        leader = innermost(self._optimizer or getattr(model, "optimizer", None))
        _check(model, leader)
        if leader is not self._leader:
            self._leader, self._apply = leader, None
        self._counts_all = self._leader is self._home
        if has_variables(model):
            self._build()
        elif self._variables:  # of another model
            self._decay, self._variables = DecayOnly(**self._arguments), []
        self._stand_beside()

    @property
    def _home(self) -> Any:
        """The optimizer beside which the decay stands, where Keras saves it with the model."""
        return getattr(self.model, "optimizer", None) or self._optimizer

    def _build(self) -> None:
        """Makes the decay for the variables that the model has now."""
        variables = self.model.trainable_variables
        if list(map(id, self._variables)) != list(map(id, variables)):
            with strategy_scope(self.model):
                self._decay = DecayOnly(**self._arguments)
                self._decay.start(self._leader)
                self._decay.build(variables)
            self._variables = variables
            self._apply = None

    def _stand_beside(self) -> None:
        self._decay.stand_beside(self._leader)
        self._decay.is_applied, self._decay.has_begun = True, False
        self._home.lp_decay = self._decay

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks that no second callback has taken the place of this one."""
        beside = self._home.lp_decay
        own = set(map(id, self.decayed_variables))
        twice = [v for v in beside.decayed_variables if id(v) in own]
        if beside is not self._decay and twice:
            self._decay.is_applied = beside.is_applied = False
            raise ValueError(
                "Two `LpDecayCallback` would decay the same variables twice. Leave out one; for "
                "two norms at once pass it lists, such as `weight_decay=(0.01, 0.0001), "
                f"p=(0.8, 2)`. Received two that decay {list_paths(twice)}"
            )

    def on_test_begin(self, logs: Any = None) -> None:
        """Is not applied where no training has begun, as in `evaluate(callbacks=...)`."""
        self._decay.is_applied &= self._decay.has_begun

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the decay where it is: it says which variables are decayed."""
        self._decay.is_applied = self._decay.has_begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins to follow the optimizer."""
        self._decay.has_begun = True
        self._is_following = False
        self._batches = self._batches_before = batches_seen(self._leader)
        if self._variables:
            self._start()

    def _start(self) -> None:
        """Goes on from the optimizer's step count and learning rate of now."""
        self._decay.start(self._leader)
        if self._apply is None:
            decay, leader = self._decay, self._leader
            copies, others = decay.copies, decay.decayed_variables
            self._take = compiled(decay.take_weights, copies, others, self.model)
            follow = functools.partial(decay.follow, leader)
            self._apply = compiled(follow, *decay.followed(leader), self.model)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Takes the weights of now: another callback may have changed them since the last step."""
        if self._variables and not self._only_accumulates(self._batches + 1):
            self._follow_from_now()

    # What tf_keras asks its callbacks, in names of its own.
    _supports_tf_logs = True

    def _implements_train_batch_hooks(self) -> bool:
        return True

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Decays, if the optimizer has made a step."""
        self._batches += 1
        if not self._variables:
            self._begin_late()
        elif not self._decay.may_decay:
            self._is_following = False
        elif self._is_following and not self._only_accumulates(self._batches):
            with between_steps(self.model):
                self._apply()

    def _begin_late(self) -> None:
        """Begins with a model that the first batch has built."""
        with between_steps(self.model):
            self._build()
            self._stand_beside()
            self._decay.has_begun = True
            self._start()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds to the logs; warns if the optimizer made no step, so that nothing was decayed."""
        steps = batches_seen(self._leader) - self._batches_before
        batches = self._batches - self._batches_before
        # Where data ends unexpectedly, TensorFlow counts a step for the batch that never came.
        if steps > batches + 1 and not self._has_warned:
            self._has_warned = True
            warn(
                "`LpDecayCallback` decays once after each batch, and the optimizer "
                f"{self._leader.name!r} makes several steps in one: {steps} in {batches}. Use "
                "`LpDecay(optimizer)` or an Lp optimizer, which decay in each step."
            )
        if steps == 0:
            warn(
                f"`LpDecayCallback` decays after the steps of {self._leader.name!r}, which made "
                "none in this epoch. If the model trains with another optimizer, pass that one: "
                "`LpDecayCallback(optimizer=...)`."
            )
        add_logs(self.model, logs)

    def _follow_from_now(self) -> None:
        """Takes the weights of now for those before the next step."""
        if not self._decay.may_decay:
            return
        if not self._is_following:
            with strategy_scope(self.model):  # Under JAX, `model` syncs its state.
                self._decay.start(self._leader)
        if self._decay.copies:
            self._take()
        self._is_following = True

    def _only_accumulates(self, batch: int) -> bool:
        """Whether the optimizer makes no step in a batch, whose gradients it accumulates."""
        every = getattr(self._leader, "gradient_accumulation_steps", None)
        return bool(every and self._counts_all and batch % every)


_REFUSED = {
    "Ftrl": (
        "It computes each weight anew from sums over the past, so that no decay of the weight "
        "lasts. Use `LpDecay(optimizer)`, which decays the sums along."
    ),
    "ScheduleFreeAdamW": (
        "The weights it trains are an average of two sequences, in which no zero can last. Use "
        "`LpAdamW` with a constant learning rate and `use_ema=True`, whose average keeps zeros."
    ),
    "MultiOptimizer": (
        "Give the decay to the optimizers in it, such as `LpAdamW` or `LpDecay(optimizer)`."
    ),
}


def _check_backend() -> None:
    """Raises an error unless a model of tf_keras can be trained with the callback."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "`LpDecayCallback` trains a tf_keras model where Keras 3 computes with TensorFlow too. "
            "Start the process with KERAS_BACKEND=tensorflow. "
            f"Received: backend={keras.backend.backend()!r}"
        )


def _check(model: keras.Model, leader: Any) -> None:
    """Raises an error that says what to do, unless the rule holds for a training."""
    is_legacy = is_tf_keras_model(model) and hasattr(leader, "iterations")
    if not (is_legacy or isinstance(leader, keras.optimizers.Optimizer)):
        raise TypeError(
            "Argument `optimizer` must be a Keras optimizer, or the model compiled with one. "
            f"Received: optimizer={leader!r}"
        )
    received = f"Received: optimizer={leader!r}"
    if any(not isinstance(each, DecayOnly) for each in lp_optimizers(optimizers_of(model))):
        raise ValueError(
            "The model's optimizer decays by an Lp rule already; the callback would do so "
            f"a second time. Leave out one of the two. {received}"
        )
    for name, remedy in _REFUSED.items():
        # The oldest Keras lacks some of them.
        of_keras = isinstance(leader, getattr(keras.optimizers, name, ()))
        if of_keras or (is_legacy and type(leader).__name__ == name):
            raise ValueError(f"`LpDecayCallback` cannot follow a `{name}`. {remedy} {received}")
    if getattr(leader, "use_ema", False):
        raise ValueError(
            "With `use_ema=True` the weights end as an average in which no zero lasts. Use "
            "`LpAdamW` or `LpDecay(optimizer)`, whose average keeps zeros, in place of "
            f"`LpDecayCallback`. {received}"
        )
    steps = int(getattr(model, "steps_per_execution", 1))  # In tf_keras it is a variable.
    if steps > 1:
        raise ValueError(
            "`LpDecayCallback` has to decay after each step, and is called once for several. Use "
            "`LpAdamW` or `LpDecay(optimizer)` in its place, or compile with "
            f"`steps_per_execution=1`. Received: steps_per_execution={steps}"
        )
