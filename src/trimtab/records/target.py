"""A target: `metric op value[unit]` clauses, read once and judged at the end."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.errors import TargetError
from trimtab.registry import did_you_mean

EXAMPLE = 'write it like "accuracy>=0.92, p95<=10ms, size<=5MB"'
UNITS: dict[str, dict[str, float]] = {
    "time": {"s": 1000.0, "ms": 1.0, "us": 1e-3, "µs": 1e-3},
    "bytes": {
        "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3,
        "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3,
    },
    "fraction": {"": 1.0, "%": 0.01},
    "count": {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3},
}  # fmt: skip
METRICS = {
    "accuracy": "fraction", "f1": "fraction",
    "p50": "time", "p95": "time", "p99": "time",
    "size": "bytes", "params": "count", "macs": "count",
}  # fmt: skip
HIGHER_IS_BETTER = {"accuracy", "f1"}
CLAUSE = re.compile(
    r"\s*([A-Za-z_]\w*)\s*(>=|<=|==|=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(\S*)\s*"
)


@dataclass(frozen=True)
class Clause:
    """One condition; `wanted` is a fraction, milliseconds, bytes or a count (see METRICS)."""

    metric: str
    op: str
    wanted: float
    text: str

    def met(self, got: float | None) -> bool:
        """Return whether `got` (in the unit of `wanted`) satisfies this; unknown never does."""
        if got is None or math.isnan(got):
            return False
        return got >= self.wanted if self.op == ">=" else got <= self.wanted

    def shortfall(self, got: float | None) -> float:
        """Return how far `got` misses the clause, relative to what was wanted; 0 when met."""
        if self.met(got):
            return 0.0
        if got is None or math.isnan(got):
            return math.inf
        return abs(got - self.wanted) / max(abs(self.wanted), 1e-12)


@dataclass(frozen=True)
class Target:
    """All clauses of a target."""

    clauses: tuple[Clause, ...]

    def wanted(self, metric: str) -> float | None:
        """Return the bound on `metric`, or None where the target says nothing of it."""
        return next((c.wanted for c in self.clauses if c.metric == metric), None)

    def judge(self, got: Mapping[str, float | None]) -> list[dict[str, Any]]:
        """Return one row per clause: metric, op, wanted, got, met."""
        return [
            {"metric": c.metric, "op": c.op, "wanted": c.wanted, "got": got.get(c.metric),
             "met": c.met(got.get(c.metric))}
            for c in self.clauses
        ]  # fmt: skip

    def met(self, got: Mapping[str, float | None]) -> bool:
        """Return whether every clause holds."""
        return all(c.met(got.get(c.metric)) for c in self.clauses)

    def __str__(self) -> str:
        return ", ".join(c.text for c in self.clauses)


def parse_target(text: str) -> Target:
    """Read `"accuracy>=0.92, p95<=10ms, size<=5MB"`.

    Units: s, ms, us; B, KB, MB, GB (decimal), KiB, MiB, GiB; fractions or percent; K, M, G for
    counts. Raises TargetError for anything that cannot be read in exactly one way.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise TargetError(f"the target is empty: got '{text}'", EXAMPLE)
    clauses = tuple(parse_clause(part) for part in parts)
    names = [c.metric for c in clauses]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TargetError(f"target names '{twice[0]}' more than once: got '{text}'", EXAMPLE)
    return Target(clauses)


def parse_clause(part: str) -> Clause:
    """Read one `metric op value[unit]`."""
    match = CLAUSE.fullmatch(part)
    if match is None:
        raise TargetError(f"cannot read the clause '{part}' of the target", EXAMPLE)
    metric, op, number, unit = match.groups()
    metric = metric.lower()
    if metric not in METRICS:
        raise TargetError(f"unknown metric '{metric}' in '{part}'", did_you_mean(metric, METRICS))
    wanted = read_number(number, part) * unit_factor(METRICS[metric], unit, part)
    check_range(metric, wanted, part)
    check_direction(metric, op, part)
    return Clause(metric, op, wanted, part.replace(" ", ""))


def check_direction(metric: str, op: str, part: str) -> None:
    """Accept `>=` for what should be high and `<=` for what should be low, nothing else."""
    wanted = ">=" if metric in HIGHER_IS_BETTER else "<="
    if op != wanted:
        raise TargetError(
            f"'{part}' uses '{op}': {metric} takes '{wanted}'",
            f"write {part.replace(op, wanted, 1)}",
        )


def read_number(number: str, part: str) -> float:
    """Read a finite positive number."""
    try:
        value = float(number)
    except ValueError:
        raise TargetError(f"'{number}' in '{part}' is no number", EXAMPLE) from None
    if not math.isfinite(value) or value <= 0:
        raise TargetError(f"'{part}' needs a finite number above zero, got {number}", EXAMPLE)
    return value


def unit_factor(kind: str, unit: str, part: str) -> float:
    """Return what one `unit` is in the base unit of `kind`; a missing unit is an error."""
    units: dict[str, float] = UNITS[kind]
    if unit in units:
        return units[unit]
    known = ", ".join(u for u in units if u)
    if not unit:
        raise TargetError(f"'{part}' has no unit", f"add one of: {known}")
    raise TargetError(f"unknown unit '{unit}' in '{part}'", f"known units: {known}")


def check_range(metric: str, wanted: float, part: str) -> None:
    """Refuse a fraction above 1: 92 may mean 92 % or a slip."""
    if METRICS[metric] == "fraction" and wanted > 1:
        raise TargetError(
            f"'{part}' asks for {metric} {wanted:g}, wanted a fraction in [0, 1]",
            f"write {metric}>=0.92 or {metric}>=92%",
        )


def show(metric: str, value: float | None) -> str:
    """Return `value` with the unit people read: 97.1 %, 0.42 ms, 84.3 KB, 25.6 M."""
    if value is None:
        return "?"
    kind = METRICS[metric]
    if kind == "fraction":
        return f"{100 * value:.2f} %"
    if kind == "time":
        return f"{value:.3g} ms" if value < 999.5 else f"{value / 1000:.3g} s"
    scales = [("G", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0)]
    prefix, scale = next((s for s in scales if value >= 0.9995 * s[1]), ("", 1.0))
    return f"{value / scale:.3g} {prefix}{'B' if kind == 'bytes' else ''}".strip()


DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|sec|m|min|h)?")


def parse_duration(text: str | float) -> float:
    """Read `"90s"`, `"30m"`, `"1.5h"` or a number of seconds; returns seconds."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        seconds = float(text)
    else:
        match = DURATION.fullmatch(str(text).strip())
        if match is None:
            raise TargetError(f"cannot read the budget '{text}'", "write it like 90s, 30m or 2h")
        seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[(match[2] or "s")[0]]
    if not math.isfinite(seconds) or seconds <= 0:
        raise TargetError(f"a budget must be above zero, got '{text}'", "write it like 90s or 30m")
    return seconds
