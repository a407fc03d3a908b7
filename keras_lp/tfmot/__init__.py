"""TF-MOT for Keras 3 models: the bridge to tf_keras and back, and pruning from Lp zeros on."""

from keras_lp.tfmot.bridge import from_tf_keras, to_tf_keras
from keras_lp.tfmot.pruning import prune_low_magnitude
from keras_lp.tfmot.scope import custom_object_scope

__all__ = ["custom_object_scope", "from_tf_keras", "prune_low_magnitude", "to_tf_keras"]
