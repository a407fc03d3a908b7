"""Networks whose weights the benchmarks step on, and the small ones that they train."""

import keras
from keras import layers, ops


def resnet18(shape=(32, 32, 3), classes=10):
    """ResNet-18 for images of 32 x 32, as the paper has it: 11.2 million weights."""
    image = keras.Input(shape, name="image")
    x = convolution(image, 64)
    for stage, filters in enumerate((64, 128, 256, 512)):
        for block in range(2):
            x = residual(x, filters, strides=2 if stage > 0 and block == 0 else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes)(x), name="resnet18")


def small_resnet(shape=(32, 32, 3), classes=10):
    """A residual network of ten convolutions, and 302,768 weights, that a CPU trains in seconds.

    Images are halved in each stage, and at once: most weights are where few pixels are left.
    """
    image = keras.Input(shape, name="image")
    x = convolution(image, 16, strides=2)
    for filters in (32, 64, 128):
        x = residual(x, filters, strides=2)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(classes)(x), name="small_resnet")


def convolution(x, filters, kernel=3, strides=1, activation="relu"):
    """A convolution with batch normalization, which has PyTorch's settings, as in the paper."""
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
    return layers.Activation(activation)(x)


def residual(x, filters, strides):
    """Two convolutions, and what goes around them."""
    y = convolution(convolution(x, filters, strides=strides), filters, activation="linear")
    if strides > 1 or x.shape[-1] != filters:
        x = convolution(x, filters, 1, strides, activation="linear")
    return layers.Activation("relu")(x + y)


def mobilenet_v2():
    """MobileNetV2 for ImageNet: 3.5 million weights in 158 variables, most of them small."""
    return keras.applications.MobileNetV2(weights=None)


def transformer(depth=8, width=1024, vocabulary=4096, length=32):
    """A causal transformer with 109 million weights, most of them in large kernels."""
    text = keras.Input((length,), dtype="int32", name="text")
    x = layers.Embedding(vocabulary, width, name="token_embedding")(text)
    position = ops.zeros_like(text) + ops.arange(length, dtype="int32")
    x += layers.Embedding(length, width, name="position_embedding")(position)
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        x += layers.MultiHeadAttention(16, width // 16)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization()(x)
        x += layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(y))
    logits = layers.Dense(vocabulary)(layers.LayerNormalization()(x))
    return keras.Model(text, logits, name="transformer")


def perceptron(width=64):
    """A perceptron of some thousand weights, for a quick look."""
    sizes = [keras.Input((width,)), layers.Dense(width, activation="relu"), layers.Dense(10)]
    return keras.Sequential(sizes, name="perceptron")
