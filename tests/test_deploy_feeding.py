"""Representative datasets and other inputs, in all the forms that they come in."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_lp.deploy.feeding import as_the_model_takes_it, feed_of, parts_of, samples_of
from keras_lp.deploy.inference import outputs_of

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
    np.testing.assert_array_equal(first, X[:32])


@pytest.mark.backend("tensorflow")
def test_representative_dataset_may_be_of_tensorflow():
    import tensorflow as tf

    model = model_of_one()
    for dataset in (tf.constant(X), tf.data.Dataset.from_tensor_slices(X).batch(7)):
        samples, _ = samples_of(model, details_of(model), dataset)
        np.testing.assert_array_equal(np.concatenate([each["features"] for each in samples]), X)
    dataset = tf.data.Dataset.from_tensor_slices((X, X[:, 0]))
    with pytest.raises(ValueError, match=r"no labels"):
        samples_of(model, details_of(model), dataset.batch(7))
    with pytest.raises(ValueError, match=r"`dataset\.batch\(32\)`"):
        samples_of(model, details_of(model), dataset.map(lambda x, y: x))
    samples_of(model, details_of(model), dataset.map(lambda x, y: x).batch(32))


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
    samples, first = samples_of(model, details_of(model), TWO[kind]())
    np.testing.assert_array_equal(first, [X[:32], 2 * X[:32]])
    np.testing.assert_array_equal(np.concatenate([each["a"] for each in samples]), X)
    np.testing.assert_array_equal(np.concatenate([each["b"] for each in samples]), 2 * X)


def test_batches_of_a_list_are_cut_to_what_the_file_takes():
    model = model_of_one()
    samples, first = samples_of(model, details_of(model, 4), [X[:10], X[10:]])
    assert [len(each["features"]) for each in samples] == [4] * 9
    assert len(first) == 32


def test_examples_to_verify_with_are_of_the_size_that_most_have():
    model = keras.Sequential([keras.Input((None, 2)), layers.Dense(2)])
    (name,) = (tensor.name for tensor in model.inputs)
    details = {name: {"shape_signature": [-1, -1, 2], "dtype": np.float32}}
    texts = [np.full((1, 3 + (k % 3 > 0), 2), k, "float32") for k in range(15)]
    samples, examples = samples_of(model, details, texts)
    assert [len(each[name][0]) for each in samples] == [3, 4, 4] * 5
    np.testing.assert_array_equal(examples, np.concatenate([t for t in texts if t.shape[1] == 4]))


def test_dictionary_of_the_input_of_a_sequential_model_is_an_array_to_it(recwarn):
    model = model_of_one()
    _, examples = samples_of(model, details_of(model), [{"features": x[None]} for x in X])
    (part,) = parts_of(model, details_of(model), {"features": X})
    feed = feed_of(model, details_of(model), part)
    given = as_the_model_takes_it(model, feed, part)
    outputs = outputs_of(model, examples)
    np.testing.assert_allclose(outputs_of(model, given)[:32], outputs, atol=1e-5)
    assert not [one for one in recwarn if "structure of `inputs`" in str(one.message)]
    with pytest.raises(ValueError, match=r"by its name, features\. Received: arrays other"):
        feed_of(model, details_of(model), {"other": X})


@pytest.mark.parametrize(
    ("make", "dataset", "message"),
    [
        (model_of_one, iter(X), r"`dataset\.batch\(32\)` makes .*Received: shape \(6,\)"),
        (model_of_two, iter([{"a": X[0], "b": X[0]}]), r"`x\[None\]` a batch of one.*\(6,\)"),
        (model_of_two, iter([({"a": X, "b": X}, X[:, 0])]), r"no labels.*Received: 3 values"),
        (model_of_two, iter([((X, X), X[:, 0])]), r"no labels, which `dataset\.map"),
        (model_of_two, iter([(X,)]), r"must hold 2 arrays.*\(a, b\)\. Received: 1 values"),
    ],
)
def test_batch_that_does_not_fit_is_an_error_with_the_remedy(make, dataset, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        samples_of(model, details_of(model), dataset)


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
