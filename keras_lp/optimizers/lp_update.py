"""The decoupled p-norm decay as an update rule for Keras optimizers.

`LpUpdate` goes before a Keras optimizer class in the bases of a subclass and turns its
step `w - d` into `(w - d) / decay_divisor(w)`. The strength lives in a variable, so that
it can change during training without a retrace; p is compiled in unless it is a schedule.
Source: Outmezguine and Levi, "Decoupled Weight Decay for Any p Norm", arXiv:2404.10824.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp import selection
from keras_lp.decay import at_least_float32, decay_divisor, is_several, pair_norms
from keras_lp.optimizers.arguments import (
    DecayArguments,
    check_setting,
    deserialize_arguments,
    each,
    is_schedule,
)
from keras_lp.selection import Selection
from keras_lp.warning import warn

_ARGUMENTS = """weight_decay: Float >= 0, or a `LearningRateSchedule` of the iterations. The
            strength of the decay, on the same scale as in `keras.optimizers.AdamW`: it is
            multiplied by the learning rate. Can be set during training. For several norms
            a list or tuple. Defaults to `0.004`.
        p: Float >= 0, or a `LearningRateSchedule` of the iterations. The exponent of the
            norm. `2` is ordinary weight decay, `1` the lasso, `p < 1` the sparsest. For
            several norms a list or tuple as long as `weight_decay`: `p=(0.8, 2.0)` with
            `weight_decay=(0.01, 1e-4)` is an elastic net. Defaults to `0.8`.
        reference: `"previous"` or `"updated"`. The weight that the decay is computed
            from: the one before the gradient step, the paper's rule, under which a zero
            stays zero; or the one after it, under which zeros can come back. Defaults to
            `"previous"`.
        initial_zeros: What becomes of weights that are zero when the training starts, under
            `reference="previous"`: `"keep"`, they stay zero, as those of a pruned model
            should; `"train"`, they are let go in the first steps, in which a weight of 0.02
            would fall to zero, for identity or masked kernels and embeddings with empty
            rows. Defaults to `None`: they stay zero, with a warning where a variable has
            many of them.
        include: Regular expression, or a list of them, searched in the paths of the
            variables. Variables that match are decayed although the default rule leaves
            them out, such as a matrix that is a scale by name. Defaults to `None`.
        exclude: Regular expression, or a list of them, searched in the paths of the
            variables (`"embedding"`, `"block_1/.*/kernel$"`). Variables that match are
            not decayed. Defaults to `None`: trainable variables of at least two
            dimensions are decayed unless they are a bias or a scale by name.
        overrides: Dictionary from regular expressions, searched in the paths of the
            decayed variables, to the `weight_decay`, the `p` or both that hold there
            instead: `{"embedding": {"weight_decay": 0.001}}`. The first that matches wins.
            Defaults to `None`."""

_LET_GO = 0.02  # Zeros of the start are free for as long as a weight of this magnitude would last.
_MANY_ZEROS = 0.01  # of a variable, worth a warning; an embedding may have an empty row

_LEARNING_RATE = """learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`
            instance, or a callable that takes no arguments and returns the value to use."""

_COMMON_ARGUMENTS = """`clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
            `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`
            and `name`, as in every Keras optimizer. The moving average is taken of decayed
            weights and keeps their zeros."""

_RAISES = """ValueError: If `p` or `weight_decay` is negative or not finite or they are not
            equally many, `reference` is unknown, a pattern is no regular expression, or
            `overrides` sets anything else; on the first training step, if a pattern matches
            no variable or no variable is decayed."""


def document(cls: type) -> type:
    """Fills in what the docstrings of all Lp optimizers have in common."""
    if cls.__doc__ is not None:  # It is None under `python -OO`.
        for name, text in (
            ("learning_rate", _LEARNING_RATE),
            ("lp_arguments", _ARGUMENTS),
            ("common_arguments", _COMMON_ARGUMENTS),
            ("raises", _RAISES),
        ):
            cls.__doc__ = cls.__doc__.replace(f"{{{{{name}}}}}", text)
    return cls


class LpUpdate(keras.optimizers.Optimizer):
    """The update rule, to be placed before a Keras optimizer class in the bases.

    Formula: `w_new = (w - d) / (1 + learning_rate * weight_decay * |r|**(p - 2))`, where
    `d` is the step of the Keras optimizer, and `r` is `w` for `reference="previous"` and
    `w - d` for `reference="updated"`. The factor is computed in float32 or wider.

    Args:
        *args: Arguments of the Keras optimizer.
        weight_decay: Float >= 0 or schedule, the strength, or a tuple for several norms.
        p: Float >= 0 or schedule, the exponent of the norm, or a tuple.
        reference: `"previous"` or `"updated"`.
        initial_zeros: `"keep"`, `"train"` or `None`.
        include: Patterns of further variables that are decayed, or `None`.
        exclude: Patterns of variables that are not decayed, or `None`.
        overrides: Other `weight_decay` and `p` for variables by pattern, or `None`.
        **kwargs: Arguments of the Keras optimizer.
    """

    # How deep in code of the Keras optimizer, to which its own weight decay is 0. A count, as
    # the replicas of a MirroredStrategy enter one by one and leave one by one.
    _base_depth = 1
    _decay: Any = None
    _given: Any = None  # The strengths that were given, as numbers or schedules.
    _excluded_ids: frozenset[int] = frozenset()
    _excluded_paths: tuple[str, ...] = ()
    _excluded_names: tuple[str, ...] = ()
    _selection: Any = None  # A `Selection` once built, or restored to be built.
    _has_stepped = False
    _fallen: Any = None  # Shares of a weight that would have fallen to zero by now.

    def __init__(
        self,
        *args: Any,
        weight_decay: Any,
        p: Any,
        reference: str,
        initial_zeros: str | None,
        include: str | Iterable[str] | None,
        exclude: str | Iterable[str] | None,
        overrides: Mapping[str, Mapping[str, Any]] | None,
        **kwargs: Any,
    ) -> None:
        decay = DecayArguments.of(
            weight_decay, p, reference, initial_zeros, include, exclude, overrides
        )
        super().__init__(*args, weight_decay=None, **kwargs)
        self._start_decay(decay)

    def _start_decay(self, decay: DecayArguments) -> None:
        """Takes the arguments over, with the strengths in variables, once the base is set up."""
        numbers = itertools.count()
        self._decay = decay.with_strengths(lambda one: self._as_variable(one, numbers))
        self._given = decay.weight_decay
        self._base_depth = 0

    @property
    def weight_decay(self) -> Any:
        """Current strength: a scalar variable, or the value of the schedule.

        It can be set to a number; `float(optimizer.weight_decay)` reads one. For several
        norms it is a tuple, and set to one. Under `mixed_float16` Keras wraps the optimizer,
        and this is `model.optimizer.inner_optimizer.weight_decay`.
        """
        return 0.0 if self._base_depth else each(self._now, self._decay.weight_decay)

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        if self._base_depth:
            return  # The constructor of the Keras optimizer, whose own decay stays off.
        old = self._decay.weight_decay
        if any(map(is_schedule, (*_as_tuple(old), *_as_tuple(value)))):
            raise TypeError(
                "A schedule as `weight_decay` is given when the optimizer is created, and then "
                "the weight decay is not settable; one that is created with a float can be set "
                f"to numbers. Received: weight_decay={value!r}"
            )
        value = check_setting("weight_decay", value)
        replace(self._decay, weight_decay=value).paired()
        for variable, number in zip(*map(_as_tuple, (old, value)), strict=True):
            variable.assign(number)
        self._given = value
        if self.built:
            self._scales.assign(np.ones(self._scales.shape))
            self._largest_rate.assign(np.inf)

    @property
    def p(self) -> Any:
        """Current exponent of the norm: a float, or the schedule's value; a tuple of several."""
        return each(self._now, self._decay.p)

    @p.setter
    def p(self, value: Any) -> None:
        if self.built:
            raise ValueError(
                "`p` is compiled into the training step once the optimizer is built and cannot "
                "be set any more. To change it during training, create the optimizer with "
                "`p=` a `keras.optimizers.schedules.LearningRateSchedule`. "
                f"Received: p={value!r}"
            )
        self._decay = replace(self._decay, p=check_setting("p", value)).paired()

    @property
    def reference(self) -> str:
        """The weight that the factor is computed from, `"previous"` or `"updated"`."""
        return self._decay.reference

    @property
    def initial_zeros(self) -> str | None:
        """What becomes of weights that are zero at the start: `"keep"`, `"train"` or `None`."""
        return self._decay.initial_zeros

    @property
    def include(self) -> tuple[str, ...]:
        """The `include` patterns that the optimizer was created with."""
        return self._decay.include

    @property
    def exclude(self) -> tuple[str, ...]:
        """The `exclude` patterns that the optimizer was created with."""
        return self._decay.exclude

    @property
    def overrides(self) -> Mapping[str, Mapping[str, Any]]:
        """What each pattern overrides, at its current value.

        Strengths are variables: `optimizer.overrides[pattern]["weight_decay"].assign(0.1)`.
        """
        return MappingProxyType(
            {
                pattern: MappingProxyType(
                    {name: each(self._now, value) for name, value in given.items()}
                )
                for pattern, given in self._decay.overrides
            }
        )

    @property
    def decayed_variables(self) -> list[Any]:
        """The model's variables that the decay acts on; empty before `build`."""
        if not self.built:
            return []
        return [self._trainable_variables[position] for position in self._selection.overrides]

    def steered_exponents(self) -> list[float]:
        """For each decayed variable, the exponent of the norm that `steer` sets the strength of.

        Of several norms it is the one of the least exponent, which makes the zeros.
        """
        steered = self._steered_norm()
        exponents = [self._decay.norms(override)[1] for _, override in self._selection.decayed]
        return [float(self._now(_as_tuple(p)[steered])) for p in exponents]

    def steer(self, strengths: Sequence[float], largest_rate: float = math.inf) -> None:
        """Sets the strength of each decayed variable, of the norm of `steered_exponents`.

        `weight_decay` is set to the largest, and scaled down for the other variables; other
        norms keep their strengths.

        Args:
            strengths: One for each decayed variable.
            largest_rate: The learning rate that they are meant for. Where the rate comes to be
                larger, the decay goes by this one until the strengths are set anew.
        """
        largest, steered = max(strengths), self._steered_norm()
        scales = np.ones(self._scales.shape)
        scales[:, steered] = [one / largest if largest else 1.0 for one in strengths]
        self._scales.assign(scales)
        self._largest_rate.assign(largest_rate)
        _as_tuple(self.weight_decay)[steered].assign(largest)

    @property
    def is_steered(self) -> bool:
        """Whether strengths are others than were given, as a `SparsityTarget` sets them."""
        if not self.built:
            return False
        pairs = zip(_as_tuple(self.weight_decay), _as_tuple(self._given), strict=True)
        numbers = [(one, given) for one, given in pairs if not is_schedule(given)]
        return (
            not all(np.isclose(ops.convert_to_numpy(one), given, 1e-6, 0) for one, given in numbers)
            or bool(np.any(ops.convert_to_numpy(self._scales) != 1))
            or bool(np.isfinite(ops.convert_to_numpy(self._largest_rate)))
        )

    def _steered_norm(self) -> int:
        return int(np.argmin([float(p) for p in _as_tuple(self.p)]))

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Excludes variables from the decay, as in every Keras optimizer.

        Each call replaces the one before and adds to the `exclude` argument. Unlike Keras's
        own, these exclusions are saved with the optimizer.

        Args:
            var_list: Variables to exclude. Those that the optimizer is not built for are
                ignored.
            var_names: Regular expressions; a variable in whose path one is found is
                excluded. One that is found nowhere has no effect.

        Raises:
            ValueError: If the optimizer is built, `var_list` holds something else than
                variables, or a name is no regular expression.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` can only be called before the optimizer is "
                "built, that is before the first training step. Call it before "
                "`model.compile()`."
            )
        names = selection.check_patterns("var_names", var_names)
        variables = _check_variables(var_list)
        self._excluded_ids = frozenset(map(id, variables))
        self._excluded_paths = tuple(map(selection.variable_path, variables))
        self._excluded_names = names

    def build(self, var_list: Sequence[Any]) -> None:
        """Selects the decayed variables and creates the optimizer's own.

        Args:
            var_list: Trainable variables of the model.

        Raises:
            ValueError: If a pattern matches no variable, or no variable is decayed. In an
                optimizer that was saved for other variables this is a warning, and nothing
                is decayed.
        """
        if self.built:
            return
        patterns = [pattern for pattern, _ in self._decay.overrides]
        given = (self.include, self.exclude, self._excluded_paths, self._excluded_names, patterns)
        restored = self._selection
        if restored is None or not restored.fits(var_list, given):
            decayed = self._select(var_list, patterns, is_restored=restored is not None)
            self._selection = Selection.of(var_list, decayed, given)
        with self._base():
            super().build(var_list)
        # What the strength of each norm is multiplied by, for each decayed variable.
        norms = [self._decay.norms(override)[0] for _, override in self._selection.decayed]
        most = max((len(_as_tuple(one)) for one in norms), default=1)
        self._scales = self._add_setting("scales", np.ones((len(norms), most)))
        self._largest_rate = self._add_setting("largest_rate", np.inf)
        if self.initial_zeros == "train":
            self._fallen = self._add_setting("fallen", np.zeros(len(norms)))
        if self._selection is not restored:  # Else the values are still to be loaded.
            self._warn_of_zeros_that_stay()

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Updates the variables by their gradients, and decays them.

        Args:
            grads: Gradients, one for each variable or `None`.
            trainable_variables: The variables. Needed where the optimizer is not built.

        Raises:
            ValueError: If the Keras optimizer updates variables without `update_step`.
        """
        self._has_stepped = False
        lets_go = self.initial_zeros == "train"
        # Of this step; a schedule goes on with it.
        rate: Any = ops.convert_to_tensor(self.learning_rate) if lets_go else None
        with self._base():
            super().apply(grads, trainable_variables)
        if lets_go and self.built:
            self._count_fall(rate / (self.gradient_accumulation_steps or 1))
        # Where gradients accumulate, most calls have no step.
        if not (self._has_stepped or self.gradient_accumulation_steps or len(grads) == 0):
            self._check_that_nothing_was_to_decay(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of the Keras optimizer, followed by the decay."""
        # Keras documents `_get_variable_index` for subclasses, in its `Optimizer` docstring.
        index = self._get_variable_index(variable)
        self._has_stepped = True
        is_decayed = index in self._selection.overrides
        if is_decayed and self.reference == "previous":
            # Before the step: eager TensorFlow changes the variable in place.
            divisor = self._divisor(index, variable, learning_rate)
        with self._base():
            super().update_step(gradient, variable, learning_rate)
        if is_decayed and self.reference == "updated":
            divisor = self._divisor(index, variable, learning_rate)
        if is_decayed:
            self.assign(variable, ops.divide(variable, divisor))
            self._decay_state(index, divisor)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Puts the moving averages into the variables at the end of training, if there are any."""
        super().finalize_variable_values(var_list)
        if self.use_ema and keras.backend.backend() == "jax":
            # Weight and average now share a buffer, which a second `fit` would donate twice.
            for variable in var_list:
                variable.assign(ops.copy(variable))

    def get_config(self) -> dict[str, Any]:
        """Config of the Keras optimizer, the arguments of the decay and the exclusions."""
        return {**self._base_config(), **self._decay_config()}

    def _base_config(self) -> dict[str, Any]:
        with self._base():
            return super().get_config()

    def _decay_config(self) -> dict[str, Any]:
        config = self._decay.get_config()
        if self._excluded_paths or self._excluded_names:
            config["exclude_from_weight_decay"] = {
                "paths": list(self._excluded_paths),
                "names": list(self._excluded_names),
            }
        if self._selection is not None:
            config["selection"] = self._selection.to_dict()
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Creates the optimizer that `get_config` described."""
        config = deserialize_arguments(config, custom_objects)
        excluded = config.pop("exclude_from_weight_decay", None) or {}
        selected = config.pop("selection", None)
        optimizer = super().from_config(config, custom_objects=custom_objects)
        optimizer._excluded_paths = tuple(excluded.get("paths", ()))
        optimizer._excluded_names = tuple(excluded.get("names", ()))
        optimizer._selection = selected and Selection.from_dict(selected)
        return optimizer

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Does nothing: this is where Keras would apply its own L2 decay on top.

        A private name, since Keras has no other switch for an optimizer that has a
        `weight_decay`. Without it the weights would not be those of Adam at weight decay 0.
        """

    def _decay_state(self, index: int, divisor: Any) -> None:
        """Applies the decay to state of the Keras optimizer that weights come from; here none."""

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        """Updates the averages, and zeroes them where a weight is 0 for good.

        They would only ever come close to 0, and Keras puts them into the model. A private
        name, since Keras has no other for this moment. Changed after Keras's own update, so
        that without a decay the weights stay bitwise those of the Keras optimizer.
        """
        super()._update_model_variables_moving_average(trainable_variables)
        if not self.use_ema:
            return
        for index, override in self._selection.overrides.items():
            if self.reference == "previous":
                self._zero_average(index, trainable_variables[index], self._keeps_zeros(override))
            constraint = self._trainable_variables[index].constraint
            if constraint is not None:  # Keras averages what it is then applied to.
                average = self._model_variables_moving_average[index]
                average.assign(constraint(average))

    def zero_averages(self) -> None:
        """Zeroes the moving averages where a weight is 0, if the optimizer keeps averages."""
        for index in self._selection.overrides if self.use_ema else ():
            self._zero_average(index, self._trainable_variables[index], True)

    def _zero_average(self, index: int, variable: Any, for_good: Any) -> None:
        average = self._model_variables_moving_average[index]
        value = ops.convert_to_tensor(average)
        is_zero = ops.logical_and(ops.equal(variable, 0), for_good)
        average.assign(ops.where(is_zero, ops.zeros_like(value), value))

    @contextlib.contextmanager
    def _base(self) -> Iterator[None]:
        """While code of the Keras optimizer runs: its own weight decay reads as 0."""
        self._base_depth += 1
        try:
            yield
        finally:
            self._base_depth -= 1

    def _select(
        self, variables: Sequence[Any], patterns: Sequence[str], is_restored: bool
    ) -> list[tuple[Any, int | None]]:
        """The decayed variables, each with the position of its override."""
        left_out = [v for v in variables if self._is_excluded_as_in_keras(v)]
        try:
            decayed = selection.decayed_variables(variables, self.exclude, left_out, self.include)
            overrides = selection.find_overrides(decayed, patterns)
        except ValueError as error:
            if not is_restored:
                raise
            # Also on loading a model whose layers were frozen since, which is no error.
            warn(
                "This optimizer was saved for other trainable variables, and what it was told "
                "to decay does not fit: nothing will be decayed. Compile the model with a new "
                f"optimizer before training it. ({error})"
            )
            return []
        return list(zip(decayed, overrides, strict=True))

    def _check_that_nothing_was_to_decay(self, grads: Any, variables: Any) -> None:
        variables = self._trainable_variables if variables is None else variables
        given = [v for g, v in zip(grads, variables, strict=True) if g is not None]
        positions = {self._get_variable_index(variable) for variable in given}
        if positions & set(self._selection.overrides):
            raise ValueError(
                f"`{type(self).__qualname__}` updates variables without `update_step`, in which "
                "the decay takes place, so that nothing was decayed. Implement its update in "
                "`update_step(gradient, variable, learning_rate)`. Received: gradients of "
                f"{selection.list_paths(given)}"
            )

    def _as_variable(self, strength: Any, numbers: Iterator[int]) -> Any:
        """A scalar variable for a strength, so that it can change; schedules as they are."""
        if is_schedule(strength):
            return strength
        number = next(numbers)
        return self._add_setting(f"weight_decay_{number}" if number else "weight_decay", strength)

    def _add_setting(self, name: str, value: Any) -> Any:
        """A variable for numbers that can change without a retrace."""
        return self.add_variable(
            shape=np.shape(value),
            initializer=keras.initializers.Constant(value),
            dtype=keras.backend.result_type(keras.config.floatx(), "float32"),
            aggregation="only_first_replica",
            name=name,
        )

    def _now(self, value: Any) -> Any:
        # The count that Keras gives its learning-rate schedules; the public `iterations`
        # is another one while gradients are accumulated.
        return value(self._iterations) if is_schedule(value) else value

    def _is_excluded_as_in_keras(self, variable: Any) -> bool:
        """Whether `exclude_from_weight_decay` excluded the variable."""
        if self._excluded_ids:
            by_list = id(variable) in self._excluded_ids
        else:  # The exclusions come from a config.
            by_list = selection.variable_path(variable) in self._excluded_paths
        return by_list or any(selection.matches(name, variable) for name in self._excluded_names)

    def _divisor(self, index: int, variable: Any, learning_rate: Any) -> Any:
        divisor = decay_divisor(variable, *self._norms_at(index, learning_rate))
        if self.initial_zeros == "train":
            is_early = self._fallen[self._position(index)] < 1
            is_free = ops.logical_and(ops.equal(variable, 0), is_early)
            divisor = ops.where(is_free, ops.ones_like(divisor), divisor)
        return divisor

    def _norms_at(self, index: int, learning_rate: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The strengths of a variable's norms in a step, times the learning rate; the exponents."""
        weight_decay, p = self._decay.norms(self._selection.overrides[index])
        rate = ops.minimum(at_least_float32(learning_rate), self._largest_rate)
        scales = self._scales[self._position(index)]
        strengths = tuple(
            ops.multiply(ops.multiply(rate, scales[norm]), at_least_float32(self._now(one)))
            for norm, one in enumerate(_as_tuple(weight_decay))
        )
        return strengths, tuple(map(self._now, _as_tuple(p)))

    def _position(self, index: int) -> int:
        """Which of the decayed variables a variable is."""
        return list(self._selection.overrides).index(index)

    def _count_fall(self, learning_rate: Any) -> None:
        """Adds what a step takes of a weight of `_LET_GO`, as a share, for each variable.

        A sum, as zeros that the decay has made must not be let go where rate or strength falls.
        """
        falls = [
            decay_divisor(_LET_GO, *self._norms_at(index, learning_rate)) - 1.0
            for index in self._selection.overrides
        ]
        if falls:
            self._fallen.assign(ops.add(self._fallen, ops.stack(falls)))

    def _warn_of_zeros_that_stay(self) -> None:
        """Warns once of variables with many zeros, which this rule can never move."""
        if self.reference == "updated" or self.initial_zeros is not None:
            return
        with _outside_graph():
            shares = {
                position: _share_of_zeros(self._trainable_variables[position])
                for position, override in self._selection.overrides.items()
                if self._keeps_zeros(override) and not self._is_frozen(position)
            }
        stuck = {
            selection.variable_path(self._trainable_variables[position]): share
            for position, share in shares.items()
            if share > _MANY_ZEROS
        }
        if stuck:
            named = selection.list_names([f"{path} ({s:.1%})" for path, s in stuck.items()], 5)
            warn(
                "With p < 2 and reference='previous' a weight of exactly 0 stays 0, and these "
                f"variables start with such weights: {named}. Where they are to train, as in "
                "identity kernels or empty rows of an embedding, pass `initial_zeros='train'`, "
                "leave the variables out of the decay with `exclude=`, or take "
                "`reference='updated'`. Where they are to stay, as after pruning, pass "
                "`initial_zeros='keep'`."
            )

    def _is_frozen(self, position: int) -> bool:
        """Whether a constraint keeps the zeros of a variable anyway."""
        constraint = self._trainable_variables[position].constraint
        return getattr(constraint, "keeps_zeros", False)

    def _keeps_zeros(self, override: int | None) -> Any:
        """Whether a zero that this override decays now stays zero, as a scalar tensor."""
        return functools.reduce(
            ops.logical_or,
            (
                ops.logical_and(ops.greater(self._now(strength), 0), ops.less(self._now(p), 2))
                for strength, p in pair_norms("weight_decay", *self._decay.norms(override))
            ),
        )


def _check_variables(var_list: Any) -> tuple[Any, ...]:
    """Returns `var_list` as a tuple; raises ValueError where it holds no variables."""
    is_one = isinstance(var_list, (str, keras.Variable)) or not isinstance(
        var_list, Iterable | None
    )
    variables = () if var_list is None else (var_list,) if is_one else tuple(var_list)
    if is_one or not all(hasattr(variable, "shape") for variable in variables):
        raise ValueError(
            "Argument `var_list` must be a list of variables, such as `[layer.kernel]`; "
            f"names go into `var_names`. Received: var_list={var_list!r}"
        )
    return variables


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if is_several(value) else (value,)


def _share_of_zeros(variable: Any) -> float:
    """Share of zeros of a variable; 0 where TensorFlow has not given it a value yet."""
    has_value = getattr(getattr(variable, "value", variable), "is_initialized", lambda: True)
    if not has_value():
        return 0.0
    is_zero = ops.equal(ops.convert_to_tensor(variable), 0)
    return int(ops.sum(ops.cast(is_zero, "int32"))) / max(math.prod(variable.shape), 1)


def _outside_graph() -> contextlib.AbstractContextManager:
    """Where values can be read, also while TensorFlow traces a function."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.init_scope()
    return contextlib.nullcontext()
