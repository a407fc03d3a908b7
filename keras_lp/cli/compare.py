"""`keras-lp compare`."""

from pathlib import Path

import click

from keras_lp.cli import options
from keras_lp.cli.arrays import LABELS, read_arrays
from keras_lp.cli.working import working
from keras_lp.deploy import compare_tflite


@click.command()
@click.argument("first", type=options.EXISTING)
@click.argument("second", type=options.EXISTING)
@click.option(
    "--data",
    "inputs",
    type=options.EXISTING,
    metavar="NPZ",
    required=True,
    help="Inputs by their names in the files, or one array; and labels.",
)
@click.option(
    "--labels",
    metavar="NAME",
    help=f"Name of the array of labels in --data. Default: {LABELS}, if it is there.",
)
@options.runtime
@options.as_json
def compare(
    first: Path, second: Path, inputs: Path, labels: str | None, runtime: str, as_json: bool
) -> None:
    """Compare two .tflite files on the same data.

    Runs both in LiteRT and prints for each its size, its size after gzip, the median time of a
    run and, with labels, its accuracy; and for both the share of examples that get the same
    class and the largest difference of their outputs.

    \b
    Examples:
      keras-lp compare dense.tflite sparse.tflite --data test.npz
      keras-lp compare dense.tflite sparse.tflite --data test.npz --labels y --json
    """
    with working(f"Comparing {first} and {second}"):
        arrays = read_arrays(inputs)
        if labels is not None and labels not in arrays:
            raise ValueError(
                f"`labels` must be a name in {inputs}, which has {', '.join(arrays)}. "
                f"Received: {labels}"
            )
        classes = arrays.pop(labels or LABELS, None)
        result = compare_tflite(first, second, arrays, classes, runtime=runtime)
    options.show(result, result.to_dict(), as_json)
