"""`keras-lp plot`."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from keras_lp import plotting
from keras_lp.cli import options
from keras_lp.cli.loading import load_model
from keras_lp.cli.working import working
from keras_lp.deploy.writing import check_path, write_atomically
from keras_lp.optional import require
from keras_lp.sparsity import sparsity_report


@click.command()
@click.argument("source", type=options.EXISTING)
@click.argument("path", type=options.NEW, metavar="OUT")
@click.option(
    "--kind",
    type=click.Choice(["layers", "weights"]),
    help="Of a model: the sparsity of its layers (default), or a histogram of its weights.",
)
@click.option("--metric", metavar="COLUMN", help="Of a history: a second curve, as val_accuracy.")
@click.option("--target", type=float, help="Of a history: a sparsity in [0, 1] to mark.")
@options.include
@options.exclude
@options.as_json
def plot(
    source: Path,
    path: str,
    kind: str | None,
    metric: str | None,
    target: float | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """Draw a model or its training.

    SOURCE is a .keras or .h5 file, or the .csv file of a training; OUT is a .png file.

    A history is what `keras.callbacks.CSVLogger` writes if it stands after keras-lp's callbacks.

    \b
    Examples:
      keras-lp plot model.keras layers.png
      keras-lp plot model.keras weights.png --kind weights
      keras-lp plot history.csv sparsity.png --metric val_accuracy --target 0.9
    """
    is_history = source.suffix == ".csv"
    if is_history and (kind is not None or include or exclude):
        raise click.UsageError("--kind, --include and --exclude are for a model.")
    if not is_history and (metric is not None or target is not None):
        raise click.UsageError("--metric and --target are for a .csv file.")
    with working(f"Drawing {source}") as note:
        picture = check_path(path, ".png")
        require("matplotlib", "plot").use("Agg")  # It needs no display.
        if is_history:
            ax: Any = plotting.plot_sparsity(_read_history(source), metric=metric, target=target)
        else:
            model = load_model(source, note, with_optimizer=not (include or exclude))
            ax = _draw_model(model, kind, options.given(include=include, exclude=exclude))
        write_atomically(picture, lambda file: ax.figure.savefig(file, dpi=150))
    options.show(path, {"path": path}, as_json)


def _draw_model(model: Any, kind: str | None, patterns: dict[str, Any]) -> Any:
    if kind == "weights":
        return plotting.plot_weights(model, **patterns)
    return plotting.plot_layers(sparsity_report(model, **patterns))


def _read_history(path: Path) -> Mapping[str, Sequence[float]]:
    """The columns of a table; what is no number, such as `NA`, is NaN."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else ())}


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan
