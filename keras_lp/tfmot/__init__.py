"""TF-MOT for Keras 3 models."""

from keras_lp.tfmot.bridge import from_tf_keras, to_tf_keras

__all__ = ["from_tf_keras", "to_tf_keras"]
