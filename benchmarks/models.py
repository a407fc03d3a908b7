"""Models of the benchmarks that are there for their size, not for what they learn."""

import keras
from keras import layers


def resnet18(shape=(32, 32, 3), classes=10):
    """ResNet-18 for images of 32 x 32, as the paper has it: 11.2 million weights."""
    image = keras.Input(shape, name="image")
    x = convolution(image, 64)
    for stage, filters in enumerate((64, 128, 256, 512)):
        for block in range(2):
            x = residual(x, filters, strides=2 if stage > 0 and block == 0 else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes)(x), name="resnet18")


def convolution(x, filters, kernel=3, strides=1, activation="relu"):
    """A convolution with batch normalization."""
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(activation)(x)


def residual(x, filters, strides):
    """Two convolutions, and what goes around them."""
    y = convolution(convolution(x, filters, strides=strides), filters, activation="linear")
    if strides > 1 or x.shape[-1] != filters:
        x = convolution(x, filters, 1, strides, activation="linear")
    return layers.Activation("relu")(x + y)
