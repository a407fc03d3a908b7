"""Zeros kept under `torch.optim`, which does not apply Keras's constraints.

One hook of torch's, for all optimizers, sets them to zero after each step. Masked gradients would
not do: a step also has momentum from before.
"""

import weakref
from typing import Any

from keras_lp.sparsity.zero_pattern import ZeroPattern

_patterns: "weakref.WeakValueDictionary[int, ZeroPattern]" = weakref.WeakValueDictionary()
_handles: list[Any] = []  # of the hook, while it is there


def keep_zeros(parameter: Any, pattern: ZeroPattern) -> None:
    """Keeps the zeros of a torch parameter as long as the pattern lives, or until `let_go`."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    _patterns[id(parameter)] = pattern
    if not _handles:
        _handles.append(register_optimizer_step_post_hook(_after_step))


def let_go(parameter: Any) -> None:
    """Lets the zeros of a torch parameter train."""
    _patterns.pop(id(parameter), None)
    if not _patterns and _handles:
        _handles.pop().remove()


def _after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            pattern = _patterns.get(id(parameter))
            if pattern is not None:
                nonzero = pattern.nonzero.value
                parameter.data.masked_fill_(~nonzero.to(parameter.device), 0)
