"""Says in words what the files hold: status, notes on what is missing, how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.records.target import METRICS, show
from trimtab.report.parts import Candidate, Clause, Evidence, Interval, Verdict

OVERSHOOT = 1.25
KINDS = {"time": "the time", "bytes": "the size", "count": "the number", "fraction": "the errors"}
NAMES = {"macs": "MACs"}
LEDGER_COLUMNS = ("what", "value", "unit", "low", "high", "n", "split", "device", "seconds", "time")
MOST_LEDGER_ROWS = 400
MOST_LISTED = 20


@dataclass(frozen=True)
class Gauge:
    """A clause as a bar: CSS percents of what is used, of the limit and of the interval."""

    fill: str
    limit: str
    interval: tuple[str, str] | None
    caption: str


def gauge(clause: Clause, measured: Interval | None) -> Gauge | None:
    """Return the bar of a clause; None where it was not measured or allows nothing."""
    used = clause.used
    if used is None:
        return None
    ends = interval_used(clause, measured)
    scale = max(OVERSHOOT, 1.04 * used, *(1.02 * end for end in ends))
    percents = [f"{100 * min(1.0, max(0.0, end) / scale):.1f}%" for end in ends]
    kind = KINDS[METRICS.get(clause.metric, "count")]
    return Gauge(
        fill=f"{100 * max(0.0, used) / scale:.1f}%", limit=f"{100 / scale:.1f}%",
        interval=(percents[0], percents[1]) if percents else None,
        caption=f"{amount(used)} {kind} it allows",
    )  # fmt: skip


def reached(clause: Clause) -> str:
    """Show what a clause got; with all digits where it looks like what was wanted but is not."""
    if clause.got is None or clause.metric not in METRICS:
        return "–" if clause.got is None else f"{clause.got:.6g}"
    words = show(clause.metric, clause.got)
    if clause.got == clause.wanted or words != show(clause.metric, clause.wanted):
        return words
    exact = {"fraction": f"{100 * clause.got:.4f} %", "time": f"{clause.got:.6g} ms",
             "bytes": f"{clause.got:,.0f} B", "count": f"{clause.got:,.0f}"}  # fmt: skip
    return exact[METRICS[clause.metric]]


def interval_used(clause: Clause, measured: Interval | None) -> list[float]:
    """Return the shares used at both ends of the accuracy interval, or nothing."""
    if clause.metric != "accuracy" or measured is None or measured.value != clause.got:
        return []
    ends = [clause.model_copy(update={"got": end}).used for end in (measured.low, measured.high)]
    return sorted(end for end in ends if end is not None) if None not in ends else []


def amount(share: float) -> str:
    """Write a share in percent, or as a multiple where it is large."""
    return f"{100 * share:.0f} % of" if share < 2 else f"{share:,.1f} times"


def doubt(verdict: Verdict) -> str:
    """Say where the accuracy interval crosses the target, so that chance could turn the verdict."""
    clause = next((c for c in verdict.clauses if c.metric == "accuracy"), None)
    measured = verdict.accuracy
    if clause is None or measured is None or measured.low is None or measured.high is None:
        return ""
    if not measured.low < clause.wanted <= measured.high:
        return ""
    return (
        f"The 95 % interval of the accuracy ({span(measured)}) includes the bound "
        f"{100 * clause.wanted:g} %: more {verdict.split} pictures would make the verdict surer."
    )


def span(measured: Interval | None) -> str:
    """Write an interval of fractions."""
    if measured is None or measured.low is None or measured.high is None:
        return ""
    return f"{100 * measured.low:.1f}–{100 * measured.high:.1f} %"


def status(evidence: Evidence) -> str:
    """Return finished, interrupted or unfinished."""
    if evidence.kind == "artifact":
        return "finished"
    return str(evidence.facts.get("status") or "unfinished")


def why_missing(evidence: Evidence, *names: str) -> str:
    """Say why a section is empty: its file cannot be read, or was never written."""
    broken = [f"{n} could not be read ({evidence.notes.unreadable[n]})"
              for n in names if n in evidence.notes.unreadable]  # fmt: skip
    if broken:
        return "; ".join(broken) + "."
    reason = {"interrupted": "the run was interrupted before it was written",
              "unfinished": "the run has not come that far"}.get(status(evidence))  # fmt: skip
    listed = " and ".join(names)
    return f"There is no {listed} in this folder" + (f": {reason}." if reason else ".")


def made_from(rows: Sequence[Candidate], row: Candidate) -> int | None:
    """Return the table number of the row that `row` was made from."""
    return next((i for i, other in enumerate(rows, 1) if other.name == row.parent), None)


def shipped(evidence: Evidence) -> Candidate | None:
    """Return the row of the model that ships."""
    return next((row for row in evidence.rows if row.chosen), None)


def got(verdict: Verdict, metric: str) -> float | None:
    """Return what was reached on a clause's metric."""
    return next((c.got for c in verdict.clauses if c.metric == metric), None)


def figures(evidence: Evidence) -> list[tuple[str, str]]:
    """Return the shipped model's figures that the target does not name: (name, value)."""
    row, verdict = shipped(evidence), evidence.verdict
    if row is None:
        return []
    named = {clause.metric for clause in verdict.clauses} if verdict else set()
    values = {"p50": row.p50_ms, "p95": row.p95_ms, "size": row.size_bytes,
              "params": row.params, "macs": row.macs}  # fmt: skip
    return [
        (NAMES.get(m, m), show(m, value))
        for m, value in values.items()
        if m not in named and value is not None
    ]


def most_accurate(evidence: Evidence) -> Candidate | None:
    """Return the row of a comparison that the others are measured against."""
    measured = (row for row in evidence.rows if row.front is not None and row.accuracy)
    return next((row for row in measured if row.against_best is None), None)


def compared(evidence: Evidence) -> list[str]:
    """Say what a comparison showed: what is as accurate as the best, the front, what failed."""
    rows = [row for row in evidence.rows if row is not most_accurate(evidence)]
    alike = [row.name for row in rows if row.against_best and (row.against_best.high or 0) >= 0]
    worse = [row.name for row in rows if row.against_best and row.name not in alike]
    said = {
        "No difference in accuracy is shown for": alike, "Less accurate": worse,
        "Not beaten in accuracy, p95 and size at once": [r.name for r in evidence.rows if r.front],
        "Not measured": [row.name for row in rows if not row.accuracy],
    }  # fmt: skip
    return [f"{words}: {', '.join(names)}." for words, names in said.items() if names]


def spent(evidence: Evidence) -> list[tuple[str, float]]:
    """Return the seconds a comparison took and might take: (name, seconds)."""
    named = {"took": "seconds", "budget": "budget", "each training at most": "share_seconds"}
    found = {name: evidence.facts.get(key) for name, key in named.items()}
    return [(name, float(value)) for name, value in found.items()
            if isinstance(value, int | float) and not isinstance(value, bool)]  # fmt: skip


def split_sizes(data: dict[str, Any]) -> dict[str, int]:
    """Return the number of samples per split."""
    return {split: sum(by_class.values()) for split, by_class in counts(data).items()}


def counts(data: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return the samples per split and class of data.json; what is no count is left out."""
    found = data.get("counts")
    if not isinstance(found, dict):
        return {}
    return {split: {name: n for name, n in by_class.items() if type(n) is int}
            for split, by_class in found.items() if isinstance(by_class, dict)}  # fmt: skip


def class_counts(data: dict[str, Any]) -> tuple[list[str], list[tuple[str, int, list[int]]]]:
    """Return the splits and, per class, (name, all samples, samples per split), largest first."""
    found = counts(data)
    names = list(dict.fromkeys(name for by_class in found.values() for name in by_class))
    numbers = {name: [by_class.get(name, 0) for by_class in found.values()] for name in names}
    rows = [(name, sum(numbers[name]), numbers[name]) for name in names]
    return list(found), sorted(rows, key=lambda row: -row[1])


def original_sizes(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the pictures measured before they were resized: (side, words)."""
    found = data.get("sizes")
    sides = found.items() if isinstance(found, dict) else []
    return [(str(side), f"{brief(numbers)} pixels") for side, numbers in sides]


def listed(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the pictures set aside under `key`, each with id and reason."""
    found = data.get(key)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def again(evidence: Evidence) -> list[tuple[str, str]]:
    """Return the commands that make this run again: (what, command)."""
    found = []
    called = evidence.environment.get("command")
    if isinstance(called, list) and called and str(called[0]).startswith(("trimtab", "__main__")):
        found.append(("as it was called", shlex.join(["trimtab", *(str(a) for a in called[1:])])))
    command = rebuilt(evidence)
    if command:
        found.append(("from inside this folder, every choice written out", shlex.join(command)))
    return found


def rebuilt(evidence: Evidence) -> list[str]:
    """Return the command line of a fit, training or comparison from its files."""
    facts, verdict = evidence.facts, evidence.verdict
    data = str(evidence.data.get("source") or "DATA")
    seed = [] if facts.get("seed") is None else ["--seed", str(facts["seed"])]
    end = [*seed, "--recipe", "recipe.yaml", "--out", "../again"]
    if evidence.kind == "train":
        return ["trimtab", "train", data, *end]
    if evidence.kind == "compare":
        return rebuilt_comparison(facts, data, end)
    if evidence.kind != "fit" or verdict is None:
        return []
    budget = [] if verdict.budget_seconds is None else ["--budget", f"{verdict.budget_seconds:g}s"]
    return ["trimtab", "fit", data, "--target", verdict.target, *budget, *end]


def rebuilt_comparison(facts: dict[str, Any], data: str, end: Sequence[str]) -> list[str]:
    """Return the command line of a comparison; none where a model was a module of Python."""
    models = [str(name) for name in facts.get("models") or []]
    if not models or any(name.startswith("custom:") for name in models):
        return []
    budget = [] if facts.get("budget") is None else ["--budget", f"{facts['budget']}s"]
    seeds = ["--seeds", str(facts.get("seeds", 1))]
    return ["trimtab", "compare", data, "--models", ",".join(models), *budget, *seeds, *end]


def ledger_cells(row: dict[str, Any]) -> tuple[list[Any], str]:
    """Return the cells of LEDGER_COLUMNS and the rest of a ledger row as text."""
    rest = {key: value for key, value in row.items() if key not in LEDGER_COLUMNS}
    more = ", ".join(f"{key} {brief(value)}" for key, value in rest.items() if value is not None)
    return [row.get(key) for key in LEDGER_COLUMNS[:-1]], more


def predicting(evidence: Evidence) -> list[str]:
    """Return the commands that label a picture, from inside the folder."""
    place = "" if evidence.kind == "artifact" else "artifact/"
    return [f"python {place}predict.py picture.png", "trimtab predict . picture.png"]


def brief(value: Any) -> str:
    """Write a JSON value in one line: lists by commas, numbers short."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {brief(item)}" for key, item in value.items())
    if isinstance(value, list):
        rest = f" and {len(value) - MOST_LISTED:,} more" if len(value) > MOST_LISTED else ""
        return ", ".join(brief(item) for item in value[:MOST_LISTED]) + rest
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
