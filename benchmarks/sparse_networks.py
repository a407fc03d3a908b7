"""Small networks around the pattern that turns XNNPACK to its sparse convolutions.

Each with what `keras_lp.deploy.sparse_convolutions` has to say of its file: that XNNPACK
computes it dense everywhere, that its sparse convolutions are right, or the operation that makes
them wrong.
"""

import keras
import numpy as np
from keras import layers, ops

NONE, CLEAN = "none", "clean"


def start(x, units=16):
    """The convolution that XNNPACK begins with."""
    return layers.Conv2D(units, 3, strides=2, activation="relu")(layers.ZeroPadding2D(1)(x))


def point(x, units=64):
    """A convolution of 1x1, which it computes sparse."""
    return layers.Conv2D(units, 1)(x)


def end(x):
    """The mean over the space, behind which it is done, and a classifier."""
    return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))


def squeeze_and_excite(x):
    """As in MobileNetV3 and EfficientNet, with convolutions of 1x1."""
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return x * layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(point(squeezed, 4))


def gate(x):
    """Each channel times how large it is in the mean."""
    return x * ops.sigmoid(layers.GlobalAveragePooling2D(keepdims=True)(x))


def auxiliary(x):
    """A network that gives out a hidden layer too."""
    hidden = point(start(x))
    return [end(point(hidden)), hidden]


def strided_depthwise(x, size, padding):
    """A network with a depthwise convolution of stride 2 and explicit padding."""
    x = layers.ZeroPadding2D(padding)(point(start(x)))
    return end(point(layers.DepthwiseConv2D(size, strides=2)(x)))


def between(layer):
    """A network that begins and ends as it should, with something between."""
    return lambda x: end(point(layer(point(start(x)))))


NETWORKS = {
    "a MobileNet": (between(layers.DepthwiseConv2D(3, padding="same")), CLEAN),
    "max pooling": (between(layers.MaxPooling2D()), "MAX_POOL_2D"),
    "the usual padding": (
        lambda x: end(point(layers.Conv2D(8, 3, strides=2, padding="same")(x))),
        NONE,
    ),
    "strided depthwise 3x3": (lambda x: strided_depthwise(x, 3, 1), CLEAN),
    "strided depthwise 5x5": (lambda x: strided_depthwise(x, 5, 2), CLEAN),
    "an addition": (between(lambda x: x + point(x)), CLEAN),
    "a product": (between(lambda x: point(x) * point(x)), CLEAN),
    "activations": (between(lambda x: ops.hard_silu(ops.gelu(ops.silu(ops.tanh(x))))), CLEAN),
    "bilinear resizing": (between(layers.UpSampling2D(interpolation="bilinear")), CLEAN),
    "squeeze and excite": (between(squeeze_and_excite), CLEAN),
    "a sum over the space": (lambda x: ops.sum(point(start(x)), (1, 2)), CLEAN),
    "two ends": (lambda x: [end(start(x)), end(point(start(x)))], CLEAN),
    "a branch of its own": (
        lambda x: [end(point(start(x))), end(layers.MaxPooling2D()(point(x)))],
        CLEAN,
    ),
    "average pooling": (between(layers.AveragePooling2D(2)), "AVERAGE_POOL_2D"),
    "a convolution of 3x3": (between(layers.Conv2D(8, 3)), "CONV_2D"),
    "a strided convolution of 1x1": (between(layers.Conv2D(8, 1, strides=2)), "CONV_2D"),
    "a padded convolution of 1x1": (
        between(lambda x: point(layers.ZeroPadding2D(1)(x))),
        "PAD",
    ),
    "groups": (between(layers.Conv2D(8, 1, groups=4)), "CONV_2D"),
    "concatenation": (between(lambda x: layers.Concatenate()([x, point(x)])), "CONCATENATION"),
    "softmax": (between(layers.Softmax()), "SOFTMAX"),
    "a large depthwise": (between(layers.DepthwiseConv2D(7, padding="same")), "DEPTHWISE_CONV_2D"),
    "a dilated depthwise": (
        between(layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)),
        "SPACE_TO_BATCH_ND",
    ),
    "a multiplying depthwise": (
        between(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)),
        "DEPTHWISE_CONV_2D",
    ),
    "strided depthwise as usual": (
        between(layers.DepthwiseConv2D(3, strides=2, padding="same")),
        "DEPTHWISE_CONV_2D",
    ),
    "strided depthwise, padded unequally": (
        lambda x: strided_depthwise(x, 3, ((2, 0), (2, 0))),
        "DEPTHWISE_CONV_2D",
    ),
    "normalization": (
        between(lambda x: layers.BatchNormalization()(layers.ReLU()(x))),
        "MUL",
    ),
    "a gate": (between(gate), "MEAN"),
    "a constant": (
        between(lambda x: ops.tanh(ops.tanh(x) + np.full((1, 1, 1, 1), 0.5, "float32"))),
        "ADD",
    ),
    "another branch": (
        between(lambda x: x + layers.Conv2D(64, 3, padding="same")(x)),
        "CONV_2D",
    ),
    "an output beside": (auxiliary, "output of the file"),
    "a mean over channels": (between(lambda x: x + ops.mean(x, -1, keepdims=True)), "MEAN"),
    "the space that is kept": (
        lambda x: [end(point(start(x))), layers.Flatten()(point(start(x)))],
        "SHAPE",
    ),
    "a mean that keeps the axes": (
        lambda x: layers.GlobalAveragePooling2D(keepdims=True)(point(start(x))),
        "MEAN",
    ),
    "no end": (lambda x: layers.GlobalMaxPooling2D()(point(start(x))), NONE),
    "stride 1": (lambda x: end(point(layers.Conv2D(8, 3)(layers.ZeroPadding2D(1)(x)))), NONE),
    "5x5": (
        lambda x: end(point(layers.Conv2D(8, 5, strides=2)(layers.ZeroPadding2D(1)(x)))),
        NONE,
    ),
    "padding by 2": (
        lambda x: end(point(layers.Conv2D(8, 3, strides=2)(layers.ZeroPadding2D(2)(x)))),
        NONE,
    ),
}


def model_of(network, sparsity=0.9, channels=3):
    """The network with random weights, of which this share is zero in each layer."""
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 16, channels))
    model = keras.Model(x, network(x))
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            array = random.normal(size=variable.shape)
            variable.assign(np.where(random.random(array.shape) < sparsity, 0, array))
    return model
