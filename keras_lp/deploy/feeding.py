"""Inputs of a model as arrays by their names in a `.tflite` file.

Given ones are checked against what the file takes, random ones are made where none are given.
"""

import contextlib
import functools
import itertools
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.comparing import is_functional, symbolic_inputs
from keras_lp.deploy.interpreting import has_open_sizes

_BATCH = 8  # random inputs, where the model leaves the batch size open
_PARTS = 32  # of given inputs, where the file takes some number at once
_EXAMPLES = 32  # of a representative dataset, to verify with
# To try for other dimensions that it leaves open. Old versions of TensorFlow and LiteRT do not
# notice where convolutions take more, so not the least first.
LENGTHS = (64, 16, 256)

_NO_BATCH = "; `dataset.batch(32)` makes batches of examples, and `x[None]` a batch of one"
_NO_LABELS = ", and no labels, which `dataset.map(lambda x, y: x)` leaves out"

Details = dict[str, dict[str, Any]]  # What LiteRT says of the inputs of a file.
Feed = dict[str, np.ndarray]


def feed_of(
    model: keras.Model | None, details: Details, inputs: Any, argument: str = "inputs"
) -> Feed:
    """Inputs, in any form that the model takes, by their names in the file.

    Args:
        model: A built model; without one, the order of inputs is that of their names.
        details: What LiteRT says of the inputs of its file.
        inputs: An array, nested lists of numbers, or a list or dictionary of arrays, each
            with a batch dimension.
        argument: Name of the argument that the caller was given them by.

    Raises:
        ValueError: If they do not fit the file.
    """
    names = _input_names(model, details)
    if isinstance(inputs, dict) and set(inputs) == set(names):
        arrays = [inputs[name] for name in names]
    elif len(names) == 1 and not isinstance(inputs, dict):
        # An array, nested lists of numbers, or a list of one array.
        rank = len(details[names[0]]["shape_signature"])
        is_list = isinstance(inputs, (list, tuple)) and len(inputs) > 0
        holds_batches = is_list and _rank(inputs[0]) == rank
        if holds_batches and len(inputs) > 1:
            raise ValueError(
                f"Argument `{argument}` must hold one array for a model with one input{_NO_LABELS}."
                f" Received: {type(inputs).__name__} of {len(inputs)} arrays"
            )
        arrays = [inputs[0] if holds_batches else inputs]
    elif isinstance(inputs, dict) and symbolic_inputs(model) and {*inputs} != {*keys_of(model)}:
        raise ValueError(
            f"Argument `{argument}` must hold an array for each input of the model by its name, "
            f"{', '.join(names)}. Received: arrays {', '.join(map(str, inputs))}"
        )
    else:
        arrays = keras.tree.flatten(inputs)
    if len(arrays) != len(names):
        no_labels = _NO_LABELS if len(arrays) > len(names) else ""
        raise ValueError(
            f"Argument `{argument}` must hold {len(names)} arrays, one for each input of the "
            f"model ({', '.join(names)}){no_labels}. Received: {len(arrays)} values"
        )
    return {
        name: _checked(argument, name, details[name], array)
        for name, array in zip(names, arrays, strict=True)
    }


def feed_of_any_number(
    model: keras.Model | None, details: Details, inputs: Any, argument: str = "inputs"
) -> Feed:
    """A `feed_of` any number of examples, the same for each input, whatever the file takes."""
    of_any_number = {
        name: {**detail, "shape_signature": [-1, *detail["shape_signature"][1:]]}
        for name, detail in details.items()
    }
    feed = feed_of(model, of_any_number, inputs, argument)
    if len({len(array) for array in feed.values()}) > 1:
        raise ValueError(
            f"Argument `{argument}` must hold the same number of examples for each input. "
            f"Received: {shapes(feed)}"
        )
    return feed


def example_count(feed: Feed) -> int:
    """How many examples a feed holds."""
    return len(next(iter(feed.values())))


def fixed_size(details: Details) -> int | None:
    """How many examples a file takes at once; `None` if any number."""
    sizes = {int(detail["shape_signature"][0]) for detail in details.values()}
    return max(sizes - {-1}, default=None)


def as_the_model_takes_it(model: keras.Model, feed: Feed, inputs: Any) -> Any:
    """A feed in the structure that the model takes, or in that of the inputs it was made of."""
    arrays = list(feed.values())
    if is_functional(model):
        return keras.tree.pack_sequence_as(model.input, arrays)
    takes_an_array = bool(symbolic_inputs(model)) or not isinstance(inputs, dict)
    if len(arrays) == 1 and takes_an_array:
        return arrays[0]
    return keras.tree.pack_sequence_as(inputs, arrays)


def parts_of(model: keras.Model, details: Details, inputs: Any) -> list[Any]:
    """Inputs as the model takes them, in parts of as many as its file takes at once.

    What is left over is left out, and what is fewer stays as it is.
    """
    size = fixed_size(details)
    if inputs is None or size is None:
        return [inputs]
    feed = feed_of_any_number(model, details, inputs)
    parts = itertools.islice(_split(feed, size), _PARTS)
    return [as_the_model_takes_it(model, part, inputs) for part in parts] or [inputs]


def samples_of(model: keras.Model, details: Details, dataset: Any) -> tuple[list[Feed], Any]:
    """A representative dataset, as feeds of as many examples as the file takes at once.

    Args:
        model: A built model.
        details: What LiteRT says of the inputs of its file.
        dataset: Inputs as `feed_of` takes them, a `tf.data.Dataset` or other iterable of
            such, or a function that returns one.

    Returns:
        The feeds, and some examples of one size as the model takes them.

    Raises:
        ValueError: If it is empty, or something in it does not fit the file.
    """
    argument = "representative_dataset"
    size = fixed_size(details) or 1
    batches = list(_batches(model, details, dataset, argument))
    feeds = [feed for _, feed in batches]
    samples = [part for feed in feeds for part in _split(feed, size)]
    if not samples:
        raise ValueError(
            f"Argument `{argument}` must hold batches of at least {size} examples of the model's "
            "inputs, and a generator can be used once. Received: no such batch"
        )
    examples = _examples_of_one_size(feeds, size)
    return samples, as_the_model_takes_it(model, examples, batches[0][0])


def one_example(model: keras.Model, details: Details, inputs: Any) -> Feed:
    """The first example of given or random inputs, or as many as the file takes at once."""
    if inputs is None:
        inputs = random_inputs(model, details, scale=1.0, seed=0)
    feed = feed_of(model, details, parts_of(model, details, inputs)[0])
    return feed if fixed_size(details) else {name: array[:1] for name, array in feed.items()}


def keys_of(model: Any) -> list[Any]:
    """Keys of the dictionary that a model takes; none where it takes another thing."""
    return list(model.input) if is_functional(model) and isinstance(model.input, dict) else []


def _rank(value: Any) -> int | None:
    """Number of dimensions; `None` for what makes no array."""
    try:
        return np.ndim(value)
    except ValueError:
        return None


def _examples_of_one_size(feeds: list[Feed], least: int) -> Feed:
    """The first examples of the size that most have, which are often one a batch."""
    by_size: dict[Any, list[Feed]] = {}
    for feed in feeds:
        size = tuple(array.shape[1:] for array in feed.values())
        by_size.setdefault(size, []).append(feed)
    alike = max(by_size.values(), key=lambda group: sum(map(example_count, group)))
    count = max(least, _EXAMPLES)
    # A batch has an example at least.
    return {
        name: np.concatenate([feed[name] for feed in alike[:count]])[:count] for name in alike[0]
    }


def _batches(
    model: keras.Model, details: Details, dataset: Any, argument: str
) -> Iterator[tuple[Any, Feed]]:
    """The batches of a dataset, as they are and as feeds."""
    read = functools.partial(feed_of_any_number, model, details, argument=argument)
    dataset = dataset() if callable(dataset) else dataset
    is_batch = isinstance(dataset, (dict, list, str, tuple)) or hasattr(dataset, "__array__")
    if not is_batch and isinstance(dataset, Iterable):
        yield from ((batch, read(batch)) for batch in dataset)
        return
    try:
        feeds = [(dataset, read(dataset))]
    except ValueError:
        # A list may also hold batches, if every one of its values is one.
        if not isinstance(dataset, (list, tuple)):
            raise
        feeds = []
        with contextlib.suppress(ValueError):
            feeds = [(batch, read(batch)) for batch in dataset]
        if not feeds:
            raise
    yield from feeds


def _split(feed: Feed, size: int) -> Iterator[Feed]:
    """A feed in parts of so many examples; what is left over is left out."""
    for start in range(0, example_count(feed) - size + 1, size):
        yield {name: array[start : start + size] for name, array in feed.items()}


def random_inputs(
    model: keras.Model, details: Details, scale: float, seed: int, length: int = LENGTHS[0]
) -> Any:
    """Random inputs in the structure that the model takes.

    Normal ones times `scale`, and integers that every embedding of the model knows. Dimensions
    that the model leaves open, besides the batch, are of size `length`.
    """
    names = _input_names(model, details)
    if len(names) > 1 and not is_functional(model):
        raise ValueError(
            "Argument `inputs` is needed to verify a subclassed model with several inputs. "
            "Pass a batch of data as the model takes it. Received: inputs=None for "
            f"{len(names)} inputs"
        )
    # A file leaves the batch size open, whatever the model's own, unless it was asked not to.
    batches = [tensor.shape[0] for tensor in symbolic_inputs(model)] or [None]
    random, vocabulary = np.random.default_rng(seed), _smallest_vocabulary(model)
    arrays = [
        _random_input(random, name, details[name], (batch or _BATCH, length), scale, vocabulary)
        for name, batch in zip(names, batches, strict=True)
    ]
    return keras.tree.pack_sequence_as(model.input, arrays) if is_functional(model) else arrays[0]


def random_feed(details: Details, length: int = LENGTHS[0]) -> Feed:
    """Random inputs of a file whose model is not known, from a fixed seed."""
    random = np.random.default_rng(0)
    return {
        name: _random_input(random, name, detail, (_BATCH, length), scale=1.0, vocabulary=2)
        for name, detail in details.items()
    }


def lengths_for(details: Details) -> Sequence[int]:
    """Lengths to try for the dimensions that a file leaves open; any one where it leaves none."""
    return LENGTHS if has_open_sizes(details.values()) else LENGTHS[:1]


def shapes(feed: Feed) -> str:
    """Names and shapes, for messages."""
    return ", ".join(f"{name} of shape {array.shape}" for name, array in feed.items())


def natural_order(name: str) -> list[Any]:
    """Sort key under which output_10 comes after output_9, as the exporter counts."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split("_")]


def _input_names(model: keras.Model, details: Details) -> list[str]:
    """Names of the inputs in the file, in the order in which the model takes them."""
    if is_functional(model):
        return [tensor.name for tensor in keras.tree.flatten(model.input)]
    return sorted(details, key=natural_order)


def _checked(argument: str, name: str, detail: dict[str, Any], value: Any) -> np.ndarray:
    expected = tuple(map(int, detail["shape_signature"]))
    try:
        array = np.asarray(value, dtype=detail["dtype"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Argument `{argument}` must hold numbers for input {name!r}, in one array. Received: "
            f"{reprlib.repr(value)}, of which NumPy says: {error}"
        ) from error
    fits = array.ndim == len(expected) and all(
        want in (-1, got) for want, got in zip(expected, array.shape, strict=True)
    )
    if not fits or array.size == 0:
        no_batch = _NO_BATCH if array.ndim == len(expected) - 1 else ""
        raise ValueError(
            f"Argument `{argument}` must hold a non-empty array of shape {expected} for input "
            f"{name!r}, where -1 is any size{no_batch}. Received: shape {array.shape}"
        )
    # TensorFlow ends the whole process on an infinite number among those for int8.
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(
            f"Argument `{argument}` must hold finite numbers for input {name!r}. Received: "
            f"{np.sum(~np.isfinite(array))} of {array.size} that are NaN or infinite"
        )
    return array


def _smallest_vocabulary(model: keras.Model) -> int:
    """Number of integers that every embedding of the model knows."""
    sizes = []
    layers = [*model.layers]
    while layers:
        layer = layers.pop()
        layers += getattr(layer, "layers", [])
        if isinstance(layer, keras.layers.Embedding):
            sizes.append(layer.input_dim)
    return min(sizes, default=2)


def _random_input(
    random: np.random.Generator,
    name: str,
    detail: dict[str, Any],
    lengths: tuple[int, int],
    scale: float,
    vocabulary: int,
) -> np.ndarray:
    batch, length = lengths
    first, *rest = detail["shape_signature"]
    shape = [batch if first == -1 else first, *(length if size == -1 else size for size in rest)]
    dtype = np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return (scale * random.normal(size=shape)).astype(dtype)
    if dtype.kind in "iu":
        return random.integers(0, vocabulary, size=shape).astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, size=shape).astype(dtype)
    raise ValueError(
        f"Argument `inputs` is needed to verify a model whose input {name!r} has dtype {dtype}. "
        "Received: inputs=None"
    )
