"""Learning-rate schedules: progress in [0, 1] to a fraction of the peak in [0, 1].

Settings are keyword-only, have defaults and are named as the recipe's fields. What needs feedback
is a class whose instances are called like any other schedule (`Plateau`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

Schedule = Callable[[float], float]
WARMUP = 0.2
START = 0.04
STEPS = 3  # equal parts of `step`
ROOT_SCALE = 0.01  # progress after which inverse_sqrt has fallen to 1 / sqrt(2)


def one_cycle(progress: float) -> float:
    """Rise linearly from 4 % to the peak in the first fifth, then fall to 0 along a cosine.

    Source: Smith & Topin 2018, "Super-Convergence", with cosine annealing.
    """
    if progress < WARMUP:
        return START + (1 - START) * progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def constant(progress: float) -> float:
    """Stay at the peak."""
    return 1.0


def linear(progress: float) -> float:
    """Fall along a line from the peak to 0."""
    return 1 - progress


def polynomial(progress: float, *, power: float = 1.0) -> float:
    """Fall from the peak to 0 as (1 - progress)^power (Chen et al. 2018, DeepLab)."""
    return float((1 - progress) ** power)


def exponential(progress: float, *, gamma: float = 0.1) -> float:
    """Fall by the same factor in equal times, from the peak to `gamma` of it."""
    return float(gamma**progress)


def step(progress: float, *, gamma: float = 0.1) -> float:
    """Fall to `gamma` of the rate after each third (30 of 90 epochs, the habit with ResNets)."""
    return float(gamma ** min(STEPS - 1, math.floor(STEPS * progress)))


def multi_step(
    progress: float, *, gamma: float = 0.1, milestones: Sequence[float] = (0.5, 0.75)
) -> float:
    """Fall to `gamma` of the rate at each of the `milestones`, which are progress in (0, 1).

    The defaults are those of He et al. 2015, section 4.2.
    """
    return float(gamma ** sum(progress >= milestone for milestone in milestones))


def cosine(progress: float) -> float:
    """Fall from the peak to 0 along half a cosine (Loshchilov & Hutter 2017, equation 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def cosine_restarts(progress: float, *, cycles: int = 3) -> float:
    """Fall along a cosine in each of equal cycles (Loshchilov & Hutter 2017, section 3)."""
    return cosine(phase(progress, cycles)[1])


def triangular(progress: float, *, cycles: int = 3) -> float:
    """Rise from 0 to the peak and fall back in each cycle (Smith 2017, section 3.1)."""
    return triangle(phase(progress, cycles)[1])


def triangular2(progress: float, *, cycles: int = 3) -> float:
    """Do as triangular, with half the height in each further cycle (Smith 2017, section 3.1)."""
    cycle, inside = phase(progress, cycles)
    return triangle(inside) * 0.5**cycle


def exp_range(progress: float, *, cycles: int = 3, gamma: float = 0.1) -> float:
    """Do as triangular under a height that falls by equal factors to `gamma` at the end.

    Smith 2017, section 3.1; the height starts to fall at the first peak, so that this one is full.
    """
    first = 0.5 / cycles
    fallen = max(0.0, (progress - first) / (1 - first))
    return float(triangular(progress, cycles=cycles) * gamma**fallen)


def inverse_sqrt(progress: float) -> float:
    """Fall as 1 / sqrt(1 + 100 progress), to a tenth of the peak.

    Vaswani et al. 2017, section 5.3, with the offset of Zhai et al. 2022, section 3.5, as 1 % of
    the training.
    """
    return math.sqrt(ROOT_SCALE / (ROOT_SCALE + progress))


class Plateau:
    """Fall to `gamma` of the rate after `plateau_patience` epochs without a better score.

    Call `observe` once per epoch. Source: He et al. 2015, section 3.4, "divided by 10 when the
    error plateaus".
    """

    def __init__(self, *, gamma: float = 0.1, plateau_patience: int = 5) -> None:
        self.gamma = gamma
        self.patience = plateau_patience
        self.fraction = 1.0
        self.best: float | None = None
        self.stale = 0

    def __call__(self, progress: float) -> float:
        """Return the present fraction, whatever the progress."""
        return self.fraction

    def observe(self, score: float) -> None:
        """Take the score of one epoch, larger is better; a score that is no number is not."""
        if not math.isnan(score) and (self.best is None or score > self.best):
            self.best, self.stale = score, 0
            return
        self.stale += 1
        if self.stale >= self.patience:
            self.fraction *= self.gamma
            self.stale = 0

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain values."""
        return {"fraction": self.fraction, "best": self.best, "stale": self.stale}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.fraction = float(state["fraction"])
        self.best = state["best"]
        self.stale = int(state["stale"])


def phase(progress: float, cycles: int) -> tuple[int, float]:
    """Return the number of the cycle, from 0, and the progress inside it; 1 ends the last one."""
    cycle = min(cycles - 1, math.floor(cycles * progress))
    return cycle, min(1.0, cycles * progress - cycle)


def triangle(inside: float) -> float:
    """Rise from 0 to 1 in the first half and fall back in the second."""
    return 1 - abs(2 * inside - 1)


def with_settings(part: Callable[..., Any], settings: Mapping[str, Any]) -> Schedule:
    """Return the schedule with those `settings` that it names; of a class, an instance."""
    names = inspect.signature(part).parameters
    own = {name: value for name, value in settings.items() if name in names}
    bound = partial(part, **own)
    return bound() if inspect.isclass(part) else bound


def with_floor(schedule: Schedule, final_rate: float) -> Schedule:
    """Return s + f (1 - s): the peak stays, and 0 becomes `final_rate`, a fraction of the peak."""
    if final_rate == 0:
        return schedule

    def lifted(progress: float) -> float:
        fraction = schedule(progress)
        return fraction + final_rate * (1 - fraction)

    return lifted


def with_warmup(schedule: Schedule, warmup: float) -> Schedule:
    """Rise linearly from 0 to the schedule's start while progress < `warmup`; it has the rest.

    Goyal et al. 2017, section 2.2.
    """
    if warmup == 0:
        return schedule

    def warmed(progress: float) -> float:
        if progress < warmup:
            return schedule(0.0) * progress / warmup
        return schedule((progress - warmup) / (1 - warmup))

    return warmed


SCHEDULES: dict[str, Callable[..., Any]] = {
    "one_cycle": one_cycle,
    "constant": constant,
    "linear": linear,
    "polynomial": polynomial,
    "exponential": exponential,
    "step": step,
    "multi_step": multi_step,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "triangular": triangular,
    "triangular2": triangular2,
    "exp_range": exp_range,
    "inverse_sqrt": inverse_sqrt,
    "plateau": Plateau,
}
