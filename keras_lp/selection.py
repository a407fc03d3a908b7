"""Which variables are decayed.

A variable is decayed if it is trainable, has at least two dimensions, is no bias or
scale by name (a rank alone would decay the biases of attention and GRU layers), and no
`exclude` pattern matches it. Patterns are regular expressions, searched as `re.search`
does in the variable's path, such as "encoder/dense_1/kernel".
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

# What layers call the variables that shift or scale a feature instead of mixing features.
_BIAS_OR_SCALE = frozenset({"bias", "biases", "beta", "scale", "scales", "gamma", "alpha"})


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
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise ValueError(
                f"Argument `{name}` must be a regular expression or a list of them, searched "
                f"in the paths of the variables ({error}; `re.escape` quotes special "
                f"characters). Received: {name}={pattern!r}"
            ) from error
    return patterns


def matches(pattern: str, variable: Any) -> bool:
    """Whether `pattern` is found in the path of `variable`."""
    return re.search(pattern, variable_path(variable)) is not None


def decayed_variables(variables: Sequence[Any], exclude: Sequence[str] = ()) -> list[Any]:
    """Those of a model's trainable `variables` that are decayed, in their order.

    Args:
        variables: Trainable variables of one model.
        exclude: Patterns of variables to leave alone although the default rule decays
            them. Each must match at least one of `variables`.

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
        and not any(matches(pattern, variable) for pattern in exclude)
    ]
    if not decayed:
        raise ValueError(
            "There is no variable to decay: the decay acts on trainable variables of at least "
            "two dimensions that are no bias or scale by name and that `exclude` leaves in. "
            "Unfreeze a layer, exclude less, or use a plain Keras optimizer. Received: "
            f"exclude={list(exclude)}, trainable variables: {list_paths(variables)}"
        )
    return decayed


def list_paths(variables: Sequence[Any], limit: int = 20) -> str:
    """The paths in one line for a message, cut after `limit`."""
    paths = [variable_path(variable) for variable in variables[:limit]]
    if len(variables) > limit:
        paths.append(f"and {len(variables) - limit} more")
    return ", ".join(paths)
