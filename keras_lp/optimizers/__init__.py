"""Keras optimizers whose weight decay is the decoupled decay for any p-norm."""

from keras_lp.optimizers.lp_adamw import LpAdamW
from keras_lp.optimizers.lp_decay import LpDecay
from keras_lp.optimizers.lp_lion import LpLion
from keras_lp.optimizers.lp_muon import LpMuon
from keras_lp.optimizers.lp_sgd import LpSGD

__all__ = ["LpAdamW", "LpDecay", "LpLion", "LpMuon", "LpSGD"]
