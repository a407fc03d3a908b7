"""Representative datasets and other inputs, in all the forms that they come in."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_lp.deploy.feeding import feed_of, parts_of, samples_of

X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")


def model_of_one():
    return keras.Sequential([keras.Input((6,), name="features"), layers.Dense(2)])


def model_of_two():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    return keras.Model([a, b], layers.Dense(2)(layers.Concatenate()([a, b])))


def details_of(model, batch_size=-1):
    """What LiteRT would say of the inputs of a file."""
    return {
        tensor.name: {"shape_signature": [batch_size, 6], "dtype": np.float32}
        for tensor in model.inputs
    }


ONE = {
    "array": lambda: X,
    "list of one array": lambda: [X],
    "list of rows": lambda: list(X),
    "nested lists of numbers": lambda: X.tolist(),
    "dictionary": lambda: {"features": X},
    "list of batches": lambda: [X[i : i + 1] for i in range(40)],
    "list of batches of several sizes": lambda: [X[:7], X[7:]],
    "tuple of batches": lambda: (X[:20], X[20:]),
    "list of lists": lambda: [[X[:20]], [X[20:]]],
    "list of dictionaries": lambda: [{"features": X[i : i + 5]} for i in range(0, 40, 5)],
    "function": lambda: lambda: ([X[i : i + 1]] for i in range(40)),
    "function that returns a list": lambda: lambda: [X[:20], X[20:]],
    "generator": lambda: (X[i : i + 5] for i in range(0, 40, 5)),
}


@pytest.mark.parametrize("kind", ONE)
def test_representative_dataset_may_have_any_usual_form(kind):
    model = model_of_one()
    samples, first = samples_of(model, details_of(model), ONE[kind]())
    np.testing.assert_array_equal(np.concatenate([each["features"] for each in samples]), X)
    assert {len(each["features"]) for each in samples} == {1}
    first = first["features"] if isinstance(first, dict) else first
    np.testing.assert_array_equal(first, X[: len(first)])


@pytest.mark.backend("tensorflow")
def test_representative_dataset_may_be_of_tensorflow():
    import tensorflow as tf

    model = model_of_one()
    for dataset in (tf.constant(X), tf.data.Dataset.from_tensor_slices(X).batch(7)):
        samples, _ = samples_of(model, details_of(model), dataset)
        np.testing.assert_array_equal(np.concatenate([each["features"] for each in samples]), X)


TWO = {
    "list": lambda: [X, 2 * X],
    "tuple": lambda: (X, 2 * X),
    "dictionary": lambda: {"a": X, "b": 2 * X},
    "list of lists": lambda: [[X[:20], 2 * X[:20]], [X[20:], 2 * X[20:]]],
    "list of tuples": lambda: [(x[None], 2 * x[None]) for x in X],
    "list of dictionaries": lambda: [{"b": 2 * x[None], "a": x[None]} for x in X],
    "generator": lambda: ([x[None], 2 * x[None]] for x in X),
}


@pytest.mark.parametrize("kind", TWO)
def test_representative_dataset_of_two_inputs_may_have_any_usual_form(kind):
    model = model_of_two()
    samples, _ = samples_of(model, details_of(model), TWO[kind]())
    np.testing.assert_array_equal(np.concatenate([each["a"] for each in samples]), X)
    np.testing.assert_array_equal(np.concatenate([each["b"] for each in samples]), 2 * X)


def test_batches_of_a_list_are_cut_to_what_the_file_takes():
    model = model_of_one()
    samples, first = samples_of(model, details_of(model, 4), [X[:10], X[10:]])
    assert [len(each["features"]) for each in samples] == [4] * 9
    assert len(first) == 8


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([X, np.ones(40)], r"one array.*no labels.*`dataset\.map.*list of 2 arrays"),
        ((X, np.ones((40, 3))), r"one array.*no labels.*tuple of 2 arrays"),
        ([X, None], r"one array.*no labels"),
        ([], r"must hold a non-empty array"),
    ],
)
def test_list_that_is_neither_a_batch_nor_of_batches_is_an_error(dataset, message):
    model = model_of_one()
    with pytest.raises(ValueError, match=message):
        samples_of(model, details_of(model), dataset)


@pytest.mark.parametrize("make", [model_of_one, model_of_two])
def test_inputs_are_cut_to_what_the_file_takes(make):
    model = make()
    inputs = X if make is model_of_one else [X, 2 * X]
    parts = parts_of(model, details_of(model, 6), inputs)
    assert len(parts) == 6
    joined = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
    keras.tree.map_structure(np.testing.assert_array_equal, joined, parts_of_36(inputs))
    assert parts_of(model, details_of(model), inputs) == [inputs]
    assert parts_of(model, details_of(model, 41), inputs) == [inputs]
    assert parts_of(model, details_of(model, 2), None) == [None]


def parts_of_36(inputs):
    return keras.tree.map_structure(lambda array: array[:36], inputs)


def test_inputs_to_verify_with_are_one_batch():
    model = model_of_one()
    with pytest.raises(ValueError, match="must hold one array"):
        feed_of(model, details_of(model), [X, X])
