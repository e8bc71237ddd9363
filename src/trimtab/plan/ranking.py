"""Rank what was compared: paired differences to the most accurate, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.measure.latency import Ratio, ratio
from trimtab.measure.stats import mean_share, paired_difference
from trimtab.plan.candidates import Candidate

COSTS = ("p95_ms", "size_bytes")


@dataclass(frozen=True)
class Ranked:
    """One model that was measured: its file, its decisions (S, N) by seed, its timed blocks."""

    candidate: Candidate
    correct: NDArray[np.bool_]
    blocks: Sequence[NDArray[np.float64]]
    epochs: Sequence[float]
    f1: float

    @property
    def accuracy(self) -> float:
        """Share of right decisions, the mean over seeds."""
        return float(self.correct.mean())

    def row(self) -> dict[str, Any]:
        """Return the row of table.json, so far without what others decide."""
        value, low, high = mean_share(self.correct)
        by_seed = self.correct.mean(axis=1)
        return {
            **self.candidate.row(),
            "accuracy": {"value": value, "low": low, "high": high, "n": self.correct.shape[1],
                         "split": self.candidate.scores.split},
            "f1": self.f1, "epochs": list(self.epochs), "front": False, "against_best": None,
            "seeds": {"n": len(by_seed), "low": float(by_seed.min()), "high": float(by_seed.max()),
                      "deviation": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None},
        }  # fmt: skip


def ranked_rows(found: Sequence[Ranked]) -> list[dict[str, Any]]:
    """Return the rows of table.json, the most accurate first; of equals the faster one."""
    order = sorted(found, key=lambda one: (-one.accuracy, one.candidate.latency.p95_ms))
    rows = [{**one.row(), **against(order[0], one)} for one in order]
    for row in rows:
        row["front"] = not any(dominates(other, row) for other in rows)
    return rows


def against(best: Ranked, other: Ranked) -> dict[str, Any]:
    """Return what a row says of itself beside the most accurate, on the same pictures."""
    if other is best:
        return {"why": "; ".join(["the most accurate", *seed_words(best)])}
    change, low, high = paired_difference(best.correct, other.correct)
    speed = ratio(best.blocks, other.blocks)
    return {
        "against_best": {"value": change, "low": low, "high": high, "n": other.correct.shape[1]},
        "speedup": speed.to_dict(),
        "why": "; ".join([verdict(change, low, high), speed_words(speed), *seed_words(other)]),
    }


def verdict(change: float, low: float, high: float) -> str:
    """Say whether a difference is one, in points, with its interval."""
    word = "no difference shown" if high >= 0 else "less accurate"
    return f"{word}, {100 * change:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def speed_words(speed: Ratio) -> str:
    """Say how fast a file is beside that of the most accurate."""
    return f"{speed.value:.2f}x speed ({speed.low:.2f}-{speed.high:.2f})"


def seed_words(one: Ranked) -> list[str]:
    """Say what the seeds reached, where there are several."""
    by_seed = 100 * one.correct.mean(axis=1)
    if len(by_seed) < 2:
        return []
    return [f"{len(by_seed)} seeds {by_seed.min():.1f}-{by_seed.max():.1f} %"]


def dominates(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether `a` is nowhere worse than `b` in accuracy, p95 and size, and better once."""
    pairs = [(-a["accuracy"]["value"], -b["accuracy"]["value"]),
             *((a[cost], b[cost]) for cost in COSTS)]  # fmt: skip
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
