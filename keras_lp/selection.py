"""Which variables are decayed.

A variable is decayed if it is trainable, has at least two dimensions, is no bias or
scale by name (a rank alone would decay the biases of attention and GRU layers) and no LoRA
adapter, and no `exclude` pattern matches it. Patterns are regular expressions, searched as
`re.search` does in the variable's path, such as "encoder/dense_1/kernel". `overrides` go by
the same patterns, the first that matches.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

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
        rules: The exclusions that were in force.
        variables: For each trainable variable its shape and the end of its path, which tell
            the model that the selection was made for.
        decayed: For each decayed variable its position, and that of its override if any.
    """

    rules: tuple[tuple[str, ...], ...]
    variables: tuple[tuple[str, tuple[int, ...]], ...]
    decayed: tuple[tuple[int, int | None], ...]

    @classmethod
    def of(
        cls,
        variables: Sequence[Any],
        decayed: Sequence[tuple[Any, int | None]],
        rules: Sequence[Sequence[str]],
    ) -> "Selection":
        """The selection of the `decayed` among `variables`, each with its override."""
        overrides = {id(variable): override for variable, override in decayed}
        chosen = (
            (position, overrides[id(variable)])
            for position, variable in enumerate(variables)
            if id(variable) in overrides
        )
        return cls(tuple(map(tuple, rules)), _signature(variables), tuple(chosen))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Selection":
        """The selection that `to_dict` described, as it comes out of JSON."""
        return cls(
            rules=tuple(map(tuple, values["rules"])),
            variables=tuple((end, tuple(shape)) for end, shape in values["variables"]),
            decayed=tuple(map(tuple, values["decayed"])),
        )

    @cached_property
    def overrides(self) -> dict[int, int | None]:
        """Position of each decayed variable to that of its override."""
        return dict(self.decayed)

    def to_dict(self) -> dict[str, Any]:
        """The selection as plain values."""
        return asdict(self)

    def fits(self, variables: Sequence[Any], rules: Sequence[Sequence[str]]) -> bool:
        """Whether it was made for such variables under the same exclusions."""
        new = _signature(variables)
        return (
            self.rules == tuple(map(tuple, rules))
            and [shape for _, shape in self.variables] == [shape for _, shape in new]
            and _are_renumbered([end for end, _ in self.variables], [end for end, _ in new])
        )


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


def decayed_variables(
    variables: Sequence[Any], exclude: Sequence[str] = (), left_out: Sequence[Any] = ()
) -> list[Any]:
    """Those of a model's trainable `variables` that are decayed, in their order.

    Args:
        variables: Trainable variables of one model.
        exclude: Patterns of variables to leave alone although the default rule decays
            them. Each must match at least one of `variables`.
        left_out: Further variables to leave alone.

    Returns:
        List of variables, not empty unless `variables` is.

    Raises:
        ValueError: If a pattern matches none of `variables`, or none is left to decay.
    """
    if not variables:
        return []
    for pattern in exclude:
        if not any(matches(pattern, variable) for variable in variables):
            raise ValueError(
                "Argument `exclude` has a pattern that matches no trainable variable; mend it "
                f"or leave it out. Received: exclude={pattern!r}. Trainable variables: "
                f"{list_paths(variables)}"
            )
    ids = {id(variable) for variable in left_out}
    decayed = [
        variable
        for variable in variables
        if is_decayed_by_default(variable)
        and id(variable) not in ids
        and not any(matches(pattern, variable) for pattern in exclude)
    ]
    if not decayed:
        raise ValueError(
            "There is no variable to decay: the decay acts on trainable variables of at least "
            "two dimensions that are no bias, scale or LoRA adapter and that `exclude` leaves in. "
            "Unfreeze a layer, exclude less, or use a plain Keras optimizer. Received: "
            f"exclude={[*exclude, *map(variable_path, left_out)]}, trainable variables: "
            f"{list_paths(variables)}"
        )
    return decayed


def find_overrides(decayed: Sequence[Any], patterns: Sequence[str]) -> list[int | None]:
    """Position of the first pattern that matches each decayed variable, or None.

    Raises:
        ValueError: If a pattern matches none of `decayed`, which are not empty.
    """
    for pattern in patterns:
        if decayed and not any(matches(pattern, variable) for variable in decayed):
            raise ValueError(
                "Argument `overrides` has a pattern that matches no decayed variable; mend it "
                f"or leave it out. Received: overrides={{{pattern!r}: ...}}. Decayed variables: "
                f"{list_paths(decayed)}"
            )
    return [
        next((i for i, pattern in enumerate(patterns) if matches(pattern, variable)), None)
        for variable in decayed
    ]


def list_paths(variables: Sequence[Any], limit: int = 20) -> str:
    """The paths in one line for a message, cut after `limit`."""
    paths = [variable_path(variable) for variable in variables[:limit]]
    if len(variables) > limit:
        paths.append(f"and {len(variables) - limit} more")
    return ", ".join(paths)


def _signature(variables: Sequence[Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The end of the path (layer and variable) and the shape of each variable."""
    ends = ("/".join(variable_path(variable).split("/")[-2:]) for variable in variables)
    return tuple((end, tuple(map(int, v.shape))) for end, v in zip(ends, variables, strict=True))


def _are_renumbered(old: Sequence[str], new: Sequence[str]) -> bool:
    """Whether names differ at most as automatic ones do: dense, dense_1 and dense_4, dense_5."""
    offsets: dict[str, int] = {}
    for parts in zip("/".join(old).split("/"), "/".join(new).split("/"), strict=True):
        (base, number), (new_base, new_number) = map(_numbered, parts)
        offset = new_number - number
        if base != new_base or offsets.setdefault(base, offset) != offset:
            return False
    return True


def _numbered(name: str) -> tuple[str, int]:
    """Base and number of an automatic name: ("dense", 4) of dense_4, ("dense", 0) of dense."""
    base, _, number = name.rpartition("_")
    return (base, int(number)) if base and number.isdecimal() else (name, 0)
