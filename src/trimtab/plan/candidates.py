"""A candidate: a run with its artifact and everything measured on it, judged against its parent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimtab.data.dataset import Dataset
from trimtab.errors import TrimtabError
from trimtab.export.bundle import Artifact, export
from trimtab.export.onnx import open_onnx
from trimtab.export.parity import parity
from trimtab.measure.latency import Latency, Ratio, compare_latency, measure_latency
from trimtab.measure.quality import Call, Scores, logits_of, score
from trimtab.measure.stats import paired_difference
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.records.target import Target, show

LATENCY_SECONDS = 1.5
COMPARE_SECONDS = 3.0
SMALLER = 0.98


@dataclass
class Candidate:
    """One exported model, measured on valid and on this machine."""

    name: str
    steps: tuple[str, ...]
    run: Run
    artifact: Artifact
    scores: Scores
    latency: Latency
    parent: Candidate | None = None
    speedup: Ratio | None = None
    flips: float | None = None
    kept: bool = True
    why: str = ""
    chosen: bool = False

    @property
    def got(self) -> dict[str, float | None]:
        """What the target's clauses ask for."""
        return {"accuracy": self.scores.accuracy, "f1": self.scores.f1,
                "p50": self.latency.p50_ms, "p95": self.latency.p95_ms, "p99": self.latency.p99_ms,
                "size": self.artifact.size_bytes, "params": self.fact("params"),
                "macs": self.fact("macs")}  # fmt: skip

    def fact(self, what: str) -> float:
        """Return a number the run or an ancestor wrote down."""
        run: Run | None = self.run
        while run is not None:
            row = run.measured(what)
            if row is not None:
                return float(row["value"])
            run = run.parent
        return float("nan")

    def row(self) -> dict[str, Any]:
        """Return this candidate as a row of table.json."""
        return {
            "name": self.name, "steps": list(self.steps), "accuracy": self.scores.to_dict(),
            "f1": self.scores.f1, "p50_ms": self.latency.p50_ms, "p95_ms": self.latency.p95_ms,
            "p99_ms": self.latency.p99_ms, "size_bytes": self.artifact.size_bytes,
            "params": int(self.fact("params")), "macs": int(self.fact("macs")),
            "kept": self.kept, "why": self.why, "chosen": self.chosen, "trained": True,
            "parent": self.parent.name if self.parent else None, "threads": self.latency.threads,
            "speedup": self.speedup.to_dict() if self.speedup else None,
            "flip_fraction": self.flips,
        }  # fmt: skip


def assess(
    run: Run, name: str, steps: tuple[str, ...], *, dataset: Dataset, threads: int,
    parent: Candidate | None = None,
) -> Candidate:  # fmt: skip
    """Export `run`, score the file on valid, time it, and compare it with its parent's file.

    The parent's file and this one are timed in turns. Raises ExportError where the file does not
    agree with the run.
    """
    artifact = export(run, data=dataset, threads=threads)
    call = open_onnx(artifact.model, threads=threads)
    scores = score_file(call, dataset)
    once = caller(call, dataset)
    latency = measure_latency(once, seconds=LATENCY_SECONDS, threads=threads)
    speedup, flips = None, None
    if parent is not None:
        parent_call = open_onnx(parent.artifact.model, threads=threads)
        speedup = compare_latency(caller(parent_call, dataset), once, seconds=COMPARE_SECONDS)
        flips = parity(parent.scores.logits, scores.logits).flip_fraction
    made = Candidate(name, steps, run, artifact, scores, latency, parent, speedup, flips)
    write_down(made)
    return made


def score_file(call: Call, dataset: Dataset) -> Scores:
    """Score an opened file on valid."""
    valid = dataset.splits["valid"]
    return score(logits_of(call, valid), valid.targets, split="valid")


def caller(call: Call, dataset: Dataset) -> Callable[[], object]:
    """Return a function that decides one real picture."""
    pixels = dataset.splits["valid"].inputs[:1].copy()
    return lambda: call(pixels)


def write_down(made: Candidate) -> None:
    """Put everything measured on the artifact into its run's ledger."""
    run, scores, latency, speedup = made.run, made.scores, made.latency, made.speedup
    write_scores(run, scores, made.artifact)
    run.record("latency", latency.p50_ms, "ms", **latency.to_dict())
    if speedup is not None:
        run.record("speedup_over_parent", speedup.value, low=speedup.low, high=speedup.high,
                   n=speedup.n)  # fmt: skip
        run.record("flips_against_parent", made.flips, "fraction", n=scores.n, split=scores.split)


def write_scores(run: Run, scores: Scores, artifact: Artifact) -> None:
    """Put what the exported file reached, and its size, into the run's ledger."""
    run.record("artifact_accuracy", scores.accuracy, low=scores.low, high=scores.high, n=scores.n,
               split=scores.split)  # fmt: skip
    run.record("artifact_f1", scores.f1, n=scores.n, split=scores.split)
    run.record("artifact_size", artifact.size_bytes, "B")


def gate(child: Candidate, target: Target, recipe: Recipe) -> None:
    """Keep an edit only where it pays: smaller or faster, within the accuracy it may cost.

    Where the target names a latency and no size, a smaller file that is surely slower pays nothing.
    """
    parent, ratio = child.parent, child.speedup
    assert parent is not None
    assert ratio is not None
    smaller = child.artifact.size_bytes < SMALLER * parent.artifact.size_bytes
    pays = ratio.low > 1 or (smaller and not (wants_speed_only(target) and ratio.high < 1))
    change, low, high = paired_difference(parent.scores.correct, child.scores.correct)
    allowed = allowance(parent, target, recipe)
    size = parent.artifact.size_bytes / child.artifact.size_bytes
    facts = (f"{size:.1f}x smaller, {ratio.value:.2f}x speed ({ratio.low:.2f}-{ratio.high:.2f}), "
             f"{100 * change:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})")  # fmt: skip
    child.kept = pays and -change <= allowed
    if not pays:
        child.why = f"does not pay: {facts}"
    elif not child.kept:
        child.why = f"costs too much, {100 * allowed:.1f} points allowed: {facts}"
    else:
        child.why = facts
    child.run.record("gate", child.kept, why=child.why, parent=parent.name)


def wants_speed_only(target: Target) -> bool:
    """Return whether a target names a latency and no size."""
    named = {clause.metric for clause in target.clauses}
    return bool(named & {"p50", "p95", "p99"}) and not named & {"size", "params"}


def allowance(parent: Candidate, target: Target, recipe: Recipe) -> float:
    """Return the accuracy an edit may cost: the recipe's, or what the target leaves if more."""
    wanted = target.wanted("accuracy")
    spare = parent.scores.accuracy - wanted if wanted is not None else 0.0
    return max(recipe.compress.allowed_drop, spare)


def missing(candidate: Candidate, target: Target) -> str:
    """Say the clauses `candidate` misses on valid, or nothing."""
    rows = [row for row in target.judge(candidate.got) if not row["met"]]
    return ", ".join(f"{r['metric']} {show(r['metric'], r['got'])} (wanted {r['op']} "
                     f"{show(r['metric'], r['wanted'])})" for r in rows)  # fmt: skip


def failed_row(
    name: str, steps: tuple[str, ...], parent: Candidate | None, error: TrimtabError
) -> dict[str, Any]:
    """Return the table row of a training or edit that could not be made or proven."""
    return {
        "name": name, "steps": list(steps), "accuracy": None, "f1": None, "p50_ms": None,
        "p95_ms": None, "p99_ms": None, "size_bytes": None, "params": None, "macs": None,
        "kept": False, "why": error.message, "chosen": False, "trained": True,
        "parent": parent.name if parent else None, "threads": None, "speedup": None,
        "flip_fraction": None,
    }  # fmt: skip
