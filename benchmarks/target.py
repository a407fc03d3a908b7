"""Training to a target sparsity against strengths set by hand.

For each task, target and seed: LpAdamW with `SparsityTarget` in its default settings. For each
task, strength and seed: LpAdamW with that `weight_decay`; and AdamW. Every run is written to a
CSV file as it ends, and what is there already is not run again. Prints tables in Markdown, which
stand in RESULTS.md.

    python benchmarks/target.py --data-dir DATA
    python benchmarks/target.py --tasks digits --seeds 1 --share 0.1 --output quick.csv
"""

import argparse
import itertools
import os
import time
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tasks
from runs import append, at_sparsity, by_value, mean, new_file, read, show, whole

import keras_lp

TARGETS = (0.8, 0.9, 0.95, 0.98)
GRID = (0.01, 0.03, 0.06, 0.12, 0.25)


@dataclass(frozen=True)
class Run:
    """One training, as a line of the file.

    Attributes:
        task: Name of the task.
        method: "target", "weight_decay" or "adamw".
        value: The target, or the strength.
        seed: Seed of the start and of the order of the batches.
        share: Share of the data that it was trained on.
        metric: Validation metric of the last epoch.
        sparsity: Share of zeros at the end.
        before: Share of zeros before the closing by magnitude; that at the end where there
            is no closing.
        seconds: Time of the training.
    """

    task: str
    method: str
    value: float
    seed: int
    share: float
    metric: float
    sparsity: float
    before: float
    seconds: float

    @property
    def key(self):
        """What the run was asked to be."""
        return self.task, self.method, self.value, self.seed, self.share


class CountAt(keras.callbacks.Callback):
    """Counts the zeros after a step; placed before `SparsityTarget`, before it closes."""

    sparsity = None

    def __init__(self, step):
        super().__init__()
        self.steps_left = step

    def on_train_batch_end(self, batch, logs=None):
        """Counts steps, and at the right one zeros."""
        self.steps_left -= 1
        if self.steps_left == 0:
            self.sparsity = keras_lp.sparsity_report(self.model).sparsity


def train(task, method, value, seed, share):
    """Trains once on a task that has this share of its data."""
    keras.utils.set_random_seed(seed)
    model = task.make_model()
    callbacks = []
    if method == "adamw":
        optimizer = keras.optimizers.AdamW(task.learning_rate, value)
    elif method == "weight_decay":
        optimizer = keras_lp.LpAdamW(task.learning_rate, value)
    else:
        optimizer = keras_lp.LpAdamW(task.learning_rate)
        # The default `end_step`, at which the sparsity is made exact.
        callbacks = [CountAt(int(0.8 * task.steps)), keras_lp.SparsityTarget(value)]
    task.compile(model, optimizer)
    start = time.perf_counter()
    logs = task.fit(model, callbacks).history
    seconds = time.perf_counter() - start
    sparsity = keras_lp.sparsity_report(model).sparsity
    before = callbacks[0].sparsity if callbacks else sparsity
    metric = logs[task.metric][-1]
    return Run(task.name, method, value, seed, share, metric, sparsity, before, seconds)


def print_tables(task, runs):
    """What came out of one task: the strengths set by hand, then the targets against them."""
    groups = by_value(runs, "weight_decay").items()
    grid = {value: group for value, group in groups if mean(group, "sparsity") < 1}
    print(f"\n{task.name}: {task.metric}, seeds: {len({run.seed for run in runs})}\n")
    print("| optimizer | `weight_decay` | zeros | result |\n| --- | --- | --- | --- |")
    methods = {"AdamW": by_value(runs, "adamw"), "LpAdamW": grid}
    for name, groups in methods.items():
        for value, group in groups.items():
            zeros = f"{mean(group, 'sparsity'):.2%}"
            print(f"| {name} | {value:g} | {zeros} | {show(task, group)} |")
    print(
        "\n| target | zeros | closed by magnitude | result | by hand, same zeros | difference "
        "| best by hand, no more zeros | difference |\n" + "| --- " * 8 + "|"
    )
    for target, group in by_value(runs, "target").items():
        zeros = f"{min(r.sparsity for r in group):.4%} to {max(r.sparsity for r in group):.4%}"
        closed = max(run.sparsity - run.before for run in group)
        cells = [f"{target:.0%}", zeros, f"{closed:.2%} at most", show(task, group)]
        lower = [mean(g, "metric") for g in grid.values() if mean(g, "sparsity") <= target]
        best = (max if task.better == "max" else min)(lower, default=None)
        for rival in (at_sparsity(grid.values(), target), best):
            cells += against(task, mean(group, "metric"), rival)
        print(f"| {' | '.join(cells)} |")


def against(task, value, rival):
    """A result of a rival, and by how much ours is more."""
    if rival is None:
        return ["not in the grid", ""]
    difference = value - rival
    if task.unit == "percent":
        return [task.show(rival), f"{100 * difference:+.2f} points"]
    return [task.show(rival), f"{difference:+.3f} nats"]


def main():
    """Runs what is not there yet, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=tasks.TASKS, default=list(tasks.TASKS))
    parser.add_argument("--data-dir", help="folder with the data; without one, Keras fetches it")
    parser.add_argument("--seeds", type=whole, default=3, help="trainings to average over")
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS)
    parser.add_argument("--grid", type=float, nargs="+", default=GRID, help="strengths by hand")
    parser.add_argument("--share", type=float, default=1.0, help="of the data, for a quick look")
    parser.add_argument("--output", type=new_file, default="target.csv", help="file of all runs")
    arguments = parser.parse_args()

    share = arguments.share
    try:
        runs = read(arguments.output, Run)
        loaded = [tasks.load(name, arguments.data_dir, share) for name in arguments.tasks]
        for target in arguments.targets:
            keras_lp.SparsityTarget(target)
        for strength in arguments.grid:
            keras_lp.LpAdamW(weight_decay=strength)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    cells = [("adamw", 0.004), *(("weight_decay", strength) for strength in arguments.grid)]
    cells += [("target", target) for target in arguments.targets]
    for task in loaded:
        asked = [
            (task.name, method, value, seed, share)
            for seed, (method, value) in itertools.product(range(arguments.seeds), cells)
        ]
        there = {run.key for run in runs}
        for key in [key for key in asked if key not in there]:
            runs.append(train(task, *key[1:]))
            append(arguments.output, runs[-1])
            print(runs[-1], flush=True)
        print_tables(task, [run for run in runs if run.key in asked])


if __name__ == "__main__":
    main()
