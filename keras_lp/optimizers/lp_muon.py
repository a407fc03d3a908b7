"""Muon with the decoupled decay for any p-norm."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_lp.optimizers.lp_update import LpUpdate, document


@keras.saving.register_keras_serializable(package="keras_lp")
@document
class LpMuon(LpUpdate, keras.optimizers.Muon):
    """Muon with decoupled weight decay for any p-norm; zeros appear for p < 2.

    Formula: `w_new = (w - d) / (1 + learning_rate * weight_decay * |w|**(p - 2))`, where
    `d` is the step of Muon for matrices and of Adam for all other variables, embeddings and
    what `exclude_layers` matches. One decay holds for both; `overrides` tell them apart. No
    array is kept beyond Muon's own.

    Args:
        {{learning_rate}}
            Defaults to `0.001`.
        {{lp_arguments}}
        exclude_layers: List of regular expressions. Variables in whose path one is found
            take Adam's step. This does not exclude them from the decay. Defaults to `None`.
        exclude_embeddings: Boolean. Whether embeddings take Adam's step. Defaults to
            `True`.
        momentum: Float. Momentum of the Muon step. Defaults to `0.95`.
        nesterov: Boolean. Whether to use Nesterov momentum. Defaults to `True`.
        **kwargs: The other arguments of `keras.optimizers.Muon`, `adam_weight_decay` left
            out; among them {{common_arguments}}

    Raises:
        {{raises}}

    Example:
    >>> optimizer = keras_lp.LpMuon(1e-3, weight_decay=0.1, exclude_layers=["logits"])
    >>> model.compile(optimizer=optimizer, loss="mse")

    Reference:

    - [Outmezguine and Levi, 2024](https://arxiv.org/abs/2404.10824)
    - [Liu et al., 2025](https://arxiv.org/abs/2502.16982)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        *,
        weight_decay: Any = 0.004,
        p: Any = 0.8,
        reference: str = "previous",
        initial_zeros: str | None = None,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        exclude_layers: list[str] | None = None,
        exclude_embeddings: bool = True,
        momentum: float = 0.95,
        nesterov: bool = True,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("adam_weight_decay"):
            raise ValueError(
                "Argument `adam_weight_decay` is the second L2 decay of `keras.optimizers.Muon`. "
                "Here one decay holds for all variables; pass `overrides={pattern: "
                "{'weight_decay': ..., 'p': 2}}` for those that Adam updates. "
                f"Received: adam_weight_decay={kwargs['adam_weight_decay']!r}"
            )
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            p=p,
            reference=reference,
            initial_zeros=initial_zeros,
            include=include,
            exclude=exclude,
            overrides=overrides,
            exclude_layers=exclude_layers,
            exclude_embeddings=exclude_embeddings,
            momentum=momentum,
            nesterov=nesterov,
            **{**kwargs, "adam_weight_decay": None},
        )
