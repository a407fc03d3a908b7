"""`keras-lp export`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from keras_lp.cli import options
from keras_lp.cli.arrays import inputs_of
from keras_lp.cli.loading import load_model
from keras_lp.cli.working import working
from keras_lp.deploy import export_tflite
from keras_lp.deploy.writing import check_path

_QUANTIZATIONS = {"none": None, "float16": "float16", "dynamic": "dynamic", "int8": "int8"}


@click.command()
@click.argument("model", type=options.EXISTING)
@click.argument("path", type=options.NEW, metavar="OUT")
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(list(_QUANTIZATIONS)),
    default="none",
    show_default=True,
    help="float32 weights; float16 weights; int8 weights (dynamic); int8 weights and activations.",
)
@click.option(
    "--sparse/--dense",
    "sparse",
    default=None,
    help="Weights with or without their zeros. Defaults to --sparse, and to --dense where LiteRT "
    "takes no sparse weights: dynamic and int8 in the default runtime.",
)
@click.option(
    "--representative",
    "representative_dataset",
    type=options.EXISTING,
    metavar="NPZ",
    help="Some hundred examples for --quantize int8: arrays by the names of the inputs, or one.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Examples at once. Default: any, or 1 for recurrent layers.",
)
@options.runtime
@click.option(
    "--inputs",
    type=options.EXISTING,
    metavar="NPZ",
    help="Inputs to verify with. Default: random ones, or those of --representative.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Largest error that verification accepts, as a share of the largest output.",
)
@click.option("--latency", is_flag=True, help="Measure the time of a run, too.")
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Compare the outputs of the file with the model's, or not. Default: --verify.",
)
@options.as_json
def export(
    model: Path,
    path: str,
    quantization: str,
    sparse: bool | None,
    representative_dataset: Path | None,
    inputs: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Export a model to a .tflite file.

    MODEL is a .keras or .h5 file, OUT the .tflite file. It is verified in LiteRT; what stands at
    OUT is replaced only after that, in one step.

    \b
    Examples:
      keras-lp export model.keras model.tflite
      keras-lp export model.keras model.tflite --quantize float16 --latency
      keras-lp export model.keras model.tflite --quantize int8 --representative train.npz
      keras-lp export model.keras model.tflite --dense --batch-size 1 --json
    """
    if (quantization == "int8") != (representative_dataset is not None):
        raise click.UsageError("--quantize int8 and --representative NPZ belong together.")
    if sparse is None:
        sparse = quantization in ("none", "float16") or settings["runtime"] == "no_delegate"
    with working(f"Exporting {model}") as note:
        check_path(path, ".tflite")
        loaded = load_model(model, note, with_optimizer=False)
        result = export_tflite(
            loaded,
            path,
            sparse,
            _QUANTIZATIONS[quantization],
            inputs_of(loaded, representative_dataset),
            inputs=inputs_of(loaded, inputs),
            **settings,
        )
    options.show(result, asdict(result), as_json)
