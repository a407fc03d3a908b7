"""Keras callbacks: the decay outside the optimizer, a target sparsity, and logs."""

from keras_lp.callbacks.lp_decay_callback import LpDecayCallback
from keras_lp.callbacks.schedules import ConstantSparsity, PolynomialSparsity
from keras_lp.callbacks.sparsity_logger import SparsityLogger
from keras_lp.callbacks.sparsity_target import SparsityTarget

__all__ = [
    "ConstantSparsity",
    "LpDecayCallback",
    "PolynomialSparsity",
    "SparsityLogger",
    "SparsityTarget",
]
