"""AdamW with the decoupled decay for any p-norm."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_lp.optimizers.lp_update import LpUpdate, document


@keras.saving.register_keras_serializable(package="keras_lp")
@document
class LpAdamW(LpUpdate, keras.optimizers.Adam):
    """Adam with decoupled weight decay for any p-norm; zeros appear for p < 2.

    Formula: `w_new = (w - d) / (1 + learning_rate * weight_decay * |w|**(p - 2))`, where
    `d` is the step of Adam. For `p=2` this is AdamW to first order in
    `learning_rate * weight_decay`. For `p < 1`, weights whose magnitude is under about
    `(weight_decay / r)**(1 / (1 - p))` fall to exactly zero, where `r` in [0, 1] is the
    signal-to-noise ratio of the weight's gradient; larger ones are hardly shrunk. No array
    is kept beyond Adam's own. The decay of half-precision variables is computed in float32.

    Args:
        {{learning_rate}}
            Defaults to `0.001`.
        {{lp_arguments}}
        beta_1: Float. The exponential decay rate for the 1st moment estimates. Defaults
            to `0.9`.
        beta_2: Float. The exponential decay rate for the 2nd moment estimates. Defaults
            to `0.999`.
        epsilon: Float. A small constant for numerical stability. Defaults to `1e-7`.
        amsgrad: Boolean. Whether to apply the AMSGrad variant. Defaults to `False`.
        **kwargs: {{common_arguments}}

    Raises:
        {{raises}}

    Example:
    >>> optimizer = keras_lp.LpAdamW(learning_rate=1e-3, weight_decay=0.1, p=0.8)
    >>> model.compile(optimizer=optimizer, loss="mse")
    >>> model.fit(x, y, epochs=60)
    >>> print(keras_lp.sparsity_report(model))

    Reference:

    - [Outmezguine and Levi, 2024](https://arxiv.org/abs/2404.10824)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: Any = 0.004,
        *,
        p: Any = 0.8,
        reference: str = "previous",
        initial_zeros: str | None = None,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
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
            epsilon=epsilon,
            amsgrad=amsgrad,
            **kwargs,
        )
