"""Quality against sparsity: LpAdamW beside other ways to a sparse model, at equal epochs.

For each task, method, point of the method's grid and seed one training, and one of AdamW. All
have the same model and start, the same number of epochs and the same learning rate at each step:
constant on the digits, a cosine on the others. `methods.py` says what each of them does,
`settings.py` how each task is trained. A method has one knob, and a grid of five points: for the
decays the strength, in equal ratios; for the others the sparsity. `SparsityTarget` is measured
where `--methods` names it, as lp_target.

Every run is written to a CSV file as it ends, and what is there already in the same setting is not
run again. Prints tables in Markdown, which stand in RESULTS.md, and draws a picture for each task.

    python benchmarks/frontier.py --data-dir DATA --processes 2
    python benchmarks/frontier.py --data-dir DATA --processes 2 --trials   # what settings.py chose
    python benchmarks/frontier.py --quick
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

# TF-MOT needs TensorFlow.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tasks
import tensorflow as tf
from matplotlib import ticker
from matplotlib.figure import Figure
from methods import DENSE, METHODS
from runs import (
    append,
    at_sparsity,
    by_value,
    circumstances,
    commit,
    half_range,
    hardware,
    mean,
    new_file,
    read,
    show,
    whole,
)
from settings import SETTINGS

import keras_lp
from keras_lp.deploy.strip import THRESHOLD

ALL = {"adamw": DENSE, **METHODS}
DENSE_VALUE = 0.004  # The default of AdamW.
SPARSITIES = (0.9, 0.95, 0.97, 0.98, 0.99)  # The points of the methods that are told one.
TOLERANCE = 0.02  # of the nonzero weights: layers have no exact share of zeros
ACCURACIES = (*range(10, 90, 10), 90, 93, 95, 96, 97, 98, 99, 99.5)  # that an axis is labelled with
# Okabe and Ito's colours, which the colour-blind tell apart, a marker and a line for each method.
STYLES = dict(
    zip(
        METHODS,
        [
            {"color": "#0072B2", "marker": "o"},
            {"color": "#D55E00", "marker": "s"},
            {"color": "#009E73", "marker": "^"},
            {"color": "#D55E00", "marker": "*", "linestyle": "-.", "markersize": 10},
            {"color": "#CC79A7", "marker": "D", "linestyle": "--"},
            {"color": "#000000", "marker": "X", "linestyle": "--"},
            {"color": "#E69F00", "marker": "v", "linestyle": ":"},
            {"color": "#56B4E9", "marker": "P", "linestyle": ":"},
        ],
        strict=True,
    )
)


@dataclass(frozen=True)
class Run:
    """One training, as a line of the file.

    Attributes:
        task: Name of the task.
        method: Name of the method, or "adamw".
        value: Its strength, or the sparsity it was told.
        seed: Seed of the start and of the order of the batches.
        setting: Size of the task, and what else the method depends on.
        metric: Validation metric of the model with its zeros.
        sparsity: Share of zeros among the decayed variables.
        seconds: Time of the training.
        commit: Commit of the benchmarks that it was made with.
    """

    task: str
    method: str
    value: float
    seed: int
    setting: str
    metric: float
    sparsity: float
    seconds: float
    commit: str

    @property
    def key(self):
        """What the run was asked to be."""
        return self.task, self.method, self.value, self.seed, self.setting


@functools.cache
def load(name, data_dir, share):
    """A task in its size for this benchmark."""
    setting = SETTINGS[name]
    return replace(tasks.load(name, data_dir, share, **setting.loading), **setting.replaced)


def describe(task):
    """What the runs of every method on a task depend on besides value and seed."""
    x_train, _, x_val, _ = task.data
    weights = task.make_model().count_params()
    sizes = {"weights": weights, "examples": len(x_train), "validation": len(x_val)}
    for name in ("batch_size", "epochs", "steps", "learning_rate", "last_share"):
        sizes[name] = getattr(task, name)
    return ", ".join(f"{name} {size}" for name, size in {"data": task.source, **sizes}.items())


def keys_of(task, cells, seeds):
    """What trainings are asked to be, and what is chosen for each, of cells that each seed has.

    A cell is a method, its value, and what is chosen for it: a list of one item, or an empty one.
    """
    sizes = describe(task)
    asked = {}
    for seed, (method, value, choice) in itertools.product(range(seeds), cells):
        setting = ", ".join([sizes, *(f"{ALL[method].choice} {item}" for item in choice)])
        asked[task.name, method, value, seed, setting] = choice
    return asked


def cells_of_grids(task, grids):
    """AdamW and the points of all grids, with what the setting of the task chooses."""
    yield "adamw", DENSE_VALUE, []
    for method, values in grids.items():
        yield from ((method, value, chosen(task, method)) for value in values)


def chosen(task, method):
    """What the setting of a task chooses for a method; nothing if there is nothing to choose."""
    name = METHODS[method].choice
    return [] if name is None else [getattr(SETTINGS[task.name], name)]


def cells_of_trials(task, methods):
    """The points at which choices are tried: one share of zeros, or the grid of strengths.

    TF-MOT is told no zeros besides: that is the training of AdamW in its way.
    """
    setting = SETTINGS[task.name]
    for method in (name for name in methods if name in setting.trials):
        is_told = METHODS[method].knob == "sparsity"
        values = [setting.sparsity] if is_told else grid(task.name, method)
        for choice, value in itertools.product(setting.trials[method], values):
            yield method, value, [choice]
        if method == "tfmot":
            yield method, 0.0, chosen(task, method)


def grid(task, method):
    """The values of a method's knob on a task."""
    if METHODS[method].knob == "sparsity":
        return SPARSITIES
    strengths = np.geomspace(*SETTINGS[task].strengths[method], len(SPARSITIES))
    return tuple(float(f"{strength:.2g}") for strength in strengths)


def train(data_dir, share, key, choice):
    """One training, and what came of it."""
    name, method, value, seed, setting = key
    task = load(name, data_dir, share)
    begin = time.perf_counter()
    model = ALL[method].train(task, value, seed, *choice)
    seconds = time.perf_counter() - begin
    sparsity = keras_lp.prune(model, threshold=THRESHOLD).sparsity
    task.compile(model, "sgd")  # A model that comes from TF-MOT is not compiled.
    _, _, *validation = task.data
    logs = model.evaluate(*validation, batch_size=task.batch_size, verbose=0, return_dict=True)
    metric = logs[task.metric.removeprefix("val_")]
    return Run(name, method, value, seed, setting, metric, sparsity, seconds, commit())


def run_all(asked, data_dir, share, processes):
    """The runs that are asked for, each as it ends, in this process or in several."""
    if processes == 1:
        for key, choice in asked.items():
            yield train(data_dir, share, key, choice)
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), limit_threads, (threads,)
    )
    with pool:
        try:
            begun = [pool.submit(train, data_dir, share, *one) for one in asked.items()]
            for done in as_completed(begun):
                yield done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def limit_threads(count):
    """Leaves the other cores to the other processes."""
    tf.config.threading.set_intra_op_parallelism_threads(count)
    tf.config.threading.set_inter_op_parallelism_threads(count)


def points(runs, method, values):
    """The runs of each of these values of a method that has been run."""
    return {value: group for value, group in by_value(runs, method).items() if value in values}


def print_tables(task, runs, grids):
    """What came out of one task: at sparsities between the points, then the points."""
    dense = by_value(runs, "adamw")[DENSE_VALUE]
    print(f"\n### {task.name}: {task.metric}, seeds: {len(dense)}\n")
    print(f"Commits: {', '.join(sorted({run.commit for run in runs}))}\n")
    print(f"AdamW, without zeros: {show(task, dense)}\n")
    print(f"| method | {' | '.join(f'{s:.0%}' for s in SPARSITIES)} |")
    print("| --- " * (1 + len(SPARSITIES)) + "|")
    for method, values in grids.items():
        groups = points(runs, method, values).values()
        cells = cells_at_sparsities(task, groups)
        print(f"| {METHODS[method].label} | {' | '.join(cells)} |")
    print("\n| method | asked for | zeros | result | seconds |\n" + "| --- " * 5 + "|")
    for method, values in grids.items():
        for value, group in points(runs, method, values).items():
            print_row(task, group, METHODS[method].label, asked_for(method, value))


def print_row(task, group, *first):
    """A row in Markdown of a few cells and of what a group of runs gave."""
    zeros = f"{mean(group, 'sparsity'):.2%} (±{100 * half_range(group, 'sparsity'):.2f})"
    print("|", " | ".join([*first, zeros, show(task, group)]), f"| {mean(group, 'seconds'):.0f} |")


def asked_for(method, value):
    """The value of a method's knob in words."""
    return f"{value:.0%}" if METHODS[method].knob == "sparsity" else f"`weight_decay` {value:g}"


def print_trials(task, runs, asked):
    """What came out of the trials of one task: the points, then choices at equal sparsity."""
    print(f"\n### {task.name}: {task.metric}, seeds: {len({run.seed for run in runs})}\n")
    print("| method | asked for | with | zeros | result | seconds |\n" + "| --- " * 6 + "|")
    groups, curves = {}, {}
    for run in runs:
        groups.setdefault((run.method, run.value, *asked[run.key]), []).append(run)
    for (method, value, choice), group in groups.items():
        tried = METHODS[method].label, f"{METHODS[method].choice} {choice}"
        print_row(task, group, tried[0], asked_for(method, value), tried[1])
        if value > 0:
            curves.setdefault(tried, []).append(group)
    print(f"\n| method | with | {' | '.join(f'{s:.0%}' for s in SPARSITIES)} |")
    print("| --- " * (2 + len(SPARSITIES)) + "|")
    for tried, curve in curves.items():
        print(f"| {' | '.join([*tried, *cells_at_sparsities(task, curve)])} |")


def cells_at_sparsities(task, groups):
    """What groups of runs give at each of the sparsities, in words."""
    found = [at_sparsity(groups, sparsity, TOLERANCE) for sparsity in SPARSITIES]
    return ["-" if value is None else task.show(value) for value in found]


def draw(task, runs, grids, path):
    """One line for each method, over the share of weights that are not zero; up is better.

    Both axes are such that what is close to nothing has room: few weights, and few errors.
    """
    factor, unit = (100, "%") if task.unit == "percent" else (1, "nats")
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    ax = figure.add_subplot()
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda share, _: f"{share:g} %"))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.invert_xaxis()
    if task.unit == "percent":
        ax.set_yscale("function", functions=(lambda y: -log_errors(y), lambda y: 100 - np.exp(-y)))
        ax.yaxis.set_major_locator(ticker.FixedLocator(ACCURACIES))
        ax.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    else:
        ax.invert_yaxis()
    dense = factor * mean(by_value(runs, "adamw")[DENSE_VALUE], "metric")
    ax.axhline(dense, color="0.4", linewidth=1, label="AdamW, no zeros")
    for method, values in grids.items():
        groups = points(runs, method, values).values()
        groups = [group for group in groups if mean(group, "sparsity") < 1]
        if not groups:
            continue
        groups.sort(key=lambda group: mean(group, "sparsity"))
        nonzero, metrics = [], []
        for group in groups:
            nonzero.append([100 * (1 - run.sparsity) for run in group])
            metrics.append([factor * run.metric for run in group])
        x, y = (np.mean(some, axis=1) for some in (nonzero, metrics))
        ax.errorbar(
            x,
            y,
            distances(metrics),
            distances(nonzero),
            label=METHODS[method].label,
            capsize=2,
            elinewidth=1,
            **STYLES[method],
        )
    ax.set(
        xlabel="weights that are not zero (log scale; sparser to the right)",
        ylabel=f"{task.metric.replace('_', ' ')} ({unit})",
        title=f"{task.name}: mean of {len({run.seed for run in runs})} seeds and their range",
    )
    ax.grid(color="0.9")
    ax.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def distances(groups):
    """From the mean of each group down to its least number and up to its largest."""
    means = np.mean(groups, axis=1)
    # Means are rounded: that of equal numbers may lie outside of them.
    return [abs(means - np.min(groups, axis=1)), abs(np.max(groups, axis=1) - means)]


def log_errors(accuracy):
    """Logarithm of the errors in percent, where at least one of 10,000 counts as an error."""
    return np.log(np.maximum(100 - accuracy, 0.01))


def main():
    """Runs what is not there yet, prints the tables and draws the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=tasks.TASKS, help="all of them by default")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=[method for method in METHODS if method != "lp_target"],
        help="all but lp_target by default",
    )
    parser.add_argument("--data-dir", help="folder with the data; without one, Keras fetches it")
    parser.add_argument("--seeds", type=whole, help="trainings to average over, 3 by default")
    parser.add_argument("--share", type=float, help="of the data, for a quick look; 1 by default")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--quick",
        action="store_true",
        help="two points of each grid; unless told, the digits only, half of them, and one seed",
    )
    kind.add_argument(
        "--trials",
        action="store_true",
        help="instead of the grids, what was tried for the settings; two seeds by default",
    )
    parser.add_argument("--processes", type=whole, default=1, help="trainings at a time")
    parser.add_argument(
        "--output",
        type=new_file,
        help="file of all runs: frontier.csv, frontier_quick.csv, or frontier_trials.csv",
    )
    arguments = parser.parse_args()
    ending = "_quick" if arguments.quick else "_trials" if arguments.trials else ""
    output = arguments.output or Path(f"frontier{ending}.csv")
    names = arguments.tasks or (["digits"] if arguments.quick else list(tasks.TASKS))
    seeds = arguments.seeds or (1 if arguments.quick else 2 if arguments.trials else 3)
    share = (0.5 if arguments.quick else 1.0) if arguments.share is None else arguments.share

    if arguments.trials and not any(METHODS[method].choice for method in arguments.methods):
        parser.error(
            "argument --methods: pass some that --trials has choices for, received "
            f"{', '.join(arguments.methods)}"
        )
    try:
        made = {run.key: run for run in read(output, Run)}
        loaded = [load(name, arguments.data_dir, share) for name in names]
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    packages = ("keras", "tf_keras", "tensorflow-model-optimization", "numpy")
    print(circumstances(f"{hardware()}, tensorflow {tf.__version__}", *packages), flush=True)
    for task in loaded:
        grids = {method: grid(task.name, method) for method in arguments.methods}
        if arguments.quick:
            grids = {method: values[2::2] for method, values in grids.items()}
        if arguments.trials:
            cells = cells_of_trials(task, arguments.methods)
        else:
            cells = cells_of_grids(task, grids)
        asked = keys_of(task, cells, seeds)
        missing = {key: choice for key, choice in asked.items() if key not in made}
        for run in run_all(missing, arguments.data_dir, share, arguments.processes):
            made[run.key] = run
            append(output, run)
            print(run, flush=True)
        shown = [made[key] for key in asked]
        if arguments.trials:
            print_trials(task, shown, asked)
            continue
        print_tables(task, shown, grids)
        picture = output.with_name(f"{output.stem}_{task.name}.png")
        draw(task, shown, grids, picture)
        print(f"\nPicture: {picture}", flush=True)


if __name__ == "__main__":
    main()
