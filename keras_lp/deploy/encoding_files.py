"""Sparse encoding of `.tflite` files that others have made."""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_lp.deploy.encoding import encode_for
from keras_lp.deploy.explaining import of_foreign, of_loading
from keras_lp.deploy.feeding import Feed, feed_of, lengths_for, random_feed
from keras_lp.deploy.interpreting import check_runtime, first_that_fits, load, signatures
from keras_lp.deploy.operations import foreign_operations
from keras_lp.deploy.writing import check_path, check_source, write_atomically
from keras_lp.optional import require

# Largest difference, as a share of the largest output: the weights are the same, and sums may be
# taken in another order.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class EncodedTflite:
    """What `encode_tflite` wrote; prints as a short table.

    Attributes:
        path: Where the file is.
        bytes: Its size.
        gzip_bytes: Its size after gzip, as it would travel.
        bytes_before: Size of the file that it was made of.
        max_abs_difference: Largest absolute difference between the outputs of both in LiteRT.
        notes: What was not done as it was asked for, and why.
    """

    path: Path
    bytes: int
    gzip_bytes: int
    bytes_before: int
    max_abs_difference: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.path}",
            f"  bytes               {self.bytes:>12,}  ({self.bytes / self.bytes_before:.1%})",
            f"  gzip bytes          {self.gzip_bytes:>12,}",
            f"  bytes before        {self.bytes_before:>12,}",
            f"  max abs difference  {self.max_abs_difference:>12.3g}",
        ]
        return "\n".join([*lines, *(f"  note                {note}" for note in self.notes)])


def encode_tflite(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    runtime: str = "default",
    inputs: Any = None,
) -> EncodedTflite:
    """Writes a `.tflite` file of another converter without the zeros among its weights.

    As in `export_tflite`, only the nonzero weights and their positions take room, and LiteRT makes
    dense weights of them when it loads the file (operation DENSIFY). It is for models that
    `export_tflite` does not convert, such as those with modules of torch, which `litert-torch`
    converts. Every signature of both files is run on the same inputs in LiteRT, and the new one is
    put in place only if their outputs agree. Needs the extra `deploy`.

    Args:
        source: Path of a file with float32, float16 or int8 weights. It does not change.
        path: Path of the file to write, ending in `.tflite`, in an existing folder. An existing
            file, which may be `source`, is replaced in one step.
        runtime: `"default"`, `"x86"` or `"no_delegate"`, as in `export_tflite`. A file with sparse
            int8 weights runs with the last alone.
        inputs: Inputs to compare on: an array, or a list or dictionary of arrays, by the names of
            the file's inputs. Defaults to random numbers from a fixed seed: standard normal ones,
            and integers 0 and 1.

    Returns:
        An `EncodedTflite` with `path`, `bytes`, `gzip_bytes`, `bytes_before`,
        `max_abs_difference` and `notes`. Where no weight gets smaller, the file is the same as
        `source`.

    Raises:
        TypeError: If `source` or `path` is no path.
        FileNotFoundError: If `source` or the folder of `path` does not exist.
        ValueError: If an argument is out of range, or the inputs do not fit the file.
        ImportError: If LiteRT is not installed.
        RuntimeError: If LiteRT does not run a file, or their outputs differ. Nothing is written
            then.

    Example:
    >>> litert_torch.convert(model.eval(), (x,)).export("dense.tflite")
    >>> print(keras_lp.encode_tflite("dense.tflite", "model.tflite"))
    """
    source = check_source("source", source)
    path = check_path(path, ".tflite")
    check_runtime(runtime)
    require("ai_edge_litert.interpreter", "deploy")
    dense = source.read_bytes()
    _check_loads(source, dense, runtime)
    encoded, notes = encode_for(runtime, dense)
    _check_loads(path, encoded, runtime)
    difference = max(
        _difference(dense, encoded, runtime, signature, inputs) for signature in signatures(dense)
    )
    write_atomically(path, lambda target: target.write_bytes(encoded))
    return EncodedTflite(
        path=path,
        bytes=len(encoded),
        gzip_bytes=len(gzip.compress(encoded, compresslevel=9)),
        bytes_before=len(dense),
        max_abs_difference=difference,
        notes=notes,
    )


def _check_loads(path: Path, data: bytes, runtime: str) -> None:
    """Raises RuntimeError, with a remedy, unless LiteRT loads a file with all its signatures."""
    try:
        foreign = foreign_operations(data)
        for signature in [] if foreign else signatures(data):
            load(data, runtime, signature)
    except Exception as error:
        raise RuntimeError(_refusal(path, of_loading(data, str(error)))) from error
    if foreign:
        raise RuntimeError(_refusal(path, of_foreign(foreign, None)))


def _difference(
    dense: bytes, encoded: bytes, runtime: str, signature: str | None, inputs: Any
) -> float:
    """Largest difference of the outputs of both files; raises RuntimeError if it is too large."""
    feed, expected = _run(dense, runtime, signature, inputs)
    outputs = load(encoded, runtime, signature)(**feed)
    largest = 0.0
    for name, wanted in expected.items():
        are_same = (outputs[name] == wanted) | (np.isnan(outputs[name]) & np.isnan(wanted))
        differences = np.abs(outputs[name] - wanted.astype("float64"))[~are_same]
        difference = float(np.max(differences, initial=0))
        if not difference <= _TOLERANCE * float(np.max(np.abs(wanted), initial=0)):
            raise RuntimeError(
                "Nothing was written: the encoded file differs from the one it was made of in "
                f"output {name!r}, by {difference:.3g}. Keep that one, and report this as a fault"
            )
        largest = max(largest, difference)
    return largest


def _run(data: bytes, runtime: str, signature: str | None, inputs: Any) -> tuple[Feed, Feed]:
    """Inputs of a file, given or random ones of sizes that it runs on, and its outputs."""
    runner = load(data, runtime, signature)
    details = runner.get_input_details()
    if inputs is not None:
        feed = feed_of(None, details, inputs)
        return feed, runner(**feed)

    def run(length: int) -> tuple[Feed, Feed]:
        feed = random_feed(details, length)
        return feed, load(data, runtime, signature)(**feed)

    return first_that_fits(run, lengths_for(details))


def _refusal(path: Path, why: str) -> str:
    return f"Nothing was written: {path} does not run in LiteRT. {why}"
