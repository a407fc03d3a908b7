"""The decoupled p-norm decay as an update rule for Keras optimizers.

`LpUpdate` goes before a Keras optimizer class in the bases of a subclass and turns its
step `w - d` into `(w - d) * decay_factor(w)`. The strength lives in a variable, so that
it can change during training without a retrace; p is compiled in unless it is a schedule.
Source: Outmezguine and Levi, "Decoupled Weight Decay for Any p Norm", arXiv:2404.10824.
"""

import contextlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_lp import selection
from keras_lp.decay import check_exponent, check_strength, decay_factor
from keras_lp.selection import Selection

REFERENCES = ("previous", "updated")

LP_ARGUMENTS = """weight_decay: Float >= 0, or a `LearningRateSchedule` of the iterations. The
            strength of the decay, on the same scale as in `keras.optimizers.AdamW`: it is
            multiplied by the learning rate. Can be set during training. Defaults to
            `0.004`.
        p: Float >= 0, or a `LearningRateSchedule` of the iterations. The exponent of the
            norm. `2` is ordinary weight decay, `1` the lasso, `p < 1` the sparsest.
            Defaults to `0.8`.
        reference: `"previous"` or `"updated"`. The weight that the factor is computed
            from: the one before the gradient step, the paper's rule, under which a zero
            stays zero; or the one after it, under which zeros can come back. Defaults to
            `"previous"`.
        exclude: Regular expression, or a list of them, searched in the paths of the
            variables (`"embedding"`, `"block_1/.*/kernel$"`). Variables that match are
            not decayed. Defaults to `None`: trainable variables of at least two
            dimensions are decayed unless they are a bias or a scale by name."""


class LpUpdate(keras.optimizers.Optimizer):
    """The update rule, to be placed before a Keras optimizer class in the bases.

    Formula: `w_new = (w - d) / (1 + learning_rate * weight_decay * |r|**(p - 2))`, where
    `d` is the step of the Keras optimizer, and `r` is `w` for `reference="previous"` and
    `w - d` for `reference="updated"`. The factor is computed in float32 or wider.

    Args:
        *args: Arguments of the Keras optimizer.
        weight_decay: Float >= 0 or schedule, the strength.
        p: Float >= 0 or schedule, the exponent of the norm.
        reference: `"previous"` or `"updated"`.
        exclude: Patterns of variables that are not decayed, or `None`.
        **kwargs: Arguments of the Keras optimizer.
    """

    def __init__(
        self,
        *args: Any,
        weight_decay: Any,
        p: Any,
        reference: str,
        exclude: str | Iterable[str] | None,
        **kwargs: Any,
    ) -> None:
        if reference not in REFERENCES:
            raise ValueError(
                'Argument `reference` must be "previous" (the weight before the gradient step) '
                f'or "updated" (the weight after it). Received: reference={reference!r}'
            )
        exclude = selection.check_patterns("exclude", exclude)
        p = p if _is_schedule(p) else check_exponent(p)
        if not _is_schedule(weight_decay):
            weight_decay = check_strength("weight_decay", weight_decay)

        super().__init__(*args, weight_decay=None, **kwargs)
        self._p = p
        self._reference = reference
        self._exclude = exclude
        self._excluded_ids: frozenset[int] = frozenset()
        self._excluded_paths: tuple[str, ...] = ()
        self._excluded_names: tuple[str, ...] = ()
        self._selection: Selection | None = None
        self._decayed: frozenset[int] = frozenset()
        if not _is_schedule(weight_decay):
            weight_decay = self.add_variable(
                shape=(),
                initializer=keras.initializers.Constant(weight_decay),
                dtype=keras.backend.result_type(keras.config.floatx(), "float32"),
                aggregation="only_first_replica",
                name="weight_decay",
            )
        self._weight_decay = weight_decay

    @property
    def weight_decay(self) -> Any:
        """Current strength: a scalar variable, or the value of the schedule.

        It can be set to a number; `float(optimizer.weight_decay)` reads one. Under
        `mixed_float16` Keras wraps the optimizer, and this is
        `model.optimizer.inner_optimizer.weight_decay`.
        """
        return self._current(self._weight_decay)

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        if not hasattr(self, "_weight_decay"):
            return  # The constructor of the Keras optimizer, whose own decay stays off.
        if _is_schedule(self._weight_decay):
            raise TypeError(
                "This optimizer was created with a schedule as `weight_decay`, hence its weight "
                "decay is not settable. To set it during training, create the optimizer with a "
                f"float. Received: weight_decay={value!r}"
            )
        self._weight_decay.assign(check_strength("weight_decay", value))

    @property
    def p(self) -> Any:
        """Current exponent of the norm: a float, or the schedule's value."""
        return self._current(self._p)

    @p.setter
    def p(self, value: Any) -> None:
        if self.built:
            raise ValueError(
                "`p` is compiled into the training step once the optimizer is built and cannot "
                "be set any more. To change it during training, create the optimizer with "
                "`p=` a `keras.optimizers.schedules.LearningRateSchedule`. "
                f"Received: p={value!r}"
            )
        self._p = value if _is_schedule(value) else check_exponent(value)

    @property
    def reference(self) -> str:
        """The weight that the factor is computed from, `"previous"` or `"updated"`."""
        return self._reference

    @property
    def exclude(self) -> tuple[str, ...]:
        """The `exclude` patterns that the optimizer was created with."""
        return self._exclude

    @property
    def decayed_variables(self) -> list[Any]:
        """The model's variables that the decay acts on; empty before `build`."""
        return [self._trainable_variables[index] for index in sorted(self._decayed)]

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
            ValueError: If the optimizer is built, or a name is no regular expression.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` can only be called before the optimizer is "
                "built, that is before the first training step. Call it before "
                "`model.compile()`."
            )
        names = selection.check_patterns("var_names", var_names)
        variables = tuple(var_list or ())
        self._excluded_ids = frozenset(map(id, variables))
        self._excluded_paths = tuple(map(selection.variable_path, variables))
        self._excluded_names = names

    def build(self, variables: Sequence[Any]) -> None:
        """Selects the decayed variables and creates the optimizer's own.

        Args:
            variables: Trainable variables of the model.

        Raises:
            ValueError: If an exclusion matches no variable, or no variable is decayed.
        """
        if self.built:
            return
        rules = (self._exclude, self._excluded_paths, self._excluded_names)
        restored = self._selection
        if restored is not None and restored.fits(variables, rules):
            chosen = restored
        else:
            left_out = [v for v in variables if self._is_excluded_as_in_keras(v)]
            decayed = selection.decayed_variables(variables, self._exclude, left_out)
            chosen = Selection.of(variables, decayed, rules)
        self._selection = chosen
        self._decayed = frozenset(chosen.decayed)
        super().build(variables)
        if chosen is not restored:  # Else the values are still to be loaded.
            self._warn_of_zeros_that_stay()

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of the Keras optimizer, followed by the decay."""
        # Keras documents `_get_variable_index` for subclasses, in its `Optimizer` docstring.
        index = self._get_variable_index(variable)
        if index not in self._decayed:
            super().update_step(gradient, variable, learning_rate)
        elif self._reference == "previous":
            # Before the step: eager TensorFlow changes the variable in place.
            factor = self._factor(variable, learning_rate)
            super().update_step(gradient, variable, learning_rate)
            self.assign(variable, ops.multiply(variable, factor))
            self._keep_zeros_in_average(index, variable)
        else:
            super().update_step(gradient, variable, learning_rate)
            factor = self._factor(variable, learning_rate)
            self.assign(variable, ops.multiply(variable, factor))

    def get_config(self) -> dict[str, Any]:
        """Config of the Keras optimizer, the arguments of the decay and the exclusions."""
        config = super().get_config()
        config.update(
            weight_decay=_serialize(self._weight_decay),
            p=_serialize(self._p),
            reference=self._reference,
            exclude=list(self._exclude),
            exclude_from_weight_decay={
                "paths": list(self._excluded_paths),
                "names": list(self._excluded_names),
            },
            selection=None if self._selection is None else self._selection.to_dict(),
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Creates the optimizer that `get_config` described."""
        config = dict(config)
        excluded = config.pop("exclude_from_weight_decay", None) or {}
        selected = config.pop("selection", None)
        for name in ("weight_decay", "p"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(
                    config[name], custom_objects=custom_objects
                )
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

    def _current(self, value: Any) -> Any:
        # The count that Keras gives its learning-rate schedules; the public `iterations`
        # is another one while gradients are accumulated.
        return value(self._iterations) if _is_schedule(value) else value

    def _is_excluded_as_in_keras(self, variable: Any) -> bool:
        """Whether `exclude_from_weight_decay` excluded the variable."""
        if self._excluded_ids:
            by_list = id(variable) in self._excluded_ids
        else:  # The exclusions come from a config.
            by_list = selection.variable_path(variable) in self._excluded_paths
        return by_list or any(selection.matches(name, variable) for name in self._excluded_names)

    def _keep_zeros_in_average(self, index: int, variable: Any) -> None:
        """Zeroes the moving average where the weight is zero, and will stay so.

        The average would only ever come close to zero, and Keras puts it into the model at
        the end of training.
        """
        if self.use_ema:
            # Keras gives the averages no public name.
            average = self._model_variables_moving_average[index]
            kept = ops.cast(ops.not_equal(variable, 0), average.dtype)
            self.assign(average, ops.multiply(average, kept))

    def _factor(self, variable: Any, learning_rate: Any) -> Any:
        strength = ops.multiply(learning_rate, self.weight_decay)
        return decay_factor(variable, strength, self.p)

    def _warn_of_zeros_that_stay(self) -> None:
        """Warns once of variables that this rule can never move away from zero."""
        with _outside_graph():
            if self._reference == "updated" or self.p >= 2 or self.weight_decay == 0:
                return
            stuck = [
                variable
                for variable in self.decayed_variables
                if not ops.any(ops.not_equal(variable, 0))
            ]
        if stuck:
            warnings.warn(
                "With p < 2 and reference='previous' a weight of exactly 0 stays 0, so these "
                "variables, which are all zeros now, will not train: "
                f"{selection.list_paths(stuck)}. Leave them out of the decay with `exclude=`, "
                "or compute the decay from the weight after the step with "
                "`reference='updated'`.",
                stacklevel=3,
            )


def _is_schedule(value: Any) -> bool:
    return isinstance(value, LearningRateSchedule)


def _serialize(value: Any) -> Any:
    """Config of a schedule, or a float."""
    if _is_schedule(value):
        return keras.saving.serialize_keras_object(value)
    if isinstance(value, keras.Variable):
        # The shortest decimal of its own precision: 0.004, not 0.004000000189989805.
        return float(str(value.numpy()))
    return value


def _outside_graph() -> contextlib.AbstractContextManager:
    """Where values can be read, also while TensorFlow traces a function."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.init_scope()
    return contextlib.nullcontext()
