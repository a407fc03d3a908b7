"""Keeping the zero pattern through further training.

Zeros stay zero by a Keras constraint, which Keras's optimizers apply after each update, and by a
hook in those of torch. The pattern is read from the weights, so that it can be frozen again
after loading a model. A constraint that a variable has is applied first, and comes back with
`unfreeze_zeros`.
"""

from collections.abc import Iterable
from typing import Any

import keras

from keras_lp.selection import Named, optimizers_within
from keras_lp.sparsity import torch_steps
from keras_lp.sparsity.report import check_model, decayed_variables
from keras_lp.sparsity.zero_pattern import ZeroPattern


def freeze_zeros(
    model: keras.Model,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> None:
    """Keeps every zero of the decayed variables zero in further training.

    Where the weights are pruned, this is what lets the others be fine-tuned. Constraints are
    not saved with a model: after loading one call this again. Calling it again freezes the
    zeros of that moment. Pass the model that you train: a training step that is compiled
    already takes no notice of what changes in a model within it.

    It holds under every optimizer of Keras, in `fit` and in loops of one's own, but for one
    with `use_ema=True` that the model is compiled with later and that is none of keras_lp's;
    and, with the torch backend, under every optimizer of `torch.optim`. What else changes
    weights does not know of it: with optax, for instance, apply the constraints after each
    step:

    >>> variables = model.trainable_variables
    >>> params = optax.apply_updates(params, updates)
    >>> params = [v.constraint(w) if v.constraint else w for v, w in zip(variables, params)]

    Where frozen zeros are gone, the next `keras_lp.sparsity_report` warns. Kernels under LoRA
    and quantized ones do not train, and keep their zeros by themselves; adapters train.

    Args:
        model: A built Keras 3 model of any kind.
        include: Regular expression, or a list of them, of variables to take although the
            default rule leaves them out, as in `keras_lp.sparsity_report`.
        exclude: Regular expression, or a list of them, of variables to leave alone, as in
            `keras_lp.sparsity_report`.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If the report refuses the model or `exclude`, or the model's optimizer puts
            an average of the weights into the model (`use_ema`) and is none of keras_lp's.

    Example:
    >>> keras_lp.prune(model, sparsity=0.9)
    >>> keras_lp.freeze_zeros(model)
    >>> model.fit(x, y, epochs=5)  # 90 % of the weights stay zero.
    """
    decayed = decayed_variables(model, Named.of(include, exclude))
    check_averages(getattr(model, "optimizer", None))
    freeze(decayed, model)


def unfreeze_zeros(model: keras.Model) -> None:
    """Lets zeros train again; a variable's own constraint comes back.

    Args:
        model: A Keras 3 model, frozen or not.

    Raises:
        TypeError: If `model` is no Keras 3 model.
        ValueError: If it is not built.
    """
    check_model(model)
    unfreeze(model.variables, model)


def freeze(variables: Iterable[Any], model: keras.Model) -> None:
    """Keeps the zeros that some variables of a model have."""
    for variable in variables:
        variable.constraint = ZeroPattern(variable, _own_constraint(variable))
        if keras.backend.backend() == "torch":
            torch_steps.keep_zeros(variable.value, variable.constraint)
    _compile_anew(model)


def unfreeze(variables: Iterable[Any], model: keras.Model) -> None:
    """Lets the zeros of some variables of a model train again."""
    for variable in variables:
        variable.constraint = _own_constraint(variable)
        if keras.backend.backend() == "torch":
            torch_steps.let_go(variable.value)
    _compile_anew(model)


def check_averages(optimizer: Any) -> None:
    """Raises ValueError if zeros would be lost in averages that Keras takes before constraints."""
    for each in optimizers_within(optimizer):
        if getattr(each, "use_ema", False) and not hasattr(each, "zero_averages"):
            raise ValueError(
                "Zeros cannot be frozen under an optimizer with `use_ema=True`: Keras averages the "
                "weights before it applies constraints, and puts the averages into the model. Use "
                "`keras_lp.LpDecay(optimizer, weight_decay=0)`, whose averages keep zeros, or "
                f"prune after the training. Received: optimizer={each!r}"
            )


def _own_constraint(variable: Any) -> Any:
    """The constraint of a variable without what `freeze_zeros` has put around it."""
    constraint = variable.constraint
    return constraint.constraint if isinstance(constraint, ZeroPattern) else constraint


def _compile_anew(model: keras.Model) -> None:
    """Makes a compiled training step take notice of changed constraints."""
    if model.compiled and getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
