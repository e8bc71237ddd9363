"""Learning-rate schedules: progress in [0, 1] to a fraction of the peak."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]
WARMUP = 0.2
START = 0.04


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


SCHEDULES: dict[str, Schedule] = {"one_cycle": one_cycle, "constant": constant}
