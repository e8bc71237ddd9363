"""Ranges: from the values of a tensor over calibration samples to what int8 must cover."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
TAIL = 0.01  # percent cut off at either end
LEVELS = 255
SHARES = np.geomspace(0.2, 1.0, 33)
BINS = 2048
SWEEPS = 2


def minmax(values: Values) -> tuple[float, float]:
    """Cover every value that was seen."""
    return float(values.min()), float(values.max())


def percentile(values: Values) -> tuple[float, float]:
    """Cover all but the outermost 0.01 % at either end."""
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    return float(low), float(high)


def mse(values: Values) -> tuple[float, float]:
    """Cover the range whose rounding and clipping together lose least: min E[(q(x) - x)^2].

    Searches shares of the seen range, first both ends together, then each in turn, on a histogram.
    The criterion of Banner et al. 2019 (1810.05723), by search instead of a fitted distribution.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low == high:
        return low, high
    counts, edges = np.histogram(values, BINS)
    centres = ((edges[1:] + edges[:-1]) / 2)[counts > 0]
    weights = counts[counts > 0]

    def lost(a: float, b: float) -> float:
        step = max((b - a) / LEVELS, 1e-12)
        zero = np.round(-a / step)
        rounded = (np.clip(np.round(centres / step) + zero, 0, LEVELS) - zero) * step
        return float((weights * np.square(rounded - centres)).sum())

    share = min(SHARES, key=lambda s: lost(low * s, high * s))
    best_low, best_high = low * share, high * share
    for _ in range(SWEEPS):
        best_low = low * min(SHARES, key=lambda s: lost(low * s, best_high))
        best_high = high * min(SHARES, key=lambda s: lost(best_low, high * s))
    return float(best_low), float(best_high)


RANGES: dict[str, Callable[[Values], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}
