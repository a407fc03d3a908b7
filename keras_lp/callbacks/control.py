"""The law by which `SparsityTarget` sets a strength: plain numbers in, plain numbers out.

Zeros lag behind the decay that makes them, so the law looks ahead. It aims at the
magnitude `Q` under which weights have to fall for the sparsity that is scheduled a tenth of
the way ahead, and corrects the speed of their fall by the error of the zeros there are.
"""

import math
from dataclasses import dataclass

from keras_lp.callbacks.measuring import Magnitudes
from keras_lp.callbacks.schedules import PolynomialSparsity

_LEAD = 0.1  # how far to look ahead, as a share of the way
_GAIN = 10.0  # change of the logarithm of the speed over the whole way, at the largest error
_LARGEST_ERROR = 0.02  # of the sparsity; a larger one counts as this
# Of the weights, left to be closed by magnitude, so that nothing overshoots; at least one.
_MARGIN = 0.002
_MARGIN_OF_REST = 0.1  # the same, at most, as a share of the weights that are to stay
PINNING = 1e-9  # a strength that keeps zeros zero, and other weights as they are
_STRONGEST = 1e30


@dataclass(frozen=True)
class Course:
    """The way of one group of variables to its final sparsity.

    Attributes:
        schedule: What it follows.
        begin: Step of the begin.
        end: Step of the end.
        initial: Sparsity at the begin.
        final: Sparsity at the end.
    """

    schedule: PolynomialSparsity
    begin: int
    end: int
    initial: float
    final: float

    @property
    def length(self) -> int:
        """Number of steps of the way."""
        return self.end - self.begin

    def sparsity(self, step: float) -> float:
        """What is scheduled at a step."""
        done = self.schedule.progress((step - self.begin) / self.length)
        return self.final + (self.initial - self.final) * (1.0 - done)

    def magnitude_to_fall(self, step: int, found: Magnitudes) -> float:
        """Magnitude `Q` under which weights have to fall; 0 if enough did."""
        margin = max(min(_MARGIN, _MARGIN_OF_REST * (1 - self.final)), 1 / found.size)
        ahead = self.sparsity(step + _LEAD * self.length)
        return found.quantile(min(ahead, self.final - margin))

    def log_speed(
        self,
        step: int,
        sparsity: float,
        magnitude: float,
        before: float,
        every: int,
        learning_rate: float,
    ) -> float:
        """Logarithm of the speed at which a weight of magnitude `Q` is to fall.

        In units of the learning rate, as the steps of Adam are. NaN where it is not known.

        Args:
            step: The step of now.
            sparsity: The sparsity of now.
            magnitude: The `magnitude_to_fall` of now.
            before: What this was at the last look; NaN if there was none.
            every: The steps from one look to the next.
            learning_rate: The learning rate of now.
        """
        lead = _LEAD * self.length
        if math.isnan(before) or step < self.begin + lead:
            # No zeros to go by yet: the speed that makes up for the lead.
            is_known = magnitude > 0 and learning_rate > 0
            return math.log(magnitude / (learning_rate * lead)) if is_known else before
        error = (self.sparsity(step) - sparsity) / _LARGEST_ERROR
        return before + _GAIN * every / self.length * min(max(error, -1.0), 1.0)


def strength(
    log_speed: float, magnitude: float, p: float, every: int, learning_rate: float
) -> float:
    """The strength under which a weight of a magnitude falls at a speed.

    Formula: `weight_decay = speed * magnitude**(1 - p)`, from the fall of
    `learning_rate * weight_decay * |w|**(p - 1)` in a step. The speed is at most that at which
    such a weight is zero by the next look, since no zero comes back.
    """
    if magnitude == 0 or learning_rate == 0 or math.isnan(log_speed):
        return PINNING
    log_limit = math.log(magnitude / ((2 - min(p, 1.0)) * learning_rate * every))
    log_strength = min(log_speed, log_limit) + max(1.0 - p, 0.0) * math.log(magnitude)
    return math.exp(min(max(log_strength, math.log(PINNING)), math.log(_STRONGEST)))
