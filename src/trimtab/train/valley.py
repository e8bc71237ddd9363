"""Say where the loss of a learning-rate sweep falls, and whether that can be told from noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FEWEST = 12  # steps below which nothing is said
BEGIN = 0.1  # share of the steps whose mean is the level the loss falls from
WINDOW = 0.05  # half the width of the smoothing, as a share of the steps
CERTAIN = 9.0  # standard errors of the smoothed loss that a fall must exceed
LEAST_FALL = 0.01  # of the level it falls from, below which a curve counts as flat
CLEAR_FALL = 0.1  # of that level, from which on a valley counts as clear
SHARE = 0.5  # of the fall that is done where the suggestion stands
STEEP = 3  # steps from a tenth to nine tenths of the fall, below which it is a cliff
LOWER = "the learning rate must be lower"
SUM_OF_SQUARES = 2 / 3  # times 1 / (half + 1): of the weights of a triangular mean


@dataclass(frozen=True)
class Valley:
    """A suggested rate, or None, and why; `clear` where it needs no second look.

    `span` are the rates between which the loss falls, from a tenth of the fall to its end.
    """

    rate: float | None
    clear: bool
    reason: str
    span: tuple[float, float] | None = None


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the curve without outliers (median of 5), then as a triangular mean of its neighbours.

    Both are centred, so that nothing is moved to higher rates; at the ends windows are cut.
    """
    half, calm = half_width(len(losses)), without_outliers(losses)
    return [triangular(calm, at, half) for at in range(len(calm))]


def without_outliers(losses: Sequence[float]) -> list[float]:
    """Return the median of each loss and its two neighbours on each side."""
    return [statistics.median(losses[max(0, at - 2) : at + 3]) for at in range(len(losses))]


def triangular(values: Sequence[float], at: int, half: int) -> float:
    """Return the mean around `at`, weights falling linearly to both sides."""
    near = range(max(0, at - half), min(len(values), at + half + 1))
    weights = [half + 1 - abs(at - other) for other in near]
    total = sum(weight * values[other] for weight, other in zip(weights, near, strict=True))
    return total / sum(weights)


def half_width(count: int) -> int:
    """Return how many neighbours on each side are smoothed over."""
    return max(1, round(WINDOW * count))


def noise_of(losses: Sequence[float]) -> float:
    """Return the deviation of single losses around their course.

    From the median absolute deviation of neighbours' differences, which a trend and a few outliers
    do not change (Rousseeuw & Croux 1993: 1.4826 makes it that of a normal distribution).
    """
    steps = [after - before for before, after in pairwise(losses)]
    middle = statistics.median(steps)
    return 1.4826 * statistics.median(abs(step - middle) for step in steps) / math.sqrt(2)


@dataclass(frozen=True)
class Fall:
    """How a smoothed curve falls: from the level `high` to `low` at step `end`."""

    curve: list[float]
    calm: list[float]  # without outliers, but not smoothed: a cliff is steep here
    high: float
    low: float
    end: int
    error: float  # the standard error of one smoothed loss

    @property
    def certain(self) -> float:
        """The fall that noise alone does not make."""
        return CERTAIN * self.error

    def reached(self, share: float, curve: Sequence[float]) -> int:
        """Return the first step at which `share` of the fall is done on `curve`."""
        wanted = self.high - share * (self.high - self.low)
        return next(at for at, value in enumerate(curve) if value <= wanted or at == self.end)

    @property
    def steep(self) -> bool:
        """Whether most of the fall happens within a few steps."""
        return self.reached(0.9, self.calm) - self.reached(0.1, self.calm) < STEEP


def fall_of(losses: Sequence[float]) -> Fall:
    """Return how the losses fall, from the mean of their beginning to their smoothed minimum."""
    curve, first = smooth(losses), max(3, round(BEGIN * len(losses)))
    end = min(range(first, len(curve)), key=curve.__getitem__)
    high = statistics.fmean(losses[:first])
    weight = math.sqrt(SUM_OF_SQUARES / (half_width(len(losses)) + 1))
    return Fall(
        curve,
        without_outliers(losses),
        high,
        curve[end],
        end,
        noise_of(losses[: max(end + 1, FEWEST)]) * weight,
    )


def valley(rates: Sequence[float], losses: Sequence[float], *, diverged: bool) -> Valley:
    """Suggest a peak learning rate from a sweep: where half of the loss's whole fall is done.

    Smith 2017 (1506.01186), section 3.3, reads off by eye where the loss starts to fall and where
    it stops; fastai's `valley` takes the middle of the longest descent. Levels are used here in
    place of slopes, since noise moves them less. `rates` rise, `losses` are finite, `diverged`
    says that the sweep ended for that. There is no suggestion where the loss does not fall by more
    than noise does, or rises from the start.
    """
    if len(losses) < FEWEST:
        return few(rates, diverged=diverged)
    fall = fall_of(losses)
    depth = fall.high - fall.low
    if depth <= max(fall.certain, LEAST_FALL * abs(fall.high)):
        return no_fall(rates, fall, diverged=diverged)
    start, middle = (fall.reached(share, fall.curve) for share in (0.1, SHARE))
    doubts = doubts_of(fall, open_end=fall.end == len(losses) - 1)
    reason = (f"the loss falls from {fall.high:.3g} to {fall.low:.3g} between the rates "
              f"{rates[start]:.2g} and {rates[fall.end]:.2g}")  # fmt: skip
    return Valley(two_digits(rates[middle]), not doubts, "; but ".join([reason, *doubts]),
                  (rates[start], rates[fall.end]))  # fmt: skip


def few(rates: Sequence[float], *, diverged: bool) -> Valley:
    """Return what is said of a sweep that is too short."""
    if diverged:
        lowest = f"the lowest rate, {rates[0]:.2g}" if rates else "the lowest rate"
        return Valley(None, False, f"the loss diverges at once, from {lowest} on: {LOWER}")
    return Valley(None, False, f"{len(rates)} steps are too few, wanted {FEWEST} or more")


def no_fall(rates: Sequence[float], fall: Fall, *, diverged: bool) -> Valley:
    """Return what is said of a loss that does not fall."""
    if diverged or fall.curve[-1] - fall.low > max(fall.certain, CLEAR_FALL * abs(fall.high)):
        reason = f"the loss does not fall at any rate from {rates[0]:.2g} on, and then rises"
        return Valley(None, False, f"{reason}: {LOWER}, or the steps more")
    return Valley(None, False, "the curve is flat: the loss changes by no more than its noise "
                  f"between the rates {rates[0]:.2g} and {rates[-1]:.2g}")  # fmt: skip


def doubts_of(fall: Fall, *, open_end: bool) -> list[str]:
    """Return what speaks against a valley that was found."""
    depth = fall.high - fall.low
    doubts = []
    if depth < 2 * fall.certain or depth < CLEAR_FALL * abs(fall.high):
        doubts.append("that is little beside its noise or its height")
    if fall.steep:
        doubts.append("that is a cliff of a few steps, and its place is uncertain")
    if open_end:
        doubts.append("it still falls at the end, and a higher rate may be better")
    return doubts


def two_digits(rate: float) -> float:
    """Return a rate with two digits, so that what is printed is what was meant."""
    return float(f"{rate:.2g}")
