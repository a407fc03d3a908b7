"""Models of several kinds for the tests of the export, and inputs for them."""

import keras
import numpy as np
from keras import layers

import keras_lp


def cnn():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(48, 3, strides=2, activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3),
            layers.Conv2D(96, 1),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )


def mlp():
    return keras.Sequential([keras.Input((64,)), layers.Dense(128, "relu"), layers.Dense(10)])


def transformer():
    tokens = keras.Input((12,), dtype="int32")
    x = layers.Embedding(50, 32)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 16)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(32)(layers.Dense(64, "gelu")(x)))
    return keras.Model(tokens, layers.Dense(50)(x))


def two_inputs():
    image, features = keras.Input((8, 8, 2), name="image"), keras.Input((32,), name="features")
    parts = [layers.Flatten()(layers.Conv2D(16, 3)(image)), layers.Dense(64, "relu")(features)]
    joined = layers.Concatenate()(parts)
    outputs = {"kind": layers.Dense(4, name="kind")(joined), "size": layers.Dense(1)(joined)}
    return keras.Model({"image": image, "features": features}, outputs)


def detector(in_one):
    """Boxes up to 300 and scores up to 1."""
    x = keras.Input((6,))
    hidden = layers.Dense(16, "tanh")(x)
    boxes = layers.Rescaling(300.0)(layers.Dense(4, "sigmoid")(hidden))
    scores = layers.Dense(3, "sigmoid", kernel_initializer="he_normal")(hidden)
    parts = [boxes, scores]
    return keras.Model(x, layers.Concatenate()(parts) if in_one else parts)


def pruned(make):
    """A model with 90 % zeros in each layer."""
    model = make()
    keras_lp.prune(model, sparsity=0.9, scope="layer")
    return model


def examples(model, count=64):
    """Random inputs as the model takes them."""
    random = np.random.default_rng(1)

    def draw(tensor):
        shape = (count, *tensor.shape[1:])
        values = (
            random.integers(0, 50, shape) if "int" in tensor.dtype else random.normal(size=shape)
        )
        return values.astype(tensor.dtype)

    takes = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(draw, takes)


def interpreter(path):
    """The runner of a file in LiteRT's default interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(path)).get_signature_runner()


def outputs_in_litert(path, x):
    """What a file with one input and one output computes there."""
    runner = interpreter(path)
    (name,) = runner.get_input_details()
    (output,) = runner(**{name: x}).values()
    return output


def feed_of(model, inputs):
    """Inputs by their names in the file."""
    arrays = keras.tree.flatten(inputs)
    return {tensor.name: x for tensor, x in zip(model.inputs, arrays, strict=True)}
