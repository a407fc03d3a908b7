"""`keras-lp strip`."""

from dataclasses import asdict, dataclass
from pathlib import Path

import click

from keras_lp.cli import options
from keras_lp.cli.loading import load_model
from keras_lp.cli.working import working
from keras_lp.deploy.strip import THRESHOLD, strip_pruning
from keras_lp.deploy.writing import check_path, write_atomically
from keras_lp.sparsity import sparsity_report


@dataclass(frozen=True)
class _Stripped:
    """What was written; the counts are over the decayed variables, as in a report."""

    path: Path
    bytes: int
    bytes_before: int
    size: int
    zeros: int
    zeros_before: int

    def __str__(self) -> str:
        return (
            f"{self.path}\n"
            f"  zeros  {self.zeros:>12,}  (before: {self.zeros_before:,}) of {self.size:,}\n"
            f"  bytes  {self.bytes:>12,}  (before: {self.bytes_before:,})"
        )


@click.command()
@click.argument("model", type=options.EXISTING)
@click.argument("path", type=options.NEW, metavar="OUT")
@options.threshold
@options.include
@options.exclude
@options.as_json
def strip(
    model: Path,
    path: str,
    threshold: float | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make tiny weights exact zeros.

    Writes MODEL, a .keras or .h5 file, to OUT, a .keras file, with exact zeros and without
    training state. Weights of at most the threshold, 1e-13 unless given, become zero.

    \b
    Examples:
      keras-lp strip model.keras stripped.keras
      keras-lp strip model.keras stripped.keras --threshold 1e-4 --exclude embedding
    """
    limit = THRESHOLD if threshold is None else threshold
    patterns = options.given(include=include, exclude=exclude)
    with working(f"Stripping {model}") as note:
        target = check_path(path, ".keras")
        bytes_before = model.stat().st_size
        loaded = load_model(model, note, with_optimizer=not patterns)
        before = sparsity_report(loaded, **patterns)
        # What a stripped model excludes cannot be asked of it: it has no optimizer.
        after = sparsity_report(loaded, limit, **patterns)
        stripped = strip_pruning(loaded, limit, **patterns)
        write_atomically(target, stripped.save)
        result = _Stripped(
            target, target.stat().st_size, bytes_before, after.size, after.zeros, before.zeros
        )
    options.show(result, asdict(result), as_json)
