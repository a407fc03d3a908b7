"""How sparsity grows over the steps of a training, in the arguments that TF-MOT has.

A schedule is a frozen value that knows nothing of models. `SparsityTarget` follows it.
Source: Zhu and Gupta, "To prune, or not to prune", arXiv:1710.01878, and
`tfmot.sparsity.keras.PolynomialDecay` and `ConstantSparsity`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from keras_lp.sparsity.pruning import check_sparsity

POWERS = {"cubic": 3, "linear": 1, "constant": math.inf}
_DEFAULT_LOOKS = 50  # at the weights, from begin to end
_FEWEST_LOOKS = 10
_LONGEST_FREQUENCY = 100
_DEFAULT_END = 0.8  # of the training; the rest is for fine-tuning
_DEFAULT_BEGIN = 0.125  # of the end; before, the weights find their places


@dataclass(frozen=True)
class PolynomialSparsity:
    """Sparsity that grows fast at first, and ever slower up to its end.

    Formula: `s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin))**power`.

    Args:
        initial_sparsity: Float in [0, 1], the share of zeros to begin with; `None` for those
            that are there at `begin_step`.
        final_sparsity: Float in [0, 1], the share of zeros at `end_step`.
        begin_step: Integer >= 0, the step to begin at. A step is a batch of the training.
            `None` for an eighth of `end_step`, which is a tenth of the training by default.
        end_step: Integer > `begin_step`, the step to reach `final_sparsity` at. `None` for
            four fifths of the training.
        power: Float > 0. `1` is a straight line. Defaults to `3`.
        frequency: Integer >= 1, the steps from one look at the weights to the next, at most a
            tenth of the way; `None` for a fiftieth of the way, but at most 100.

    Raises:
        ValueError: If an argument is out of its range, or the sparsity would fall.

    Example:
    >>> schedule = keras_lp.PolynomialSparsity(0.0, 0.9, begin_step=0, end_step=2000)
    >>> keras_lp.SparsityTarget(schedule=schedule)
    """

    initial_sparsity: float | None
    final_sparsity: float
    begin_step: int | None = None
    end_step: int | None = None
    power: float = 3
    frequency: int | None = None

    def __post_init__(self) -> None:
        if self.initial_sparsity is not None:
            check_sparsity("initial_sparsity", self.initial_sparsity)
        check_sparsity("final_sparsity", self.final_sparsity)
        if self.begin_step is not None:
            _check_step("begin_step", self.begin_step, 0)
        if self.end_step is not None:
            _check_step("end_step", self.end_step, 1)
        begin, end, first = self.begin_step, self.end_step, self.initial_sparsity
        if begin is not None and end is not None and begin >= end:
            raise ValueError(
                "Argument `end_step` must be after `begin_step`. Received: "
                f"begin_step={begin!r}, end_step={end!r}"
            )
        if first is not None and first > self.final_sparsity:
            raise ValueError(
                "Argument `initial_sparsity` must not be over `final_sparsity`, since zeros do not "
                f"come back. Received: initial_sparsity={first!r}, "
                f"final_sparsity={self.final_sparsity!r}"
            )
        if self.frequency is not None:
            _check_step("frequency", self.frequency, 1)
        if not (isinstance(self.power, Real) and self.power > 0):
            raise ValueError(
                "Argument `power` must be a number > 0, such as 3, or 1 for a straight line. "
                f"Received: power={self.power!r}"
            )

    def span(self, steps: int | None) -> tuple[int, int]:
        """The steps to begin and to end at, in a training of so many steps."""
        if self.end_step is None and steps is None:
            raise ValueError(
                "Argument `end_step` is needed, since the number of steps in an epoch of this "
                "training is not known. Received: end_step=None"
            )
        end = int(_DEFAULT_END * (steps or 0)) if self.end_step is None else int(self.end_step)
        begin = int(_DEFAULT_BEGIN * end) if self.begin_step is None else int(self.begin_step)
        if end == 0:
            raise ValueError(
                "The training is too short for a schedule: its end would be at step 0. Received: "
                f"a training of {steps} steps"
            )
        if begin >= end:
            raise ValueError(
                f"Argument `begin_step` must be before the end, which is step {end} of the "
                f"training of {steps} steps unless `end_step` says another. Received: "
                f"begin_step={self.begin_step}"
            )
        return begin, end

    def progress(self, share: float) -> float:
        """How much of the way from the first to the final sparsity is done after a share of it."""
        left = 1.0 - min(max(share, 0.0), 1.0)
        return 1.0 if math.isinf(self.power) else 1.0 - left**self.power

    def every(self, length: int) -> int:
        """The steps from one look at the weights to the next, on a way of so many steps."""
        frequency = self.frequency or min(max(length // _DEFAULT_LOOKS, 1), _LONGEST_FREQUENCY)
        return min(int(frequency), max(length // _FEWEST_LOOKS, 1))


@dataclass(frozen=True)
class ConstantSparsity:
    """One sparsity from the beginning on, reached as fast as the decay can.

    Args:
        target_sparsity: Float in [0, 1], the share of zeros.
        begin_step: Integer >= 0, the step to begin at. A step is a batch of the training.
            `None` for an eighth of `end_step`, which is a tenth of the training by default.
        end_step: Integer > `begin_step`, the step at which the sparsity is made exact and the
            zeros are frozen; `-1` for four fifths of the training.
        frequency: Integer >= 1, the steps from one look at the weights to the next, at most a
            tenth of the way; `None` for a fiftieth of the way, but at most 100.

    Raises:
        ValueError: If an argument is out of its range.
    """

    target_sparsity: float
    begin_step: int | None = None
    end_step: int = -1
    frequency: int | None = None

    def __post_init__(self) -> None:
        check_sparsity("target_sparsity", self.target_sparsity)
        self.as_polynomial()

    def as_polynomial(self) -> PolynomialSparsity:
        """The same as a polynomial of infinite power, which is at its end at once."""
        return PolynomialSparsity(
            None,
            self.target_sparsity,
            self.begin_step,
            None if self.end_step == -1 else self.end_step,
            math.inf,
            self.frequency,
        )


def as_schedule(schedule: Any) -> PolynomialSparsity:
    """A schedule of ours or of TF-MOT's as a polynomial.

    Raises:
        ValueError: If it is none of them.
    """
    if isinstance(schedule, PolynomialSparsity):
        return schedule
    if isinstance(schedule, ConstantSparsity):
        return schedule.as_polynomial()
    # TF-MOT's, told by what it says of itself, so that TF-MOT is not imported here.
    is_object = hasattr(schedule, "get_config") and not isinstance(schedule, type)
    described = schedule.get_config() if is_object else {}
    if described.get("class_name") == "PolynomialDecay":
        return PolynomialSparsity(**described["config"])
    if described.get("class_name") == "ConstantSparsity":
        return ConstantSparsity(**described["config"]).as_polynomial()
    raise ValueError(
        f"Argument `schedule` must be one of {sorted(POWERS)}, a `PolynomialSparsity`, a "
        "`ConstantSparsity`, or an object of these two of TF-MOT's (`PolynomialDecay`, "
        f"`ConstantSparsity`). Received: schedule={schedule!r}"
    )


def schedule_of(
    schedule: Any, final_sparsity: float | None, steps: Mapping[str, Any]
) -> PolynomialSparsity:
    """What the arguments of `SparsityTarget` describe.

    Args:
        schedule: The name of a form, or an object as `as_schedule` takes it.
        final_sparsity: What to end at; `None` with an object.
        steps: `begin_step`, `end_step` and `frequency`; all `None` with an object.

    Raises:
        ValueError: If they do not fit together.
    """
    if hasattr(final_sparsity, "frequency") or hasattr(final_sparsity, "get_config"):
        raise ValueError(
            "Pass a schedule object by its name: `SparsityTarget(schedule=...)`. "
            f"Received: final_sparsity={final_sparsity!r}"
        )
    if isinstance(schedule, str) and schedule in POWERS:
        if final_sparsity is None:
            raise ValueError(
                "Argument `final_sparsity` is needed: the share of weights that are to be zero, "
                "0.9 for 90 %. Received: final_sparsity=None"
            )
        return PolynomialSparsity(None, final_sparsity, power=POWERS[schedule], **steps)
    converted = as_schedule(schedule)
    given = {name: value for name, value in steps.items() if value is not None}
    if final_sparsity is not None or given:
        raise ValueError(
            "With a schedule object leave out `final_sparsity`, `begin_step`, `end_step` and "
            "`frequency`, which the object says. Received: "
            f"schedule={schedule!r}, final_sparsity={final_sparsity!r}, {steps}"
        )
    return converted


def _check_step(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not (isinstance(value, Integral) and int(value) >= least):
        raise ValueError(
            f"Argument `{name}` must be an integer >= {least}, a number of steps, which are "
            f"batches. Received: {name}={value!r}"
        )
