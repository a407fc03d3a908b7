"""Training to a sparsity that is given, instead of with a strength that is guessed.

`SparsityTarget` looks at the weights every few steps, asks the law in `control` how fast
they have to fall, and sets the strengths of the model's Lp optimizer accordingly. At the
end it prunes what is left over, freezes the zeros and turns the decay off.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp.callbacks import advice, steering
from keras_lp.callbacks.control import PINNING, Course, strength
from keras_lp.callbacks.measuring import Magnitudes, measure
from keras_lp.callbacks.memory import TargetMemory
from keras_lp.callbacks.schedules import schedule_of
from keras_lp.callbacks.training import (
    add_logs,
    after_the_callbacks,
    batches_done,
    batches_seen,
    between_steps,
    is_in_fit,
    lp_optimizers,
    strategy_scope,
)
from keras_lp.optimizers.decay_only import DecayOnly
from keras_lp.selection import check_patterns, find_overrides, list_paths, optimizers_of
from keras_lp.sparsity.dead import explain_dead
from keras_lp.sparsity.freezing import check_averages, freeze, unfreeze
from keras_lp.sparsity.pruning import check_scope, check_sparsity, prune_groups
from keras_lp.sparsity.report import by_layer, check_is_model
from keras_lp.sparsity.weights import weights_of
from keras_lp.warning import warn

_PATIENCE = 100  # batches in which an optimizer makes a step; loss scaling leaves some out
_WORST = 1e30  # of the monitored log; a number, as trackers and tuners take no infinite one


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
    target already, `keras_lp.freeze_zeros` is enough. `OrbaxCheckpoint` does not save it.

    Adds `sparsity`, `nonzero`, `weight_decay` and `p` to the logs of each epoch. Place it after
    an `LpDecayCallback`, and before the callbacks that are to see the logs. Weights from before
    the end have fewer zeros: what keeps the best ones (`ModelCheckpoint(save_best_only=True)`,
    `EarlyStopping`, a tuner) has to go by the log `target_val_loss`. From the end on it is
    `val_loss`; before it is worse than any, and a little less so each epoch, so that nobody's
    patience ends.

    A model that `fit` builds in its first batch, as TensorFlow does with one that has no input
    shape, is steered from the second batch on. In a loop of your own call `set_model`,
    `on_epoch_begin`, and `on_train_batch_end` after each step, and pass `begin_step` and
    `end_step`. A loop that keeps values outside of the variables, as with `stateless_apply`,
    assigns them before `on_train_batch_end` and takes them from the variables after it.

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
        optimizer: The Lp optimizer to steer, or a list of them, or those whose steps an
            `LpDecayCallback` follows. Defaults to what the model is compiled with and any that
            are attributes of it, as in a GAN.
        monitor: Name of the log that `target_...` is made of. Defaults to `"val_loss"`.
        mode: `"min"` if less of it is better, or `"max"`. Defaults to `"min"`.

    Raises:
        TypeError: If `optimizer` is none.
        ValueError: If an argument is out of its range; at the beginning of the training, if
            the model has no Lp optimizer or `LpDecayCallback` or one whose strength cannot be
            steered, or it has more zeros than `final_sparsity` asks for.

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
        optimizer: Any = None,
        monitor: str = "val_loss",
        mode: str = "min",
    ) -> None:
        super().__init__()
        check_scope(scope)
        steps = {"begin_step": begin_step, "end_step": end_step, "frequency": frequency}
        self._schedule = schedule_of(schedule, final_sparsity, steps)
        self._scope = scope
        self._overrides = _check_overrides(overrides)
        self._given = steering.as_optimizers(optimizer)
        self._monitor, self._mode = monitor, _check_mode(mode)
        self._forget()

    def _forget(self) -> None:
        """Is as it was created: knows of no model."""
        self._last_model: Any = None
        self._decays: list[Any] = []  # What is steered; none before the model is built.
        self._variables: list[Any] = []  # of the model that it was used for last
        self._groups: list[tuple[list[Any], float]] = []
        self._memory: Any = None
        self._step = 0  # since the start; what follows is known from the first epoch on
        self._epoch = self._epoch_start = self._begin = self._end = 0
        self._every = 1
        self._first_seen: int | None = None  # batches, when this training began
        self._has_begun = self._is_closed = self._is_frozen = self._is_known = False
        self._has_warned_of: set[str] = set()
        self._highest_rate = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """What pickle keeps: what it was created with, and nothing of a training."""
        names = ("_schedule", "_scope", "_overrides", "_given", "_monitor", "_mode")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Is created from what pickle kept."""
        keras.callbacks.Callback.__init__(self)
        for name, value in state.items():
            setattr(self, name, value)
        self._forget()

    def set_model(self, model: keras.Model) -> None:
        """Finds what to steer, and puts the memory of this callback beside the optimizer."""
        super().set_model(model)
        check_is_model(model)
        if model is not self._last_model:
            self._last_model, self._has_warned_of = model, set()
        self._has_begun, self._first_seen = False, None
        self._step = 0  # The memory knows; a training that was interrupted may go back.
        for decay in self._find():
            if isinstance(decay, DecayOnly):
                decay.has_begun = False  # Unless its callback says so, it is one of old.
        self._prepare()

    def _find(self) -> list[Any]:
        return steering.find_decays(self._given or optimizers_of(self.model), self.model)

    def _prepare(self, has_more_to_come: bool = True) -> None:
        """Gets to know the variables, unless `fit` is to build them yet."""
        model = self.model
        with strategy_scope(model):
            self._decays = steering.built_decays(self._find(), model, has_more_to_come)
            if not self._decays:
                return
            self._home = self._home_of(self._decays[0])
            check_averages(self._home)
            variables = [v for decay in self._decays for v in decay.decayed_variables]
            beside = getattr(self._home, "sparsity_target", None)
            self._is_known = beside is not None  # What the optimizer did: some target was here.
            is_same = list(map(id, variables)) == list(map(id, self._variables))
            if beside is None or beside is not self._memory or not is_same:
                self._start_on(model, variables)
        # Beside the optimizer it is saved with the weights, and no part of the model.
        self._home.sparsity_target = self._memory

    def _home_of(self, decay: Any) -> Any:
        """The optimizer that a decay is, or is in, or stands beside."""
        candidates = [*self._given, *optimizers_of(self.model)]
        return next(one for one in candidates if decay in lp_optimizers([one]))

    def _start_on(self, model: keras.Model, variables: list[Any]) -> None:
        """Forgets what it was used for before."""
        self._variables = variables
        self._groups = self._group(model, variables)
        self._look = measure([members for members, _ in self._groups], model)
        self._memory = TargetMemory(len(self._groups))
        self._is_frozen = False
        self._highest_rate = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks that no second callback has taken the place of this one."""
        if self._decays and self._home.sparsity_target is not self._memory:
            raise ValueError(
                "Two `SparsityTarget` cannot steer one model. Leave out one; other targets for "
                "some variables are `SparsityTarget(overrides={'embedding': 0.5})`. Received: two "
                "callbacks"
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins, or goes on where a training that was interrupted has been."""
        self._epoch = epoch
        if self._decays:
            self._begin_epoch()

    def _begin_epoch(self, late: int = 0) -> None:
        """Begins, so many batches after the epoch did."""
        if any(isinstance(decay, DecayOnly) and not decay.has_begun for decay in self._decays):
            raise steering.nothing_to_steer([self._home])
        memory = self._memory
        seen = batches_seen(steering.leader_of(self._decays[0])) - late
        is_new = _numbers(memory.start) < 0
        if self._first_seen is None:
            self._first_seen = self._seen() if late == 0 else -1
        if is_new:
            found = self._look()
            self._check_room(found)
            self._advise_on_past(seen)
            self._warn("adapters", advice.of_adapters(_layers_with_adapters(self.model)))
            memory.span.assign(self._schedule.span(self._steps_from(self._epoch)))
            memory.start.assign(seen)
            # Decays nothing yet, but keeps zeros zero where there are some.
            self._give([PINNING if one.zeros else 0.0 for one in found])
        self._begin, self._end = _numbers(memory.span)
        every = self._schedule.every(self._end - self._begin)
        self._every = max(every, getattr(self.model, "steps_per_execution", 1))
        self._is_closed = bool(_numbers(memory.is_closed))
        # Read once in an epoch; what is saved at its end is what is read at the next begin.
        self._initials, self._log_speeds = memory.initial, memory.log_speed
        # The optimizer knows where a training is resumed; TensorFlow counts a step more at the end
        # of data whose length it does not know.
        self._step = self._epoch_start = self._step or seen - _numbers(memory.start)
        self._has_begun = True
        if is_new and self._begin == 0:
            self._steer()
        if self._is_closed:
            self._turn_off()  # A `LpDecayCallback` may be a new one.
            if not self._is_frozen:
                self._freeze()
        elif self._is_frozen:  # It was interrupted after the end, and goes on from before.
            unfreeze(self._variables, self.model)
            self._is_frozen = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Steers every few steps, and closes at the last one."""
        done = batches_done(batch, self.params)
        if not self._has_begun:
            with between_steps(self.model):
                self._prepare(has_more_to_come=False)
                if not self._decays:
                    return
                self._begin_epoch(late=done)
        before, self._step = self._step, self._epoch_start + done
        if self._is_closed or self._step < self._begin:
            return
        if self._step >= self._end:
            with between_steps(self.model):
                self._check_that_steps_are_made(done)
                self._close()
        elif self._looks(self._step) > self._looks(before):
            with between_steps(self.model):
                self._check_that_steps_are_made(done)
                self._steer()

    def _check_that_steps_are_made(self, done: int) -> None:
        """Raises RuntimeError where the variables of the model are not those that train."""
        is_due = self._step >= self._end or done >= _PATIENCE
        if is_due and self._seen() == self._first_seen:
            raise RuntimeError(
                "`SparsityTarget` reads and sets the variables of the model and of its optimizer, "
                f"which has made no step in {done} batches. In a loop of your own that keeps their "
                "values elsewhere, as with `stateless_apply`, assign the values to the variables "
                "before `on_train_batch_end`, and take them from there after it. "
                f"Received: optimizer={self._home!r}"
            )

    def _seen(self) -> int:
        """How many batches the optimizers have seen, all together."""
        return sum(batches_seen(steering.leader_of(decay)) for decay in self._decays)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds to the logs."""
        if not self._has_begun:
            raise steering.nothing_to_steer(self._given or optimizers_of(self.model))
        add_logs(self.model, logs, self._count)
        self._add_monitored(logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Warns if the training was too short, or other callbacks put earlier weights back."""
        has_trained = self._step > 0  # A backup may be of the end, with nothing left to do.
        if has_trained and not self._is_closed:
            self._warn("end", advice.of_early_end(self._step, self._end))
        elif has_trained:
            after_the_callbacks(self, self._check_zeros)

    def _check_zeros(self) -> None:
        lost = advice.of_lost_zeros(self._look(), self._finals)
        if lost and self._is_frozen:  # Those of an earlier epoch are other zeros.
            unfreeze(self._variables, self.model)
            self._is_frozen = False
        self._warn("zeros", lost)

    def _warn(self, kind: str, message: str | None) -> None:
        """Warns once of a kind, not after each `fit` of a loop."""
        if message and kind not in self._has_warned_of:
            self._has_warned_of.add(kind)
            warn(message)

    def _count(self) -> tuple[int, int]:
        """Numbers of zeros and of entries."""
        found = self._look()
        return sum(one.zeros for one in found), sum(one.size for one in found)

    def _steps_from(self, epoch: int) -> int | None:
        """The number of steps of the training that begins with an epoch, if it is known."""
        params = self.params or {}
        steps, epochs = params.get("steps"), params.get("epochs")
        return steps * (epochs - epoch) if steps and epochs else None

    def _looks(self, step: int) -> int:
        """How many looks at the weights are due up to a step, after that at the begin."""
        return (step - self._begin) // self._every

    def _steer(self) -> None:
        """Sets the strengths by what the weights are now."""
        memory, found = self._memory, self._look()
        if math.isnan(self._initials[0]):
            memory.initial = self._initial(found)
            self._initials = memory.initial
            self._advise_on_haste(found)
        decay_rates = [steering.rate_until(decay, self._every) for decay in self._decays]
        rates = self._rates_of_groups(decay_rates)
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
        memory.log_speed = speeds
        self._log_speeds = np.asarray(speeds, "float32").tolist()  # As they are saved.
        for decay, rate in zip(self._decays, decay_rates, strict=True):
            strengths = [
                strength(speeds[group], magnitudes[group], p, self._every, rates[group])
                for group, p in zip(self._groups_of(decay), decay.steered_exponents(), strict=True)
            ]
            decay.steer(strengths, rate)
            self._advise_on_force(decay, strengths, found)
        self._advise_on_rate(found, max(rates))

    def _advise_on_haste(self, found: Sequence[Magnitudes]) -> None:
        for decay in self._decays:
            steps, rate = steering.steps_and_rate(decay, self._end - self._begin)
            groups = set(self._groups_of(decay))
            largest = max(found[group].quantile(self._finals[group]) for group in groups)
            self._warn("haste", advice.of_haste(largest, steps, rate))

    def _advise_on_force(
        self, decay: Any, strengths: Sequence[float], found: Sequence[Magnitudes]
    ) -> None:
        if "haste" in self._has_warned_of:  # It said so.
            return
        groups, exponents = self._groups_of(decay), decay.steered_exponents()
        for group, strong, p in zip(groups, strengths, exponents, strict=True):
            median = found[group].quantile((1 + self._finals[group]) / 2)
            self._warn("force", advice.of_force(strong, median, p))

    def _advise_on_rate(self, found: Sequence[Magnitudes], rate: float) -> None:
        self._highest_rate = max(self._highest_rate, rate)
        sizes = [one.size for one in found]
        zeros = sum(one.zeros for one in found)
        first, last = (np.dot(sizes, shares) for shares in (self._initials, self._finals))
        left = (last - zeros) / max(last - first, 1)
        self._warn("rate", advice.of_falling_rate(self._highest_rate, rate, left))

    def _rates_of_groups(self, rates: Sequence[float]) -> list[float]:
        """The learning rate of each group; the largest, where several optimizers share one."""
        found = [0.0] * len(self._groups)
        for decay, rate in zip(self._decays, rates, strict=True):
            for group in self._groups_of(decay):
                found[group] = max(found[group], rate)
        return found

    def _groups_of(self, decay: Any) -> list[int]:
        """The number of the group of each variable of a decay."""
        return [self._group_of[id(variable)] for variable in decay.decayed_variables]

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
        names = [list_paths(variables, 3) for variables, _ in self._groups]
        self._warn("excess", advice.of_excess(found, self._finals, names))
        self._warn("closing", advice.of_closing(found, self._finals, names))
        self._warn("dead", advice.of_dead(explain_dead(self.model)))

    def _freeze(self) -> None:
        freeze(self._variables, self.model)
        self._is_frozen = True

    def _turn_off(self) -> None:
        # A loop of the user's own, traced before the end, does not know the constraints.
        self._give([0.0 if is_in_fit(self) else PINNING] * len(self._groups))

    def _give(self, strengths: Sequence[float]) -> None:
        """Gives each group its strength, whatever the exponents and the learning rates."""
        for decay in self._decays:
            decay.steer([strengths[group] for group in self._groups_of(decay)])

    def _add_monitored(self, logs: dict[str, Any] | None) -> None:
        """Adds the monitored log under a name by which callbacks and tuners find the best epoch."""
        value = (logs or {}).get(self._monitor)
        if logs is None or value is None:
            return
        if not self._is_closed:  # Worse than any, and less so each epoch, for patience's sake.
            left = 1 - self._step / self._end
            value = (_WORST if self._mode == "min" else -_WORST) * (1 + left)
        logs[f"target_{self._monitor}"] = value

    def _advise_on_past(self, steps: int) -> None:
        """Warns where a training is resumed of which the memory was lost."""
        if not self._is_known and any(decay.is_steered for decay in self._decays):
            self._warn("past", advice.of_unknown_past(steps))

    def _check_room(self, found: Sequence[Magnitudes]) -> None:
        """Raises ValueError where there are more zeros already than there are to be."""
        lets_go = any(decay.initial_zeros == "train" for decay in self._decays)
        for one, (variables, final) in zip(found, self._groups, strict=True):
            if one.zeros > round(final * one.size) and not lets_go:
                raise ValueError(
                    "The final sparsity must not be below that of the beginning, since zeros do "
                    f"not come back. Received: a final sparsity of {final:.2%} for variables with "
                    f"{one.sparsity:.2%} zeros ({list_paths(variables, 3)})"
                )

    def _initial(self, found: Sequence[Magnitudes]) -> list[float]:
        """The sparsity from which the way of each group begins."""
        given = self._schedule.initial_sparsity
        return [
            one.sparsity if given is None else min(given, final)
            for one, final in zip(found, self._finals, strict=True)
        ]

    @property
    def _finals(self) -> list[float]:
        """The final sparsity of each group."""
        return [final for _, final in self._groups]

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


def _layers_with_adapters(model: keras.Model) -> list[str]:
    return [one.layer.path for one in weights_of(model) if one.has_adapters]


def _numbers(variable: Any) -> Any:
    """A number or a list of them, out of a variable or tensor."""
    return ops.convert_to_numpy(variable).tolist()


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


def _check_mode(mode: Any) -> str:
    if mode not in ("min", "max"):
        raise ValueError(
            'Argument `mode` must be "min" (less of the monitored log is better) or "max". '
            f"Received: mode={mode!r}"
        )
    return mode
