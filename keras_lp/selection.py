"""Which variables are decayed.

A variable is decayed if it is trainable, has at least two dimensions, is no bias or
scale by name (a rank alone would decay the biases of attention and GRU layers), and no
`exclude` pattern matches it. Patterns are regular expressions, searched as `re.search`
does in the variable's path, such as "encoder/dense_1/kernel".
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# What layers call the variables that shift or scale a feature instead of mixing features.
_BIAS_OR_SCALE = frozenset({"bias", "biases", "beta", "scale", "scales", "gamma", "alpha"})


@dataclass(frozen=True)
class Selection:
    """Which of a model's trainable variables are decayed, by position.

    Positions survive saving and loading, paths do not: Keras gives other paths to the
    variables of a loaded Sequential, or of a second model with automatic names.

    Attributes:
        exclude: The patterns that were in force, each of which had to match a variable.
        names: Further patterns, which did not have to.
        shapes: Shapes of all trainable variables, which tell the model it was made for.
        decayed: Positions of the decayed variables.
    """

    exclude: tuple[str, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    decayed: tuple[int, ...]

    @classmethod
    def of(
        cls, variables: Sequence[Any], exclude: Sequence[str], names: Sequence[str]
    ) -> "Selection":
        """Selects by the default rule and the patterns, see `decayed_variables`."""
        chosen = {id(variable) for variable in decayed_variables(variables, exclude, names)}
        decayed = (index for index, variable in enumerate(variables) if id(variable) in chosen)
        return cls(tuple(exclude), tuple(names), _shapes(variables), tuple(decayed))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Selection":
        """The selection that `to_dict` described, as it comes out of JSON."""
        return cls(
            exclude=tuple(values["exclude"]),
            names=tuple(values["names"]),
            shapes=tuple(map(tuple, values["shapes"])),
            decayed=tuple(values["decayed"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """The selection as plain values."""
        return asdict(self)

    def fits(self, variables: Sequence[Any], exclude: Sequence[str], names: Sequence[str]) -> bool:
        """Whether it was made for such variables with these patterns."""
        return (self.shapes, self.exclude, self.names) == (
            _shapes(variables),
            tuple(exclude),
            tuple(names),
        )


def variable_path(variable: Any) -> str:
    """Path of a Keras variable, or the name of a backend variable, which has no path."""
    return getattr(variable, "path", None) or variable.name


def is_decayed_by_default(variable: Any) -> bool:
    """The default rule: at least 2-D and no bias or scale by name.

    The name is the last part of the path, taken apart at underscores and digits:
    `relative_position_bias_table` and `bias_1` are biases.
    """
    words = re.split(r"[_\W\d]+", variable_path(variable).split("/")[-1].lower())
    return len(variable.shape) >= 2 and _BIAS_OR_SCALE.isdisjoint(words)


def check_patterns(name: str, patterns: str | Iterable[str] | None) -> tuple[str, ...]:
    """Returns `patterns` as a tuple; raises ValueError where one is no regular expression."""
    if patterns is None:
        return ()
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        patterns = (patterns,)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise ValueError(
                f"Argument `{name}` must be a regular expression or a list of them, searched "
                f"in the paths of the variables ({error}; `re.escape` quotes special "
                f"characters). Received: {name}={pattern!r}"
            ) from error
    return tuple(patterns)


def matches(pattern: str, variable: Any) -> bool:
    """Whether `pattern` is found in the path of `variable`."""
    return re.search(pattern, variable_path(variable)) is not None


def decayed_variables(
    variables: Sequence[Any], exclude: Sequence[str] = (), names: Sequence[str] = ()
) -> list[Any]:
    """Those of a model's trainable `variables` that are decayed, in their order.

    Args:
        variables: Trainable variables of one model.
        exclude: Patterns of variables to leave alone although the default rule decays
            them. Each must match at least one of `variables`.
        names: Patterns with the same effect, which may match nothing.

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
    decayed = [
        variable
        for variable in variables
        if is_decayed_by_default(variable)
        and not any(matches(pattern, variable) for pattern in (*exclude, *names))
    ]
    if not decayed:
        raise ValueError(
            "There is no variable to decay: the decay acts on trainable variables of at least "
            "two dimensions that are no bias or scale by name and that `exclude` leaves in. "
            "Unfreeze a layer, exclude less, or use a plain Keras optimizer. Received: "
            f"exclude={[*exclude, *names]}, trainable variables: {list_paths(variables)}"
        )
    return decayed


def list_paths(variables: Sequence[Any], limit: int = 20) -> str:
    """The paths in one line for a message, cut after `limit`."""
    paths = [variable_path(variable) for variable in variables[:limit]]
    if len(variables) > limit:
        paths.append(f"and {len(variables) - limit} more")
    return ", ".join(paths)


def _shapes(variables: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, variable.shape)) for variable in variables)
