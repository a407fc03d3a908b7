"""Models from files, in Keras's safe mode, with errors that say what to do."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras

_SUFFIXES = (".keras", ".h5", ".hdf5")  # The latter two are of Keras 2, and Keras 3 loads them.
_SAVE = "Save the model with `model.save` to a path that ends in .keras"
_IN_PYTHON = (
    "Load it in Python, where that is at hand, and call `keras_lp.sparsity_report`, "
    "`strip_pruning` or `export_tflite` there"
)
_MISSING = re.compile(r"Could not locate (?:class|function) '[^']*'")


def load_model(
    path: Path, note: Callable[[str], None], *, with_optimizer: bool = True
) -> keras.Model:
    """Loads a model.

    Args:
        path: An existing file.
        note: Prints a remark for the user.
        with_optimizer: Whether to load the optimizer too, which knows what it decays. Without
            the loss or metric it was compiled with, a model is loaded without its optimizer.

    Raises:
        ValueError: If the file holds no model that can be loaded safely.
    """
    _check_file(path)
    try:
        return _load(path, compile=with_optimizer)
    except Exception as error:
        if not with_optimizer:
            raise ValueError(_reason(path, error)) from error
        model = load_model(path, note, with_optimizer=False)
        note(
            f"{path} was loaded without its optimizer ({_essence(error)}), so that the "
            "variables that it excluded or included are not known; name them with --exclude and "
            "--include"
        )
        return model


def _load(path: Path, compile: bool) -> keras.Model:  # noqa: A002 (Keras's word)
    return keras.models.load_model(path, compile=compile, safe_mode=True)


def _check_file(path: Path) -> None:
    """Raises ValueError unless a file is a whole archive with a model."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} is none of the files that Keras 3 loads, .keras and .h5. {_SAVE}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is truncated. Save or copy it once more")
    (_check_archive if path.suffix == ".keras" else _check_h5)(path)


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            is_start_of_archive = file.read(2) == b"PK"
        if is_start_of_archive:
            raise ValueError(f"{path} is truncated. Save or copy it once more")
        raise ValueError(f"{path} holds no model of Keras 3. {_SAVE}")
    with zipfile.ZipFile(path) as archive:
        if "config.json" not in archive.namelist():
            raise ValueError(f"{path} holds no model of Keras 3: no config.json. {_SAVE}")


def _check_h5(path: Path) -> None:
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path} is no HDF5 file, or damaged. {_SAVE}")
    try:
        with h5py.File(path) as file:
            has_model = "model_config" in file.attrs
    except OSError as error:
        raise ValueError(f"{path} is truncated ({error}). Save or copy it once more") from error
    if not has_model:
        raise ValueError(f"{path} holds weights alone, without their model. {_SAVE}")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile):
        return f"{path} is damaged ({error}). Save or copy it once more"
    if "safe_mode" in str(error):
        return (
            f"{path} holds code in a Lambda layer or the like, which would run when it is loaded; "
            f"safe_mode stays on. {_IN_PYTHON}"
        )
    if _MISSING.search(str(error)):
        return f"{path} needs code that is not in Keras: {_essence(error)}. {_IN_PYTHON}"
    return f"{path} cannot be loaded. Keras said: {_essence(error)}"


def _essence(error: Exception) -> str:
    """What is missing, or the first line of Keras's long messages."""
    missing = _MISSING.search(str(error))
    return missing[0] if missing else (str(error).strip().splitlines() or [type(error).__name__])[0]
