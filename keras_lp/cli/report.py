"""`keras-lp report`."""

from pathlib import Path

import click

from keras_lp.cli import options
from keras_lp.cli.loading import load_model
from keras_lp.cli.working import working
from keras_lp.sparsity import sparsity_report


@click.command()
@click.argument("model", type=options.EXISTING)
@options.threshold
@options.include
@options.exclude
@options.as_json
def report(
    model: Path,
    threshold: float | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """Count the zeros of a model.

    Prints them for each layer of MODEL, a .keras or .h5 file, and in total. Counted are the weights
    that the model's optimizer decays; without one, all but biases and scales.

    \b
    Examples:
      keras-lp report model.keras
      keras-lp report model.keras --threshold 1e-6 --exclude embedding
      keras-lp report model.keras --json
    """
    with working(f"Counting zeros in {model}") as note:
        loaded = load_model(model, note, with_optimizer=not (include or exclude))
        given = options.given(threshold=threshold, include=include, exclude=exclude)
        result = sparsity_report(loaded, **given)
    options.show(result, result.to_dict(), as_json)
