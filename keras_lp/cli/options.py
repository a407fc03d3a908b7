"""Options that several commands have, and how they print their results."""

import json
from pathlib import Path
from typing import Any

import click

from keras_lp.deploy.writing import expand


class _InHome(click.Path):
    """A path in which `~` is the home folder, also where the shell leaves it, as in quotes."""

    def convert(self, value: Any, *where: Any) -> Any:
        return super().convert(expand(value), *where)


EXISTING = _InHome(exists=True, dir_okay=False, readable=True, path_type=Path)
# Whether a file can be written there is the library's check.
NEW = click.Path()

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
threshold = click.option(
    "--threshold", type=float, metavar="NUMBER", help="Largest magnitude that counts as zero."
)
include = click.option(
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Regular expression for paths of variables to take in although they are a bias or a scale "
    "by name; may be repeated.",
)
exclude = click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Regular expression for paths of variables to leave out; may be repeated. Defaults to "
    "what the model's optimizer does not decay.",
)
runtime = click.option(
    "--runtime",
    type=click.Choice(["default", "x86", "no_delegate"]),
    default="default",
    show_default=True,
    help="LiteRT as applications get it; the same on x86 with AVX alone; or without its default "
    "delegate XNNPACK.",
)


def given(**options: Any) -> dict[str, Any]:
    """Those options that were given; the library has its own defaults for the others."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def show(result: Any, data: dict[str, Any], as_json: bool) -> None:
    """Prints a result as text, or its data as JSON, where what is no number is null."""
    if not as_json:
        click.echo(str(result))
        return
    strict = json.loads(json.dumps(data, default=str), parse_constant=lambda constant: None)
    click.echo(json.dumps(strict, indent=2))
