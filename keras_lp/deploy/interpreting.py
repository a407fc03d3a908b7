"""Running `.tflite` files in LiteRT, and how long they take."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from keras_lp.optional import require

# With the default delegate, XNNPACK, as applications get it; or with LiteRT's own kernels.
RUNTIMES = {
    "default": "AUTO",
    "x86": "AUTO",  # With AVX, where XNNPACK has no sparse convolutions.
    "no_delegate": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
}
_SIZES = (16, 64, 256)  # to try for dimensions that a file leaves open
_SECONDS = 1.0  # to measure for, at most, for each file
_RUNS = (11, 101)  # to take the median over, at least and at most


def check_runtime(runtime: Any) -> None:
    """Raises ValueError unless `runtime` names one of `RUNTIMES`."""
    if runtime not in tuple(RUNTIMES):  # A tuple, since the value may not be hashable.
        raise ValueError(
            'Argument `runtime` must be "default", "x86" or "no_delegate". '
            f"Received: runtime={runtime!r}"
        )


def load(data: bytes, runtime: str = "default", signature: str | None = None) -> Any:
    """The runner of a file's signature; raises an error of LiteRT's if it does not load.

    Args:
        data: The file.
        runtime: One of `RUNTIMES`.
        signature: Name of the signature, for a file with several. A file without one has the names
            of its tensors.
    """
    litert = require("ai_edge_litert.interpreter", "deploy")
    resolver = getattr(litert.OpResolverType, RUNTIMES[runtime])
    create = functools.partial(
        litert.Interpreter, model_content=data, experimental_op_resolver_type=resolver
    )
    interpreter = create()
    if has_open_sizes(interpreter.get_input_details()):
        interpreter = _with_sizes_that_fit(create)
    else:
        interpreter.allocate_tensors()
    if not interpreter.get_signature_list():
        return _PlainRunner(interpreter)
    return interpreter.get_signature_runner(signature)


class _PlainRunner:
    """Runs a file without a signature as one with a signature is run."""

    def __init__(self, interpreter: Any):
        self._interpreter = interpreter

    def get_input_details(self) -> dict[str, dict[str, Any]]:
        return {detail["name"]: detail for detail in self._interpreter.get_input_details()}

    def get_output_details(self) -> dict[str, dict[str, Any]]:
        return {detail["name"]: detail for detail in self._interpreter.get_output_details()}

    def __call__(self, **feed: np.ndarray) -> dict[str, np.ndarray]:
        for name, detail in self.get_input_details().items():
            self._interpreter.resize_tensor_input(detail["index"], feed[name].shape)
        self._interpreter.allocate_tensors()
        for name, detail in self.get_input_details().items():
            self._interpreter.set_tensor(detail["index"], feed[name])
        self._interpreter.invoke()
        return {
            name: self._interpreter.get_tensor(detail["index"])
            for name, detail in self.get_output_details().items()
        }


def signatures(data: bytes) -> list[str | None]:
    """Names of the signatures of a file; `None` in place of one that it lacks."""
    litert = require("ai_edge_litert.interpreter", "deploy")
    return list(litert.Interpreter(model_content=data).get_signature_list()) or [None]


def has_open_sizes(details: Iterable[dict[str, Any]]) -> bool:
    """Whether a file leaves dimensions of its inputs open besides the batch."""
    return any(-1 in detail["shape_signature"][1:] for detail in details)


def first_that_fits(function: Callable[[int], Any], sizes: Sequence[int]) -> Any:
    """What a function returns for the first of some sizes for which it raises nothing.

    If there is none, it raises what it does for the last.
    """
    *others, last = sizes
    for size in others:
        with contextlib.suppress(RuntimeError, ValueError):
            return function(size)
    return function(last)


def _with_sizes_that_fit(create: Callable[[], Any]) -> Any:
    """An interpreter of a file that leaves dimensions open, ready to run.

    LiteRT would begin with 1, which may be less than a convolution takes.
    """
    # Old versions crash in an interpreter that has failed.
    return first_that_fits(lambda size: _allocated(create(), size), _SIZES)


def _allocated(interpreter: Any, size: int) -> Any:
    for detail in interpreter.get_input_details():
        first, *rest = detail["shape_signature"]
        shape = [max(first, 1), *(size if one == -1 else one for one in rest)]
        interpreter.resize_tensor_input(detail["index"], shape)
    interpreter.allocate_tensors()
    return interpreter


def latencies(runners: Sequence[Any], feed: dict[str, np.ndarray]) -> list[float]:
    """Median seconds of a run of each file with the same inputs, interleaved.

    Args:
        runners: What `load` returned.
        feed: Inputs by their names in the files.
    """
    for runner in runners:  # The first run allocates.
        runner(**feed)
    least, most = _RUNS
    seconds: list[list[float]] = []
    start = time.perf_counter()
    while len(seconds) < most:
        row = []
        for runner in runners:
            before = time.perf_counter()
            runner(**feed)
            row.append(time.perf_counter() - before)
        seconds.append(row)
        if len(seconds) >= least and time.perf_counter() - start > _SECONDS * len(runners):
            break
    return np.median(seconds, axis=0).tolist()
