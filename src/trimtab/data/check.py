"""The verb `check`: what the data hold, and what is wrong with them, before any training."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.data.dataset import Dataset, open_dataset
from trimtab.data.entries import count_of, shown
from trimtab.records.finding import Finding
from trimtab.records.recipe import Recipe, as_recipe
from trimtab.records.schema import Schema

SHOWN_CLASSES = 30
WIDEST_NAME = 40
MARKS = {"info": " ", "warning": "!", "error": "x"}


@dataclass(frozen=True)
class DataReport:
    """What `check` saw: counts per split and class, sizes, and findings."""

    name: str
    schema: Schema
    counts: dict[str, dict[str, int]]
    sizes: dict[str, dict[str, float]]
    quarantined: tuple[dict[str, str], ...]
    left_out: tuple[dict[str, str], ...]
    findings: tuple[Finding, ...]
    fingerprint: str

    @property
    def total(self) -> int:
        """Samples in all splits together."""
        return sum(sum(by_class.values()) for by_class in self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "name": self.name, "samples": self.total, "fingerprint": self.fingerprint,
            "schema": self.schema.model_dump(mode="json"), "counts": self.counts,
            "sizes": self.sizes, "quarantined": list(self.quarantined),
            "left_out": list(self.left_out), "findings": [f.model_dump() for f in self.findings],
        }  # fmt: skip

    def __str__(self) -> str:
        schema = self.schema
        kind = "grey" if schema.channels == 1 else "colour"
        total = count_of(self.total, "picture")
        lines = [f"{self.name}: {total} of {len(schema.classes)} classes, "
                 f"read as {kind} {schema.width}x{schema.height}"]  # fmt: skip
        if self.sizes:
            sides = " and ".join(span(name, found) for name, found in self.sizes.items())
            lines.append(f"originals: {sides} pixels")
        lines += ["", *count_lines(self.counts), "", *finding_lines(self.findings)]
        return "\n".join(lines)


def check(source: Any, recipe: Recipe | str | Path | None = None, *, seed: int = 0) -> DataReport:
    """Look at data without training: counts, sizes, unreadable files, duplicates, lost classes.

    `source` is what `train` takes. Raises DataError for data that cannot be trained on.
    """
    return report_on(open_dataset(source, as_recipe(recipe), seed=seed))


def report_on(dataset: Dataset) -> DataReport:
    """Return the report on opened data."""
    return DataReport(
        name=shown(Path(dataset.source).name) if dataset.source else "data",
        schema=dataset.schema, counts=dataset.counts, sizes=dataset.sizes,
        quarantined=dataset.quarantined, left_out=dataset.left_out,
        findings=dataset.findings, fingerprint=dataset.fingerprint,
    )  # fmt: skip


def span(name: str, found: dict[str, float]) -> str:
    """Return `width 32 to 640 (median 500)`."""
    if found["min"] == found["max"]:
        return f"{name} {found['min']:g}"
    return f"{name} {found['min']:g} to {found['max']:g} (median {found['median']:g})"


def count_lines(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return a table of counts: one line per class, one column per split."""
    classes = list(counts["train"])
    names = [fitted(name) for name in classes[:SHOWN_CLASSES]]
    wide = max(columns(name) for name in [*names, "all classes"])
    lines = [" " * wide + "".join(f"{split:>9}" for split in counts)]
    for label, name in zip(classes, names, strict=False):
        cells = "".join(f"{by_class[label]:>9,}" for by_class in counts.values())
        lines.append(name + " " * (wide - columns(name)) + cells)
    if len(classes) > len(names):
        lines.append(f"... and {len(classes) - len(names):,} more")
    totals = "".join(f"{sum(by_class.values()):>9,}" for by_class in counts.values())
    return [*lines, "all classes" + " " * (wide - len("all classes")) + totals]


def fitted(name: str) -> str:
    """Cut a class name that would break the table."""
    return name if len(name) <= WIDEST_NAME else name[: WIDEST_NAME - 1] + "…"


def columns(text: str) -> int:
    """Return how many terminal columns `text` takes: Chinese and emoji take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def finding_lines(findings: tuple[Finding, ...]) -> list[str]:
    """Return the findings, one or two lines each."""
    if not findings:
        return ["nothing to complain about"]
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.severity]} {finding.name}: {finding.message}")
        if finding.remedy:
            lines.append(f"    {finding.remedy}")
    return lines
