"""What is said of dead layers by whoever makes or meets them."""

import keras

from keras_lp.selection import list_names
from keras_lp.sparsity.report import CUT_OFF, DEAD, SparsityReport, sparsity_report
from keras_lp.warning import warn

_MOST = 5  # names in a sentence


def explain_dead(model: keras.Model) -> str:
    """Which layers of a model are dead and what follows from it, in whole sentences.

    Args:
        model: A built Keras 3 model of any kind.

    Returns:
        A string, empty if no layer is dead or the model has none that could be.
    """
    try:
        return describe_dead(sparsity_report(model))
    except ValueError:
        return ""


def is_constant(model: keras.Model) -> bool:
    """Whether the outputs of a model are known not to depend on its inputs, for dead layers."""
    try:
        return sparsity_report(model).is_constant
    except ValueError:
        return False


def describe_dead(report: SparsityReport, before: SparsityReport | None = None) -> str:
    """The same of a report, without what was dead in one `before` on the same model."""
    old = [row.condition for row in before.layers] if before else [None] * len(report.layers)
    new = [row for row, was in zip(report.layers, old, strict=True) if was not in (DEAD, CUT_OFF)]
    dead = [f"{row.name} ({row.size:,} weights)" for row in new if row.condition == DEAD]
    cut_off = [row.name for row in new if row.condition == CUT_OFF]
    sentences = []
    if dead:
        share = f"{len(dead)} of {len(report.layers)} kernels"
        sentences.append(f"No weight is left in {share}: {list_names(dead, _MOST)}.")
    if cut_off:
        sentences.append(f"Cut off behind dead ones: {list_names(cut_off, _MOST)}.")
    if report.is_constant and not (before and before.is_constant):
        sentences.append("The outputs of the model no longer depend on its inputs.")
    return " ".join(sentences)


def warn_of_dead(report: SparsityReport, advice: str, before: SparsityReport | None = None) -> None:
    """Warns, once for all, of what is dead and was not in a report `before`."""
    text = describe_dead(report, before)
    if text:
        warn(f"{text} {advice}")
