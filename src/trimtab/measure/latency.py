"""How fast: single calls after warm-up, and two models timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.measure.stats import paired_ratio

WARM_UP_SHARE = 0.2
WARM_UP_CALLS = 5
FEWEST_CALLS = 20
BLOCK_SECONDS = 0.02
FEWEST_BLOCKS = 8
RESAMPLES = 1000
STRETCHES = 20

Call = Callable[[], object]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: quantiles over `n` calls, and the 95 % interval of the median."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    low_ms: float
    high_ms: float
    n: int
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """How many times as long the first took as the second, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def measure_latency(call: Call, *, seconds: float = 1.0, threads: int) -> Latency:
    """Time single calls for `seconds` after a warm-up of a fifth of that; at least 20 calls."""
    warm_up(call, WARM_UP_SHARE * seconds)
    return summary(timed(call, seconds), threads)


def summary(times: NDArray[np.float64], threads: int) -> Latency:
    """Return the quantiles of `times` (milliseconds, in the order they were measured)."""
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    low, high = median_interval(times)
    return Latency(float(p50), float(p95), float(p99), low, high, len(times), threads)


def warm_up(call: Call, seconds: float) -> None:
    """Call for `seconds`, at least five times."""
    end, calls = time.perf_counter() + seconds, 0
    while calls < WARM_UP_CALLS or time.perf_counter() < end:
        call()
        calls += 1


def timed(call: Call, seconds: float) -> NDArray[np.float64]:
    """Return milliseconds of each call."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < FEWEST_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return 1000 * np.asarray(times)


def median_interval(times: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median, resampling 20 stretches of calls.

    Neighbouring calls are alike: resampled one by one they would promise too much (the block
    bootstrap, Kuensch 1989).
    """
    stretches = np.array_split(times, min(STRETCHES, len(times)))
    medians = np.array([np.median(stretch) for stretch in stretches])
    picks = np.random.default_rng(seed).choice(medians, (RESAMPLES, len(medians)))
    low, high = np.percentile(np.median(picks, axis=1), [2.5, 97.5])
    centre = float(np.median(times))
    return min(float(low), centre), max(float(high), centre)


def compare_latency(a: Call, b: Call, *, seconds: float = 2.0) -> Ratio:
    """Return time(a) / time(b) of two calls timed in turns; above 1, b is the faster one."""
    return ratio(*in_turns((a, b), seconds=seconds))


def in_turns(
    calls: Sequence[Call], *, seconds: float, fewest: int = FEWEST_BLOCKS
) -> list[list[NDArray[np.float64]]]:
    """Time several calls in turns for `seconds` in all: a b c, c b a, block by block.

    Returns per call the milliseconds of each of its blocks, at least `fewest`. A block is as many
    calls as fit into 20 ms, one at the least, so that a machine that slows down slows all.
    """
    for call in calls:
        warm_up(call, WARM_UP_SHARE * seconds / len(calls))
    counts = [
        max(1, round(1000 * BLOCK_SECONDS / float(np.median(block(c, WARM_UP_CALLS)))))
        for c in calls
    ]
    order = range(len(calls))
    blocks: list[list[NDArray[np.float64]]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(blocks[0]) < fewest or time.perf_counter() < end:
        for which in (*order, *reversed(order)):
            blocks[which].append(block(calls[which], counts[which]))
    return blocks


def ratio(a: Sequence[NDArray[np.float64]], b: Sequence[NDArray[np.float64]]) -> Ratio:
    """Return time(a) / time(b) from blocks that were timed in turns, neighbour by neighbour."""
    medians = [[float(np.median(times)) for times in blocks] for blocks in (a, b)]
    value, low, high = paired_ratio(*medians)
    return Ratio(value, low, high, len(a))


def block(call: Call, count: int) -> NDArray[np.float64]:
    """Return milliseconds of `count` calls in a row, after one that is not counted."""
    call()
    times = np.empty(count)
    for index in range(count):
        started = time.perf_counter()
        call()
        times[index] = time.perf_counter() - started
    return 1000 * times
