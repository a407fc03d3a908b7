"""The decoupled decay for any p-norm, in any Keras optimizer.

`LpDecay` turns an optimizer that the user made into its Lp form: a class made of `LpUpdate`
and the optimizer's own. What it is and holds stays, down to a learning rate that is a
lambda, and a class of the user's needs no `get_config` unless the model is saved.
"""

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops

from keras_lp.optimizers.arguments import DecayArguments
from keras_lp.optimizers.lp_update import LpUpdate, document


@keras.saving.register_keras_serializable(package="keras_lp")
@document
class LpDecay(LpUpdate):
    """Gives an optimizer the decoupled weight decay for any p-norm.

    Formula: `w_new = (w - d) / (1 + learning_rate * weight_decay * |w|**(p - 2))`, where
    `d` is the optimizer's own step. The optimizer itself is turned into its Lp form and
    returned: it stays an instance of its class, with all it holds, and keeps no array of the
    weights' size beyond its own. Its L2 decay is replaced; for both at once pass two norms,
    `weight_decay=(0.01, 1e-4), p=(0.8, 2)`.

    Under `keras.optimizers.Ftrl`, which computes each weight anew from sums over the past,
    the sums are decayed along. `keras.optimizers.LossScaleOptimizer` and
    `keras.optimizers.MultiOptimizer` take Lp optimizers inside them.

    Args:
        optimizer: An instance of a Keras optimizer, or of a subclass that implements
            `update_step`, which has not trained yet.
        {{lp_arguments}}

    Raises:
        TypeError: If `optimizer` is no instance of a Keras optimizer.
        ValueError: If the rule cannot hold for `optimizer`, or its own decay was set.
            {{raises}}

    Example:
    >>> optimizer = keras_lp.LpDecay(keras.optimizers.Nadam(1e-3), weight_decay=0.1, p=0.8)
    >>> model.compile(optimizer=optimizer, loss="mse")

    Reference:

    - [Outmezguine and Levi, 2024](https://arxiv.org/abs/2404.10824)
    """

    # Set in the classes that are made of this one and an optimizer's: this one.
    _generic: Any = None

    def __new__(
        cls,
        optimizer: keras.optimizers.Optimizer,
        weight_decay: Any = 0.004,
        p: Any = 0.8,
        reference: str = "previous",
        exclude: str | Iterable[str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        include: str | Iterable[str] | None = None,
        initial_zeros: str | None = None,
    ) -> Any:
        """Turns the optimizer into its Lp form, once nothing can fail any more."""
        _check_optimizer(optimizer)
        decay = DecayArguments.of(
            weight_decay, p, reference, initial_zeros, include, exclude, overrides
        )
        generic: Any = cls._generic or cls
        optimizer.__class__ = _lp_form(generic, _public_class(type(optimizer)))
        optimizer._start_decay(decay)
        return optimizer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: `__new__` was given an optimizer that is set up."""

    def get_config(self) -> dict[str, Any]:
        """The optimizer's class and config, the arguments of the decay and the exclusions."""
        base = type(self).__bases__[1]
        is_own = getattr(keras.optimizers, base.__name__, None) is base
        return {
            "optimizer": {
                "module": "keras.optimizers" if is_own else base.__module__,
                "class_name": base.__name__,
                "config": self._base_config(),
                "registered_name": None if is_own else keras.saving.get_registered_name(base),
            },
            **self._decay_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Creates the optimizer that `get_config` described."""
        if cls._generic:  # Not past it: `optimizer` brings the class it is made of.
            return cls._generic.from_config(config, custom_objects)
        optimizer = keras.saving.deserialize_keras_object(
            config["optimizer"], custom_objects=custom_objects
        )
        return super().from_config({**config, "optimizer": optimizer}, custom_objects)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a constructor that would silently have no effect."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            raise TypeError(
                "A subclass of `LpDecay` overrides `__new__`, which turns the optimizer that it "
                f"is given into its Lp form, in place of `__init__`. Received: {cls.__name__}"
            )

    def __reduce__(self) -> Any:
        """Pickles by the class that is found by its name."""
        function, arguments = super().__reduce__()
        return getattr(self._generic, function.__name__), arguments

    def _decay_state(self, index: int, divisor: Any) -> None:
        if isinstance(self, keras.optimizers.Ftrl):
            # The weight is `(clip(linear) - linear) / quadratic`, computed anew each step.
            linear, limit = self._linears[index], self.l1_regularization_strength
            value = ops.convert_to_tensor(linear)
            clipped = ops.clip(value, -limit, limit)
            decayed = ops.add(clipped, ops.divide(ops.subtract(value, clipped), divisor))
            # Without a decay the sum rounds.
            self.assign(linear, ops.where(ops.equal(divisor, 1), value, decayed))


@functools.cache
def _lp_form(generic: Any, base: Any) -> type:
    """The class of the Lp optimizers of a base class, saved under the name of `generic`."""
    namespace = {
        "_generic": generic,
        "__module__": generic.__module__,
        "__qualname__": f"{generic.__name__}[{base.__name__}]",
        "__doc__": generic.__doc__,
    }
    lp_form = type(generic.__name__, (generic, base), namespace)
    package, _, name = keras.saving.get_registered_name(generic).rpartition(">")
    if package:
        for cls in (lp_form, generic):  # The last one is found under the name.
            keras.saving.register_keras_serializable(package, name)(cls)
    return lp_form


def _public_class(cls: type) -> Any:
    """The class that the user made an instance of.

    On torch, Keras swaps its own for variants that update all variables in one call, past
    `update_step`.
    """
    return next(c for c in cls.__mro__ if not c.__module__.startswith("keras.src.backend."))


def _check_optimizer(optimizer: Any) -> None:
    """Raises an error that says what to do, unless the rule holds for the optimizer."""
    received = f"Received: optimizer={optimizer!r}"
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "Argument `optimizer` must be an instance of a Keras 3 optimizer, such as "
            f"`keras.optimizers.Nadam(1e-3)`. {received}"
        )
    if isinstance(optimizer, LpUpdate):
        raise ValueError(
            "Argument `optimizer` has the decay for any p-norm already. For several norms pass "
            f"it lists, such as `p=(0.8, 2), weight_decay=(0.01, 0.0001)`. {received}"
        )
    for name, remedy in _REFUSED.items():
        # The oldest Keras lacks some of them.
        if isinstance(optimizer, getattr(keras.optimizers, name, ())):
            raise ValueError(f"Argument `optimizer` is a `{name}`. {remedy} {received}")
    if _public_class(type(optimizer)).update_step is keras.optimizers.Optimizer.update_step:
        raise ValueError(
            "Argument `optimizer` does not implement `update_step`, in which the decay takes "
            "place. If it wraps another optimizer, give that one the decay: "
            f"`Wrapper(LpDecay(optimizer))`. {received}"
        )
    if optimizer.built:
        raise ValueError(
            "Argument `optimizer` is built for a model already, whose training it would change. "
            f"Pass a new optimizer. {received}"
        )
    _check_own_decay(optimizer)
    _check_names(optimizer)


_REFUSED = {
    "LossScaleOptimizer": "Scale the loss outside: `LossScaleOptimizer(LpDecay(optimizer))`.",
    "MultiOptimizer": "Give the decay to the optimizers in it, each for its own variables.",
    "ScheduleFreeAdamW": (
        "The weights it trains are an average of two sequences, in which no zero can last. Use "
        "`LpAdamW` with a constant learning rate and `use_ema=True`, whose average keeps zeros."
    ),
}


def _check_own_decay(optimizer: Any) -> None:
    """Raises ValueError if the user set an L2 decay that would silently be replaced."""
    for name, default in _own_decays(type(optimizer)).items():
        value = vars(optimizer).get(name)
        if value and value != default:
            raise ValueError(
                f"Argument `optimizer` has an L2 decay of its own, {name}={value!r}, which "
                "`LpDecay` replaces. Leave it out there; for both at once pass two norms, "
                f"`LpDecay(optimizer, weight_decay=(0.004, {value!r}), p=(0.8, 2))`. "
                f"Received: optimizer={optimizer!r}"
            )
    excluded = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    if any(vars(optimizer).get(name) for name in excluded):
        raise ValueError(
            "`exclude_from_weight_decay()` was called on `optimizer`, for the L2 decay that "
            "`LpDecay` replaces. Call it on what `LpDecay` returns, or pass `exclude=`. "
            f"Received: optimizer={optimizer!r}"
        )


def _check_names(optimizer: Any) -> None:
    """Raises ValueError if the optimizer has attributes that the Lp form needs for itself."""
    keras_names = set(dir(keras.optimizers.Optimizer))
    theirs = {*vars(optimizer), *dir(_public_class(type(optimizer)))} - keras_names
    clashes = sorted(theirs & (set(dir(LpDecay)) - keras_names) - {"weight_decay"})
    if clashes:
        raise ValueError(
            f"Argument `optimizer` has attributes of the names {clashes}, which its Lp form needs "
            f"for itself. Rename them in the class. Received: optimizer={optimizer!r}"
        )


def _own_decays(cls: type) -> dict[str, Any]:
    """Arguments of an optimizer class that are strengths of a decay, with their defaults."""
    constructors = [vars(base).get("__init__", object) for base in reversed(cls.__mro__)]
    return {
        name: parameter.default
        for constructor in constructors  # A subclass may have another default: the last counts.
        for name, parameter in inspect.signature(constructor).parameters.items()
        if name.endswith("weight_decay")
    }
