"""Sparse Keras 3 models by decoupled weight decay for any p-norm."""

# isort: off
from keras_lp.quiet import quiet_on_the_command_line

with quiet_on_the_command_line():
    import keras as _keras  # noqa: F401 (it imports the backend, which prints)
# isort: on

from keras_lp import plotting, tfmot
from keras_lp.callbacks import (
    ConstantSparsity,
    LpDecayCallback,
    PolynomialSparsity,
    SparsityLogger,
    SparsityTarget,
)
from keras_lp.decay import decay_factor, penalty
from keras_lp.deploy import (
    EncodedTflite,
    ExportResult,
    TfliteComparison,
    TfliteFile,
    compare_tflite,
    encode_tflite,
    export_tflite,
    strip_pruning,
)
from keras_lp.optimizers import LpAdamW, LpDecay, LpLion, LpMuon, LpSGD
from keras_lp.sparsity import (
    LayerSparsity,
    SparsityReport,
    freeze_zeros,
    prune,
    sparsity_report,
    unfreeze_zeros,
)

__version__ = "0.1.0"

__all__ = [
    "ConstantSparsity",
    "EncodedTflite",
    "ExportResult",
    "LayerSparsity",
    "LpAdamW",
    "LpDecay",
    "LpDecayCallback",
    "LpLion",
    "LpMuon",
    "LpSGD",
    "PolynomialSparsity",
    "SparsityLogger",
    "SparsityReport",
    "SparsityTarget",
    "TfliteComparison",
    "TfliteFile",
    "compare_tflite",
    "decay_factor",
    "encode_tflite",
    "export_tflite",
    "freeze_zeros",
    "penalty",
    "plotting",
    "prune",
    "sparsity_report",
    "strip_pruning",
    "tfmot",
    "unfreeze_zeros",
]
