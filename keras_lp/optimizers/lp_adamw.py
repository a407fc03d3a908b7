"""AdamW with the decoupled decay for any p-norm."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_lp.optimizers.lp_update import LP_ARGUMENTS, LpUpdate


@keras.saving.register_keras_serializable(package="keras_lp")
class LpAdamW(LpUpdate, keras.optimizers.Adam):
    """Adam with decoupled weight decay for any p-norm; zeros appear for p < 2.

    Formula: `w_new = (w - d) / (1 + learning_rate * weight_decay * |w|**(p - 2))`, where
    `d` is the step of Adam. For `p=2` this is AdamW to first order in
    `learning_rate * weight_decay`. For `p < 1`, weights whose magnitude is under about
    `(weight_decay / r)**(1 / (1 - p))` fall to exactly zero, where `r` in [0, 1] is the
    signal-to-noise ratio of the weight's gradient; larger ones are hardly shrunk. No array
    is kept beyond Adam's own. Half-precision variables get a factor computed in float32.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`
            instance, or a callable that takes no arguments and returns the value to use.
            Defaults to `0.001`.
        {{lp_arguments}}
        beta_1: Float. The exponential decay rate for the 1st moment estimates. Defaults
            to `0.9`.
        beta_2: Float. The exponential decay rate for the 2nd moment estimates. Defaults
            to `0.999`.
        epsilon: Float. A small constant for numerical stability. Defaults to `1e-7`.
        amsgrad: Boolean. Whether to apply the AMSGrad variant. Defaults to `False`.
        clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps,
            name: As in `keras.optimizers.AdamW`. The moving average is taken of decayed weights
            and keeps their zeros.

    Raises:
        ValueError: If `p` or `weight_decay` is negative or not finite, `reference` is
            unknown, or an `exclude` pattern is no regular expression; on the first
            training step, if a pattern matches no variable or no variable is decayed.

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
        exclude: str | Iterable[str] | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            p=p,
            reference=reference,
            exclude=exclude,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            amsgrad=amsgrad,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )


if LpAdamW.__doc__ is not None:  # It is None under `python -OO`.
    LpAdamW.__doc__ = LpAdamW.__doc__.replace("{{lp_arguments}}", LP_ARGUMENTS)
