"""The arguments of the decay: checked in one place, serialized in one place.

`DecayArguments` holds what the user gave, in its final form: strengths and exponents as
numbers, scalar variables or schedules, one of each or a tuple for several norms, and the
overrides that replace them for some variables.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_lp.decay import check_exponent, check_strength, is_several, pair_norms
from keras_lp.selection import check_patterns

REFERENCES = ("previous", "updated")
INITIAL_ZEROS = (None, "keep", "train")
_SETTINGS = ("weight_decay", "p")  # what overrides can replace


@dataclass(frozen=True)
class DecayArguments:
    """Arguments of the decay, checked.

    Attributes:
        weight_decay: Strength, or a tuple of them for several norms: float, schedule, or
            scalar variable.
        p: Exponent, or a tuple of them: float or schedule.
        reference: `"previous"` or `"updated"`.
        initial_zeros: `"keep"`, `"train"`, or `None` to keep them with a warning.
        include: Patterns of variables that are decayed although the default rule leaves them out.
        exclude: Patterns of variables that are not decayed.
        overrides: Pairs of a pattern and what it replaces: `weight_decay`, `p` or both.
    """

    weight_decay: Any
    p: Any
    reference: str
    initial_zeros: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    overrides: tuple[tuple[str, dict[str, Any]], ...]

    @classmethod
    def of(
        cls,
        weight_decay: Any,
        p: Any,
        reference: str,
        initial_zeros: str | None,
        include: str | Iterable[str] | None,
        exclude: str | Iterable[str] | None,
        overrides: Mapping[str, Mapping[str, Any]] | None,
    ) -> "DecayArguments":
        """Checks what a user gave; raises ValueError where it cannot be used."""
        if reference not in REFERENCES:
            raise ValueError(
                'Argument `reference` must be "previous" (the weight before the gradient step) '
                f'or "updated" (the weight after it). Received: reference={reference!r}'
            )
        if initial_zeros not in INITIAL_ZEROS:
            raise ValueError(
                'Argument `initial_zeros` must be "keep" (weights that start at zero stay zero), '
                '"train" (they are let go in the first steps), or None to keep them and be warned '
                f"of them. Received: initial_zeros={initial_zeros!r}"
            )
        return cls(
            check_setting("weight_decay", weight_decay),
            check_setting("p", p),
            reference,
            initial_zeros,
            check_patterns("include", include),
            check_patterns("exclude", exclude),
            _check_overrides(overrides),
        ).paired()

    def paired(self) -> "DecayArguments":
        """These arguments; raises ValueError unless each strength has its exponent."""
        pair_norms("weight_decay", self.weight_decay, self.p)
        for index, (pattern, given) in enumerate(self.overrides):
            try:
                pair_norms("weight_decay", *self.norms(index))
            except ValueError as error:
                raise ValueError(
                    f"Argument `overrides` gives the pattern {pattern!r} another number of "
                    "norms than the optimizer has; set both `weight_decay` and `p` there. "
                    f"Received: overrides[{pattern!r}]={given!r} ({error})"
                ) from error
        return self

    def norms(self, override: int | None) -> tuple[Any, Any]:
        """Strength and exponent under an override, or without one, or a tuple of each."""
        given = {} if override is None else self.overrides[override][1]
        return given.get("weight_decay", self.weight_decay), given.get("p", self.p)

    def with_strengths(self, convert: Callable[[Any], Any]) -> "DecayArguments":
        """The same with every strength converted, such as into a variable."""

        def converted(given: dict[str, Any]) -> dict[str, Any]:
            return {
                name: each(convert, value) if name == "weight_decay" else value
                for name, value in given.items()
            }

        return replace(
            self,
            weight_decay=each(convert, self.weight_decay),
            overrides=tuple((pattern, converted(given)) for pattern, given in self.overrides),
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments as plain values, with the strengths that are in force."""
        return {
            "weight_decay": _serialize(self.weight_decay),
            "p": _serialize(self.p),
            "reference": self.reference,
            "initial_zeros": self.initial_zeros,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "overrides": {
                pattern: {name: _serialize(value) for name, value in given.items()}
                for pattern, given in self.overrides
            },
        }


def each(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of the value of one norm, or of each value where there are several."""
    return tuple(map(function, value)) if is_several(value) else function(value)


def is_schedule(value: Any) -> bool:
    """Whether `value` changes with the iterations by itself."""
    return isinstance(value, LearningRateSchedule)


def check_setting(name: str, value: Any) -> Any:
    """Returns `weight_decay` or `p` as floats, schedules left as they are."""

    def check(one: Any) -> Any:
        if is_schedule(one):
            return one
        if callable(one):
            raise ValueError(
                f"Argument `{name}` must be a number >= 0 or, to change during training, a "
                f"`keras.optimizers.schedules.LearningRateSchedule`. Received: {name}={one!r}"
            )
        return check_exponent(one) if name == "p" else check_strength(name, one)

    return each(check, value)


def deserialize_arguments(config: dict[str, Any], custom_objects: Any = None) -> dict[str, Any]:
    """A copy of an optimizer's config in which the schedules of the decay are objects."""

    def deserialize(value: Any) -> Any:
        if isinstance(value, dict):
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
        return value

    def settings(given: dict[str, Any]) -> dict[str, Any]:
        return {
            name: each(deserialize, value) if name in _SETTINGS else value
            for name, value in given.items()
        }

    overrides = config.get("overrides") or {}
    new = {pattern: settings(given) for pattern, given in overrides.items()}
    return {**settings(config), "overrides": new}


def _check_overrides(overrides: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    example = '{"embedding": {"weight_decay": 0.001}, "block_1/": {"p": 1.0}}'
    overrides = {} if overrides is None else overrides
    if not isinstance(overrides, Mapping):
        raise ValueError(
            "Argument `overrides` must be a dictionary from regular expressions to settings, "
            f"such as {example}. Received: overrides={overrides!r}"
        )
    checked = []
    for pattern, given in overrides.items():
        if not isinstance(pattern, str):
            raise ValueError(
                "Argument `overrides` has keys that are regular expressions, as strings. "
                f"Received: overrides={{{pattern!r}: ...}}"
            )
        check_patterns("overrides", pattern)
        if not (isinstance(given, Mapping) and given and set(given) <= set(_SETTINGS)):
            raise ValueError(
                "Argument `overrides` sets `weight_decay`, `p` or both for each pattern, such "
                f"as {example}. Received: overrides[{pattern!r}]={given!r}"
            )
        try:
            settings = {name: check_setting(name, value) for name, value in given.items()}
        except ValueError as error:
            raise ValueError(f"In `overrides` for the pattern {pattern!r}: {error}") from error
        checked.append((pattern, settings))
    return tuple(checked)


def _serialize(value: Any) -> Any:
    """Config of a schedule, or a float, or a list of them for several norms."""

    def serialize(one: Any) -> Any:
        if is_schedule(one):
            return keras.saving.serialize_keras_object(one)
        if isinstance(one, keras.Variable):
            # The shortest decimal of its own precision: 0.004, not 0.004000000189989805.
            return float(str(one.numpy()))
        return one

    serialized = each(serialize, value)
    return list(serialized) if is_several(value) else serialized
