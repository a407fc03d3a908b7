"""What the decay costs: optimizer steps with it against steps of `keras.optimizers.AdamW`.

On the weights of ResNet-18 (11 million), MobileNetV2 (3.5 million in small variables) and a
transformer (109 million), with given gradients: LpAdamW for several p, Adam with
`LpDecayCallback`, and under TensorFlow TF-MOT's magnitude pruning against tf_keras's own Adam.
Each is timed in turn with its peer, in one process; a ratio is the median over the turns. Beside
them stand the seconds that the first step takes, which compiles; the memory that a process needs
for the steps; and the floor: reading and writing the weights and Adam's state once, at the
bandwidth of a copy in the same process. Prints tables in Markdown, which stand in RESULTS.md.

    python benchmarks/step.py
    KERAS_BACKEND=jax python benchmarks/step.py --weights resnet18 transformer
    python benchmarks/step.py --quick       # some minutes
"""

import argparse
import datetime
import functools
import gc
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import models
import numpy as np
import stepping
from runs import append, commit, new_file

import keras_lp

WEIGHTS = {
    "resnet18": models.resnet18,
    "mobilenet_v2": models.mobilenet_v2,
    "transformer": models.transformer,
    "perceptron": models.perceptron,
}
EXPONENTS = (0, 0.5, 0.8, 1, 1.3, 1.5, 2)
PEER = "AdamW"
LP = {f"LpAdamW, p = {p:g}": p for p in EXPONENTS}
CALLBACK, TFMOT = "Adam and LpDecayCallback", "TF-MOT on tf_keras's Adam"
METHODS = (*LP, CALLBACK, TFMOT)


@dataclass(frozen=True)
class Row:
    """What came out of one method on the weights of one model.

    Attributes:
        backend: Backend of Keras, with " without XLA" if so.
        weights: Name of the model.
        method: What was timed.
        milliseconds: Median time of a step.
        ratio: Median over the turns of this time by that of the peer in the same turn.
        low: First quartile of these ratios.
        high: Third quartile.
        floor: Time of a step by that of the floor.
        bandwidth: Share of the copy bandwidth at which the step reads weights, state and
            gradients, and writes weights and state.
        first: Seconds of the first step, which compiles.
        first_ratio: The same by those of the peer's first step.
        memory: Megabytes that a process needs for the steps, or nan.
        memory_ratio: The same by that of the peer, or nan.
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
    memory: float = float("nan")
    memory_ratio: float = float("nan")


def make(method, weights, xla):
    """Steps of a method on new weights."""
    keras.utils.set_random_seed(0)
    model = WEIGHTS[weights]()
    if method == TFMOT:
        return stepping.steps_of_tfmot(model)
    if method == CALLBACK:
        callback, optimizer = keras_lp.LpDecayCallback(), keras.optimizers.Adam()
        return stepping.steps_with_callback(callback, optimizer, model, xla)
    return stepping.steps_of_optimizer(optimizer_of(method), model, xla)


def optimizer_of(method):
    """The optimizer of a method that is one."""
    return keras_lp.LpAdamW(p=LP[method]) if method in LP else keras.optimizers.AdamW()


@functools.cache
def count_of(weights):
    """How many weights a step changes."""
    return stepping.weights_in(WEIGHTS[weights]())


def seconds_of(step):
    """Time of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turn(steps, turns):
    """Times of several kinds of steps: of the first of each, and of those in each turn.

    The order changes from turn to turn, as each finds the caches as the one before left them.
    """
    first = [seconds_of(step) for step in steps]
    for step in steps * 2:  # TensorFlow compiles some things at the second step.
        step()
    seconds = np.empty((turns, len(steps)))
    order = list(range(len(steps)))
    for turn in range(turns):
        for number in order if turn % 2 else order[::-1]:
            seconds[turn, number] = seconds_of(steps[number])
    return first, seconds


def measure(method, weights, xla, turns):
    """One row, without memory."""
    step = make(method, weights, xla)
    if method == TFMOT:
        other = stepping.steps_of_tf_keras(WEIGHTS[weights]())
    else:
        other = make(PEER, weights, xla)
    once = stepping.passes_over(stepping.STATE * count_of(weights))
    first, seconds = in_turn([step, other, once], turns)
    low, ratio, high = np.percentile(seconds[:, 0] / seconds[:, 1], (25, 50, 75))
    own, _, floor = np.median(seconds, axis=0)
    backend = keras.backend.backend() + ("" if xla else " without XLA")
    # A step reads the gradients besides: seven numbers for six of the floor.
    bandwidth = 7 / 6 * floor / own
    return Row(
        backend=backend,
        weights=weights,
        method=method,
        milliseconds=1e3 * own,
        ratio=ratio,
        low=low,
        high=high,
        floor=own / floor,
        bandwidth=bandwidth,
        first=first[0],
        first_ratio=first[0] / first[1],
    )


def memory_of(method, weights, xla):
    """Megabytes that a new process needs for weights, state and steps of a method."""
    command = [sys.executable, __file__, "--memory-of", method, "--weights", weights]
    run = subprocess.run(
        [*command, *([] if xla else ["--without-xla"])], capture_output=True, text=True, check=True
    )
    return float(run.stdout.splitlines()[-1])


def print_memory(method, weights, xla):
    """Prints the megabytes, in the process that is there for it."""
    stepping.passes_over(10)()  # What a backend takes for itself.
    before = resident("VmRSS")
    step = make(method, weights, xla)
    step()
    step()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Begins the peak anew, after compiling.
    for _ in range(3):
        step()
    print(device_peak() or resident("VmHWM") - before)


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


def rows(weights, methods, compilations, turns, has_memory):
    """Rows of all methods on the weights of one model, as they come."""
    for xla in compilations:
        peer_memory = memory_of(PEER, weights, xla) if has_memory else float("nan")
        for method in methods:
            if method == TFMOT and (xla or keras.backend.backend() != "tensorflow"):
                continue
            row = measure(method, weights, xla, turns)
            gc.collect()
            if has_memory and method != TFMOT:  # It has another peer.
                memory = memory_of(method, weights, xla)
                row = replace(row, memory=memory, memory_ratio=memory / peer_memory)
            yield row


def whole_step(turns):
    """Ratio of a whole training step of ResNet-18 with LpAdamW, p = 0.8, to one with AdamW."""
    optimizers = keras_lp.LpAdamW(p=0.8), keras.optimizers.AdamW()
    steps = [stepping.training_steps(one, models.resnet18()) for one in optimizers]
    _, seconds = in_turn(steps, turns)
    return np.percentile(seconds[:, 0] / seconds[:, 1], (25, 50, 75)), np.median(seconds[:, 1])


def show(row):
    """A row in Markdown."""
    memory = "" if np.isnan(row.memory) else f"{row.memory:,.0f} MB, {row.memory_ratio:.3f}"
    cells = (
        row.backend,
        row.weights,
        row.method,
        f"{row.milliseconds:.1f}",
        f"{row.ratio:.3f} ({row.low:.3f} to {row.high:.3f})",
        f"{row.floor:.2f}",
        f"{row.bandwidth:.2f}",
        f"{row.first:.1f} s, {row.first_ratio:.2f}",
        memory,
    )
    return f"| {' | '.join(cells)} |"


def accelerator():
    """Name of the GPU or TPU that JAX computes on; `None` without one."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    device = jax.devices()[0]
    return None if device.platform == "cpu" else device.device_kind


def circumstances():
    """Where and when, in one line."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    backend = keras.backend.backend()
    library_version = __import__(backend).__version__
    return (
        f"{accelerator() or f'{os.cpu_count()} cores of {cpu}'}; {backend} "
        f"{library_version}, Keras {keras.__version__}, Python {platform.python_version()}, "
        f"commit {commit()}, {datetime.date.today()}"
    )


def main():
    """Measures, prints tables, and writes the rows to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    large = [name for name in WEIGHTS if name != "perceptron"]
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=large)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--turns", type=int, default=40, help="of each method and its peer")
    parser.add_argument("--no-whole-step", action="store_true", help="leave out the training step")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory")
    parser.add_argument("--quick", action="store_true", help="few turns on small weights")
    parser.add_argument("--output", type=new_file, default="step.csv", help="file of all rows")
    parser.add_argument("--without-xla", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=(PEER, *METHODS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(arguments.memory_of, arguments.weights[0], not arguments.without_xla)
        return
    weights, turns = arguments.weights, arguments.turns
    if arguments.quick:
        weights, turns = [name for name in weights if name != "transformer"], 5

    print(circumstances() + "\n")
    print(
        "| backend | weights | method | ms a step | ratio to the peer | times the floor "
        "| of the copy bandwidth | first step, ratio | memory, ratio |\n" + "| --- " * 9 + "|"
    )
    # Under JAX there is no step without XLA.
    compilations = (True, False) if keras.backend.backend() == "tensorflow" else (True,)
    has_memory = Path("/proc/self/clear_refs").exists() and not arguments.no_memory
    arguments.output.unlink(missing_ok=True)
    for name in weights:
        for row in rows(name, arguments.methods, compilations, turns, has_memory):
            append(arguments.output, row)
            print(show(row), flush=True)
    if not arguments.no_whole_step:
        (low, ratio, high), seconds = whole_step(turns)
        print(
            f"\nA whole training step of ResNet-18, batch 32, LpAdamW with p = 0.8: {ratio:.3f} "
            f"({low:.3f} to {high:.3f}) of one with AdamW, {1e3 * seconds:.0f} ms."
        )


if __name__ == "__main__":
    main()
