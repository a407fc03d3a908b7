"""Files of runs, one line for each training, and what several runs say together.

A benchmark has its own frozen dataclass of a run, whose fields are the columns of its file. Here
a run needs `method`, `value` (what the method was asked for), `metric` and `sparsity`. Besides: the
circumstances of a benchmark, and types for its command line.
"""

import argparse
import csv
import datetime
import functools
import math
import os
import platform
import shutil
import subprocess
from dataclasses import astuple, fields
from importlib import metadata
from pathlib import Path

import numpy as np


def new_file(text):
    """A type of the command line: a file in a folder that is there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must name a file, not a folder, received {text}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"must lie in a folder that exists; make {path.parent} first, received {text}"
        )
    return path


def whole(text):
    """A type of the command line: a whole number over 0."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"must be a whole number over 0, received {text}")
    return int(text)


def read(path, kind):
    """The runs of a dataclass `kind` that a file holds; none if there is no file.

    Raises:
        ValueError: If the file has other columns, or a line that is cut off.
    """
    if not path.exists():
        return []
    names = [field.name for field in fields(kind)]
    with path.open(newline="") as file:
        lines = file.readlines()
    header, *rows = csv.reader(lines) if lines else [[]]
    if header != names:
        raise ValueError(
            f"Argument `path` must be a file with the columns {', '.join(names)}; name another "
            f"file, which need not exist. Received: path={str(path)!r} with the columns "
            f"{', '.join(header) or '(none)'}"
        )
    short = [number for number, row in enumerate(rows, 2) if len(row) != len(names)]
    if short or not lines[-1].endswith("\n"):
        raise ValueError(
            "Argument `path` must be a file of whole lines; delete the one that is cut off. "
            f"Received: path={str(path)!r} with line {(short or [len(lines)])[0]} cut off"
        )
    return [
        kind(*(field.type(cell) for field, cell in zip(fields(kind), row, strict=True)))
        for row in rows
    ]


def append(path, run):
    """Adds a run to a file."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow([field.name for field in fields(run)])
        writer.writerow(astuple(run))


@functools.cache
def commit():
    """The commit of the benchmarks, and whether anything but their results has changed since."""

    def git(*arguments):
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    if shutil.which("git") is None:
        return "unknown"
    name = git("rev-parse", "--short", "HEAD").stdout.strip()
    is_clean = git("diff", "--quiet", "HEAD", "--", ":/", ":!results").returncode == 0
    return (name or "unknown") + ("" if is_clean else "-dirty")


def hardware():
    """The cores and the processor."""
    information = Path("/proc/cpuinfo")  # Linux names the model here alone.
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores of {next(names, platform.processor() or 'unknown make')}"


def circumstances(device, *packages):
    """The device, Python and packages with their versions, commit and date, in one line."""
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    python = f"Python {platform.python_version()}"
    date = datetime.date.today().isoformat()
    return ", ".join([device, python, *versions, f"commit {commit()}", date])


def mean(runs, name):
    """Mean of an attribute over runs."""
    return float(np.mean([getattr(run, name) for run in runs]))


def half_range(runs, name):
    """How far an attribute of the runs lies apart: half of the largest difference."""
    return float(np.ptp([getattr(run, name) for run in runs]) / 2)


def by_value(runs, method):
    """Runs of a method, grouped by its value."""
    values = sorted({run.value for run in runs if run.method == method})
    return {v: [run for run in runs if (run.method, run.value) == (method, v)] for v in values}


def at_sparsity(groups, sparsity, tolerance=0.0):
    """What groups of runs give at a sparsity: between two, a line over log(nonzero).

    Args:
        groups: Lists of runs; each is one point, by its means. Those without any weight left
            do not count.
        sparsity: Float in [0, 1).
        tolerance: How far beyond the outermost points one may go, as a share of the nonzero
            weights; there it is what the outermost point gives.

    Returns:
        The metric, or `None` where the sparsity is beyond the groups.
    """
    groups = [group for group in groups if mean(group, "sparsity") < 1]
    points = sorted((math.log(1 - mean(g, "sparsity")), mean(g, "metric")) for g in groups)
    if not points:
        return None
    x, y = zip(*points, strict=True)
    wanted = math.log(1 - sparsity)
    is_within = x[0] - tolerance <= wanted <= x[-1] + tolerance
    return float(np.interp(wanted, x, y)) if is_within else None


def show(task, runs):
    """The mean of the metric and how far the seeds lie apart."""
    spread = half_range(runs, "metric")
    spread = f"{100 * spread:.2f}" if task.unit == "percent" else f"{spread:.3f}"
    return f"{task.show(mean(runs, 'metric'))} (±{spread})"
