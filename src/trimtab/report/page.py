"""Draws the report: one offline HTML page from what the folders hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment

from trimtab.errors import UsageError
from trimtab.records.files import make_folder, write_text
from trimtab.records.target import METRICS, show
from trimtab.report import story
from trimtab.report.curves import charts, curve_marks, curve_sheet
from trimtab.report.gather import TABLED, gather
from trimtab.report.parts import Candidate, Clause, Curve, Evidence
from trimtab.report.pictures import confusion_picture
from trimtab.report.scatter import latency_metric, scatter, size_key
from trimtab.report.standalone import environment

MOST_CURVES = 16
SCATTER_SIZES = {
    "on-wide": (1000.0, 460.0),
    "on-middle": (700.0, 440.0),
    "on-narrow": (400.0, 420.0),
}


def report(*runs: Any, out: str | os.PathLike[str] | None = None) -> Path:
    """Draw one HTML page of `runs` (Run, Artifact or their folders) and return its path.

    One run gets `report.html` in its folder; several, or an artifact alone, get it in the current
    folder; `out` names another file, or a folder to put it in. With an `out` that ends in `.svg`
    the training curves alone are drawn, as a picture for other documents. Raises UsageError where
    a folder is no run and where there are no curves to draw, MachineError where the page cannot be
    written.
    """
    if not runs:
        raise UsageError("report needs at least one run", "give a run folder")
    evidence = [gather(run) for run in runs]
    path = destination(runs, evidence, out)
    content = render_curves(evidence) if path.suffix.lower() == ".svg" else render(evidence)
    make_folder(path.parent)
    write_text(path, content)
    return path


def destination(
    runs: Sequence[Any], evidence: Sequence[Evidence], out: str | os.PathLike[str] | None
) -> Path:
    """Return where the page goes."""
    if out is not None:
        path = Path(out)
        return path / "report.html" if path.is_dir() or not path.suffix else path
    if len(runs) == 1 and evidence[0].kind != "artifact":
        return Path(getattr(runs[0], "path", runs[0])) / "report.html"
    return Path("report.html")


def render(evidence: Sequence[Evidence]) -> str:
    """Return the page as HTML."""
    evidence = told_apart(evidence)
    rows = [row for each in evidence for row in each.rows]
    clauses = shared_clauses(evidence)
    page = templates().get_template("page.html.j2")
    return page.render(
        title=title_of(evidence), evidence=evidence, several=len(evidence) > 1, rows=rows,
        clauses=clauses, metric=latency_metric(clauses), story=story, show=show_known,
        scatters={name: scatter(rows, clauses, *size) for name, size in SCATTER_SIZES.items()},
        sizes=size_key(rows, clauses), curves=curve_charts(evidence, rows),
        confusion_picture=confusion_picture, forest=forest_of(rows, clauses),
        measured=any(ledger for each in evidence for ledger in each.ledgers.values()),
    )  # fmt: skip


def render_curves(evidence: Sequence[Evidence]) -> str:
    """Return the training curves as an SVG file; raises UsageError where none were logged."""
    evidence = told_apart(evidence)
    curves = ordered_curves(evidence, [row for each in evidence for row in each.rows])
    if not curves:
        raise UsageError("no whole epoch was logged in the metrics.jsonl of any of these runs",
                         "give the run folder of a training")  # fmt: skip
    return curve_sheet(curves[:MOST_CURVES], left_out=len(curves[MOST_CURVES:]))


def told_apart(evidence: Sequence[Evidence]) -> list[Evidence]:
    """Put the run's name in front of its candidates where several runs share a table."""
    if len(evidence) == 1:
        return list(evidence)
    return [prefixed(each) if each.kind in TABLED else each for each in evidence]


def prefixed(each: Evidence) -> Evidence:
    """Put the run's name in front of the names of its candidates and curves."""
    rows = [row.model_copy(update={"name": f"{each.name}/{row.name}",
                                   "parent": row.parent and f"{each.name}/{row.parent}"})
            for row in each.rows]  # fmt: skip
    curves = [replace(curve, name=f"{each.name}/{curve.name}") for curve in each.curves]
    return replace(each, rows=rows, curves=curves)


def shared_clauses(evidence: Sequence[Evidence]) -> tuple[Clause, ...]:
    """Return the clauses to draw: those of the verdicts where all had the same target."""
    verdicts = [each.verdict for each in evidence if each.verdict]
    same = len({verdict.target for verdict in verdicts}) == 1
    return verdicts[0].clauses if same else ()


@cache
def templates() -> Environment:
    """Return the template environment with the page's filters."""
    found = environment()
    found.filters.update(FILTERS)
    return found


def title_of(evidence: Sequence[Evidence]) -> str:
    """Return the page's title."""
    if len(evidence) > 1:
        return f"{len(evidence)} runs side by side"
    return str(evidence[0].facts.get("label") or evidence[0].name)


def show_known(metric: str, value: float | None) -> str:
    """Show a value with its unit; a metric trimtab does not know is a plain number."""
    if value is None:
        return "–"
    return show(metric, value) if metric in METRICS else f"{value:.4g}"


def curve_charts(evidence: Sequence[Evidence], rows: Sequence[Candidate]) -> dict[str, Any]:
    """Draw loss, accuracy and learning rate of all trainings, those that ship first."""
    curves = ordered_curves(evidence, rows)
    drawn = curves[:MOST_CURVES]
    return {"names": [c.name for c in drawn], "pictures": charts(drawn),
            "marks": curve_marks(drawn), "left_out": len(curves) - len(drawn)}  # fmt: skip


def ordered_curves(evidence: Sequence[Evidence], rows: Sequence[Candidate]) -> list[Curve]:
    """Return the trainings that logged something, those that ship first."""
    first = ancestry(rows)
    curves = [c for each in evidence for c in each.curves if c.loss or c.accuracy or c.rate]
    return sorted(curves, key=lambda curve: curve.name not in first)


def ancestry(rows: Sequence[Candidate]) -> set[str]:
    """Return the names of the candidate that ships and of those it was made from."""
    by_name = {row.name: row for row in rows}
    found: set[str] = set()
    row = next((row for row in rows if row.chosen), None)
    while row is not None and row.name not in found:
        found.add(row.name)
        row = by_name.get(row.parent or "")
    return found


@dataclass(frozen=True)
class Forest:
    """Places the accuracies of all rows on one scale, in CSS percent of a cell's width."""

    low: float
    high: float
    wanted: float | None

    def place(self, value: float | None) -> str:
        """Return the position of an accuracy."""
        share = ((self.low if value is None else value) - self.low) / (self.high - self.low or 1.0)
        return f"{4 + 92 * share:.1f}%"


def forest_of(rows: Sequence[Candidate], clauses: Sequence[Clause]) -> Forest:
    """Return a scale that holds all accuracies, their intervals and what the target wants."""
    wanted = next((clause.wanted for clause in clauses if clause.metric == "accuracy"), None)
    measured = [row.accuracy for row in rows if row.accuracy]
    found = [wanted, *(v for a in measured for v in (a.low, a.high, a.value))]
    values = [value for value in found if value is not None]
    return Forest(min(values, default=0.0), max(values, default=1.0), wanted)


def fraction(value: float | None, digits: int = 1) -> str:
    """Show a fraction in percent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def seconds(value: float | None) -> str:
    """Show a duration as people say it."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def exact(value: Any) -> str:
    """Show any ledger value without losing digits that matter."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


FILTERS = {"fraction": fraction, "seconds": seconds, "exact": exact}
