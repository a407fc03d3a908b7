"""Arrays from `.npz` files."""

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_lp.deploy.feeding import keys_of

LABELS = "labels"  # what their array is called, unless told

Arrays = dict[str, np.ndarray]


def read_arrays(path: Path) -> Arrays:
    """The arrays of a file by their names; raises ValueError unless they are numbers.

    Pickled objects, which are code, are not loaded.
    """
    remedy = "Write it with `numpy.savez(path, name=array)`"
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file, or truncated. {remedy}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}. {remedy} of numbers") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()) or not arrays:
        raise ValueError(f"{path} holds no arrays. {remedy}")
    return arrays


def inputs_of(model: keras.Model, path: Path | None) -> Any:
    """The inputs of a model from a file, where other arrays may be, such as labels.

    They are named as the model's inputs are, or as the keys of the dictionary that it takes.
    """
    if path is None:
        return None
    arrays = read_arrays(path)
    names = [tensor.name for tensor in getattr(model, "inputs", None) or ()]
    if LABELS not in names and len(arrays) > 1:
        arrays.pop(LABELS, None)
    keys = keys_of(model) or names
    if set(keys) <= set(arrays):
        names = keys
    if len(arrays) == 1 and len(names) < 2:
        return next(iter(arrays.values()))
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} must hold an array for each input of the model, {', '.join(names)}. Received: "
            f"arrays {', '.join(arrays)}"
        )
    return arrays[names[0]] if len(names) == 1 else {name: arrays[name] for name in names} or arrays
