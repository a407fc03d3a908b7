"""Counting, making and keeping the zeros of a model."""

from keras_lp.sparsity.freezing import freeze_zeros, unfreeze_zeros
from keras_lp.sparsity.pruning import prune
from keras_lp.sparsity.report import LayerSparsity, SparsityReport, sparsity_report

__all__ = [
    "LayerSparsity",
    "SparsityReport",
    "freeze_zeros",
    "prune",
    "sparsity_report",
    "unfreeze_zeros",
]
