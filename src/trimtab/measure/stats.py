"""Intervals: how far a measured number can be trusted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z95 = 1.959964
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # by freedom, from 1


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927)."""
    if n == 0:
        return (0.0, 1.0)
    share = successes / n
    centre = share + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    low = (centre - spread) / scale if successes > 0 else 0.0  # exactly, whatever is rounded
    high = (centre + spread) / scale if successes < n else 1.0
    return (max(0.0, low), min(1.0, high))


def paired_ratio(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Return the geometric mean of the paired ratios a/b and the 95 % t interval of their logs.

    That of one pair is all ratios there are. Resampling a few pairs would never look beyond the
    least and the largest of them.
    """
    logs = np.log(np.asarray(a, float)) - np.log(np.asarray(b, float))
    mean = float(logs.mean())
    spread = t_spread(logs) if len(logs) > 1 else math.inf
    return (math.exp(mean), math.exp(mean - spread), math.exp(mean + spread))


def paired_difference(a: ArrayLike, b: ArrayLike) -> tuple[float, float, float]:
    """Return mean(b) - mean(a) of right/wrong decisions on the same samples, with 95 % interval.

    `a` and `b` are (N,), or (S, N) with a row for each of S seeds. Normal approximation of the
    paired difference (as in McNemar's test), with half a sample of continuity so that no two
    models look exactly equal; widened by what differs between seeds. Seeds and samples are crossed:
    the variances of both are added, which is no less than that of the mean (Owen 2007, "The
    pigeonhole bootstrap", section 3).
    """
    difference = np.atleast_2d(np.asarray(b, float) - np.asarray(a, float))
    n = max(1, difference.shape[1])
    if not difference.size:
        return (0.0, -0.5 / n, 0.5 / n)
    spread = Z95 * float(difference.mean(axis=0).std()) / math.sqrt(n)
    spread = math.hypot(spread, t_spread(difference.mean(axis=1))) + 0.5 / n
    mean = float(difference.mean())
    return (mean, mean - spread, mean + spread)


def mean_share(correct: ArrayLike) -> tuple[float, float, float]:
    """Return the share of right decisions (S, N) over S seeds, with its 95 % interval.

    Wilson's interval for the N samples, widened by what differs between seeds.
    """
    rows = np.atleast_2d(np.asarray(correct, float))
    mean, between = float(rows.mean()), t_spread(rows.mean(axis=1))
    low, high = wilson(mean * rows.shape[1], rows.shape[1])
    return (mean, max(0.0, mean - math.hypot(mean - low, between)),
            min(1.0, mean + math.hypot(high - mean, between)))  # fmt: skip


def t_spread(values: NDArray[np.float64]) -> float:
    """Return half the 95 % t interval of the mean of values (S,) (Student 1908); 0 for one."""
    freedom = len(values) - 1
    if freedom < 1:
        return 0.0
    return t95(freedom) * float(values.std(ddof=1)) / math.sqrt(len(values))


def t95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, beyond a table by its series in 1 / freedom.

    Abramowitz & Stegun 1964, 26.7.5, to three terms: off by less than 0.001 there.
    """
    if freedom <= len(T95):
        return T95[freedom - 1]
    first = (Z95**3 + Z95) / 4
    second = (5 * Z95**5 + 16 * Z95**3 + 3 * Z95) / 96
    third = (3 * Z95**7 + 19 * Z95**5 + 17 * Z95**3 - 15 * Z95) / 384
    return Z95 + first / freedom + second / freedom**2 + third / freedom**3
