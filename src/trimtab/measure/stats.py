"""Intervals: how far a measured number can be trusted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959964
RESAMPLES = 2000


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927)."""
    if n == 0:
        return (0.0, 1.0)
    share = successes / n
    centre = share + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    return (max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


def bootstrap_ratio(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> tuple[float, float, float]:
    """Return the geometric mean of the paired ratios a/b and its 95 % bootstrap interval."""
    logs = np.log(np.asarray(a, float)) - np.log(np.asarray(b, float))
    low, high = bootstrap(logs, seed=seed)
    return (math.exp(float(logs.mean())), math.exp(low), math.exp(high))


def bootstrap(values: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return (float(low), float(high))


def paired_difference(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Return mean(b) - mean(a) of right/wrong decisions on the same samples, with 95 % interval.

    Normal approximation of the paired difference (as in McNemar's test), with half a sample of
    continuity so that no two models look exactly equal.
    """
    difference = np.asarray(b, float) - np.asarray(a, float)
    n = max(1, len(difference))
    spread = Z95 * float(difference.std()) / math.sqrt(n) + 0.5 / n
    mean = float(difference.mean()) if len(difference) else 0.0
    return (mean, mean - spread, mean + spread)
