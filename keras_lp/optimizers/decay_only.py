"""The decay alone: an Lp optimizer without a step of its own.

`DecayOnly` follows another optimizer: after each of its steps it divides the weights by
the divisor that the Lp optimizers use, at the learning rate of that step. An optimizer, so
that selection, overrides, schedules and saving are those of `LpUpdate`.
Source: Outmezguine and Levi, "Decoupled Weight Decay for Any p Norm", arXiv:2404.10824.
"""

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_lp.decay import at_least_float32, is_several
from keras_lp.optimizers.arguments import is_schedule
from keras_lp.optimizers.lp_update import LpUpdate


@keras.saving.register_keras_serializable("keras_lp")
class DecayOnly(LpUpdate, keras.optimizers.Optimizer):
    """Decays weights after the steps of another optimizer, its leader.

    Formula: `w_new = w / (1 + learning_rate * weight_decay * |r|**(p - 2))`, where `w` is the
    weight after the step and `r` the one before it (`reference="previous"`), of which a copy
    is kept, or after it (`"updated"`). Its own `learning_rate` is that of the last step.

    Args:
        **arguments: Those of the decay, as in every Lp optimizer.

    Attributes:
        copies: Variables that hold the weights before a step, if the rule asks for them.
        may_decay: Whether there is a strength over 0, or one may come by itself.
        is_applied: Whether a callback in the training of now, or of one that was broken off,
            applies it.
        has_begun: Whether one has begun with the epoch of now.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"learning_rate": 0.0, "name": "decay_only", **arguments})
        self.may_decay = True
        self.is_applied = self.has_begun = False
        # No attribute that Keras would find: it would save the leader as a part of this.
        self._leader: Callable[[], Any] = lambda: None
        self.copies: list[Any] = []  # of the weights before a step, if the rule asks for them

    def build(self, var_list: Sequence[Any]) -> None:
        """Selects the decayed variables and makes room for their copies."""
        if self.built:
            return
        super().build(var_list)
        if self.reference == "previous":
            self.copies = [
                self.add_variable_from_reference(variable, name="previous")
                for variable in self.decayed_variables
            ]

    def _warn_of_zeros_that_stay(self) -> None:
        """Warns at the start of a training, not of zeros that one has made."""
        leader = self.leader()
        if leader is None or int(ops.convert_to_numpy(step_count(leader))) == 0:
            super()._warn_of_zeros_that_stay()

    @property
    def weight_decay(self) -> Any:
        """Current strength, as in every Lp optimizer."""
        return super().weight_decay

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        LpUpdate.weight_decay.fset(self, value)  # type: ignore[attr-defined]
        self.may_decay = True

    def leader(self) -> Any:
        """The optimizer that is followed; `None` before a training."""
        return self._leader()

    def steer(self, strengths: Sequence[float], largest_rate: float = math.inf) -> None:
        """Sets the strength of each decayed variable, as in every Lp optimizer."""
        super().steer(strengths, largest_rate)
        self.may_decay = True

    def stand_beside(self, leader: Any) -> None:
        """Is to follow an optimizer."""
        self._leader = weakref.ref(leader)

    def start(self, leader: Any) -> None:
        """Takes the count and the learning rate of now for those before the next step."""
        self.stand_beside(leader)
        self.may_decay = self._is_strong()
        count = ops.convert_to_tensor(step_count(leader))
        self._iterations.assign(count - 1)
        # Copies, since JAX gives the buffers of the leader away to its next step.
        self.learning_rate.assign(ops.copy(learning_rate_at(leader, count)))

    def take_weights(self) -> None:
        """Takes the weights of now for those before the leader's next step."""
        for variable, previous in zip(self.decayed_variables, self.copies, strict=False):
            previous.assign(ops.copy(variable))

    def follow(self, leader: Any) -> None:
        """Decays once, if the leader has made a step since the last call."""
        every = getattr(leader, "gradient_accumulation_steps", None) or 1  # tf_keras has none.
        count = ops.convert_to_tensor(step_count(leader))
        has_stepped = ops.greater(count // every, (self._iterations + 1) // every)
        self._iterations.assign(count - 1)  # What schedules have seen in that step.
        rate = learning_rate_at(leader, count - 1)
        self.learning_rate.assign(rate)
        rate = ops.where(has_stepped, rate, ops.zeros_like(rate))
        for position, index in enumerate(self._selection.overrides):
            variable = self._trainable_variables[index]
            step = functools.partial(self._decay_one, index)
            _on_each_replica(step, variable, rate, *self.copies[position : position + 1])
        if self._fallen is not None:
            self._count_fall(rate)

    def followed(self, leader: Any) -> tuple[list[Any], list[Any]]:
        """The variables that `follow` assigns, and those that it reads only."""
        settings = [self._iterations, self.learning_rate]
        settings += [] if self._fallen is None else [self._fallen]
        written = [*self.decayed_variables, *settings]
        ids = set(map(id, written))
        read = [step_count(leader), leader.learning_rate, *self.variables]
        return written, [v for v in read if isinstance(v, keras.Variable) and id(v) not in ids]

    def save_own_variables(self, store: Any) -> None:
        """Saves what cannot be had from the model: all but the copies of its weights."""
        for name, variable in self._own_variables().items():
            store[name] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved; nothing from a file without it."""
        for name, variable in self._own_variables().items():
            if name in store:
                variable.assign(store[name])

    def _own_variables(self) -> dict[str, Any]:
        copies = set(map(id, self.copies))
        return {v.name: v for v in self.variables if id(v) not in copies}

    def _is_strong(self) -> bool:
        """Whether there is a strength over 0, or one may come by itself."""
        weight_decay = self._decay.weight_decay
        strengths = weight_decay if is_several(weight_decay) else (weight_decay,)
        changes = any(map(is_schedule, strengths)) or self._decay.overrides
        return bool(changes) or any(ops.convert_to_numpy(one) > 0 for one in strengths)

    def _decay_one(self, index: int, variable: Any, rate: Any, *previous: Any) -> None:
        value = ops.convert_to_tensor(variable)
        divisor = self._divisor(index, previous[0] if previous else value, rate)
        value = ops.divide(value, divisor)
        constraint = self._trainable_variables[index].constraint
        if constraint is not None:
            value = constraint(value)
        self.assign(variable, value)


def step_count(optimizer: Any) -> Any:
    """The variable that counts batches, from which schedules are computed.

    A private name, as `LpUpdate` has it: the public `iterations` is another number while
    gradients are accumulated.
    """
    return optimizer._iterations


def learning_rate_at(optimizer: Any, count: Any) -> Any:
    """The learning rate at a `step_count`, as a tensor; that of now, if no schedule gives it."""
    rate = optimizer.learning_rate
    is_of_keras = isinstance(step_count(optimizer), keras.Variable)
    # That of an optimizer of tf_keras is the rate of its last step, also under a schedule.
    if is_of_keras and not isinstance(rate, keras.Variable):  # It comes from a schedule.
        with keras.StatelessScope([(step_count(optimizer), count)], initialize_variables=False):
            rate = optimizer.learning_rate
    return at_least_float32(rate)


def _on_each_replica(function: Callable[..., None], variable: Any, *arguments: Any) -> None:
    """Calls `function(variable, *arguments)`, under a `tf.distribute` strategy on each device."""
    if keras.backend.backend() != "tensorflow":
        function(variable, *arguments)
        return
    import tensorflow as tf

    first, *others = (
        v.value if isinstance(v, keras.Variable) else v for v in (variable, *arguments)
    )
    tf.distribute.get_strategy().extended.update(first, function, args=others, group=False)
