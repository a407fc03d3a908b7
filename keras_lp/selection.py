"""Which variables are decayed.

A variable is decayed if it is trainable, has at least two dimensions, is no bias or
scale by name (a rank alone would decay the biases of attention and GRU layers) and no LoRA
adapter, or if an `include` pattern matches it; and if no `exclude` pattern does. Patterns are
regular expressions, searched as `re.search` does in the variable's path, such as
"encoder/dense_1/kernel". `overrides` go by the same patterns, the first that matches.
"""

import hashlib
import itertools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras

from keras_lp.warning import warn

# What layers call the variables that shift or scale a feature instead of mixing features,
# and how a name ends that says the opposite: `scale_kernel`.
_BIAS_OR_SCALE = frozenset({"bias", "biases", "beta", "scale", "scales", "gamma", "alpha"})
_MATRIX = frozenset({"embedding", "embeddings", "kernel", "matrix", "weight", "weights"})


@dataclass(frozen=True)
class Selection:
    """Which of a model's trainable variables are decayed, by position.

    Positions survive saving and loading, paths do not: Keras gives other paths to the
    variables of a loaded Sequential, or of a second model with automatic names.

    Attributes:
        made_for: Tells the variables and patterns that the selection was made for.
        decayed: For each decayed variable its position, and that of its override if any.
    """

    made_for: str
    decayed: tuple[tuple[int, int | None], ...]

    @classmethod
    def of(
        cls,
        variables: Sequence[Any],
        decayed: Sequence[tuple[Any, int | None]],
        patterns: Sequence[Sequence[str]],
    ) -> "Selection":
        """The selection of the `decayed` among `variables`, each with its override."""
        overrides = {id(variable): override for variable, override in decayed}
        chosen = (
            (position, overrides[id(variable)])
            for position, variable in enumerate(variables)
            if id(variable) in overrides
        )
        return cls(_signature(variables, patterns), tuple(chosen))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Selection":
        """The selection that `to_dict` described, as it comes out of JSON."""
        chosen = (
            (position, number - 1 if number else None)
            for number, positions in enumerate(values["decayed"])
            for position in _from_ranges(positions)
        )
        return cls(values["made_for"], tuple(sorted(chosen, key=operator.itemgetter(0))))

    @cached_property
    def overrides(self) -> dict[int, int | None]:
        """Position of each decayed variable to that of its override."""
        return dict(self.decayed)

    def to_dict(self) -> dict[str, Any]:
        """The selection as plain values, in short, as trackers log a config.

        In "decayed" stand the positions of those without an override, then those of each override.
        """
        last = max((override for _, override in self.decayed if override is not None), default=-1)
        found = [
            [position for position, override in self.decayed if override == wanted]
            for wanted in (None, *range(last + 1))
        ]
        return {"made_for": self.made_for, "decayed": [_as_ranges(one) for one in found]}

    def fits(self, variables: Sequence[Any], patterns: Sequence[Sequence[str]]) -> bool:
        """Whether it was made for such variables and the same patterns."""
        return self.made_for == _signature(variables, patterns)


@dataclass(frozen=True)
class Named:
    """Variables that a user names beside the default rule, or in place of the optimizer's choice.

    Attributes:
        include: Patterns of variables to take although the default rule leaves them out.
        exclude: Patterns of variables to leave out.
        is_given: Whether any were given; else an optimizer may be asked.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    is_given: bool = False

    @classmethod
    def of(
        cls, include: str | Iterable[str] | None, exclude: str | Iterable[str] | None
    ) -> "Named":
        """Checks what a user gave; raises ValueError where one is no regular expression."""
        return cls(
            check_patterns("include", include),
            check_patterns("exclude", exclude),
            is_given=include is not None or exclude is not None,
        )


UNNAMED = Named()


def variable_path(variable: Any) -> str:
    """Path of a Keras variable, or the name of a backend variable, which has no path."""
    return getattr(variable, "path", None) or variable.name


def is_decayed_by_default(variable: Any) -> bool:
    """The default rule: at least 2-D, and no bias, scale or adapter (LoRA) by name.

    The name is the last part of the path, taken apart at underscores and digits:
    `relative_position_bias_table` and `bias_1` are biases, `scale_kernel` is a kernel.
    """
    words = re.findall(r"[^_\W\d]+", variable_path(variable).split("/")[-1].lower())
    named_so = words[-1:] and words[-1] not in _MATRIX and not _BIAS_OR_SCALE.isdisjoint(words)
    # Float8 training keeps its scales in trainable variables, whose gradient replaces them.
    is_replaced = getattr(variable, "overwrite_with_gradient", False)
    return len(variable.shape) >= 2 and not (named_so or "lora" in words or is_replaced)


def optimizers_of(model: Any) -> list[Any]:
    """The optimizer that a model is compiled with, and those that are attributes of it."""
    compiled_with = getattr(model, "optimizer", None)
    others = [one for one in vars(model).values() if isinstance(one, keras.optimizers.Optimizer)]
    found = [one for one in (compiled_with, *others) if one is not None]
    return list({id(one): one for one in found}.values())


def optimizers_within(optimizer: Any) -> list[Any]:
    """An optimizer, those in it (LossScaleOptimizer, MultiOptimizer) and a decay beside it."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    beside = getattr(optimizer, "lp_decay", None)
    found = [optimizer, inner, *(getattr(inner, "optimizers", None) or ()), beside]
    return list({id(one): one for one in found if one is not None}.values())


def check_patterns(name: str, patterns: str | Iterable[str] | None) -> tuple[str, ...]:
    """Returns `patterns` as a tuple; raises ValueError where one is no regular expression."""
    if patterns is None:
        return ()
    is_one = isinstance(patterns, (str, bytes)) or not isinstance(patterns, Iterable)
    checked: tuple[Any, ...] = (patterns,) if is_one else tuple(patterns)
    for pattern in checked:
        try:
            if not isinstance(pattern, str):
                raise TypeError("not a string; flags are written into it, as in '(?i)head'")
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise ValueError(
                f"Argument `{name}` must be a regular expression or a list of them, searched "
                f"in the paths of the variables ({error}; `re.escape` quotes special "
                f"characters). Received: {name}={pattern!r}"
            ) from error
    return checked


def matches(pattern: str, variable: Any) -> bool:
    """Whether `pattern` is found in the path of `variable`."""
    return re.search(pattern, variable_path(variable)) is not None


def _match_any(patterns: Sequence[str], variable: Any) -> bool:
    return any(matches(pattern, variable) for pattern in patterns)


def decayed_variables(
    variables: Sequence[Any],
    exclude: Sequence[str] = (),
    left_out: Sequence[Any] = (),
    include: Sequence[str] = (),
) -> list[Any]:
    """Those of a model's trainable `variables` that are decayed, in their order.

    Args:
        variables: Trainable variables of one model.
        exclude: Patterns of variables to leave alone although the default rule decays
            them, or `include` does. Each must match at least one of `variables`.
        left_out: Further variables to leave alone.
        include: Patterns of variables to decay although the default rule leaves them alone.
            Each must match at least one of `variables`.

    Returns:
        List of variables, not empty unless `variables` is.

    Raises:
        ValueError: If a pattern matches none of `variables`, or none is left to decay.
    """
    if not variables:
        return []
    for name, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            _check_pattern(name, pattern, "trainable", variables, repr(pattern))
    ids = {id(variable) for variable in left_out}
    decayed = [
        variable
        for variable in variables
        if (is_decayed_by_default(variable) or _match_any(include, variable))
        and id(variable) not in ids
        and not _match_any(exclude, variable)
    ]
    if not decayed:
        raise ValueError(
            "There is no variable to decay: the decay acts on trainable variables of at least "
            "two dimensions that are no bias, scale or LoRA adapter, those of `include` beside "
            "them, and none of `exclude`. Unfreeze a layer, include or exclude other variables, or "
            "use a plain Keras optimizer. The kernels of quantized layers are integers, which are "
            "neither decayed nor pruned: train or prune first, then call `model.quantize`. "
            f"Received: include={[*include]}, "
            f"exclude={[*exclude, *map(variable_path, left_out)]}, trainable variables: "
            f"{list_paths(variables)}"
        )
    return decayed


def find_overrides(decayed: Sequence[Any], patterns: Sequence[str]) -> list[int | None]:
    """Position of the first pattern that matches each decayed variable, or None.

    Raises:
        ValueError: If a pattern matches none of `decayed`, which are not empty.
    """
    for pattern in patterns if decayed else ():
        _check_pattern("overrides", pattern, "decayed", decayed, f"{{{pattern!r}: ...}}")
    return [
        next((i for i, pattern in enumerate(patterns) if matches(pattern, variable)), None)
        for variable in decayed
    ]


def _check_pattern(
    name: str, pattern: str, kind: str, variables: Sequence[Any], received: str
) -> None:
    """Raises ValueError if a pattern matches none of a kind of variables.

    Of one that matches all it warns, or raises if none is left then.
    """
    matched = sum(matches(pattern, variable) for variable in variables)
    if not matched:
        raise ValueError(
            f"Argument `{name}` has a pattern that matches no {kind} variable; mend it or leave "
            f"it out. Received: {name}={received}. {kind.capitalize()} variables: "
            f"{list_paths(variables)}"
        )
    if matched == len(variables) > 1:
        message = (
            f"Argument `{name}` has a pattern that matches every {kind} variable, as a part of "
            "the model's own name does. To mean some of them, take more of their paths. "
            f"Received: {name}={received}. {kind.capitalize()} variables: "
            f"{list_paths(variables, 3)}"
        )
        if name == "exclude":
            raise ValueError(f"There is no variable to decay. {message}")
        warn(message)


def list_paths(variables: Sequence[Any], limit: int = 20) -> str:
    """The paths in one line for a message, cut after `limit`."""
    return list_names([variable_path(variable) for variable in variables], limit)


def list_names(names: Sequence[str], limit: int) -> str:
    """Names in one line for a message, cut after `limit`."""
    rest = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join([*names[:limit], *rest])


def _signature(variables: Sequence[Any], patterns: Sequence[Sequence[str]]) -> str:
    """Tells variables, by their shapes and the ends of their paths, and patterns from others.

    Paths that differ as automatic names do, such as dense, dense_1 and dense_4, dense_5, count as
    the same.
    """
    ends = ["/".join(variable_path(variable).split("/")[-2:]) for variable in variables]
    shapes = [list(map(int, variable.shape)) for variable in variables]
    described = json.dumps([_renumbered(ends), shapes, [list(one) for one in patterns]])
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _renumbered(names: Sequence[str]) -> list[list[tuple[str, int]]]:
    """Names with the automatic numbers of each base counted from the first one."""
    first: dict[str, int] = {}
    return [
        [(base, number - first.setdefault(base, number)) for base, number in map(_numbered, parts)]
        for parts in (name.split("/") for name in names)
    ]


def _numbered(name: str) -> tuple[str, int]:
    """Base and number of an automatic name: ("dense", 4) of dense_4, ("dense", 0) of dense."""
    base, _, number = name.rpartition("_")
    return (base, int(number)) if base and number.isdecimal() else (name, 0)


def _as_ranges(positions: Sequence[int]) -> str:
    """Rising numbers in short: "0 2-4"."""
    runs = itertools.groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0])
    ends = [[position for _, position in run] for _, run in runs]
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)


def _from_ranges(text: str) -> Iterator[int]:
    for part in text.split():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
