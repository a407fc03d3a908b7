"""SGD with the decoupled decay for any p-norm."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_lp.optimizers.lp_update import LpUpdate, document


@keras.saving.register_keras_serializable(package="keras_lp")
@document
class LpSGD(LpUpdate, keras.optimizers.SGD):
    """Gradient descent with decoupled weight decay for any p-norm; zeros appear for p < 2.

    Formula: `w_new = (w - d) / (1 + learning_rate * weight_decay * |w|**(p - 2))`, where
    `d` is the step of SGD: `learning_rate * g` for a gradient `g`, with momentum its moving
    sum. A weight survives where `|g| > weight_decay * |w|**(p - 1)`, so that the strength is
    on the scale of the gradients, unlike in Adam and Lion. No array is kept beyond SGD's own.

    Args:
        {{learning_rate}}
            Defaults to `0.01`.
        {{lp_arguments}}
        momentum: Float in [0, 1]. Accelerates descent in the relevant direction. Defaults
            to `0.0`.
        nesterov: Boolean. Whether to apply Nesterov momentum. Defaults to `False`.
        **kwargs: {{common_arguments}}

    Raises:
        {{raises}}

    Example:
    >>> optimizer = keras_lp.LpSGD(0.1, weight_decay=1e-4, p=1, momentum=0.9)
    >>> model.compile(optimizer=optimizer, loss="mse")

    Reference:

    - [Outmezguine and Levi, 2024](https://arxiv.org/abs/2404.10824)
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        *,
        weight_decay: Any = 0.004,
        p: Any = 0.8,
        reference: str = "previous",
        initial_zeros: str | None = None,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
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
            momentum=momentum,
            nesterov=nesterov,
            **kwargs,
        )
