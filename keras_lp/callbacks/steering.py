"""What a `SparsityTarget` steers: the Lp optimizers of a model, with strengths that can be set."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_lp.callbacks.training import has_variables, innermost, lp_optimizers
from keras_lp.optimizers.decay_only import DecayOnly, learning_rate_at, step_count
from keras_lp.optimizers.lp_update import LpUpdate
from keras_lp.selection import optimizers_of

_SAMPLES = 16  # of a learning-rate schedule, for its mean


def as_optimizers(optimizer: Any) -> tuple[Any, ...]:
    """The argument `optimizer` of a callback; raises TypeError unless it holds optimizers."""
    given = optimizer if isinstance(optimizer, (list, tuple)) else (optimizer,)
    given = () if optimizer is None else tuple(given)
    if not all(isinstance(one, keras.optimizers.Optimizer) for one in given):
        raise TypeError(
            "Argument `optimizer` must be a Keras optimizer or a list of them, those that train "
            f"the model. Received: optimizer={optimizer!r}"
        )
    return given


def find_decays(optimizers: Sequence[Any], model: keras.Model) -> list[LpUpdate]:
    """What decays by an Lp rule among optimizers, and what follows one of them.

    Raises:
        ValueError: If there is none, or a strength cannot be steered.
    """
    leaders = {id(innermost(one)) for one in optimizers}
    others = lp_optimizers(optimizers_of(model))
    following = [
        one for one in others if isinstance(one, DecayOnly) and id(one.leader()) in leaders
    ]
    decays = list({id(one): one for one in (*lp_optimizers(optimizers), *following)}.values())
    if not decays:
        raise nothing_to_steer(optimizers)
    for decay in decays:
        _check_steerable(decay)
    return decays


def built_decays(
    decays: Iterable[LpUpdate], model: keras.Model, has_more_to_come: bool
) -> list[LpUpdate]:
    """Those of the decays that know their variables by now, and have some.

    The optimizer that the model is compiled with is built for it, once the model has variables.

    Args:
        decays: What `find_decays` found.
        model: The model.
        has_more_to_come: Whether the first batch may build some, for which all others wait.

    Raises:
        ValueError: If all are built and none has variables, or a p makes no zeros.
    """
    optimizer: Any = getattr(model, "optimizer", None)
    is_ours = {id(one) for one in lp_optimizers([optimizer])} & set(map(id, decays))
    if is_ours and not optimizer.built and model.built and has_variables(model):
        optimizer.build(model.trainable_variables)
    if has_more_to_come and not all(decay.built for decay in decays):
        return []
    found = [decay for decay in decays if decay.decayed_variables]
    if not found and all(decay.built for decay in decays):
        raise ValueError(
            "The optimizer decays none of the model's variables: it was saved for others, or is "
            f"for none of them. Compile the model with a new one. {_received(*decays)}"
        )
    for decay in found:
        if any(p > 1 for p in decay.steered_exponents()) and not ops.is_tensor(decay.p):
            raise ValueError(
                "`SparsityTarget` needs p <= 1, such as p=0.8: with a larger p the pull on a "
                "weight vanishes as it comes near zero, and few weights get there. "
                f"{_received(decay)}, p={decay.p!r}"
            )
    return found


def leader_of(decay: LpUpdate) -> Any:
    """The optimizer whose steps a decay is made in or follows."""
    return decay.leader() if isinstance(decay, DecayOnly) else decay


def rate_until(decay: LpUpdate, steps: int) -> float:
    """The learning rate of now, or that in so many steps if a schedule gives a larger one.

    A rate that is warming up would make a strength that suits its beginning far too strong.
    """
    leader = leader_of(decay)
    now = ops.convert_to_tensor(step_count(leader))
    is_constant = isinstance(leader.learning_rate, keras.Variable)
    counts = (now,) if is_constant else (now, now + steps)
    return max(_rate_at(leader, count) for count in counts)


def steps_and_rate(decay: LpUpdate, batches: int) -> tuple[int, float]:
    """The steps that an optimizer makes in the next batches, and its mean learning rate in them."""
    leader = leader_of(decay)
    steps = batches // (getattr(leader, "gradient_accumulation_steps", None) or 1)
    now = ops.convert_to_tensor(step_count(leader))
    is_constant = isinstance(leader.learning_rate, keras.Variable)
    ahead = [0] if is_constant else np.linspace(0, batches, _SAMPLES).astype(int).tolist()
    return steps, float(np.mean([_rate_at(leader, now + count) for count in ahead]))


def nothing_to_steer(optimizers: Sequence[Any]) -> ValueError:
    """The error where there is no decay to steer."""
    return ValueError(
        "`SparsityTarget` steers the decay of an Lp optimizer, and there is none. Compile the "
        "model with `keras_lp.LpAdamW` or its like, or put a `keras_lp.LpDecayCallback` before "
        "this callback; an optimizer that the model does not know is passed as `optimizer=`. "
        f"{_received(*optimizers)}"
    )


def _check_steerable(decay: LpUpdate) -> None:
    """Raises ValueError unless the strengths of an Lp optimizer can be steered."""
    received = _received(decay)
    strengths = decay.weight_decay
    strengths = strengths if isinstance(strengths, tuple) else (strengths,)
    if not all(isinstance(one, keras.Variable) for one in strengths):
        raise ValueError(
            "`SparsityTarget` sets the strength, so that it cannot follow a schedule as well. "
            f"Pass a number as `weight_decay`. {received}"
        )
    if decay.reference != "previous":
        raise ValueError(
            "`SparsityTarget` needs weights that stay zero once they are. Create the optimizer "
            f'with `reference="previous"`. {received}, reference={decay.reference!r}'
        )
    if any("weight_decay" in override for override in decay.overrides.values()):
        raise ValueError(
            "`SparsityTarget` sets the strengths, those of `overrides` too. Leave out "
            "`weight_decay` there; other targets for some variables are "
            f"`SparsityTarget(overrides={{'embedding': 0.5}})`. {received}"
        )
    given = [decay.p, *(one["p"] for one in decay.overrides.values() if "p" in one)]
    for p in given:
        if isinstance(p, tuple) and sum(float(one) <= 1 for one in p) > 1:
            raise ValueError(
                "`SparsityTarget` steers one norm; another one with p <= 1 would make zeros "
                "of its own. Keep one such norm, beside others such as p=2. "
                f"{received}, p={p!r}"
            )


def _received(*optimizers: Any) -> str:
    return f"Received: optimizer={', '.join(map(repr, optimizers)) or None}"


def _rate_at(leader: Any, count: Any) -> float:
    return float(ops.convert_to_numpy(learning_rate_at(leader, count)))
