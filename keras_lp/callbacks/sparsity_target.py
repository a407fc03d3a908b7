"""Training to a sparsity that is given, instead of with a strength that is guessed.

`SparsityTarget` looks at the weights every few steps, asks the law in `control` how fast
they have to fall, and sets the strengths of the model's Lp optimizer accordingly. At the
end it prunes what is left over, freezes the zeros and turns the decay off.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp.callbacks.control import PINNING, Course, strength
from keras_lp.callbacks.measuring import Magnitudes, measure
from keras_lp.callbacks.schedules import POWERS, PolynomialSparsity, as_schedule
from keras_lp.callbacks.training import (
    add_logs,
    batches_done,
    batches_seen,
    lp_optimizers,
    strategy_scope,
)
from keras_lp.optimizers.decay_only import DecayOnly, learning_rate_at, step_count
from keras_lp.selection import check_patterns, find_overrides, list_paths
from keras_lp.sparsity.dead import warn_of_dead
from keras_lp.sparsity.freezing import check_averages, freeze_zeros, unfreeze_zeros
from keras_lp.sparsity.pruning import check_scope, check_sparsity, prune_groups
from keras_lp.sparsity.report import by_layer, check_model, sparsity_report

_LARGEST_CLOSING = 0.03  # of the weights; more of them are worth a warning


class SparsityTarget(keras.callbacks.Callback):
    """Steers the strength of the decay so that a model gets a given sparsity.

    Between `begin_step` and `end_step` the `weight_decay` of the model's Lp optimizer, or of
    its `keras_lp.LpDecayCallback`, is set such that the sparsity follows a schedule. At
    `end_step` the weights of least magnitude that are left over become zero, so that the
    sparsity is the target, exact to one weight; the zeros are frozen as by
    `keras_lp.freeze_zeros`, and the decay is turned off: the rest of the training fine-tunes.
    Before `begin_step` nothing is decayed, but zeros that are there stay.

    Formula: `weight_decay = speed * Q**max(1 - p, 0)`, where `Q` is the magnitude under which
    weights have to fall for the scheduled sparsity a tenth of the way ahead, and `speed` (of
    a weight of this magnitude, in units of the learning rate) grows while there are fewer
    zeros than scheduled and falls while there are more. With `Q` the decay ends by itself.

    What it has to know is saved with the optimizer, so that `BackupAndRestore` resumes it. A
    model of `keras.models.load_model` begins anew, from the zeros it has; where it has the
    target already, `keras_lp.freeze_zeros` is enough. Callbacks that keep the best weights, such
    as `EarlyStopping(restore_best_weights=True)`, should start after `end_step`: weights from
    before it have fewer zeros.

    Adds `sparsity`, `nonzero`, `weight_decay` and `p` to the logs of each epoch. Place it after
    an `LpDecayCallback`, and before the callbacks that are to see the logs.

    Args:
        final_sparsity: Float in [0, 1], the share of zeros in the decayed variables.
        begin_step: Integer >= 0, the step to begin at, counted in batches since the training
            with this callback began. Defaults to a tenth of the training.
        end_step: Integer, the step to reach `final_sparsity` at. Defaults to four fifths
            of the training.
        frequency: Integer >= 1, the steps from one look at the weights to the next, at most a
            tenth of the way. Defaults to a fiftieth of the way, but at most 100.
        schedule: `"cubic"`, `"linear"`, `"constant"`, or in place of all arguments before a
            `keras_lp.PolynomialSparsity`, a `keras_lp.ConstantSparsity` or their like in
            TF-MOT. Defaults to `"cubic"`.
        scope: `"global"`, one ranking over the whole model, or `"layer"`, each layer to the
            same sparsity. Defaults to `"global"`.
        overrides: Dictionary from regular expressions, searched in the paths of the decayed
            variables, to the final sparsity of those that match, ranked on their own:
            `{"embedding": 0.5}`. The first that matches counts. Defaults to `None`.

    Raises:
        ValueError: If an argument is out of its range; at the beginning of the training, if
            the model is not built, has no Lp optimizer or `LpDecayCallback` or one whose
            strength cannot be steered, or it has more zeros than `final_sparsity` asks for.

    Example:
    >>> model.compile(keras_lp.LpAdamW(1e-3), "sparse_categorical_crossentropy")
    >>> model.fit(x, y, epochs=20, callbacks=[keras_lp.SparsityTarget(0.9)])
    >>> keras_lp.sparsity_report(model).sparsity
    0.9
    """

    def __init__(
        self,
        final_sparsity: float | None = None,
        begin_step: int | None = None,
        end_step: int | None = None,
        frequency: int | None = None,
        schedule: Any = "cubic",
        *,
        scope: str = "global",
        overrides: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_scope(scope)
        steps = {"begin_step": begin_step, "end_step": end_step, "frequency": frequency}
        self._schedule = _schedule(schedule, final_sparsity, steps)
        self._scope = scope
        self._overrides = _check_overrides(overrides)
        self._variables: list[Any] = []  # of the model that it was used for last
        self._step = 0  # since the start; what follows is known from the first epoch on
        self._epoch_start = self._begin = self._end = 0
        self._every = 1
        self._has_warned = False
        self._memory: Any = None
        self._is_closed = False

    def set_model(self, model: keras.Model) -> None:
        """Finds what to steer, and puts the memory of this callback beside the optimizer."""
        super().set_model(model)
        check_model(model)
        with strategy_scope(model):
            self._decays = _steerable(model)
            check_averages(model.optimizer)
            for decay in self._decays:
                if isinstance(decay, DecayOnly):
                    decay.has_begun = False  # Unless its callback says so, it is one of old.
            variables = [v for decay in self._decays for v in decay.decayed_variables]
            beside = getattr(model.optimizer, "sparsity_target", None)
            is_known = list(map(id, variables)) == list(map(id, self._variables))
            if beside is None or beside is not self._memory or not is_known:
                self._start_on(model, variables)
        # Beside the optimizer it is saved with the weights, and no part of the model.
        model.optimizer.sparsity_target = self._memory
        self._step = 0  # The memory knows; a training that was interrupted may go back.

    def _start_on(self, model: keras.Model, variables: list[Any]) -> None:
        """Forgets what it was used for before."""
        self._variables = variables
        self._groups = self._group(model, variables)
        self._look = measure([members for members, _ in self._groups], model)
        self._memory = _Memory(len(self._groups))
        self._is_frozen = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks that no second callback has taken the place of this one."""
        if self.model.optimizer.sparsity_target is not self._memory:
            raise ValueError(
                "Two `SparsityTarget` cannot steer one model. Leave out one; other targets for "
                "some variables are `SparsityTarget(overrides={'embedding': 0.5})`. Received: two "
                "callbacks"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins, or goes on where a training that was interrupted has been."""
        if any(isinstance(decay, DecayOnly) and not decay.has_begun for decay in self._decays):
            raise _nothing_to_steer(self.model)
        memory, seen = self._memory, batches_seen(self.model.optimizer)
        is_new = _numbers(memory.start) < 0
        if is_new:
            found = self._look()
            self._check_room(found)
            memory.start.assign(seen)
            memory.span.assign(self._schedule.span(self._steps_from(epoch)))
            # Decays nothing yet, but keeps zeros zero where there are some.
            self._give([PINNING if one.zeros else 0.0 for one in found])
        self._begin, self._end = _numbers(memory.span)
        every = self._schedule.every(self._end - self._begin)
        self._every = max(every, self.model.steps_per_execution)
        self._is_closed = bool(_numbers(memory.is_closed))
        # Read once in an epoch; what is saved at its end is what is read at the next begin.
        self._initials = _numbers(memory.initial)
        self._log_speeds = _numbers(memory.log_speed)
        self._step = self._epoch_start = max(self._step, seen - _numbers(memory.start))
        if is_new and self._begin == 0:
            self._steer()
        if self._is_closed:
            self._turn_off()  # A `LpDecayCallback` may be a new one.
            if not self._is_frozen:
                self._freeze()
        elif self._is_frozen:  # It was interrupted after the end, and goes on from before.
            unfreeze_zeros(self.model)
            self._is_frozen = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Steers every few steps, and closes at the last one."""
        done = batches_done(batch, self.params)
        before, self._step = self._step, self._epoch_start + done
        if self._is_closed or self._step < self._begin:
            return
        if self._step >= self._end:
            self._close()
        elif self._looks(self._step) > self._looks(before):
            self._steer()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds to the logs."""
        add_logs(self.model, logs, self._count)

    def on_train_end(self, logs: Any = None) -> None:
        """Warns once if the training was too short."""
        has_trained = self._step > 0  # A backup may be of the end, with nothing left to do.
        if has_trained and not (self._is_closed or self._has_warned):
            self._has_warned = True  # Not after each `fit` of a loop.
            warnings.warn(
                f"The training ended at step {self._step}, before `end_step={self._end}`: the "
                "sparsity is not the final one. Train on with the same callback, or make the "
                "rest zero with `keras_lp.prune`. The optimizer keeps the `weight_decay` that "
                "was set last.",
                stacklevel=2,
            )

    def _count(self) -> tuple[int, int]:
        """Numbers of zeros and of entries."""
        found = self._look()
        return sum(one.zeros for one in found), sum(one.size for one in found)

    def _steps_from(self, epoch: int) -> int | None:
        """The number of steps of the training that begins with an epoch, if it is known."""
        steps = self.params.get("steps")
        return steps and steps * (self.params["epochs"] - epoch)

    def _looks(self, step: int) -> int:
        """How many looks at the weights are due up to a step, after that at the begin."""
        return (step - self._begin) // self._every

    def _steer(self) -> None:
        """Sets the strengths by what the weights are now."""
        memory, found = self._memory, self._look()
        if math.isnan(self._initials[0]):
            memory.initial.assign(self._initial(found))
            self._initials = _numbers(memory.initial)
        rates = self._rates()
        speeds, magnitudes = [], []
        for (_, final), initial, before, one, rate in zip(
            self._groups, self._initials, self._log_speeds, found, rates, strict=True
        ):
            course = Course(self._schedule, self._begin, self._end, initial, final)
            magnitude = course.magnitude_to_fall(self._step, one)
            speeds.append(
                course.log_speed(self._step, one.sparsity, magnitude, before, self._every, rate)
            )
            magnitudes.append(magnitude)
        memory.log_speed.assign(speeds)
        self._log_speeds = np.asarray(speeds, "float32").tolist()  # As they are saved.
        for decay in self._decays:
            groups = [self._group_of[id(variable)] for variable in decay.decayed_variables]
            decay.steer(
                [
                    strength(speeds[group], magnitudes[group], p, self._every, rates[group])
                    for group, p in zip(groups, decay.steered_exponents(), strict=True)
                ]
            )

    def _rates(self) -> list[float]:
        """The learning rate of each group; the largest, where several optimizers share one.

        Of now or of the next look, since a rate that is warming up would make a strength
        that suits its beginning far too strong.
        """
        rates = [0.0] * len(self._groups)
        for decay in self._decays:
            leader = decay.leader() if isinstance(decay, DecayOnly) else decay
            now = ops.convert_to_tensor(step_count(leader))
            is_constant = isinstance(leader.learning_rate, keras.Variable)
            counts = (now,) if is_constant else (now, now + self._every)
            rate = max(_numbers(learning_rate_at(leader, count)) for count in counts)
            for group in (self._group_of[id(variable)] for variable in decay.decayed_variables):
                rates[group] = max(rates[group], rate)
        return rates

    def _close(self) -> None:
        """Makes the sparsity exact, keeps the zeros and ends the decay."""
        found = self._look()
        prune_groups(self._groups)
        for decay in self._decays:
            decay.zero_averages()
        self._freeze()
        self._turn_off()
        self._memory.is_closed.assign(1)
        self._is_closed = True
        self._warn_of(found)
        warn_of_dead(
            sparsity_report(self.model),
            'Take a lower final sparsity or `scope="layer"`, or give these layers one of their own '
            "with `overrides`.",
        )

    def _warn_of(self, found: Sequence[Magnitudes]) -> None:
        """Warns if the decay had made too many zeros by the end, or far too few."""
        over = [
            f"{one.sparsity:.2%} in place of {final:.2%} of {list_paths(variables, 3)}"
            for one, (variables, final) in zip(found, self._groups, strict=True)
            if one.zeros > round(final * one.size)
        ]
        if over:
            warnings.warn(
                "More weights became zero than `SparsityTarget` asked for, and zeros do not come "
                f"back: {'; '.join(over)}. Leave more steps between `begin_step` and `end_step`.",
                stacklevel=2,
            )
        under = [
            f"{final - one.sparsity:.2%} of {list_paths(variables, 3)}"
            for one, (variables, final) in zip(found, self._groups, strict=True)
            if final * one.size - one.zeros > max(_LARGEST_CLOSING * one.size, 1)
        ]
        if under:
            warnings.warn(
                "The decay had not made enough zeros at `end_step`, and weights became zero by "
                f"their magnitude alone: {'; '.join(under)}. Leave more steps between "
                "`begin_step` and `end_step`, or look at the learning rate.",
                stacklevel=2,
            )

    def _freeze(self) -> None:
        freeze_zeros(self.model)
        self._is_frozen = True

    def _turn_off(self) -> None:
        self._give([0.0] * len(self._groups))

    def _give(self, strengths: Sequence[float]) -> None:
        """Gives each group its strength, whatever the exponents."""
        for decay in self._decays:
            decay.steer([strengths[self._group_of[id(v)]] for v in decay.decayed_variables])

    def _check_room(self, found: Sequence[Magnitudes]) -> None:
        """Raises ValueError where there are more zeros already than there are to be."""
        for one, (variables, final) in zip(found, self._groups, strict=True):
            if one.zeros > round(final * one.size):
                raise ValueError(
                    "The final sparsity must not be below that of the beginning, since zeros do "
                    f"not come back. Received: a final sparsity of {final:.2%} for variables with "
                    f"{one.sparsity:.2%} zeros ({list_paths(variables, 3)})"
                )

    def _initial(self, found: Sequence[Magnitudes]) -> list[float]:
        """The sparsity from which the way of each group begins."""
        given = self._schedule.initial_sparsity
        finals = [final for _, final in self._groups]
        return [
            one.sparsity if given is None else min(given, final)
            for one, final in zip(found, finals, strict=True)
        ]

    def _group(self, model: keras.Model, variables: list[Any]) -> list[tuple[list[Any], float]]:
        """Groups of variables that are ranked together, each with its final sparsity."""
        overridden_by = find_overrides(variables, list(self._overrides))
        parts: dict[int | None, list[Any]] = {}
        for variable, override in zip(variables, overridden_by, strict=True):
            parts.setdefault(override, []).append(variable)
        finals = list(self._overrides.values())
        groups = [
            (members, self._schedule.final_sparsity if override is None else finals[override])
            for override, part in parts.items()
            for members in (
                [m for _, m in by_layer(model, part)] if self._scope == "layer" else [part]
            )
        ]
        self._group_of = {id(v): number for number, (vs, _) in enumerate(groups) for v in vs}
        return groups


@keras.saving.register_keras_serializable("keras_lp", "SparsityTargetMemory")
class _Memory(keras.layers.Layer):
    """What a `SparsityTarget` has to know to go on; a layer, since Keras saves layers.

    Args:
        groups: Number of groups.
    """

    def __init__(self, groups: int, **arguments: Any) -> None:
        super().__init__(**{"name": "sparsity_target", **arguments})
        self.groups = groups
        # Batches that the optimizer had seen at the start, -1 before it.
        self.start = self._add("start", (), "int32", -1)
        self.span = self._add("span", (2,), "int32", 0)  # The steps of the begin and the end.
        self.is_closed = self._add("is_closed", (), "int32", 0)
        # For each group its sparsity at the begin, and the logarithm of its speed.
        self.initial = self._add("initial", (groups,), "float32", math.nan)
        self.log_speed = self._add("log_speed", (groups,), "float32", math.nan)
        self.built = True

    def load_own_variables(self, store: Any) -> None:
        """Loads what was saved; nothing from a file that has none of it."""
        if len(store.keys()) > 0:
            super().load_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "groups": self.groups}

    def _add(self, name: str, shape: tuple[int, ...], dtype: str, value: float) -> Any:
        initializer = keras.initializers.Constant(value)
        return self.add_weight(
            shape=shape, initializer=initializer, dtype=dtype, trainable=False, name=name
        )


def _numbers(variable: Any) -> Any:
    """A number or a list of them, out of a variable or tensor."""
    return ops.convert_to_numpy(variable).tolist()


def _schedule(
    schedule: Any, final_sparsity: float | None, steps: Mapping[str, Any]
) -> PolynomialSparsity:
    """What the arguments of the constructor describe; raises ValueError where they do not."""
    if hasattr(final_sparsity, "frequency") or hasattr(final_sparsity, "get_config"):
        raise ValueError(
            "Pass a schedule object by its name: `SparsityTarget(schedule=...)`. "
            f"Received: final_sparsity={final_sparsity!r}"
        )
    if isinstance(schedule, str) and schedule in POWERS:
        if final_sparsity is None:
            raise ValueError(
                "Argument `final_sparsity` is needed: the share of weights that are to be zero, "
                "0.9 for 90 %. Received: final_sparsity=None"
            )
        return PolynomialSparsity(None, final_sparsity, power=POWERS[schedule], **steps)
    converted = as_schedule(schedule)
    given = {name: value for name, value in steps.items() if value is not None}
    if final_sparsity is not None or given:
        raise ValueError(
            "With a schedule object leave out `final_sparsity`, `begin_step`, `end_step` and "
            "`frequency`, which the object says. Received: "
            f"schedule={schedule!r}, final_sparsity={final_sparsity!r}, {steps}"
        )
    return converted


def _check_overrides(overrides: Any) -> dict[str, float]:
    overrides = {} if overrides is None else overrides
    if not isinstance(overrides, Mapping):
        raise ValueError(
            "Argument `overrides` must be a dictionary from regular expressions to sparsities, "
            f'such as {{"embedding": 0.5}}. Received: overrides={overrides!r}'
        )
    for pattern, final in overrides.items():
        check_patterns("overrides", pattern)
        check_sparsity(f"overrides[{pattern!r}]", final)
    return dict(overrides)


def _nothing_to_steer(model: keras.Model) -> ValueError:
    return ValueError(
        "`SparsityTarget` steers the decay of an Lp optimizer, and there is none. Compile the "
        "model with `keras_lp.LpAdamW` or its like, or put a `keras_lp.LpDecayCallback` before "
        f"this callback. Received: optimizer={model.optimizer!r}"
    )


def _steerable(model: keras.Model) -> list[Any]:
    """What decays the model, built; raises ValueError unless its strengths can be steered."""
    decays = lp_optimizers(model)
    if not decays:
        raise _nothing_to_steer(model)
    received = f"Received: optimizer={model.optimizer!r}"
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    decays = [decay for decay in decays if decay.decayed_variables]
    if not decays:
        raise ValueError(
            "The optimizer decays none of the model's variables: it was saved for others, or is "
            f"for none of them. Compile the model with a new one. {received}"
        )
    for decay in decays:
        strengths = decay.weight_decay
        strengths = strengths if isinstance(strengths, tuple) else (strengths,)
        if not all(isinstance(one, keras.Variable) for one in strengths):
            raise ValueError(
                "`SparsityTarget` sets the strength, so that it cannot follow a schedule as well. "
                f"Pass a number as `weight_decay`. {received}"
            )
        if decay.reference != "previous":
            raise ValueError(
                "`SparsityTarget` needs weights that stay zero once they are. Create the optimizer "
                f'with `reference="previous"`. {received}, reference={decay.reference!r}'
            )
        if any("weight_decay" in override for override in decay.overrides.values()):
            raise ValueError(
                "`SparsityTarget` sets the strengths, those of `overrides` too. Leave out "
                "`weight_decay` there; other targets for some variables are "
                f"`SparsityTarget(overrides={{'embedding': 0.5}})`. {received}"
            )
        if any(p > 1 for p in decay.steered_exponents()) and not ops.is_tensor(decay.p):
            raise ValueError(
                "`SparsityTarget` needs p <= 1, such as p=0.8: with a larger p the pull on a "
                "weight vanishes as it comes near zero, and few weights get there. "
                f"{received}, p={decay.p!r}"
            )
        given = [decay.p, *(one["p"] for one in decay.overrides.values() if "p" in one)]
        for p in given:
            if isinstance(p, tuple) and sum(float(one) <= 1 for one in p) > 1:
                raise ValueError(
                    "`SparsityTarget` steers one norm; another one with p <= 1 would make zeros "
                    "of its own. Keep one such norm, beside others such as p=2. "
                    f"{received}, p={p!r}"
                )
    return decays
