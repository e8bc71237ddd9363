"""Choose on valid: the smallest or fastest candidate that meets every clause, else the nearest."""

from __future__ import annotations

import math

from trimtab.errors import TrimtabError
from trimtab.measure.stats import Z95
from trimtab.plan.candidates import Candidate
from trimtab.records.target import HIGHER_IS_BETTER, Target

MARGINS = (Z95, 1.0, 0.0)  # standard errors of accuracy to spare, the most careful first


def choose(candidates: list[Candidate], target: Target) -> Candidate:
    """Return the candidate that ships.

    Among the kept ones: those that meet every clause even at the low end of the 95 % interval of
    their accuracy, else with one standard error to spare, else just so, else the one with the
    smallest total shortfall. Of several, the smallest file ships, or the fastest where the target
    names a latency and no size.
    """
    kept = [c for c in candidates if c.kept]
    if not kept:
        raise TrimtabError("there is no candidate to choose from", "give more --budget")
    for margin in MARGINS:
        meeting = [c for c in kept if target.met(cautious(c, margin))]
        if meeting:
            return min(meeting, key=lambda c: cost(c, target))
    return min(kept, key=lambda c: (shortfall(c, target), cost(c, target)))


def cautious(candidate: Candidate, margin: float) -> dict[str, float | None]:
    """Return the candidate's figures with accuracy and f1 lowered by `margin` standard errors.

    The standard error is that of the 95 % interval of its accuracy, seen from below.
    """
    got, scores = dict(candidate.got), candidate.scores
    error = (scores.accuracy - scores.low) / Z95
    for metric in HIGHER_IS_BETTER:
        got[metric] = (got[metric] or 0.0) - margin * error
    return got


def cost(candidate: Candidate, target: Target) -> float:
    """Return what is made small: bytes, or milliseconds where only a latency is wanted."""
    latency = next((m for m in ("p95", "p50", "p99") if target.wanted(m) is not None), None)
    if latency is not None and target.wanted("size") is None:
        return float(candidate.got[latency] or math.inf)
    return float(candidate.artifact.size_bytes)


def shortfall(candidate: Candidate, target: Target) -> float:
    """Return the summed relative shortfall of all clauses."""
    return sum(clause.shortfall(candidate.got.get(clause.metric)) for clause in target.clauses)


def binding(got: dict[str, float | None], target: Target) -> str | None:
    """Return the metric of the clause that is missed by most, or None where all are met."""
    worst = max(target.clauses, key=lambda clause: clause.shortfall(got.get(clause.metric)))
    return worst.metric if worst.shortfall(got.get(worst.metric)) > 0 else None
