"""What a `SparsityTarget` warns of: numbers in, a message out, or `None` where all is well.

The bounds are what trainings of a small CNN on scikit-learn's digits showed (123 to 615 steps,
three learning rates, 50 to 98 % zeros): beyond them 1.5 to 30 points of accuracy were lost, within
them up to 2.4.
"""

import math
from collections.abc import Sequence
from typing import Any

from keras_lp.callbacks.measuring import Magnitudes
from keras_lp.selection import list_names

# How far the way has to let weights move, in magnitudes of the largest that is to become zero.
_LEAST_TRAVEL = 2.5
# The largest strength, in units of the one under which a weight of the survivors' median
# magnitude falls although all its gradients point one way.
_LARGEST_FORCE = 3.0
_LARGEST_FALL = 10.0  # of the learning rate
_LEFT = 0.05  # of the zeros to make; fewer are not worth a word
_LARGEST_CLOSING = 0.03  # of the weights
_LONGER = "Leave more steps between `begin_step` and `end_step`"


def of_haste(magnitude: float, steps: int, rate: float) -> str | None:
    """Warns of a way on which weights cannot move as far as they have to.

    Args:
        magnitude: The largest magnitude of the weights that are to become zero.
        steps: Optimizer steps from begin to end.
        rate: Mean learning rate in them.
    """
    if rate <= 0:
        return None
    enough = math.ceil(round(_LEAST_TRAVEL * magnitude / rate, 6))
    if steps >= enough:
        return None
    return (
        f"The way to the target is too short: {steps} steps at a learning rate of {rate:.2g} move "
        f"a weight by at most {steps * rate:.2g}, and weights up to {magnitude:.2g} are to become "
        "zero while the others make up for them. Expect a loss of accuracy. "
        f"{_LONGER} ({enough} would do), or raise the learning rate."
    )


def of_force(strength: float, magnitude: float, p: float) -> str | None:
    """Warns of a strength that takes the weights that are to stay along.

    Args:
        strength: The `weight_decay`.
        magnitude: Median magnitude of the weights that are to stay.
        p: The exponent of the norm.
    """
    if magnitude == 0 or strength * magnitude ** (p - 1) <= _LARGEST_FORCE:
        return None
    alone = magnitude ** (1 - p)
    return (
        f"To follow the schedule `SparsityTarget` has to set weight_decay={strength:.2g}, and from "
        f"{alone:.2g} on also weights of magnitude {magnitude:.2g} shrink, the median of those "
        f"that are to stay. Expect a loss of accuracy. {_LONGER}, or raise the learning rate."
    )


def of_falling_rate(highest: float, rate: float, left: float) -> str | None:
    """Warns of a learning rate that falls while there are zeros to make.

    Args:
        highest: The highest learning rate on the way so far.
        rate: That of now.
        left: Share of the zeros to make that is left.
    """
    if rate * _LARGEST_FALL >= highest or left < _LEFT:
        return None
    return (
        f"The learning rate has fallen from {highest:.2g} to {rate:.2g} with {left:.0%} of the "
        "zeros still to be made, for which the other weights then cannot make up. Let it fall "
        'after `end_step`; `ReduceLROnPlateau(monitor="target_val_loss", mode="min")` waits for it.'
    )


def of_excess(found: Sequence[Magnitudes], finals: Sequence[float], names: Sequence[str]) -> Any:
    """Warns of groups, called by names, in which the decay made more zeros than were asked for."""
    over = [
        f"{one.sparsity:.2%} in place of {final:.2%} of {name}"
        for one, final, name in zip(found, finals, names, strict=True)
        if one.zeros > round(final * one.size)
    ]
    return over and (
        "More weights became zero than `SparsityTarget` asked for, and zeros do not come back: "
        f"{'; '.join(over)}. {_LONGER}."
    )


def of_closing(found: Sequence[Magnitudes], finals: Sequence[float], names: Sequence[str]) -> Any:
    """Warns of groups, called by names, in which the decay left many zeros to be made."""
    under = [
        f"{final - one.sparsity:.2%} of {name}"
        for one, final, name in zip(found, finals, names, strict=True)
        if final * one.size - one.zeros > max(_LARGEST_CLOSING * one.size, 1)
    ]
    return under and (
        "The decay had not made enough zeros at `end_step`, and weights became zero by their "
        f"magnitude alone: {'; '.join(under)}. {_LONGER}, or look at the learning rate."
    )


def of_dead(text: str) -> str:
    """Adds to what is said of dead layers what to do; nothing to nothing."""
    return text and (
        f'{text} Take a lower final sparsity or `scope="layer"`, or give these layers one of their '
        "own with `overrides`."
    )


def of_early_end(step: int, end: int) -> str:
    """Says that a training ended before its target."""
    return (
        f"The training ended at step {step}, before `end_step={end}`: the sparsity is not the "
        "final one. Train on with the same callback, or make the rest zero with "
        "`keras_lp.prune`. The optimizer keeps the `weight_decay` that was set last."
    )


def of_lost_zeros(found: Sequence[Magnitudes], finals: Sequence[float]) -> str | None:
    """Warns of a model that has fewer zeros than its training had reached."""
    zeros, size = sum(one.zeros for one in found), sum(one.size for one in found)
    reached = sum(round(final * one.size) for one, final in zip(found, finals, strict=True))
    if zeros >= reached:
        return None
    return (
        f"The training reached {reached / size:.2%} zeros, and the weights that are in the model "
        f"now have {zeros / size:.2%}: another callback has put back those of an earlier epoch. "
        'Let it go by the log "target_val_loss", as in '
        '`EarlyStopping(monitor="target_val_loss", mode="min", restore_best_weights=True)`.'
    )


def of_adapters(layers: Sequence[str]) -> str | None:
    """Warns of layers with LoRA adapters, called by their paths."""
    if not layers:
        return None
    return (
        "Layers with LoRA adapters are not decayed, and `SparsityTarget` and its logs leave them "
        f"out: {list_names(layers, 3)}. `sparsity_report` counts what they compute with, which "
        "has hardly a zero. Reach the target before `enable_lora`, or with the model that "
        "`keras_lp.strip_pruning` makes."
    )


def of_unknown_past(steps: int) -> str:
    """Says that an optimizer has trained, and nothing is known of a target in its steps."""
    return (
        f"The optimizer has made {steps} steps, of which this `SparsityTarget` knows nothing: its "
        "way begins anew, from the zeros that are there. `BackupAndRestore` keeps what a target "
        "has to know; `load_model` and `OrbaxCheckpoint` do not. Where the target was reached "
        "before, `keras_lp.freeze_zeros(model)` takes its place; where it was not, say how long "
        "the rest of the way is with `begin_step=0, end_step=...`."
    )
