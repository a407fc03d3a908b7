"""What the decay costs: optimizer steps with it against steps of `keras.optimizers.AdamW`.

On the weights of ResNet-18 (11 million), MobileNetV2 (3.5 million in small variables) and a
transformer (109 million), with given gradients: AdamW itself, LpAdamW for several p, Adam with
`LpDecayCallback`, and under TensorFlow TF-MOT's magnitude pruning against tf_keras's own Adam,
once at the steps between two choices of the masks and once at those that choose. Each is timed in
turn with its peer, in a process for the two; a ratio is the median over the turns. Beside them
stand the seconds that the first step takes, which compiles; the memory that a process needs for the
steps; and the floor: reading and writing the weights and Adam's state once, at the bandwidth of a
copy in the same process. With ResNet-18 comes a whole training step of it. Every row is written to
a CSV file when it is there, and what the file has already, of as many turns and with memory if that
is asked for, is not measured again. Prints tables in Markdown, which stand in RESULTS.md.

    python benchmarks/step.py
    KERAS_BACKEND=jax python benchmarks/step.py --weights resnet18 transformer
    python benchmarks/step.py --quick       # some minutes
"""

import argparse
import ctypes
import functools
import gc
import itertools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Processes share a GPU.

import keras
import models
import numpy as np
import stepping
from runs import append, circumstances, commit, hardware, new_file, read, whole

import keras_lp

WEIGHTS = {
    "resnet18": models.resnet18,
    "mobilenet_v2": models.mobilenet_v2,
    "transformer": models.transformer,
    "perceptron": models.perceptron,
}
EXPONENTS = (0, 0.5, 0.8, 1, 1.3, 1.5, 2)
PEER, TF_KERAS_PEER = "AdamW", "tf_keras's Adam"
LP = {f"LpAdamW, p = {p:g}": p for p in EXPONENTS}
CALLBACK = "Adam and LpDecayCallback"
# Steps between two choices of the masks: TF-MOT's default, and at each step.
TFMOT = {"TF-MOT, masks kept": 100, "TF-MOT, masks chosen": 1}
METHODS = (PEER, *LP, CALLBACK, *TFMOT)  # Beside itself the peer shows how exact a ratio is.
QUICK_METHODS = ("LpAdamW, p = 0.8", "LpAdamW, p = 1", CALLBACK, "TF-MOT, masks kept")
ENOUGH, LONG = 20, 30  # turns; seconds after which no more than these are made
WHOLE = "whole training step, LpAdamW, p = 0.8"


@dataclass(frozen=True)
class Row:
    """What came out of one method on the weights of one model.

    Attributes:
        backend: Backend of Keras, with " on " an accelerator and " without XLA" if so.
        weights: Name of the model.
        method: What was timed.
        milliseconds: Median time of a step.
        ratio: Median over the turns of this time by that of the peer in the same turn.
        low: First quartile of these ratios.
        high: Third quartile.
        floor: Time of a step by that of the floor, or nan.
        bandwidth: Share of the copy bandwidth at which the step reads weights, state and
            gradients, and writes weights and state, or nan.
        first: Seconds of the first step, which compiles.
        first_ratio: The same by those of the peer's first step.
        commit: Commit of the benchmarks that it was measured with.
        memory: Megabytes that a process needs for the steps, or nan.
        memory_ratio: The same by that of the peer, or nan.
        turns: How many there were; nan for 20 to 200, in rows that were written without.
    """

    backend: str
    weights: str
    method: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    floor: float
    bandwidth: float
    first: float
    first_ratio: float
    commit: str
    memory: float = float("nan")
    memory_ratio: float = float("nan")
    turns: float = float("nan")

    @property
    def key(self):
        """What was measured."""
        return self.backend, self.weights, self.method

    def has(self, turns, memory):
        """Whether it says as much as one that is measured with so many turns."""
        is_short = self.turns < min(turns, ENOUGH)
        return not (is_short or (memory and self.method != WHOLE and np.isnan(self.memory)))


def make(method, weights, xla, one_a_call=False):
    """Steps of a method on new weights, where told one in a call on accelerators too."""
    keras.utils.set_random_seed(0)
    model = WEIGHTS[weights]()
    if method in TFMOT:
        return stepping.steps_of_tfmot(model, TFMOT[method], xla=xla)
    if method == TF_KERAS_PEER:
        return stepping.steps_of_tf_keras(model, xla)
    if method == CALLBACK:
        callback, optimizer = keras_lp.LpDecayCallback(), keras.optimizers.Adam()
        return stepping.steps_with_callback(callback, optimizer, model, xla)
    return stepping.steps_of_optimizer(optimizer_of(method), model, xla, one_a_call)


def optimizer_of(method):
    """The optimizer of a method that is one."""
    return keras_lp.LpAdamW(p=LP[method]) if method in LP else keras.optimizers.AdamW()


def seconds_of(steps):
    """Time of one step."""
    start = time.perf_counter()
    steps.run()
    return (time.perf_counter() - start) / steps.count


def in_turn(kinds, turns):
    """Times of several kinds of steps: of the first of each, and of one in each turn.

    Steps find the caches as those before left them: the first kind begins every turn, and the
    order of the others changes from turn to turn, so that each of two follows the same ones. Slow
    steps get fewer turns than they are given, and at least `ENOUGH`.
    """
    first = [seconds_of(steps) for steps in kinds]
    for steps in kinds * 2:  # TensorFlow compiles some things at the second step.
        steps.run()
    seconds = np.empty((turns, len(kinds)))
    begin, *others = range(len(kinds))
    started = time.perf_counter()
    for turn in range(turns):
        if turn >= ENOUGH and time.perf_counter() - started > LONG:
            return first, seconds[:turn]
        for number in (begin, *others[:: 1 if turn % 2 else -1]):
            seconds[turn, number] = seconds_of(kinds[number])
    return first, seconds


def peer_of(method):
    """What a method is measured by."""
    return TF_KERAS_PEER if method in TFMOT else PEER


def measure(method, weights, xla, turns):
    """One row, without memory."""
    warm_up(xla)
    once = stepping.passes_over(stepping.STATE * stepping.weights_in(WEIGHTS[weights]()))
    # A callback is called after each step.
    peer = make(peer_of(method), weights, xla, one_a_call=method == CALLBACK)
    first, seconds = in_turn([once, make(method, weights, xla), peer], turns)
    return row_of((backend_of(xla), weights, method), first[1:], seconds[:, 1:], seconds[:, 0])


def warm_up(xla):
    """Makes the steps of a small model, as the first to compile also starts the compiler."""
    make(PEER, "perceptron", xla).run()


def row_of(key, first, seconds, floor=float("nan")):
    """A row of the times of a method and of its peer, and of the floor where there is one."""
    own, peer = seconds.T
    low, ratio, high = np.percentile(own / peer, (25, 50, 75))
    times_the_floor = np.median(own) / np.median(floor)
    backend, weights, method = key
    return Row(
        backend=backend,
        weights=weights,
        method=method,
        milliseconds=1e3 * np.median(own),
        ratio=ratio,
        low=low,
        high=high,
        floor=times_the_floor,
        # A step reads the gradients besides: seven numbers for six of the floor.
        bandwidth=7 / 6 / times_the_floor,
        first=first[0],
        first_ratio=first[0] / first[1],
        commit=commit(),
        turns=len(seconds),
    )


def backend_of(xla):
    """The backend, the accelerator if there is one, and whether XLA compiles."""
    device = accelerator()
    on_device = "" if device is None else f" on {device}"
    return keras.backend.backend() + on_device + ("" if xla else " without XLA")


@functools.cache  # A peer is that of several methods.
def memory_of(method, weights, xla):
    """Megabytes that a new process needs for weights, state and steps of a method."""
    return in_a_process(peak_memory, method, weights, xla)


def in_a_process(function, *arguments):
    """What a function returns in a new process, which frees what TensorFlow's graphs hold."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(method, weights, xla):
    """Megabytes of weights, state and steps of a method, where nothing else has been."""
    steps = make(method, weights, xla)
    for _ in range(3):
        steps.run()
    # Beside what is held, only what a step takes for a while counts, and not what compiling took.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before = resident("VmRSS")
    for _ in range(3):
        steps.run()
    return device_peak() or steps.held / 2**20 + resident("VmHWM") - before


def resident(name):
    """Megabytes of this process, now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1]) / 1024


def device_peak():
    """Megabytes at the peak on an accelerator, which JAX counts; `None` without one."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    statistics = jax.devices()[0].memory_stats()
    return statistics and statistics["peak_bytes_in_use"] / 2**20


def with_memory(row, xla):
    """A row with what its method and its peer need."""
    own, peer = (memory_of(one, row.weights, xla) for one in (row.method, peer_of(row.method)))
    return replace(row, memory=own, memory_ratio=own / peer)


def cells(weights, methods):
    """Weights, method and whether XLA compiles, of all rows to measure."""
    is_tensorflow = keras.backend.backend() == "tensorflow"  # JAX has no TF-MOT, and XLA alone.
    compilations = (True, False) if is_tensorflow else (True,)
    for name, xla, method in itertools.product(weights, compilations, methods):
        if is_tensorflow or method not in TFMOT:
            yield name, method, xla


def whole_step(turns):
    """A row of whole training steps of ResNet-18, batch 32, with LpAdamW and with AdamW."""
    warm_up(xla=True)
    optimizers = keras_lp.LpAdamW(p=0.8), keras.optimizers.AdamW()
    kinds = [stepping.training_steps(one, models.resnet18()) for one in optimizers]
    return row_of((backend_of(True), "resnet18", WHOLE), *in_turn(kinds, turns))


def row_for(name, method, xla, turns, has_memory):
    """The row of a method on the weights of a model."""
    if method == WHOLE:
        return in_a_process(whole_step, turns)
    row = in_a_process(measure, method, name, xla, turns)
    return with_memory(row, xla) if has_memory else row


def show(row):
    """A row in Markdown."""
    has_floor, has_memory = not np.isnan(row.floor), not np.isnan(row.memory)
    cells = (
        row.backend,
        row.weights,
        row.method,
        f"{row.milliseconds:.1f}",
        f"{row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})",
        f"{row.floor:.2f}" if has_floor else "",
        f"{row.bandwidth:.2f}" if has_floor else "",
        f"{row.first:.1f} s, {row.first_ratio:.2f}",
        f"{row.memory:,.0f} MB, {row.memory_ratio:.3f}" if has_memory else "",
        row.commit,
    )
    return f"| {' | '.join(cells)} |"


def print_ratios(rows):
    """The ratios of steps alone, with a column for each backend and model."""
    ratios = {row.key: row.ratio for row in rows}
    columns = dict.fromkeys((row.backend, row.weights) for row in rows if row.method != WHOLE)
    print(f"\n| ratio to the peer | {' | '.join(', '.join(column) for column in columns)} |")
    print("| --- " * (1 + len(columns)) + "|")
    for method in METHODS:
        found = [ratios.get((*column, method)) for column in columns]
        if any(found):
            shown = " | ".join("" if ratio is None else f"{ratio:.3f}" for ratio in found)
            print(f"| {method} | {shown} |")


def accelerator():
    """Name of the GPU or TPU that JAX computes on; `None` without one."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    device = jax.devices()[0]
    return None if device.platform == "cpu" else device.device_kind


def main():
    """Measures, prints tables, and writes the rows to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, help="all but the perceptron's")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="all by default")
    parser.add_argument(
        "--turns", type=whole, help="of each method and its peer, up to 200 by default"
    )
    parser.add_argument("--no-whole-step", action="store_true", help="leave out the training step")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="five turns of four methods on ResNet-18, unless told otherwise, and those alone",
    )
    parser.add_argument(
        "--output", type=new_file, help="file of all rows, step_BACKEND.csv, step_BACKEND_quick.csv"
    )
    arguments = parser.parse_args()
    is_quick = arguments.quick
    large = [name for name in WEIGHTS if name != "perceptron"]
    weights = arguments.weights or (["resnet18"] if is_quick else large)
    methods = arguments.methods or (QUICK_METHODS if is_quick else METHODS)
    turns = arguments.turns or (5 if is_quick else 200)
    ending = "_quick" if is_quick else ""
    backend = keras.backend.backend()
    output = arguments.output or Path(f"step_{backend}{ending}.csv")

    if backend not in ("tensorflow", "jax"):
        parser.error(
            "KERAS_BACKEND must be tensorflow or jax, whose steps are compiled as a whole, "
            f"received {backend}"
        )
    asked = [*cells(weights, methods)]
    if not asked:
        parser.error(f"argument --methods: TF-MOT needs TensorFlow, received {', '.join(methods)}")
    if "resnet18" in weights and not (arguments.no_whole_step or is_quick):
        asked.append(("resnet18", WHOLE, True))
    try:
        there = {row.key: row for row in read(output, Row)}
    except ValueError as error:
        parser.error(str(error))
    library = f"{backend} {__import__(backend).__version__}"
    print(circumstances(f"{accelerator() or hardware()}, {library}", "keras") + "\n")
    print(
        "| backend | weights | method | ms a step | ratio to the peer | times the floor "
        "| of the copy bandwidth | first step, ratio | memory, ratio | commit |\n"
        + "| --- " * 10
        + "|"
    )
    has_clear_refs = Path("/proc/self/clear_refs").exists()
    has_memory = has_clear_refs and not (arguments.no_memory or is_quick)

    shown = []
    for name, method, xla in asked:
        row = there.get((backend_of(xla), name, method))
        if row is None or not row.has(turns, has_memory):
            row = row_for(name, method, xla, turns, has_memory)
            append(output, row)
        shown.append(row)
        print(show(row), flush=True)
    print_ratios(shown)


if __name__ == "__main__":
    main()
