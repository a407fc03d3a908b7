"""Lion with the decoupled decay for any p-norm."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_lp.optimizers.lp_update import LpUpdate, document


@keras.saving.register_keras_serializable(package="keras_lp")
@document
class LpLion(LpUpdate, keras.optimizers.Lion):
    """Lion with decoupled weight decay for any p-norm; zeros appear for p < 2.

    Formula: `w_new = (w - d) / (1 + learning_rate * weight_decay * |w|**(p - 2))`, where
    `d` is the step of Lion, `learning_rate` times a sign. As for every decay of Lion, the
    learning rate is usually 3 to 10 times smaller than for Adam and `weight_decay` larger by
    as much. No array is kept beyond Lion's own.

    Args:
        {{learning_rate}}
            Defaults to `0.001`.
        {{lp_arguments}}
        beta_1: Float. The rate to combine the current gradient and the 1st moment
            estimate. Defaults to `0.9`.
        beta_2: Float. The exponential decay rate for the 1st moment estimate. Defaults
            to `0.99`.
        **kwargs: {{common_arguments}}

    Raises:
        {{raises}}

    Example:
    >>> optimizer = keras_lp.LpLion(2e-4, weight_decay=0.5, p=0.8)
    >>> model.compile(optimizer=optimizer, loss="mse")

    Reference:

    - [Outmezguine and Levi, 2024](https://arxiv.org/abs/2404.10824)
    - [Chen et al., 2023](https://arxiv.org/abs/2302.06675)
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
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            p=p,
            reference=reference,
            initial_zeros=initial_zeros,
            include=include,
            exclude=exclude,
            overrides=overrides,
            beta_1=beta_1,
            beta_2=beta_2,
            **kwargs,
        )
