"""Keras optimizers whose weight decay is the decoupled decay for any p-norm."""

from keras_lp.optimizers.lp_adamw import LpAdamW

__all__ = ["LpAdamW"]
